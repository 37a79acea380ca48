"""How often each interval of the reports covers what it is about, by simulation: a Markdown table.

python scripts/coverage_of_intervals.py [SIMULATIONS]      (default 4000; the bootstraps take a tenth of them)

Seeds come from four kinds of distribution with known median and mean: normal; skewed (a few bad seeds); heavy tails
(Student, 3 degrees); accuracy (a share of 277 rows, as on RTE, so that seeds tie). An interval that says 95 % and
covers in fewer cases says too much.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from adalora_bench.report.comparison import (
    Interval,
    difference_interval,
    interquartile_mean,
    paired_bootstrap,
    stratified_bootstrap,
    t_interval,
)
from adalora_bench.report.statistics import median_coverage, standard_error, summarise

Draw = Callable[[np.random.Generator, tuple[int, ...]], NDArray[np.float64]]
ROWS = 277
KINDS: dict[str, Draw] = {
    "normal": lambda g, shape: 80 + g.normal(size=shape),
    "skewed": lambda g, shape: 80 - g.lognormal(0.0, 1.0, size=shape),
    "heavy tails": lambda g, shape: 80 + g.standard_t(3, size=shape),
    "accuracy": lambda g, shape: 100 * g.binomial(ROWS, 0.8, size=shape) / ROWS,
}
TASKS = 8
BOOTSTRAP_DRAWS = 1000


def truth(draw: Draw, statistic: Callable[[NDArray[np.float64]], float]) -> float:
    """A statistic of the distribution itself, from a million draws."""
    return statistic(draw(np.random.default_rng(1), (1_000_000,)))


def share(covered: list[bool]) -> str:
    return f"{100 * np.mean(covered):.1f}"


def inside(interval: Interval, value: float) -> bool:
    return interval.low <= value <= interval.high


def of_median(draw: Draw, n: int, simulations: int) -> str:
    """[min, max] of n seeds, as in every cell of a table."""
    middle, generator = truth(draw, lambda x: float(np.median(x))), np.random.default_rng(2)
    summaries = (summarise(list(draw(generator, (n,)))) for _ in range(simulations))
    return share([one.low <= middle <= one.high for one in summaries])


def of_difference(draw: Draw, n: int, simulations: int) -> str:
    """[min, max] of paired differences of two rows from one distribution: covers 0."""
    generator = np.random.default_rng(3)
    pairs = (draw(generator, (2, n)) for _ in range(simulations))
    return share([inside(difference_interval(list(a - b)), 0.0) for a, b in pairs])


def of_mean(draw: Draw, n: int, simulations: int) -> str:
    """Student's interval of the mean."""
    middle, generator = truth(draw, lambda x: float(np.mean(x))), np.random.default_rng(4)
    return share([inside(t_interval(list(draw(generator, (n,)))), middle) for _ in range(simulations)])


def of_tasks(draw: Draw, n: int, simulations: int) -> str:
    """Stratified bootstrap of the interquartile mean over tasks, which differ in their level by 10 points each."""
    levels, generator = 10.0 * np.arange(TASKS), np.random.default_rng(5)
    many = draw(np.random.default_rng(6), (50_000, n, TASKS)) + levels
    # what a table of n seeds estimates: the statistic itself is a little biased, so its own expectation is covered
    middle = float(np.mean(interquartile_mean(many)))
    intervals = (
        stratified_bootstrap(
            [draw(generator, (n, TASKS)) + levels], interquartile_mean, draws=BOOTSTRAP_DRAWS
        )
        for _ in range(simulations)
    )
    return share([inside(one, middle) for one in intervals])


def of_rows(rows: int, simulations: int) -> str:
    """Paired bootstrap over the rows of two models that are right on 80 % and 78 % of them, together on 70 %."""
    generator = np.random.default_rng(7)
    found = []
    for _ in range(simulations):
        kind = generator.choice(4, size=rows, p=[0.70, 0.10, 0.08, 0.12])
        a, b = (kind <= 1).astype(float), ((kind == 0) | (kind == 2)).astype(float)
        found.append(inside(paired_bootstrap(list(a), list(b), draws=BOOTSTRAP_DRAWS), 0.02))
    return share(found)


def of_accuracy(rows: int, simulations: int) -> str:
    """Accuracy -+ 1.96 binomial standard errors."""
    generator = np.random.default_rng(8)
    accuracies = generator.binomial(rows, 0.8, size=simulations) / rows
    return share([abs(p - 0.8) <= 1.96 * standard_error(float(p), rows) for p in accuracies])


def main() -> None:
    simulations = int(sys.argv[1]) if len(sys.argv) > 1 else 4000
    few = max(1, simulations // 10)
    print(f"| interval | n | says | {' | '.join(KINDS)} |\n|---|---|---|{'---|' * len(KINDS)}")
    for n in (3, 5, 10):
        says = f"{100 * median_coverage(n):.2f}"
        for name, of in (
            ("[min, max] of the seeds, for the median", of_median),
            ("[min, max] of paired differences", of_difference),
        ):
            cells = [of(draw, n, simulations) for draw in KINDS.values()]
            print(f"| {name} | {n} | {says} | {' | '.join(cells)} |")
        cells = [of_mean(draw, n, simulations) for draw in KINDS.values()]
        print(f"| Student's, for the mean | {n} | 95 | {' | '.join(cells)} |")
        cells = [of_tasks(draw, n, few) for draw in KINDS.values()]
        print(f"| bootstrap of the interquartile mean, {TASKS} tasks | {n} | 95 | {' | '.join(cells)} |")
    print("\n| interval | rows | says | covers |\n|---|---|---|---|")
    for rows in (ROWS, 1500):
        print(f"| paired bootstrap over rows | {rows} | 95 | {of_rows(rows, few)} |")
        print(f"| accuracy -+ 1.96 SE | {rows} | 95 | {of_accuracy(rows, simulations)} |")


if __name__ == "__main__":
    main()
