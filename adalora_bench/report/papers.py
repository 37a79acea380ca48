"""The papers' tables (conf/table): their rows, columns and published numbers, and which cells of ours answer to them.

Records are picked by their fields. Nothing is composed here and no key is computed.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from adalora_bench import metrics
from adalora_bench.report.cells import Hidden, arrange_seeds, left_out
from adalora_bench.report.comparison import mean_sd
from adalora_bench.report.rows import Record, reported
from adalora_bench.report.statistics import Summary, summarise
from adalora_bench.settings.published import Column, PaperTable, Row
from adalora_bench.store.schema import DONE, FINISHED

VERDICTS = ("reproduced", "above", "below", "not comparable", "not run")
# Settings that ask for more numbers and change none.
ASKED = {"task.metrics"}
# What a column can show that is no score: name -> (field, part, factor).
COSTS: dict[str, tuple[str, str, float]] = {
    "train_hours": ("seconds", "train", 1 / 3600),
    "peak_memory_gb": ("", "peak_memory_bytes", 1e-9),
    "steps_per_second": ("", "steps_per_second", 1.0),
    "seconds_per_epoch": ("", "seconds_per_epoch", 1.0),
}


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a filled table was run."""

    scale: str
    backbone: str


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One cell of a filled table. Scores are as printed: x100, or points.

    Args:
        value: the paper's own statistic over our finished seeds; None where there is none.
        low, high: lowest and highest seed; a diverged seed is the lowest possible.
        n, finished: seeds with a result, and those of them that did not diverge.
        gap: ours minus published.
        absent: what is said where records are and no value.
    """

    value: float | None
    low: float | None
    high: float | None
    n: int
    finished: int
    collapsed: bool
    published: float | None
    gap: float | None
    verdict: str
    absent: str = "no score"


@dataclass(frozen=True, kw_only=True)
class Filled:
    """A paper's table at one place, with our cells: row label -> column label -> cell."""

    name: str
    table: PaperTable
    place: Place
    cells: dict[str, dict[str, Cell]]
    used: dict[str, dict[str, list[Record]]]  # row label -> task -> the seeds that are shown
    hidden: list[Hidden]  # of the table's methods and tasks, at this place: in no cell


def fill(name: str, table: PaperTable, records: Iterable[Record]) -> list[Filled]:
    """The table at every place that has records for it, and at paper scale in any case."""
    places: dict[Place, list[Record]] = {Place(scale="paper", backbone=table.backbone): []}
    tasks, methods = set(table.tasks), {row.method for row in table.rows}
    for record in records:
        names = record["names"]
        if names["task"] in tasks and names["method"] in methods:
            place = Place(scale=names["scale"], backbone=names["backbone"])
            places.setdefault(place, []).append(record)
    filled = (_at(name, table, place, chosen) for place, chosen in places.items())
    return [
        one
        for one in filled
        if one.place.scale == "paper" or any(any(used.values()) for used in one.used.values())
    ]


def _at(name: str, table: PaperTable, place: Place, records: Sequence[Record]) -> Filled:
    cells: dict[str, dict[str, Cell]] = {}
    used: dict[str, dict[str, list[Record]]] = {}
    shelves: dict[tuple[str, str], list[Record]] = defaultdict(list)
    for record in records:
        shelves[record["names"]["method"], record["names"]["task"]].append(record)
    for row in table.rows:
        used[row.label] = {}
        for task in table.tasks:
            fitting = [record for record in shelves[row.method, task] if fits(record, row, task)]
            used[row.label][task] = _choose(fitting, table.split)
        cells[row.label] = {
            column.label: _cell(table, row, column, place, used[row.label][column.task])
            for column in table.columns
        }
    taken = [record for by_task in used.values() for seeds in by_task.values() for record in seeds]
    return Filled(
        name=name, table=table, place=place, cells=cells, used=used, hidden=left_out(records, taken)
    )


def _choose(fitting: Sequence[Record], split: str) -> list[Record]:
    """The seeds of one key: of the table's own split, unless only another one has results."""
    own = [record for record in fitting if record["split"] == split]
    return arrange_seeds(own if any(record["status"] in DONE for record in own) else fitting)


