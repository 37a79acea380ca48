"""What the searched baselines (Learned-Adapter, SPT, SSP) share. Our reading: their sources are not at hand.

Every candidate has a gate 2 sigmoid(a) with a = 0 at the start, which trains with the rest on the training loss. After
`search` steps the candidates with the largest gates stay, the others leave for good, and the gates train no more.
What was kept is in `run.scratch`, so that a resumed run has the same structure.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adalora_bench.errors import PromiseBroken, UserError
from adalora_bench.methods.base import Facts, Method, require_positive
from adalora_bench.schedule import Phase
from adalora_bench.store.schema import OURS

if TYPE_CHECKING:
    from torch import nn

    from adalora_bench.methods.run import Group, Run

KEPT = "kept"
"""In `run.scratch` once the search is over: indices of the candidates that stayed."""


@dataclass(frozen=True, kw_only=True)
class Searched(Method):
    """A search phase, then a fixed structure.

    Args:
        search: length of the search phase.
        gate_lr: peak learning rate of the gates and other choices; they have no weight decay.
    """

    search: Phase
    gate_lr: float

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive("method.gate_lr", self.gate_lr)

    def precheck(self, facts: Facts) -> None:
        super().precheck(facts)
        steps = facts.steps("method.search", self.search)
        if not 1 <= steps < facts.total_steps:
            raise UserError(
                f"method.search={self.search} is {steps} of {facts.total_steps} steps; leave at least one step for "
                "the search and one for what it finds."
            )
        if facts.modules == 0:
            raise UserError(
                f"method.targets={self.targets} names no layer of this backbone: nothing to choose from."
            )

    # -- what a searched method says ------------------------------------------------------------------------

    @abstractmethod
    def names(self, run: Run) -> list[str]:
        """The candidates, for the log."""

    @abstractmethod
    def choices(self, run: Run) -> list[nn.Parameter]:
        """Gates and whatever else trains in the search phase only."""

    @abstractmethod
    def best(self, run: Run) -> list[int]:
        """Indices of the candidates to keep, ascending; at least one."""

    @abstractmethod
    def harden(self, run: Run, kept: Sequence[int]) -> None:
        """Take the others out of the computation and fix what was chosen; called once."""

    def settle(self, run: Run) -> None:
        """Put a resumed model where the search had led it; called before every later step."""

    # -- hooks ----------------------------------------------------------------------------------------------

    def param_groups(self, run: Run) -> list[Group]:
        """The choices in a group of their own, without weight decay."""
        from adalora_bench.methods.run import Group

        adapter, head = super().param_groups(run)
        choices = self.choices(run)
        mine = {id(p) for p in choices}
        adapter.params = [p for p in adapter.params if id(p) not in mine]
        gates = Group(
            params=choices, lr=self.gate_lr, weight_decay=0.0, warmup=run.settings.warmup, name="gate"
        )
        return [adapter, gates, head]

    def before_forward(self, run: Run) -> None:
        if KEPT in run.scratch:
            self.settle(run)

    def after_step(self, run: Run) -> None:
        if KEPT not in run.scratch and run.step + 1 >= run.steps("method.search", self.search):
            kept = self.best(run)
            names = self.names(run)
            run.event("stage", "search", len(names), len(kept))
            self.harden(run, kept)
            run.scratch[KEPT] = kept

    def notes(self, run: Run) -> list[str]:
        return [
            f"{OURS} is our reading of the idea; its source was not at hand, and no published row is comparable"
        ]

    def check(self, run: Run) -> None:
        if not run.scratch.get(KEPT):
            raise PromiseBroken("the search phase ended with nothing kept")


def top(scores: Sequence[float], count: int) -> list[int]:
    """Indices of the `count` largest scores, ascending; a tie goes to the lower index."""
    order = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
    return sorted(order[:count])


def share_of(name: str, value: Phase, candidates: int) -> int:
    """A count, or a share ("25%", rounded up), of some candidates.

    Raises:
        UserError: it is neither, or not in 1..candidates.
    """
    from adalora_bench.schedule import phase_steps

    if isinstance(value, str) and not value.strip().endswith("%"):
        raise UserError(f"{name}={value!r} must be a count (8) or a share (25%).")
    count = phase_steps(name, value, total_steps=candidates, steps_per_epoch=candidates)
    if not 1 <= count <= candidates:
        raise UserError(
            f"{name}={value} is {count} of {candidates} candidates; keep at least one and at most all."
        )
    return count
