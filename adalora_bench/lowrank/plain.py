"""Any update of a layer as a plain LoRA, dW = B' A' with neither gate nor scale: the form that every export writes.

All functions are pure.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from adalora_bench.lowrank.adapter import Factors, LowRankLinear

Pair = tuple[Tensor, Tensor]
"""A' (r, in) and B' (out, r)."""


def update_of(layer: LowRankLinear) -> Factors:
    """dW of the layer as b^T diag(gate) a: its scale and its out_gate are folded into b."""
    factors = layer.factors()
    b = layer.scale * factors.b
    return Factors(factors.a, b if layer.out_gate is None else b * layer.out_gate, factors.gate)


@torch.no_grad()
def plain_lora(update: Factors) -> Pair:
    """A' and B' with B' A' = b^T diag(gate) a. Ranks whose gate is exactly 0 (dead ones) are left out."""
    alive = update.gate != 0
    a, b, gate = update.a[alive], update.b[alive], update.gate[alive]
    return a.contiguous(), (b * gate[:, None]).T.contiguous()


@torch.no_grad()
def fuse_slices(slices: Sequence[Pair | None], widths: Sequence[int]) -> Pair:
    """LoRAs of layers that read one input, as one LoRA of the layer that has their outputs side by side.

    Args:
        slices: one pair for each layer in the order of the outputs; None where a layer has no update.
        widths: outputs of each layer.

    Returns:
        A' with the ranks of all of them, (r1 + r2 + ..., in), and B' (out1 + out2 + ..., r1 + r2 + ...) with the B' of
        each in the rows of its layer and the columns of its ranks: exact, no sum is formed.

    Raises:
        ValueError: no layer has an update.
    """
    pairs = [pair for pair in slices if pair is not None]
    if not pairs:
        raise ValueError("none of the layers has an update")
    ups = [
        pairs[0][1].new_zeros(width, 0) if pair is None else pair[1]
        for pair, width in zip(slices, widths, strict=True)
    ]
    return torch.cat([a for a, _ in pairs]), torch.block_diag(*ups)