def fits(record: Record, row: Row, task: str) -> bool:
    """Whether a record is of this row: its method and task, all settings of the row, and no others typed."""
    names = record["names"]
    if names["method"] != row.method or names["task"] != task:
        return False
    if any(not _same(_setting(record["config"], key), value) for key, value in row.set.items()):
        return False
    typed = {text.lstrip("+~").partition("=")[0] for text in record["overrides"]} - ASKED
    return (
        not {key for key in typed if key.split(".")[0] in ("method", "train", "task", "backbone")}
        - row.set.keys()
    )


def _setting(config: Mapping[str, Any], dotted: str) -> Any:
    node: Any = config
    for part in dotted.split("."):
        if not isinstance(node, Mapping) or part not in node:
            return None
        node = node[part]
    return node


def _same(found: Any, wanted: Any) -> bool:
    if isinstance(found, bool) or isinstance(wanted, bool):
        return found is wanted
    if isinstance(found, (int, float)) and isinstance(wanted, (int, float)):
        return math.isclose(found, wanted, rel_tol=1e-12)
    if isinstance(wanted, (list, tuple)):
        return list(found or []) == list(wanted)
    return bool(found == wanted)


def _cell(table: PaperTable, row: Row, column: Column, place: Place, seeds: Sequence[Record]) -> Cell:
    values = [_value(record, column) for record in seeds]
    known = [value for value in values if value is not None]
    diverged = sum(record["status"] == "diverged" for record in seeds)
    published = row.published.get(column.label)
    empty = Cell(
        value=None,
        low=None,
        high=None,
        n=diverged,
        finished=0,
        collapsed=False,
        published=published,
        gap=None,
        verdict="not run" if not seeds else "not comparable",
        absent=metrics.NOT_JUDGED if metrics.GRADE in column.metrics else "no score",
    )
    if not known:
        return empty
    summary = summarise([*known, *[None] * diverged], _higher(column))
    value = summary.median if table.statistic == "median" else _mean(known, diverged)
    gap = None if published is None or value is None or not math.isfinite(value) else value - published
    return Cell(
        value=value,
        low=summary.low,
        high=summary.high,
        n=summary.n,
        finished=summary.finished,
        collapsed=any(record["status"] == "collapsed" for record in seeds),
        published=published,
        gap=gap,
        verdict=verdict(table, row, column, place, seeds, summary, published),
    )


def verdict(
    table: PaperTable,
    row: Row,
    column: Column,
    place: Place,
    seeds: Sequence[Record],
    summary: Summary,
    published: float | None,
) -> str:
    """How ours stands to the published number (DESIGN, section 9).

    `reproduced`, `above` or `below` only where scale, backbone, split, metric, statistic and five finished seeds agree
    and the rows are the published data set's; costs of another machine and methods marked (ours) never compare.
    """
    comparable = (
        published is not None
        and place.scale == "paper"
        and place.backbone == table.backbone
        and not row.is_ours
        and not set(column.metrics) & COSTS.keys()
        and summary.finished == summary.n == 5
        and all(record["split"] == table.split and not record.get("subset") for record in seeds)
    )
    if not comparable:
        return "not comparable"
    assert published is not None
    if summary.low <= published <= summary.high:
        return "reproduced"
    return "above" if summary.low > published else "below"


def _value(record: Record, column: Column) -> float | None:
    """One seed's number, as printed."""
    if record["status"] not in FINISHED:
        return None
    values = [seed_value(record, metric) for metric in column.metrics]
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) else None


def seed_value(record: Record, metric: str) -> float | None:
    """A score (x100, or points) or a cost of one finished seed; None where the record has none of that name."""
    if metric in COSTS:
        return _cost(record, metric)
    value = ((reported(record) or {}).get("scores") or {}).get(metric)
    return None if value is None else metrics.printed(metric, value)


def _cost(record: Record, name: str) -> float | None:
    where, part, factor = COSTS[name]
    seconds = (record.get("seconds") or {}).get("train")
    if name == "steps_per_second":
        return record["steps"] / seconds if seconds else None
    if name == "seconds_per_epoch":
        epochs = ((record.get("final") or {}).get("epoch")) or 0
        return seconds / epochs if seconds and epochs else None
    value = ((record.get(where) or {}) if where else record).get(part)
    return None if value is None else factor * float(value)


def _higher(column: Column) -> bool:
    metric = column.metrics[0]
    return metric == "steps_per_second" if metric in COSTS else metrics.higher_is_better(metric)


def _mean(known: Sequence[float], diverged: int) -> float | None:
    """The mean of the finished seeds; with a diverged seed there is none."""
    if diverged:
        return None
    return mean_sd(known)[0] if len(known) > 1 else known[0]
