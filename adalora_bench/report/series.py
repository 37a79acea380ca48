"""What the figures are made of: types of data, and pure functions that turn seeds into lines. No matplotlib."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from adalora_bench.metrics import printed
from adalora_bench.report.cells import arrange, arrange_seeds
from adalora_bench.report.rows import CellRow, Record
from adalora_bench.report.statistics import median
from adalora_bench.store.schema import FINISHED

Steps = Callable[[Record], list[dict[str, Any]]]  # the rows of a unit's steps.jsonl


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One file of conf/figure.

    Args:
        kind: a name of KINDS.
        answers: figures of the papers that show the same.
        methods: names of methods; empty takes all.
        setting: dotted setting that the picture goes by.
        baseline: method that the others are compared with.
    """

    kind: str
    title: str
    what: str
    answers: list[str] = field(default_factory=list)
    methods: list[str] = field(default_factory=list)
    setting: str | None = None
    baseline: str = "lora"


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A cell as tables show it, with its seeds."""

    row: CellRow
    seeds: list[Record]

    @property
    def finished(self) -> list[Record]:
        return [record for record in self.seeds if record["status"] in FINISHED]


@dataclass(frozen=True, kw_only=True)
class Line:
    """The median over the seeds with the lowest and the highest."""

    label: str
    x: list[float]
    middle: list[float]
    low: list[float]
    high: list[float]


@dataclass(frozen=True, kw_only=True)
class Lines:
    """Lines over a common axis. With `stairs` a value holds until the next. `best` names the points of the front,
    `aside` those that stand behind the others: grey, and together one entry of the legend."""

    x: str
    y: str
    lines: list[Line]
    log_x: bool = False
    log_y: bool = False
    stairs: bool = False
    best: list[str] = field(default_factory=list)
    aside: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Map:
    """Rows of blocks (the first block first), columns of matrices; None where there is none."""

    label: str
    columns: list[str]
    values: list[list[float | None]]


@dataclass(frozen=True, kw_only=True)
class Maps:
    """Heat maps on one colour scale."""

    unit: str
    maps: list[Map]


@dataclass(frozen=True, kw_only=True)
class Bars:
    """For each category one bar per label."""

    y: str
    categories: list[str]
    bars: dict[str, list[float | None]]


@dataclass(frozen=True, kw_only=True)
class Dots:
    """A row of dots per label, one dot per seed."""

    x: str
    rows: list[tuple[str, list[float]]]
    zero: bool = False


Data = Lines | Maps | Bars | Dots


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One file to draw."""

    stem: str
    title: str
    data: Data


def shown(records: Sequence[Record]) -> list[Shown]:
    """The cells that tables show, in their order."""
    by_key: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        by_key[record["key"]].append(record)
    return [Shown(row=row, seeds=arrange_seeds(by_key[row.key])) for row in arrange(records).rows]


def band(label: str, seeds: Sequence[Sequence[tuple[float, float]]]) -> Line | None:
    """Points of several seeds as one line: at every x that a seed has, over the seeds that have it."""
    at: dict[float, list[float]] = defaultdict(list)
    for one in seeds:
        for x, y in one:
            at[x].append(y)
    if not at:
        return None
    xs = sorted(at)
    return Line(
        label=label,
        x=xs,
        middle=[median(at[x]) for x in xs],
        low=[min(at[x]) for x in xs],
        high=[max(at[x]) for x in xs],
    )


def staircase(changes: Sequence[tuple[float, float]], xs: Sequence[float]) -> list[tuple[float, float]]:
    """The value that holds at each x, given where it changes; nothing before the first change."""
    found = []
    for x in xs:
        before = [y for at, y in changes if at <= x]
        if before:
            found.append((x, before[-1]))
    return found


def front(of: Mapping[str, tuple[float, float]]) -> list[str]:
    """Labels of (cost, score) that no other beats in one without losing in the other, by rising cost."""
    kept = [
        label
        for label, (cost, score) in of.items()
        if not any(c <= cost and s >= score and (c, s) != (cost, score) for c, s in of.values())
    ]
    return sorted(kept, key=lambda label: (of[label][0], label))


def scores(cell: Shown) -> dict[int, float | None]:
    """Seed -> main score as printed; None for a diverged seed."""
    metric, seeds = cell.row.main_metric, cell.row.seeds.items()
    return {seed: None if value is None else printed(metric, value) for seed, value in seeds}


def setting(record: Record, dotted: str) -> Any:
    """A setting of a record's config; None where it has none."""
    node: Any = record["config"]
    for part in dotted.split("."):
        node = node.get(part) if isinstance(node, Mapping) else None
    return node


def lines_of(x: str, y: str, lines: Iterable[Line | None], **more: Any) -> Lines | None:
    """The lines that there are on common axes; None where there is none."""
    known = [line for line in lines if line is not None]
    return Lines(x=x, y=y, lines=known, **more) if known else None


def metric_of(cells: Sequence[Shown]) -> str:
    """The main metric, which all cells of a task share."""
    return cells[0].row.main_metric
