"""Statistics that compare two rows of a table: pure functions of seeds, of (seeds x tasks) arrays and of predictions.

Scores are of the kind "higher is better". Every random draw comes from a fixed generator: a table that is made again
does not change.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product

import numpy as np
from numpy.typing import NDArray

DRAWS = 10_000
GENERATOR = 20_111  # of every bootstrap
_EQUAL = (
    1e-12  # statistics of a permutation test that differ by less are the same number, rounded differently
)

Scores = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Interval:
    """An estimate with the interval around it."""

    value: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0


def mean_sd(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation of the seeds (divisor n - 1). ValueError: fewer than two values."""
    if len(values) < 2:
        raise ValueError(f"a standard deviation needs two values, not {len(values)}.")
    return float(np.mean(values)), float(np.std(values, ddof=1))


def t_interval(values: Sequence[float], level: float = 0.95) -> Interval:
    """Student's interval of the mean: mean -+ t * sd / sqrt n. ValueError: fewer than two values."""
    from scipy.stats import t

    mean, sd = mean_sd(values)
    half = float(t.ppf(0.5 + level / 2, len(values) - 1)) * sd / math.sqrt(len(values))
    return Interval(value=mean, low=mean - half, high=mean + half)


def paired_differences(a: Mapping[int, float | None], b: Mapping[int, float | None]) -> dict[int, float]:
    """seed -> a - b, for the seeds that both have and both finished (None is a diverged seed)."""
    pairs = ((seed, a[seed], b[seed]) for seed in sorted(a.keys() & b.keys()))
    return {seed: x - y for seed, x, y in pairs if x is not None and y is not None}


def difference_interval(differences: Sequence[float]) -> Interval:
    """Median of the paired differences with [min, max], which covers it in 1 - 2 * (1/2)^n of all cases.

    ValueError: no differences.
    """
    if not differences:
        raise ValueError("no seed is in both rows.")
    return Interval(value=float(np.median(differences)), low=min(differences), high=max(differences))


def sign_flip_test(differences: Sequence[float]) -> float:
    """Exact two-sided p of "the paired differences are symmetric around 0": all 2^n signs, statistic |sum|."""
    if not differences:
        raise ValueError("no seed is in both rows.")
    seen = abs(sum(differences)) - _EQUAL
    signs = product((1, -1), repeat=len(differences))
    sums = [abs(sum(s * d for s, d in zip(sign, differences, strict=True))) for sign in signs]
    return sum(value >= seen for value in sums) / len(sums)


def permutation_test(a: Sequence[float], b: Sequence[float]) -> float:
    """Exact two-sided p of "both rows come from one distribution": all splits, statistic |mean - mean|."""
    if not a or not b:
        raise ValueError("a permutation test needs values on both sides.")
    values, n = [*a, *b], len(a)
    total = sum(values)

    def gap(chosen: Sequence[int]) -> float:
        part = sum(values[i] for i in chosen)
        return abs(part / n - (total - part) / (len(values) - n))

    seen = gap(range(n)) - _EQUAL
    gaps = [gap(chosen) for chosen in combinations(range(len(values)), n)]
    return sum(value >= seen for value in gaps) / len(gaps)


def interquartile_mean(scores: Scores) -> Scores:
    """Mean of the middle half of all entries of (..., seeds, tasks), entries at the edges counted in part; (...)."""
    ordered = np.sort(scores.reshape(*scores.shape[:-2], -1), axis=-1)
    n = ordered.shape[-1]
    if n == 0 or np.isnan(ordered).any():
        raise ValueError("an interquartile mean needs scores, and no NaN.")
    edges = np.arange(n + 1) / n
    weight = np.clip(np.minimum(edges[1:], 0.75) - np.maximum(edges[:-1], 0.25), 0.0, None)
    mean: Scores = (ordered * weight).sum(axis=-1) / weight.sum()
    return mean


def stratified_bootstrap(
    arrays: Sequence[Scores], statistic: Callable[..., Scores], *, level: float = 0.95, draws: int = DRAWS
) -> Interval:
    """Percentile interval of a statistic of (seeds x tasks) arrays: seeds are drawn anew inside each task.

    Args:
        arrays: one or more arrays, all with the same tasks as columns; rows are seeds.
        statistic: takes as many arrays, with draws as a first axis or without one: (..., seeds, tasks) -> (...).
    """
    generator = np.random.Generator(np.random.PCG64(GENERATOR))
    drawn = []
    for scores in arrays:
        rows = generator.integers(0, scores.shape[0], size=(draws, *scores.shape))
        drawn.append(np.take_along_axis(scores[None], rows, axis=1))
    low, high = np.quantile(statistic(*drawn), [0.5 - level / 2, 0.5 + level / 2])
    return Interval(value=float(statistic(*arrays)), low=float(low), high=float(high))


def probability_of_improvement(a: Scores, b: Scores) -> Scores:
    """P(a run of `a` beats one of `b`), ties counted half, mean over tasks; (..., seeds, tasks) twice -> (...)."""
    if a.shape[-1] != b.shape[-1]:
        raise ValueError(f"the rows have {a.shape[-1]} and {b.shape[-1]} tasks.")
    one, other = a[..., :, None, :], b[..., None, :, :]
    share: Scores = ((one > other) + (one == other) / 2).mean(axis=(-3, -2, -1))
    return share


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p values, in the order given: the family's error rate holds for all of them together."""
    order = sorted(range(len(p_values)), key=lambda k: p_values[k])
    adjusted = [0.0] * len(p_values)
    highest = 0.0
    for place, k in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - place) * p_values[k]))
        adjusted[k] = highest
    return adjusted


def paired_bootstrap(
    a: Sequence[float], b: Sequence[float], *, level: float = 0.95, draws: int = DRAWS
) -> Interval:
    """Mean of a - b over the same n rows (such as 1 for a right answer), rows drawn anew: the noise of the test set.

    ValueError: no rows, or unequal lengths.
    """
    if not a or len(a) != len(b):
        raise ValueError(f"a paired bootstrap needs the same rows on both sides, not {len(a)} and {len(b)}.")
    difference = np.asarray(a, dtype=float) - np.asarray(b, dtype=float)
    generator = np.random.Generator(np.random.PCG64(GENERATOR))
    means = np.array(
        [
            difference[generator.integers(0, difference.size, size=difference.size)].mean()
            for _ in range(draws)  # one by one: all at once would hold draws x rows numbers
        ]
    )
    low, high = np.quantile(means, [0.5 - level / 2, 0.5 + level / 2])
    return Interval(value=float(difference.mean()), low=float(low), high=float(high))
