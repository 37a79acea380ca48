"""The papers' claims (conf/claim) and how our records answer them. Pure: the same records give the same verdicts.

Rows are picked by their fields, as in the papers' tables. Differences are paired by seed, between units that trained on
alike many rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from adalora_bench.metrics import higher_is_better
from adalora_bench.report.cells import arrange_seeds
from adalora_bench.report.comparison import difference_interval
from adalora_bench.report.measures import is_score, measure
from adalora_bench.report.papers import fits
from adalora_bench.report.rows import Record, alike
from adalora_bench.report.statistics import median, worst
from adalora_bench.settings.published import ORDERS, Claim, PaperClaims, Row
from adalora_bench.store.schema import DONE, FINISHED

VERDICTS = ("holds", "does not hold", "undecided", "not comparable", "not run")
SEEDS = 5  # fewer paired seeds decide nothing
Unit = tuple[float, tuple[float | None, ...]]  # a seed's number, and the training rows behind each measure


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where records stand."""

    scale: str
    backbone: str
    split: str


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One pair of rows on one measure. Numbers are a - b, a / b, percent or a itself, as the relation says.

    Args:
        seeds: seed -> number; infinite where one of the two diverged.
    """

    a: str
    b: str | None
    on: str
    seeds: dict[int, float]

    @property
    def middle(self) -> float:
        """Median over the seeds."""
        values = list(self.seeds.values())
        return difference_interval(values).value if all(map(math.isfinite, values)) else median(values)

    @property
    def low(self) -> float:
        return min(self.seeds.values())

    @property
    def high(self) -> float:
        return max(self.seeds.values())


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A claim at one place. `place` is None where nothing of it was run; `missing` counts comparisons without seeds."""

    paper: str
    claim: Claim
    place: Place | None
    verdict: str
    comparisons: list[Comparison]
    missing: int


def judge_all(papers: Iterable[PaperClaims], records: Sequence[Record]) -> list[Judged]:
    """Every claim at every place that has seeds for both of its sides, in order of the files."""
    shelves: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        names = record["names"]
        shelves.setdefault((names["method"], names["task"]), []).append(record)
    return [one for paper in papers for claim in paper.claims for one in judge(paper, claim, shelves)]


def judge(paper: PaperClaims, claim: Claim, shelves: Mapping[tuple[str, str], list[Record]]) -> list[Judged]:
    """One claim at each place; a single `not run` where there is none.

    Args:
        shelves: (method, task) -> records.
    """
    tasks = {paper.measure(name).task for name in claim.on}
    methods = {paper.row(name).method for name in [*claim.a, *claim.b]}
    found = {_place(r) for key in product(sorted(methods), sorted(tasks)) for r in shelves.get(key, [])}
    judged = []
    for place in sorted(found, key=lambda one: (one.scale != "paper", one.scale, one.backbone, one.split)):
        comparisons = _comparisons(paper, claim, place, shelves)
        ran = [one for one in comparisons if one.seeds]
        if ran:
            judged.append(
                Judged(
                    paper=paper.paper,
                    claim=claim,
                    place=place,
                    verdict=_verdict(paper, claim, place, ran, len(comparisons) - len(ran)),
                    comparisons=ran,
                    missing=len(comparisons) - len(ran),
                )
            )
    if judged:
        return judged
    total = (1 if claim.across == "mean" else len(claim.on)) * len(claim.a) * max(len(claim.b), 1)
    return [
        Judged(paper=paper.paper, claim=claim, place=None, verdict="not run", comparisons=[], missing=total)
    ]


def _verdict(paper: PaperClaims, claim: Claim, place: Place, ran: Sequence[Comparison], missing: int) -> str:
    if claim.value is not None:
        home = Place(scale="paper", backbone=claim.backbone or paper.backbone, split=paper.split)
        if place != home:
            return "not comparable"
    words = {_one_verdict(claim, one) for one in ran}
    if "does not hold" in words:
        return "does not hold"
    if missing:
        return "not run"
    return "undecided" if "undecided" in words else "holds"


