"""GPT-2 keeps q, k and v in one matrix: taken apart when the backbone is loaded, put together again for export.

A role is a matrix of its own everywhere else, and so it is here: `attn.c_attn` (a transformers Conv1D, weight
(in, 3 * out)) becomes a small module with the layers `q`, `k` and `v`, which a method wraps as any other layer.
Imports torch and transformers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

COLUMNS = ("q", "k", "v")
"""What lies side by side in GPT-2's c_attn, in this order."""


class SplitProjection(nn.Module):
    """A fused Conv1D as several layers of equal width that read the same input.

    Args:
        fused: weight (in, n * out), bias (n * out,).
        names: of the n layers, in the order of their columns.
    """

    def __init__(self, fused: Conv1D, names: Sequence[str]) -> None:
        super().__init__()
        rows, columns = fused.weight.shape
        if columns % len(names):
            raise ValueError(f"{columns} columns do not split into {len(names)} layers")
        self.names = tuple(names)
        width = columns // len(names)
        for i, name in enumerate(names):
            part = _empty(rows, width, like=fused)
            with torch.no_grad():
                part.weight.copy_(fused.weight[:, i * width : (i + 1) * width])
                part.bias.copy_(fused.bias[i * width : (i + 1) * width])
            self.add_module(name, part)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., n * out), as the fused layer."""
        return torch.cat([self.get_submodule(name)(x) for name in self.names], dim=-1)

    def fuse(self) -> Conv1D:
        """One Conv1D with the numbers of the layers; adapters must be merged into them before."""
        parts = []
        for name in self.names:
            part = self.get_submodule(name)
            if not isinstance(part, Conv1D):
                raise ValueError(f"{name} is a {type(part).__name__}; merge it before the layers are fused")
            parts.append(part)
        weight = torch.cat([part.weight for part in parts], dim=1)
        fused = _empty(*weight.shape, like=parts[0])
        with torch.no_grad():
            fused.weight.copy_(weight)
            fused.bias.copy_(torch.cat([part.bias for part in parts]))
        return fused


def split(model: nn.Module, names: Sequence[str]) -> None:
    """Take apart, in place, every fused layer below which `names` name layers that are not there.

    Args:
        names: module names such as `h.0.attn.c_attn.q`, in any order (the settings in a record are sorted by name).

    Raises:
        ValueError: the layers that are named below a fused one are not `COLUMNS`.
    """
    owners: dict[str, list[str]] = {}
    for name in names:
        owner, _, child = name.rpartition(".")
        owners.setdefault(owner, []).append(child)
    for owner, children in owners.items():
        layer = model.get_submodule(owner)
        if isinstance(layer, Conv1D):
            if sorted(children) != sorted(COLUMNS):
                raise ValueError(f"{owner} holds {', '.join(COLUMNS)}, not {', '.join(children)}")
            _replace(model, owner, SplitProjection(layer, COLUMNS))


def fuse(model: nn.Module) -> None:
    """The inverse of `split`, in place: an ordinary transformers model again."""
    for name, module in list(model.named_modules()):
        if isinstance(module, SplitProjection):
            _replace(model, name, module.fuse())


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


def _empty(rows: int, columns: int, *, like: Conv1D) -> Conv1D:
    """A Conv1D without numbers; nothing is drawn from the global generator."""
    weight = like.weight
    with torch.device("meta"):
        layer = Conv1D(columns, rows)
    layer.to_empty(device=weight.device)
    return layer.to(weight.dtype).requires_grad_(weight.requires_grad)
