"""Rank allocation as pure functions on plain numbers: who grows, who is pruned. Ties go to the lower index."""

from __future__ import annotations

from collections.abc import Collection, Sequence
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

    An exact fraction, so that floor(r * n) does not hang on rounding. With an empty window (t_i >= T - t_f) it
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
