"""LoRA (Hu et al., 2021, arXiv 2106.09685): dW = (alpha / r) B A with A random and B zero."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adalora_bench.errors import PromiseBroken, UserError, unknown
from adalora_bench.methods.base import (
    ROLES,
    Method,
    require_at_least_one,
    require_below_one,
    require_positive,
)

if TYPE_CHECKING:
    from torch import nn

    from adalora_bench.methods.run import Run


@dataclass(frozen=True, kw_only=True)
class Lora(Method):
    """dW = s B^T A, s = alpha / rank of the layer (alpha / sqrt(rank) with `rslora`), section 4.1 of the paper.

    A ~ U(-1/sqrt(in), 1/sqrt(in)) (Kaiming-uniform with a = sqrt 5, as loralib and peft), B = 0.
    """

    rank: int
    rank_pattern: dict[str, int] | None  # role -> rank, where it is not `rank`
    alpha: float
    dropout: float
    rslora: bool

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least_one("method.rank", self.rank)
        for role, rank in (self.rank_pattern or {}).items():
            if role not in ROLES:
                raise UserError(unknown("role in method.rank_pattern", role, ROLES))
            if "all" not in self.targets and role not in self.targets:
                raise UserError(
                    f"method.rank_pattern names {role}, which method.targets={self.targets} does not adapt."
                )
            require_at_least_one(f"method.rank_pattern.{role}", rank)
        require_positive("method.alpha", self.alpha)
        require_below_one("method.dropout", self.dropout)

    def rank_of(self, role: str) -> int:
        return (self.rank_pattern or {}).get(role, self.rank)

    def adapt(self, base: nn.Module, role: str, run: Run) -> nn.Module:
        from adalora_bench.lowrank.adapter import LowRankLinear, RankBlock

        rank = self.rank_of(role)
        scale = self.alpha / (math.sqrt(rank) if self.rslora else rank)
        layer = LowRankLinear(base, scale=scale, role=role, dropout=self.dropout)
        weight = layer.weight
        layer.append(
            RankBlock(
                a=run.uniform(rank, layer.in_features, bound=1 / math.sqrt(layer.in_features), like=weight),
                b=weight.new_zeros(rank, layer.out_features),
                gate=weight.new_ones(rank),
            )
        )
        return layer

    def check(self, run: Run) -> None:
        expected = sum(self.rank_of(layer.role) for layer in run.adapters.values())
        if run.total_rank != expected:
            raise PromiseBroken(f"LoRA ended with {run.total_rank} ranks instead of {expected}")
        if not any(bool(adapter.delta().any()) for adapter in run.adapters.values()):
            raise PromiseBroken("no LoRA update moved away from 0")
