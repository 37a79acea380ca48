"""IncreLoRA as its authors' code has it (FeiyuZhang98/IncreLoRA@51a2d734af78, loralib/loralib/increlora.py).

The paper's method is increlora.py; here is what the code does otherwise when modules grow, one option for each. The
rest (normaliser of the score, scale, norm of the regulariser, ranks per growth) are settings of IncreLora itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adalora_bench.errors import PromiseBroken, UserError, unknown
from adalora_bench.methods.increlora import IncreLora

if TYPE_CHECKING:
    from adalora_bench.methods.run import Run


@dataclass(frozen=True, kw_only=True)
class IncreLoraAuthors(IncreLora):
    """See conf/method/increlora_authors.yaml for what each setting means."""

    selection: str
    overshoot: bool
    keep_reserves: bool

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.selection not in ("top", "threshold"):
            raise UserError(unknown("value of method.selection", self.selection, ("top", "threshold")))

    def check(self, run: Run) -> None:
        """With `overshoot`, the event that met the target is the last one; else as the paper's method."""
        if not self.overshoot:
            super().check(run)
            return
        wanted, total = self.target_rank * len(run.adapters), run.total_rank
        growths = [event for event in run.events if event.kind == "grow"]
        last = sum(e.after - e.before for e in growths if e.step == growths[-1].step) if growths else 0
        if self.target_rank > 1 and not total - last < wanted <= total:
            raise PromiseBroken(
                f"IncreLoRA ended with {total} ranks, {last} of them from the last growth, with a target of {wanted}"
            )

    # -- parts ----------------------------------------------------------------------------------------------

    def _choose(self, scores: list[float], run: Run) -> dict[int, int]:
        return grow_as_authors(
            scores,
            modules=run.scratch["top_h"],
            ranks=self.ranks_per_growth,
            remaining=self._remaining(run),
            ties=self.selection == "threshold",
            overshoot=self.overshoot,
        )

    def _reserves_stay(self) -> bool:
        return self.keep_reserves

    def _end_reserves(self, run: Run) -> None:
        """Their lambda counts as 0, but A and B go on learning for the regulariser.

        The code asks for `total == target`: after an overshoot the lambdas keep their tiny value.
        """
        import torch

        if not self.keep_reserves:
            super()._end_reserves(run)
            return
        if self._remaining(run) < 0:
            return
        for layer in run.adapters.values():
            for block in layer.rank_blocks():
                if block.reserve:
                    block.kill(torch.ones_like(block.alive))

    def finalize(self, run: Run) -> None:
        """Reserves leave the model after the last step; what they added is 1e-5 of a rank, or nothing."""
        super().finalize(run)
        super()._end_reserves(run)


def grow_as_authors(
    scores: Sequence[float], *, modules: int, ranks: int, remaining: int, ties: bool, overshoot: bool
) -> dict[int, int]:
    """Who grows in one event, as `increase_to_target_rank`.

    k = min(modules, remaining), which takes a count of ranks for one of modules: with more than one rank per module,
    the last event can go beyond the target.

    Args:
        scores: one per module.
        modules: h.
        ranks: ranks per grown module.
        remaining: ranks left until the target, at least 1.
        ties: every module whose score is not below the k-th largest grows, which may be more than k.
        overshoot: each of them gains `ranks`; else no more than what is left, best module first.

    Returns:
        module index -> ranks gained, best module first.
    """
    order = sorted(range(len(scores)), key=lambda k: (-scores[k], k))
    count = min(modules, remaining, len(scores))
    if ties:
        count = sum(score >= scores[order[count - 1]] for score in scores)
    gained: dict[int, int] = {}
    for k in order[:count]:
        gain = ranks if overshoot else min(ranks, remaining)
        if gain > 0:
            gained[k] = gain
            remaining -= gain
    return gained
