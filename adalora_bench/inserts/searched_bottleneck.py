"""A bottleneck that has not decided on its activation yet, nor on whether it is wanted at all.

    f(h) = gate * (U sum_k softmax(w)_k act_k(D h + bias) + bias2)        gate = 2 sigmoid(a)

Hardened: the activation with the largest w alone, and the gate as a part of U.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from adalora_bench.inserts.bottleneck import Bottleneck, activate
from adalora_bench.lowrank.scores import relaxed_gate


class SearchedBottleneck(Bottleneck):
    """See the module.

    Args:
        activations: the candidates.
        down, up: initial weights, (m, width) and (width, m).
    """

    def __init__(self, *, activations: Sequence[str], down: Tensor, up: Tensor) -> None:
        super().__init__(activation="", scale=1.0, down=down, up=up)
        self.activations = tuple(activations)
        self.position = nn.Parameter(down.new_zeros(()))  # a
        self.mixture = nn.Parameter(down.new_zeros(len(self.activations)))  # w

    def forward(self, h: Tensor) -> Tensor:
        """(..., width) -> (..., width)."""
        if self.activation:
            return super().forward(h)
        inner = nn.functional.linear(h, self.down, self.down_bias)
        shares = torch.softmax(self.mixture, dim=0)
        mixed = sum(
            (share * activate(name, inner) for share, name in zip(shares, self.activations, strict=True)),
            start=torch.zeros((), dtype=inner.dtype, device=inner.device),
        )
        return relaxed_gate(self.position) * nn.functional.linear(mixed, self.up, self.up_bias)

    @torch.no_grad()
    def fold_gate(self) -> None:
        """The gate becomes a part of U and its bias: without it the outputs are those that were there with it."""
        gate = relaxed_gate(self.position)
        self.up.mul_(gate)
        self.up_bias.mul_(gate)
