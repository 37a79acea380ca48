"""VeRA (Kopiczko et al., 2023, arXiv 2310.11454), submitted as ELoRA: only two vectors per layer train.

dW = diag(b) B diag(d) A with A and B random, frozen and shared by all layers, each of which takes the part of its own
size. d is the gate of the layer and b its out_gate; there is no scale. Initial values and slicing follow peft.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adalora_bench.errors import PromiseBroken, UserError
from adalora_bench.methods.base import Method, require_at_least_one, require_below_one, require_positive

if TYPE_CHECKING:
    from torch import Tensor, nn

    from adalora_bench.methods.run import Run


@dataclass(frozen=True, kw_only=True)
class Vera(Method):
    """See conf/method/vera.yaml for what each setting means and where its default comes from."""

    rank: int
    d_init: float
    projection_seed: int
    dropout: float

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least_one("method.rank", self.rank)
        require_positive("method.d_init", self.d_init)
        if not 0 <= self.projection_seed < 2**63:
            raise UserError(f"method.projection_seed={self.projection_seed} must lie in [0, 2^63).")
        require_below_one("method.dropout", self.dropout)

    def projections(self, in_features: int, out_features: int) -> tuple[Tensor, Tensor]:
        """A (rank, in) and B (rank, out), float32 on the CPU: the same numbers in every run and under every seed.

        Kaiming-uniform with gain sqrt 2 by fan_in: the bound is sqrt(6 / in) for A and, since B is drawn as
        (out, rank), sqrt(6 / rank) for B. A is drawn first.
        """
        import torch

        generator = torch.Generator().manual_seed(self.projection_seed)
        shapes = ((self.rank, in_features), (out_features, self.rank))
        a, b = (
            torch.empty(shape, dtype=torch.float32).uniform_(
                -math.sqrt(6 / shape[1]), math.sqrt(6 / shape[1]), generator=generator
            )
            for shape in shapes
        )
        return a, b.T.contiguous()

    def attach(self, run: Run) -> None:
        """Wrap the layers, then give each its view of A[:, :in] and B[:, :out], made for the largest of them."""
        from torch import nn

        from adalora_bench.lowrank.adapter import RankBlock

        super().attach(run)
        layers = list(run.adapters.values())
        if not layers:
            return
        like = layers[0].weight
        a, b = self.projections(max(x.in_features for x in layers), max(x.out_features for x in layers))
        a, b = (x.to(device=like.device, dtype=like.dtype) for x in (a, b))
        for layer in layers:
            gate = like.new_full((self.rank,), self.d_init)
            block = RankBlock(a[:, : layer.in_features], b[:, : layer.out_features], gate, train_gate=True)
            layer.append_shared(block)
            layer.out_gate = nn.Parameter(like.new_zeros(layer.out_features))

    def adapt(self, base: nn.Module, role: str, run: Run) -> nn.Module:
        from adalora_bench.lowrank.adapter import LowRankLinear

        return LowRankLinear(base, scale=1.0, role=role, dropout=self.dropout)

    def check(self, run: Run) -> None:
        import torch

        expected = self.rank * len(run.adapters)
        if run.total_rank != expected:
            raise PromiseBroken(f"VeRA ended with {run.total_rank} ranks instead of {expected}")
        for layer in run.adapters.values():
            (block,) = layer.rank_blocks()
            assert layer.shared is not None
            if not all(
                torch.equal(x, y.to(x)) for x, y in zip((block.a, block.b), layer.shared, strict=True)
            ):
                raise PromiseBroken("VeRA's shared projections moved")
        if not any(bool(layer.delta().any()) for layer in run.adapters.values()):
            raise PromiseBroken("no VeRA update moved away from 0")
