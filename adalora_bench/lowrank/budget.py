"""What an adapter costs: parameters that train, count and are stored, and their average over training."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import nn

from adalora_bench.lowrank.adapter import LowRankLinear


@dataclass(frozen=True)
class RankEvent:
    """One change of structure. `before` and `after` are ranks of the module, or counts for other kinds."""

    step: int
    kind: str  # "grow", "prune", "mask", "freeze", "stage", "base_moves"
    module: str
    before: int
    after: int

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def total_rank(adapters: Mapping[str, LowRankLinear]) -> int:
    """Sum of the ranks that count."""
    return sum(adapter.rank for adapter in adapters.values())


def trainable(parameters: Iterable[nn.Parameter]) -> int:
    """Numbers that receive a gradient."""
    return sum(p.numel() for p in parameters if p.requires_grad)


def stored(parameters: Iterable[nn.Parameter]) -> int:
    """Numbers that these parameters keep. What several of them view counts once (VeRA's shared factors)."""
    sizes: dict[int, int] = {}  # identity of the storage, on the meta device too -> the largest view of it
    for p in parameters:
        storage = p.untyped_storage()._cdata
        sizes[storage] = max(sizes.get(storage, 0), p.numel())
    return sum(sizes.values())


@dataclass
class Budget:
    """Counts over time. `observe` is called once per step, after the method's last word."""

    trace: list[list[int]] = field(default_factory=list)  # [step, total rank], at changes only
    trainable_trace: list[list[int]] = field(default_factory=list)  # [step, parameters that train], alike
    nonzero: list[list[int]] = field(
        default_factory=list
    )  # [step, ranks, numbers that they hold], see `observe_gates`
    steps: int = 0
    trainable_sum: int = 0  # over steps; divided by `steps` it is the average number of trainable parameters

    def observe(self, step: int, ranks: int, trainable_now: int) -> None:
        if not self.trace or self.trace[-1][1] != ranks:
            self.trace.append([step, ranks])
        if not self.trainable_trace or self.trainable_trace[-1][1] != trainable_now:
            self.trainable_trace.append([step, trainable_now])
        self.steps += 1
        self.trainable_sum += trainable_now

    def observe_gates(self, step: int, adapters: Mapping[str, LowRankLinear]) -> None:
        """Count the ranks whose gate is not 0, and the numbers of A, B and gate that these hold (SoRA, Figure 2).

        For methods that drive gates to 0 and let them come back: such ranks count in `trace` until the end.
        """
        ranks = numbers = 0
        for adapter in adapters.values():
            here = int(adapter.factors().gate.count_nonzero())
            ranks += here
            numbers += here * (adapter.in_features + adapter.out_features + 1)
        self.nonzero.append([step, ranks, numbers])

    @property
    def average_trainable(self) -> float:
        return self.trainable_sum / self.steps if self.steps else 0.0
