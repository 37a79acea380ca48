"""A net of linear layers, a run on it and the hand loop that drives any method: the hooks stand as in train/loop.py."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from adalora_bench.lowrank.adapter import LowRankLinear, RankBlock
from adalora_bench.methods.base import Method
from adalora_bench.train.loop import begin
from adalora_bench.train.state import OptimizerSettings, Run


class Net(nn.Module):
    """Linear layers of the given widths with tanh in between, and a head that is not adapted; float64."""

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(7)
            self.layers = nn.ModuleList(nn.Linear(n, m) for n, m in pairwise(widths))
            self.head = nn.Linear(widths[-1], 1)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return self.head(x)


class Small:
    """A begun run with six rows of data."""

    def __init__(
        self,
        method: Method,
        widths: Sequence[int] = (4, 5, 3),
        *,
        total: int = 20,
        seed: int = 0,
        weight_decay: float = 0.01,
        net: nn.Module | None = None,
    ) -> None:
        self.method = method
        model = Net(widths) if net is None else net
        self.run = Run(
            model,
            {name: "q" for name, m in model.named_modules() if isinstance(m, nn.Linear) and name != "head"},
            total_steps=total,
            steps_per_epoch=total,
            settings=OptimizerSettings(weight_decay=weight_decay, schedule="constant"),
            generator=torch.Generator().manual_seed(seed),
            head=list(model.head.parameters()),
        )
        begin(method, self.run)
        self.x = torch.randn(6, widths[0], generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        self.y = self.x.sum(1, keepdim=True).sin()

    @property
    def layers(self) -> list[LowRankLinear]:
        return list(self.run.adapters.values())

    @property
    def blocks(self) -> list[RankBlock]:
        return [block for layer in self.layers for block in layer.rank_blocks()]

    def loss(self, rows: slice = slice(None)) -> Tensor:
        return (self.run.model(self.x[rows]) - self.y[rows]).square().sum() / len(self.x)

    def backward(self, pieces: Sequence[slice] = (slice(0, 2), slice(2, 6))) -> None:
        """The step up to and with after_backward."""
        assert self.run.optimizer is not None
        self.run.optimizer.zero_grad()
        self.method.before_forward(self.run)
        for rows in pieces:
            self.loss(rows).backward()
        penalty = self.method.penalty(self.run)
        if penalty is not None:
            penalty.backward()
        self.method.after_backward(self.run)

    def step(self) -> None:
        run = self.run
        self.backward()
        run.clip(1.0)
        run.set_learning_rates()
        assert run.optimizer is not None
        run.optimizer.step()
        self.method.after_step(run)
        run.observe()
        run.advance()

    def to_the_end(self, watch: Callable[[], Any] = lambda: None) -> Small:
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
