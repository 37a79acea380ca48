"""From records to cells: which key a table shows, what is stale, and the seeds of a cell as one row of numbers."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from adalora_bench import metrics
from adalora_bench.report.selection import SELECTIONS, Selection, selection_of
from adalora_bench.report.statistics import Summary, median, standard_error, summarise
from adalora_bench.schema import DONE, FINISHED, STATUSES, finished_at

Record = Mapping[str, Any]
# Overrides of these groups belong to what a row is called; others (jobs, seeds) change no number.
_LABELLED = ("method", "train", "task", "backbone", "pair", "scale")


@dataclass(frozen=True, kw_only=True)
class Group:
    """One table: what its cells have in common."""

    scale: str
    backbone: str
    split: str

    @property
    def sort_key(self) -> tuple[str, str, str]:
        """Tables are ordered by this."""
        return self.scale, self.backbone, self.split


@dataclass(frozen=True, kw_only=True)
class CellRow:
    """One cell (method, overrides, task) with the seeds of one key taken together; scores on the scale 0..1.

    `scores` holds the main metric first and is empty where no seed has a result; parameters, ranks and rows are
    means over the seeds that finished, `seconds` of training and `peak_memory` are their medians.
    """

    group: Group
    method: str
    overrides: tuple[str, ...]
    task: str
    key: str
    main_metric: str
    scores: dict[str, Summary]
    seeds: dict[int, float | None]  # seed -> main score; None for a diverged one, nothing for a failed one
    baseline: dict[str, float | None]
    params_initial: float | None
    params_final: float | None
    rank_initial: float | None
    rank_final: float | None
    seconds: float | None
    peak_memory: float | None  # bytes
    rows_train: float | None
    rows_report: float | None
    statuses: dict[str, int]
    failed_seeds: tuple[int, ...]
    subsets: tuple[str, ...]
    signatures: dict[str, str]
    caveat: str | None
    notes: tuple[str, ...]
    best_selected_on: tuple[str, ...]

    @property
    def label(self) -> str:
        """The method with the overrides that make it a row of its own: "lora (method.rank=2)"."""
        return f"{self.method} ({', '.join(self.overrides)})" if self.overrides else self.method

    @property
    def short(self) -> str:
        """The label for narrow places: "lora (rank=2)", since most settings are the method's."""
        return self.label.replace("(method.", "(").replace(", method.", ", ")

    @property
    def key8(self) -> str:
        """The part of the key that names the folder of its records."""
        return self.key[:8]

    @property
    def standard_error(self) -> float | None:
        """Binomial standard error of the median accuracy on the report rows; None for other main metrics."""
        main = self.scores.get("acc") if self.main_metric == "acc" else None
        if main is None or not self.rows_report or not 0.0 <= main.median <= 1.0:
            return None
        return standard_error(main.median, round(self.rows_report))


@dataclass(frozen=True, kw_only=True)
class Hidden:
    """Records that a table does not show: another key for the same place, or stale ones."""

    group: Group
    label: str
    task: str
    key8: str
    records: int
    why: str


@dataclass(frozen=True, kw_only=True)
class Cells:
    """Rows in order of group, task, method and overrides, and what they hide."""

    rows: list[CellRow]
    others: list[Hidden]
    stale: list[Hidden]


def cell_summary(records: Iterable[Record], selection: Selection | None = None) -> list[CellRow]:
    """The rows that tables are made of, one per cell; see `arrange` for what is shown."""
    return arrange(records, selection).rows


def arrange(records: Iterable[Record], selection: Selection | None = None) -> Cells:
    """Choose for each table, label and task the key to show, whatever the order of the records.

    Without a `selection` each split has its own (`selection_of`).

    Of records with the same settings, those whose versions or data differ from the newest are stale. Of several keys
    for one place the newest with a result is shown (the newest at all, where none has one).
    """
    fresh, stale_keys = _split_stale(_by_key(records))
    places: dict[tuple[Group, str, str, tuple[str, ...]], list[str]] = defaultdict(list)
    for key, seeds in fresh.items():
        names = seeds[0]["names"]
        places[_group(seeds[0]), names["task"], names["method"], _overrides(seeds)].append(key)
    rows, others = [], []
    for (_, _, _, overrides), keys in places.items():
        ranked = sorted(
            keys, key=lambda key: (_has_result(fresh[key]), _newest(fresh[key]), key), reverse=True
        )
        rows.append(_row(fresh[ranked[0]], overrides, selection))
        others += [_hidden(fresh[key], f"key {ranked[0][:8]} is shown") for key in ranked[1:]]
    stale = [_hidden(seeds, why) for seeds, why in stale_keys]
    rows.sort(key=lambda row: (row.group.sort_key, row.task, row.method, row.overrides))
    return Cells(rows=rows, others=_sorted(others), stale=_sorted(stale))


