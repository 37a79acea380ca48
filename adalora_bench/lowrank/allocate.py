"""Rank allocation as pure functions on plain numbers: who grows, who is pruned. Ties go to the lower index."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from fractions import Fraction


def grow_top(scores: Sequence[float], *, modules: int, ranks: int, remaining: int) -> dict[int, int]:
    """IncreLoRA, Algorithm 1: the `modules` best-scored modules gain `ranks` each, never past `remaining`.

    Args:
        scores: one per module.
        modules: h, the number of modules that may grow in one event.
        ranks: ranks per grown module.
        remaining: ranks left until the final total; the last module takes only what is left.

    Returns:
        module index -> ranks gained, best module first.
    """
    order = sorted(range(len(scores)), key=lambda k: (-scores[k], k))
    gained: dict[int, int] = {}
    for k in order[:modules]:
        if remaining <= 0:
            break
        gained[k] = min(ranks, remaining)
        remaining -= gained[k]
    return gained


def cubic_budget(step: int, *, first: int, last: int, warmup: int, end: int) -> int:
    """b(t), ranks over all modules, AdaLoRA, appendix A: `first` until `warmup`, `last` from `end` on, cubic between.

    Args:
        step: t, 0-based.
        first: total rank at the start.
        last: total rank at the end, at most `first`.
        warmup: t_i.
        end: T - t_f, above `warmup`. (The paper's formula counts t_f twice; the authors' code is this one.)
    """
    if step <= warmup:
        return first
    if step >= end:
        return last
    return int(last + (first - last) * (1 - (step - warmup) / (end - warmup)) ** 3)


def keep_best(scores: Sequence[float], budget: int) -> list[bool]:
    """AdaLoRA Eq. 6: the `budget` best scores stay, exactly that many; a tie goes to the lower index."""
    order = sorted(range(len(scores)), key=lambda k: (-scores[k], k))
    kept = set(order[:budget])
    return [k in kept for k in range(len(scores))]


def freezing_fraction(step: int, *, total: int, start: int, tail: int) -> Fraction:
    """r(t), AFLoRA Eq. 5: 0 before `start` (t_i), 1 - (1 - (t - t_i) / (T - t_i - t_f))^3 in between, 1 in the `tail`.

    An exact fraction, so that floor(r * n) does not depend on rounding. With an empty window (t_i >= T - t_f) it
    jumps from 0 to 1 at t_i.
    """
    if step < start:
        return Fraction(0)
    if step >= total - tail:
        return Fraction(1)
    return 1 - (1 - Fraction(step - start, total - start - tail)) ** 3


def freeze_lowest(scores: Sequence[float], *, frozen: Collection[int], count: int) -> list[int]:
    """AFLoRA: who joins `frozen` so that `count` are frozen in all: the lowest scores of the others, lowest first.

    Scores of frozen ones are not looked at. What is frozen stays so, even if it is more than `count`.
    """
    others = [k for k in range(len(scores)) if k not in frozen]
    return sorted(others, key=lambda k: (scores[k], k))[: max(0, count - len(frozen))]


def on_grid(score: float, grid: float) -> float:
    """The multiple of `grid` next to a score, to compare by: scores on the same multiple are ties.

    Differences of about 1e-6 between losses in float32 mean nothing. "Closer than 1e-6 is a tie" is no order, for it is
    not transitive; sharing a multiple is. With grid 0 the score itself counts; infinity stays what it is.
    """
    return score if grid == 0 or math.isinf(score) else round(score / grid)


def prune_lowest(scores: Sequence[Sequence[float]], count: int, *, grid: float) -> list[list[int]]:
    """ALoRA, step 4: the `count` lowest scores of all modules.

    Args:
        scores: of each module, one per active rank; infinity is pruned last.
        count: n_A; all ranks go if there are fewer.
        grid: see `on_grid`; ties are pruned in the order of (module, rank).

    Returns:
        of each module the pruned ranks, rising.
    """
    ranks = [(on_grid(score, grid), m, r) for m, row in enumerate(scores) for r, score in enumerate(row)]
    pruned: list[list[int]] = [[] for _ in scores]
    for _, m, r in sorted(ranks)[:count]:
        pruned[m].append(r)
    return [sorted(row) for row in pruned]


def share_evenly(count: int, means: Mapping[int, float], *, grid: float) -> dict[int, int]:
    """ALoRA, footnote 3: `count` ranks as evenly as possible, the remainder to the modules of higher mean score.

    Args:
        count: ranks to give.
        means: module index -> mean score, of the modules that may grow.
        grid: see `on_grid`; a tie goes to the lower index.

    Returns:
        module index -> ranks gained, where that is not 0; empty where no module may grow (footnote 4).
    """
    order = sorted(means, key=lambda m: (-on_grid(means[m], grid), m))
    each, rest = divmod(count, len(order)) if order else (0, 0)
    gained = {m: each + (place < rest) for place, m in enumerate(order)}
    return {m: ranks for m, ranks in sorted(gained.items()) if ranks}
