"""The bottleneck adapter, f(h) = scale * U act(D h), and the two places where it can stand.

AfterLinear:   y = base(x) + f(base(x))       behind a sublayer's last linear layer, before the residual sum
Parallel:      y = base(x) + f(x0)            x0 is the input of the feed-forward network, base its last layer
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class Bottleneck(nn.Module):
    """D (bottleneck, width), U (width, bottleneck), both with a bias that starts at 0.

    Args:
        activation: as `activate` takes it.
        scale: of the output.
        down, up: initial weights, (m, width) and (width, m).
    """

    def __init__(self, *, activation: str, scale: float, down: Tensor, up: Tensor) -> None:
        super().__init__()
        self.down = nn.Parameter(down)
        self.down_bias = nn.Parameter(down.new_zeros(down.shape[0]))
        self.up = nn.Parameter(up)
        self.up_bias = nn.Parameter(up.new_zeros(up.shape[0]))
        self.activation = activation
        self.scale = scale

    def forward(self, h: Tensor) -> Tensor:
        """(..., width) -> (..., width)."""
        inner = activate(self.activation, nn.functional.linear(h, self.down, self.down_bias))
        return nn.functional.linear(inner, self.up, self.up_bias) * self.scale


def activate(name: str, x: Tensor) -> Tensor:
    """relu, gelu, silu (swish) or tanh."""
    if name == "tanh":
        return torch.tanh(x)
    result: Tensor = getattr(nn.functional, name)(x)
    return result


class AfterLinear(nn.Module):
    """A frozen linear layer with an adapter on its output; while it is not `enabled`, the layer itself."""

    def __init__(self, base: nn.Module, adapter: nn.Module) -> None:
        super().__init__()
        self.base = base
        self.adapter = adapter
        self.enabled = True

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        h: Tensor = self.base(x)
        return h + self.adapter(h) if self.enabled else h


class RemembersInput(nn.Module):
    """The first layer of a feed-forward network; its input is read by a `Parallel` later in the same pass."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base
        self.seen: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        self.seen = x
        y: Tensor = self.base(x)
        return y


class Parallel(nn.Module):
    """The last layer of a feed-forward network with an adapter beside the whole network."""

    def __init__(self, base: nn.Module, adapter: nn.Module, first: RemembersInput) -> None:
        super().__init__()
        self.base = base
        self.adapter = adapter
        self.__dict__["first"] = first  # a neighbour, not a child: it stands elsewhere in the model

    def forward(self, x: Tensor) -> Tensor:
        """(..., inner) -> (..., out)."""
        first: RemembersInput = self.__dict__["first"]
        assert first.seen is not None, "the feed-forward network's first layer did not run"
        before, first.seen = first.seen, None
        y: Tensor = self.base(x)
        return y + self.adapter(before)


def width_of(layer: nn.Module, *, out: bool) -> int:
    """Output (or input) width of an nn.Linear (out, in) or a transformers Conv1D (in, out)."""
    weight: Tensor = layer.weight  # type: ignore[assignment]
    if not weight.is_floating_point():  # packed (four_bit.py): its shape says nothing
        return int(layer.out_features if out else layer.in_features)  # type: ignore[arg-type]
    rows, columns = weight.shape
    return int(rows if out == isinstance(layer, nn.Linear) else columns)


def example_of(layer: nn.Module) -> Tensor:
    """An empty tensor on the device and of the type that a layer computes with: float32 where its weight is packed."""
    weight: Tensor = layer.weight  # type: ignore[assignment]
    return weight.detach().new_empty(0, dtype=weight.dtype if weight.is_floating_point() else torch.float32)


def blocks_of(modules: Mapping[str, str]) -> dict[str, int]:
    """Layer name -> number of its transformer block: a block ends with its `down`, in the model's order."""
    block, of = 0, {}
    for name, role in modules.items():
        of[name] = block
        block += role == "down"
    return of


def replace_module(model: nn.Module, name: str, new: nn.Module) -> None:
    """Put `new` where the model has the layer `name`."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, new)