def _one_verdict(claim: Claim, one: Comparison) -> str:
    """A comparison alone. The interval is [min, max] over the paired seeds; fewer than five decide nothing."""
    if len(one.seeds) < SEEDS:
        return "undecided"
    low, high = one.low, one.high
    if claim.value is None:
        sign = ORDERS[claim.relation]
        low, high = sorted((sign * low, sign * high))
        if low > 0 or (claim.relation in ("ge", "le") and low >= 0):
            return "holds"
        return "does not hold" if high < 0 else "undecided"
    neutral = {"delta": 0.0, "fewer_pct": 0.0, "ratio": 1.0}.get(claim.relation)
    if neutral is not None and low <= neutral <= high:
        return "undecided"
    slack = _rounding(claim.value)
    return "holds" if low - slack <= claim.value <= high + slack else "does not hold"


def _rounding(value: float) -> float:
    """Half a unit of the last digit that the paper prints: 9.5 -> 0.05."""
    return 0.5 * 10.0 ** -len(f"{value:g}".partition(".")[2])


def _comparisons(
    paper: PaperClaims, claim: Claim, place: Place, shelves: Mapping[tuple[str, str], list[Record]]
) -> list[Comparison]:
    names = [[name] for name in claim.on] if claim.across == "each" else [claim.on]
    others: list[str | None] = [*claim.b] or [None]
    found = []
    for on, a, b in product(names, claim.a, others):
        mine = _numbers(paper, claim, a, on, place, shelves)
        theirs = {} if b is None else _numbers(paper, claim, b, on, place, shelves)
        label = on[0] if len(on) == 1 else f"mean of {', '.join(on)}"
        if b is None:
            seeds = {seed: number for seed, (number, _) in sorted(mine.items())}
        else:
            seeds = {
                seed: number
                for seed in sorted(mine.keys() & theirs.keys())
                if (number := _relate(claim.relation, mine[seed], theirs[seed])) is not None
            }
        found.append(Comparison(a=a, b=b, on=label, seeds=seeds))
    return found


def _relate(relation: str, one: Unit, other: Unit) -> float | None:
    """One seed's number of a comparison.

    None where the two trained on other rows, where both diverged, and where a ratio has no base.
    """
    if not all(map(alike, one[1], other[1])):
        return None
    a, b = one[0], other[0]
    if math.isinf(a) and math.isinf(b):
        return None
    if relation in ("ratio", "fewer_pct"):
        if not b or math.isinf(a) or math.isinf(b):
            return None
        return a / b if relation == "ratio" else 100 * (1 - a / b)
    return a - b


def _numbers(
    paper: PaperClaims,
    claim: Claim,
    label: str,
    on: Sequence[str],
    place: Place,
    shelves: Mapping[tuple[str, str], list[Record]],
) -> dict[int, Unit]:
    """Seed -> mean over the measures, for the seeds that have all of them. A diverged score is infinitely bad."""
    row = paper.row(label)
    per_measure = []
    for name in on:
        task = paper.measure(name).task
        metrics = row.metrics or claim.metrics or paper.measure(name).metrics
        fitting = [
            record
            for record in shelves.get((row.method, task), [])
            if _place(record) == place
            and fits(record, Row(label=label, method=row.method, set=row.set), task)
        ]
        numbers = {}
        for record in arrange_seeds(fitting):
            number = _seed(record, metrics)
            if number is not None:
                numbers[record["seed"]] = (number, record.get("rows", {}).get("train"))
        per_measure.append(numbers)
    found = {}
    for seed in sorted(set.intersection(*(set(numbers) for numbers in per_measure))):
        values, rows = zip(*(numbers[seed] for numbers in per_measure), strict=True)
        found[seed] = (sum(values) / len(values), rows)
    return found


def _seed(record: Record, metrics: Sequence[str]) -> float | None:
    if record["status"] in FINISHED:
        return measure(record, metrics)
    first = metrics[0].split("|")[0]
    return worst(higher_is_better(first)) if record["status"] in DONE and is_score(first) else None


def _place(record: Record) -> Place:
    names = record["names"]
    return Place(scale=names["scale"], backbone=names["backbone"], split=record["split"])
