"""Statistics over the seeds of a cell: pure functions of short lists of numbers, one entry per seed.

A seed that diverged has no score and is given as None. It is worse than every finished seed and it counts:
it takes part in medians and ranks as the worst possible value.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Of n seeds, `finished` have a score. A number that is infinite stands for "diverged"."""

    median: float
    low: float
    high: float
    n: int
    finished: int


def worst(higher_is_better: bool = True) -> float:
    """The value that a diverged seed counts as: below (or above, for an error rate) every finished one."""
    return -math.inf if higher_is_better else math.inf


def median(values: Sequence[float]) -> float:
    """The middle of n sorted values; the mean of the two middle ones where n is even.

    ValueError: no values, or a NaN. An infinite middle value makes the median infinite.
    """
    if not values:
        raise ValueError("the median of no values is undefined.")
    if any(math.isnan(value) for value in values):
        raise ValueError("the median of values with a NaN is undefined; give a diverged seed as None.")
    ordered = sorted(values)
    half = len(ordered) // 2
    if len(ordered) % 2:
        return float(ordered[half])
    return (ordered[half - 1] + ordered[half]) / 2


def summarise(values: Sequence[float | None], higher_is_better: bool = True) -> Summary:
    """Median, lowest and highest of n seeds, None for a diverged one. ValueError: no values, or a NaN."""
    filled = [worst(higher_is_better) if value is None else float(value) for value in values]
    return Summary(
        median=median(filled),
        low=min(filled),
        high=max(filled),
        n=len(filled),
        finished=sum(value is not None for value in values),
    )


def median_coverage(n: int) -> float:
    """Probability, 0..1, that [min, max] of n independent draws covers the median of their distribution.

    1 - 2 * (1/2)^n for any continuous one: it fails only if all n fall on one side. n = 5 gives 0.9375.
    """
    if n < 1:
        raise ValueError(f"an interval needs at least one value, not {n}.")
    return 1.0 - 2.0 * 0.5**n


def standard_error(accuracy: float, n: int) -> float:
    """Binomial standard error sqrt(p (1 - p) / n) of an accuracy p measured on n rows; both lie in 0..1.

    The noise of the rows, not of the seeds. ValueError: p outside 0..1, or n < 1.
    """
    if not 0.0 <= accuracy <= 1.0:
        raise ValueError(f"an accuracy lies in 0..1, not at {accuracy}.")
    if n < 1:
        raise ValueError(f"an accuracy needs at least one row, not {n}.")
    return math.sqrt(accuracy * (1.0 - accuracy) / n)


def ranking(values: Sequence[float | None], higher_is_better: bool = True) -> list[float]:
    """Rank of each of n values: 1 = best, equal ones share the mean of their ranks, None (diverged) last."""
    filled = [worst(higher_is_better) if value is None else float(value) for value in values]
    if any(math.isnan(value) for value in filled):
        raise ValueError("values with a NaN have no ranking; give a diverged seed as None.")
    ranks = []
    for value in filled:
        better = sum(other > value if higher_is_better else other < value for other in filled)
        equal = sum(other == value for other in filled)
        ranks.append(better + (equal + 1) / 2)
    return ranks