def arrange_seeds(records: Iterable[Record]) -> list[Record]:
    """The seeds of one cell, in their order: of several keys the newest that has a result; stale ones are left out."""
    fresh, _ = _split_stale(_by_key(records))
    if not fresh:
        return []
    return max(fresh.values(), key=lambda seeds: (_has_result(seeds), _newest(seeds), seeds[0]["key"]))


def left_out(records: Iterable[Record], used: Iterable[Record]) -> list[Hidden]:
    """The records that are not among the used ones, key by key."""
    shown = {(record["key"], record["seed"]) for record in used}
    rest = [record for record in records if (record["key"], record["seed"]) not in shown]
    return _sorted([_hidden(seeds, "other settings or versions") for seeds in _by_key(rest).values()])


def _by_key(records: Iterable[Record]) -> dict[str, list[Record]]:
    """Key -> its records in order of seed; of two records of one seed the newer."""
    newest: dict[tuple[str, int], Record] = {}
    for record in records:
        place = record["key"], record["seed"]
        if place not in newest or _age(record) > _age(newest[place]):
            newest[place] = record
    by_key: dict[str, list[Record]] = defaultdict(list)
    for place in sorted(newest):
        by_key[place[0]].append(newest[place])
    return by_key


def _split_stale(
    by_key: Mapping[str, list[Record]],
) -> tuple[dict[str, list[Record]], list[tuple[list[Record], str]]]:
    settings: dict[str, list[str]] = defaultdict(list)
    for key, seeds in by_key.items():
        settings[seeds[0]["settings_key"]].append(key)
    fresh: dict[str, list[Record]] = {}
    stale: list[tuple[list[Record], str]] = []
    for keys in settings.values():
        newest = max((record for key in keys for record in by_key[key]), key=_age)
        for key in keys:
            differences = _differences(by_key[key][0], newest)
            if differences:
                stale.append((by_key[key], differences))
            else:
                fresh[key] = by_key[key]
    return fresh, stale


def _differences(record: Record, newest: Record) -> str:
    parts = sorted(set(record["versions"]) | set(newest["versions"]))
    found = [
        f"{part} version {record['versions'].get(part)}, now {newest['versions'].get(part)}"
        for part in parts
        if record["versions"].get(part) != newest["versions"].get(part)
    ]
    if record["data_fingerprint"] != newest["data_fingerprint"]:
        found.append("other data")
    return "; ".join(found)


def _row(seeds: Sequence[Record], overrides: tuple[str, ...], selection: Selection | None) -> CellRow:
    newest = max(seeds, key=_age)
    chosen = selection or selection_of(newest["split"])
    finished = [record for record in seeds if record["status"] in FINISHED]
    statuses = Counter(record["status"] for record in seeds)
    return CellRow(
        group=_group(newest),
        method=newest["names"]["method"],
        overrides=overrides,
        task=newest["names"]["task"],
        key=newest["key"],
        main_metric=newest["main_metric"],
        scores=_scores(seeds, newest["main_metric"], SELECTIONS[chosen]),
        seeds=_main_scores(seeds, newest["main_metric"], SELECTIONS[chosen]),
        baseline=dict((finished[0] if finished else newest).get("baseline") or {}),
        params_initial=_mean(finished or seeds, "params", "adapter_initial"),
        params_final=_mean(finished, "params", "adapter_final"),
        rank_initial=_mean(finished or seeds, "ranks", "initial_total"),
        rank_final=_mean(finished, "ranks", "final_total"),
        seconds=_median(finished, "seconds", "train"),
        peak_memory=median(memory) if (memory := _memory(finished)) else None,
        rows_train=_mean(finished or seeds, "rows", "train"),
        rows_report=_mean(finished or seeds, "rows", "report"),
        statuses={status: statuses[status] for status in STATUSES if statuses[status]},
        failed_seeds=tuple(record["seed"] for record in seeds if record["status"] == "failed"),
        subsets=tuple(sorted({record["subset"] for record in seeds if record.get("subset")})),
        signatures=dict(newest.get("metrics") or {}),
        caveat=caveat_of(newest),
        notes=tuple(sorted({str(note) for record in seeds for note in record.get("notes") or []})),
        best_selected_on=tuple(
            sorted({str(record["best"].get("selected_on")) for record in finished if record.get("best")})
        ),
    )


