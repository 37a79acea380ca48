"""Prompts that a small network makes and one attention reads: P = U tanh(D s + bias) + bias2, keys and values of P.

The seeds s are drawn once and frozen. The attention's own frozen projections turn a prompt into a key and a value, so
a prompt is a token that stands in front of the others in this layer alone. Its scores get log(gate), which weighs it
by the gate inside the softmax: at 0 it is not there.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from adalora_bench.inserts.prefix import Site


class Prompt(nn.Module):
    """The prompt of one attention.

    Args:
        seeds: (length, hidden); saved, not trained.
        down, up: D (m, hidden) and U (hidden, m).
        site: whose projections make keys and values; they stay the model's.
    """

    def __init__(self, *, seeds: Tensor, down: Tensor, up: Tensor, site: Site) -> None:
        super().__init__()
        self.register_buffer("seeds", seeds)
        self.down = nn.Parameter(down)
        self.down_bias = nn.Parameter(down.new_zeros(down.shape[0]))
        self.up = nn.Parameter(up)
        self.up_bias = nn.Parameter(up.new_zeros(up.shape[0]))
        self.position = nn.Parameter(down.new_zeros(()))  # a, gate = 2 sigmoid(a)
        self.enabled = True
        self.gated = True
        self.__dict__["site"] = site  # neighbours, not children

    def tokens(self) -> Tensor:
        """The prompt, (length, hidden)."""
        seeds: Tensor = self.seeds  # type: ignore[assignment]
        inner = torch.tanh(nn.functional.linear(seeds, self.down, self.down_bias))
        return nn.functional.linear(inner, self.up, self.up_bias)

    def forward(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """Keys and values (heads, length, width), and log(gate) while there is a gate."""
        site: Site = self.__dict__["site"]
        prompt = self.tokens()
        keys, values = (
            layer(prompt).unflatten(-1, (site.heads, site.width)).transpose(0, 1)
            for layer in (site.key, site.value)
        )
        bias = math.log(2) + nn.functional.logsigmoid(self.position) if self.gated else None
        return keys, values, bias
