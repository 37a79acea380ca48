"""Adapters when their training is over: how far the weights have turned, and the gates that are left."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from adalora_bench.lowrank.adapter import Factors, LowRankLinear
from adalora_bench.lowrank.function import delta

MANY = 64  # of layers with more ranks than these the gates are not listed (VeRA: 1,024 each)


@torch.no_grad()
def cosine(pretrained: Tensor, trained: Tensor) -> float:
    """Cosine of two weights, each taken as one long vector, in float64; NaN where one of them is 0."""
    one, other = pretrained.double().flatten(), trained.double().flatten()
    lengths = float(one.norm() * other.norm())
    return min(float(one @ other) / lengths, 1.0) if lengths else math.nan


@torch.no_grad()
def cosines(
    adapters: Mapping[str, LowRankLinear], total_update: Callable[[LowRankLinear], Factors]
) -> dict[str, float]:
    """Layer -> cosine of W* = W + dW to W0 (Delta-LoRA, Figure 3); base weights packed in 4 bits are left out.

    Args:
        adapters: layers as training left them; W may have moved.
        total_update: W* - W0 of a layer as factors with scale 1 (`Method.total_update`), so that W0 need not be kept.
    """
    found = {}
    for name, layer in adapters.items():
        if not layer.packed:
            update = total_update(layer)
            trained = layer.weight.double() + layer.delta().double()
            found[name] = cosine(
                trained - delta(update.a, update.b, update.gate, None, 1.0).double(), trained
            )
    return found


@torch.no_grad()
def final_gates(adapters: Mapping[str, LowRankLinear]) -> dict[str, list[float]]:
    """Layer -> its gates, six digits of each. Only layers of at most MANY ranks in which a gate is other than 1."""
    found = {}
    for name, layer in adapters.items():
        gate = layer.factors(reserve=False).gate
        if gate.numel() <= MANY and bool((gate != 1).any()):
            found[name] = [float(f"{value:.6g}") for value in gate.tolist()]
    return found
