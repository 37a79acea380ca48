"""LoRA (Hu et al., 2021, arXiv 2106.09685): dW = (alpha / r) B A with A random and B zero."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adalora_bench.errors import PromiseBroken, UserError
from adalora_bench.methods.base import Method, require_at_least_one, require_positive

if TYPE_CHECKING:
    from torch import nn

    from adalora_bench.train.state import Run


@dataclass(frozen=True, kw_only=True)
class Lora(Method):
    """dW = s B^T A, s = alpha / rank (alpha / sqrt(rank) with `rslora`), section 4.1 of the paper.

    A ~ U(-1/sqrt(in), 1/sqrt(in)) (Kaiming-uniform with a = sqrt 5, as loralib and peft), B = 0.
    """

    rank: int
    alpha: float
    dropout: float
    rslora: bool

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least_one("method.rank", self.rank)
        require_positive("method.alpha", self.alpha)
        if not 0 <= self.dropout < 1:
            raise UserError(f"method.dropout={self.dropout} must lie in [0, 1).")

    def adapt(self, base: nn.Module, role: str, run: Run) -> nn.Module:
        from adalora_bench.lowrank.adapter import LowRankLinear, RankBlock

        scale = self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)
        layer = LowRankLinear(base, scale=scale, role=role, dropout=self.dropout)
        weight = layer.weight
        layer.append(
            RankBlock(
                a=run.uniform(
                    self.rank, layer.in_features, bound=1 / math.sqrt(layer.in_features), like=weight
                ),
                b=weight.new_zeros(self.rank, layer.out_features),
                gate=weight.new_ones(self.rank),
            )
        )
        return layer

    def check(self, run: Run) -> None:
        expected = self.rank * len(run.adapters)
        if run.total_rank != expected:
            raise PromiseBroken(f"LoRA ended with {run.total_rank} ranks instead of {expected}")
        if not any(bool(adapter.delta().any()) for adapter in run.adapters.values()):
            raise PromiseBroken("no LoRA update moved away from 0")