def _scores(seeds: Sequence[Record], main: str, point: str) -> dict[str, Summary]:
    """Metric -> its seeds taken together: a diverged seed counts in each of them, a failed one in none."""
    values: dict[str, list[float | None]] = {main: []}
    diverged = sum(record["status"] == "diverged" for record in seeds)
    for record in seeds:
        if record["status"] not in FINISHED or not record.get(point):
            continue
        known = record.get("metrics")
        for metric, value in sorted(record[point]["scores"].items()):
            if value is not None and (not known or metric == main or _declared(metric, known)):
                values.setdefault(metric, []).append(value)
    ordered = [main, *sorted(set(values) - {main})]
    full = {metric: values[metric] + [None] * diverged for metric in ordered}
    return {metric: summarise(of, metrics.higher_is_better(metric)) for metric, of in full.items() if of}


def _main_scores(seeds: Sequence[Record], main: str, point: str) -> dict[int, float | None]:
    return {
        record["seed"]: (record.get(point) or record["final"])["scores"].get(main)
        if record["status"] in FINISHED
        else None
        for record in seeds
        if record["status"] in DONE
    }


def _declared(score: str, known: Mapping[str, str]) -> bool:
    """Whether a score is of a metric that the record names; the score may carry the suffix of its report rows."""
    return any(score == name or score.startswith(f"{name}_") for name in known)


def caveat_of(record: Record) -> str | None:
    """What a reader must know of the backbone's weights; None where there is nothing."""
    backbone = record["config"].get("backbone")
    caveat = backbone.get("caveat") if isinstance(backbone, Mapping) else None
    return str(caveat) if caveat else None


def _overrides(seeds: Sequence[Record]) -> tuple[str, ...]:
    """What the row is called after. One key may have been typed in several ways: the shortest names it."""
    return min((_labelled(record["overrides"]) for record in seeds), key=lambda typed: (len(typed), typed))


def _labelled(overrides: Sequence[str]) -> tuple[str, ...]:
    kept = []
    for override in overrides:
        name, _, value = override.lstrip("+~").partition("=")
        # A path is no setting: it is not part of the key and means nothing on another machine.
        if name.split(".")[0].split("@")[0] in _LABELLED and not value.strip("'\"").startswith(("/", "~")):
            kept.append(override)
    return tuple(sorted(kept))


def _group(record: Record) -> Group:
    names = record["names"]
    return Group(scale=names["scale"], backbone=names["backbone"], split=record["split"])


def _hidden(seeds: Sequence[Record], why: str) -> Hidden:
    names = seeds[0]["names"]
    overrides = _overrides(seeds)
    label = f"{names['method']} ({', '.join(overrides)})" if overrides else names["method"]
    return Hidden(
        group=_group(seeds[0]),
        label=label,
        task=names["task"],
        key8=seeds[0]["key"][:8],
        records=len(seeds),
        why=why,
    )


def _sorted(hidden: list[Hidden]) -> list[Hidden]:
    return sorted(hidden, key=lambda one: (one.group.sort_key, one.task, one.label, one.key8))


def _age(record: Record) -> tuple[datetime, str]:
    return finished_at(record), record["key"]


def _newest(seeds: Sequence[Record]) -> datetime:
    return max(finished_at(record) for record in seeds)


def _has_result(seeds: Sequence[Record]) -> bool:
    return any(record["status"] in DONE for record in seeds)


def _values(seeds: Sequence[Record], field: str, part: str) -> list[float]:
    found = [(record.get(field) or {}).get(part) for record in seeds]
    return [float(value) for value in found if value is not None]


def _memory(seeds: Sequence[Record]) -> list[float]:
    return [float(record["peak_memory_bytes"]) for record in seeds if record.get("peak_memory_bytes")]


def _mean(seeds: Sequence[Record], field: str, part: str) -> float | None:
    values = _values(seeds, field, part)
    return sum(values) / len(values) if values else None


def _median(seeds: Sequence[Record], field: str, part: str) -> float | None:
    values = _values(seeds, field, part)
    return median(values) if values else None
