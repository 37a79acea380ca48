"""A net of linear layers, a run on it and the hand loop that drives any method: the hooks stand as in train/loop.py."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, Self

import torch
from torch import Tensor, nn

from adalora_bench.lowrank.adapter import LowRankLinear, RankBlock
from adalora_bench.methods.base import Method
from adalora_bench.methods.run import OptimizerSettings, Run
from adalora_bench.train.loop import begin

WHOLE = (slice(None),)  # the six rows at once
PIECES = (slice(0, 2), slice(2, 6))  # two micro-batches
Look = Callable[[], Any]  # looks on; what it returns is not used


class Net(nn.Module):
    """Linear layers of the given widths with tanh in between, and a head that is not adapted.

    The layers are called layers.0, layers.1 and so on, or as `names` says; `make` takes (in, out) as nn.Linear does.
    """

    def __init__(
        self,
        widths: Sequence[int],
        names: Sequence[str] = (),
        *,
        make: Callable[[int, int], nn.Module] = nn.Linear,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(7)
            layers = [make(n, m) for n, m in pairwise(widths)]
            head = nn.Linear(widths[-1], 1)
        if names:
            for name, layer in zip(names, layers, strict=True):
                self.add_module(name, layer)
        else:
            self.layers = nn.ModuleList(layers)
        self.head = head
        self.width = widths[0]
        self.names = list(names) or [f"layers.{k}" for k in range(len(layers))]
        self.to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        for name in self.names:
            x = torch.tanh(self.get_submodule(name)(x))
        return self.head(x)


def square(modules: int = 3, width: int = 4, **how: Any) -> Net:
    """A net of `modules` layers of width x width."""
    return Net([width] * (modules + 1), **how)


def data(
    width: int, rows: int = 6, *, seed: int = 1, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor]:
    """x of (rows, width) and y of (rows, 1), the sine of its sum."""
    x = torch.randn(rows, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)
    return x, x.sum(1, keepdim=True).sin()


def begun(
    method: Method,
    net: Net,
    roles: Sequence[str] = (),
    *,
    total: int = 20,
    steps_per_epoch: int | None = None,
    warmup: int = 0,
    weight_decay: float = 0.01,
    schedule: str = "constant",
    seed: int = 0,
    train_head: bool = True,
) -> Run:
    """A run right before its first step; without `roles` every layer is a q."""
    run = Run(
        net,
        dict(zip(net.names, roles or ["q"] * len(net.names), strict=True)),
        total_steps=total,
        steps_per_epoch=steps_per_epoch or total,
        # the references are one AdamW over everything; test_weight_decay has what decay leaves alone
        settings=OptimizerSettings(
            warmup=warmup, weight_decay=weight_decay, decay_biases=True, schedule=schedule
        ),
        generator=torch.Generator().manual_seed(seed),
        head=list(net.head.parameters()) if train_head else [],
    )
    begin(method, run)
    return run


class Small:
    """A begun run with six rows of data; `how` goes to `begun`.

    Attributes:
        losses: the task's loss of every step, over all rows.
        rates: the learning rate of every group in every step.
    """

    def __init__(
        self,
        method: Method,
        widths: Sequence[int] = (4, 5, 3),
        *,
        net: Net | None = None,
        clip: float = 1.0,
        pieces: Sequence[slice] = PIECES,
        **how: Any,
    ) -> None:
        self.method, self.clip, self.pieces = method, clip, pieces
        model = Net(widths) if net is None else net
        self.run = begun(method, model, **how)
        self.x, self.y = data(model.width)
        self.losses: list[float] = []
        self.rates: list[dict[str, float]] = []

    @property
    def layers(self) -> list[LowRankLinear]:
        return list(self.run.adapters.values())

    @property
    def blocks(self) -> list[RankBlock]:
        return [block for layer in self.layers for block in layer.rank_blocks()]

    def group(self, name: str) -> dict[str, Any]:
        assert self.run.optimizer is not None
        (group,) = [g for g in self.run.optimizer.param_groups if g["name"] == name]
        return group

    def loss(self, rows: slice = slice(None)) -> Tensor:
        return (self.run.model(self.x[rows]) - self.y[rows]).square().sum() / len(self.x)

    def backward(self, pieces: Sequence[slice] | None = None, *, seen: Look = lambda: None) -> None:
        """The step up to and with after_backward; `seen` is called when the gradients of the task are there."""
        assert self.run.optimizer is not None
        self.run.optimizer.zero_grad()
        self.method.before_forward(self.run)
        total = 0.0
        for rows in self.pieces if pieces is None else pieces:
            loss = self.loss(rows)
            loss.backward()
            total += float(loss.detach())
        self.losses.append(total)
        seen()
        penalty = self.method.penalty(self.run)
        if penalty is not None:
            penalty.backward()
        self.method.after_backward(self.run)

    def optimize(self, *, before_update: Look = lambda: None) -> None:
        """Clip, set the learning rates and move; `before_update` sees both."""
        run = self.run
        assert run.optimizer is not None
        run.clip(self.clip)
        run.set_learning_rates()
        self.rates.append({group["name"]: group["lr"] for group in run.optimizer.param_groups})
        before_update()
        run.optimizer.step()

    def step(self, *, seen: Look = lambda: None, before_update: Look = lambda: None) -> None:
        self.backward(seen=seen)
        self.optimize(before_update=before_update)
        self.method.after_step(self.run)
        self.run.observe()
        self.run.advance()

    def to_the_end(self, watch: Look = lambda: None) -> Self:
        while self.run.step < self.run.total_steps:
            self.step()
            watch()
        self.method.finalize(self.run)
        return self


@torch.no_grad()
def merged_output(small: Small) -> Tensor:
    """What the model says when every layer is replaced by its merged one."""
    x = small.x
    for layer in small.layers:
        x = torch.tanh(layer.merge()(x))
    return small.run.model.head(x)


def only_block(layer: LowRankLinear) -> RankBlock:
    (block,) = layer.rank_blocks()
    return block


def fill(block: RankBlock, a: list[list[float]], b: list[list[float]], gate: list[float]) -> None:
    block.a.data = torch.tensor(a, dtype=torch.float64)
    block.b.data = torch.tensor(b, dtype=torch.float64)
    block.gate.data = torch.tensor(gate, dtype=torch.float64)


def in_optimizer(run: Run) -> set[int]:
    """The ids of all parameters that the optimizer moves."""
    assert run.optimizer is not None
    return {id(p) for group in run.optimizer.param_groups for p in group["params"]}


def growths(run: Run) -> list[tuple[int, str, int, int]]:
    """(step, module, rank before, rank after) of every growth."""
    return [(e.step, e.module, e.before, e.after) for e in run.events if e.kind == "grow"]
