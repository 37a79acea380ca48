"""A task: which rows of which source, what is text and what is label, how it is scored. Imports no torch.

A task whose rows cannot be said in YAML alone derives from `Task` and overrides `tables`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from adalora_bench import metrics
from adalora_bench.data import draw, parquet
from adalora_bench.data.sources import DATASET, Found, Source, Wanted
from adalora_bench.errors import UserError, unknown

if TYPE_CHECKING:
    import pyarrow as pa
    from transformers import PreTrainedTokenizerBase

Row = dict[str, Any]
T = TypeVar("T")

KINDS = ("classification", "regression")
SPLITS = ("validation", "holdout")


@dataclass(frozen=True)
class TaskRows:
    """Rows to train on, and rows to report on by suffix ("" where a task has one report set)."""

    train: list[Row]
    report: dict[str, list[Row]]


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a benchmark task is. Values live in conf/task/*.yaml.

    Attributes:
        version: raised when the same files give other rows or scores.
        kind: "classification" (labels are numbers of `labels`) or "regression" (labels are floats).
        report_splits: suffix of the metric names -> split; the suffix is "" where there is one report set.
        optional_splits: report splits that a local folder may lack.
        text: one column, or two for a pair.
        group: a column whose values must not be shared by train and holdout rows.
        main_metric: a score name, with its suffix: "acc", "acc_matched".
        max_length: tokens, unless a recipe says otherwise.
        backbone_for: scale -> backbone taken where the user names none.
        official_rows: split -> rows of the published data set; what has fewer is a subset and says so.
    """

    version: int
    description: str
    kind: str
    source: Source
    train_split: str = "train"
    report_splits: dict[str, str]
    optional_splits: list[str] = field(default_factory=list)
    text: list[str]
    label: str
    labels: list[str]
    group: str | None = None
    metrics: list[str]
    main_metric: str
    max_length: int
    backbone_for: dict[str, str]
    official_rows: dict[str, int]

    def __post_init__(self) -> None:
        if self.version < 1:
            raise UserError(f"task.version is {self.version}; versions start at 1.")
        if self.kind not in KINDS:
            raise UserError(unknown("task.kind", self.kind, KINDS))
        if len(self.text) not in (1, 2):
            raise UserError(f"task.text names {len(self.text)} columns; it must name one, or two for a pair.")
        if self.kind == "classification" and len(set(self.labels)) != max(len(self.labels), 2):
            raise UserError(
                f"task.labels is {self.labels}; a classification needs two or more different names."
            )
        if self.kind == "regression" and self.labels:
            raise UserError(
                f"task.labels is {self.labels}; a regression has no label names, so leave it empty."
            )
        wanted_kind = "class" if self.kind == "classification" else "number"
        for name in self.metrics:
            if metrics.label_kind(name) != wanted_kind:
                raise UserError(f"task.metrics names {name!r}, which does not fit a {self.kind}.")
        if "f1" in self.metrics and len(self.labels) != 2:
            raise UserError(
                f"task.metrics names 'f1', which is for two classes; task.labels has {len(self.labels)}."
            )
        if not self.report_splits or self.train_split in self.report_splits.values():
            raise UserError("task.report_splits must name at least one split, and none that is trained on.")
        for split in self.optional_splits:
            if split not in self.report_splits.values():
                raise UserError(unknown("split in task.optional_splits", split, self.report_splits.values()))
        if self.main_metric not in self._certain_scores():
            raise UserError(unknown("task.main_metric", self.main_metric, self._certain_scores()))
        if self.max_length < 4:
            raise UserError(f"task.max_length is {self.max_length}; it must be at least 4 tokens.")

    @property
    def outputs(self) -> int:
        """Width of the head: number of classes, or 1."""
        return len(self.labels) if self.kind == "classification" else 1

    def score_names(self) -> list[str]:
        """All score names, main metric first: `acc`, or `acc_matched`, `acc_mismatched`."""
        names = [_score_name(name, suffix) for suffix in self.report_splits for name in self.metrics]
        return sorted(names, key=lambda name: name != self.main_metric)

    def wanted_splits(self, split: str) -> tuple[list[str], list[str]]:
        """(required, optional) splits of the source for `split` = "validation" or "holdout".

        UserError: any other value, with the reason for "test". Needs no data, so that it can be asked early.
        """
        if split == "test":
            raise UserError(
                "split=test has no labels to score against (benchmarks keep them hidden); "
                "use split=validation, or split=holdout to select settings."
            )
        if split not in SPLITS:
            raise UserError(unknown("split", split, SPLITS))
        if split == "holdout":
            return [self.train_split], []
        report = list(self.report_splits.values())
        required = [self.train_split, *(name for name in report if name not in self.optional_splits)]
        return required, [name for name in report if name in self.optional_splits]

    def wanted(self, name: str, split: str) -> Wanted:
        """What `sources.ensure` is asked for."""
        required, optional = self.wanted_splits(split)
        return Wanted(name=name, source=self.source, kind=DATASET, splits=required, optional=optional)

    def load(self, found: Found, split: str) -> TaskRows:
        """The rows of a run, before any cap: dicts of the text columns, the label (int or float) and the group.

        Under "holdout" the report rows are carved out of the training rows, the same ones for every seed and
        method, and stand under the first suffix; the validation set is not opened.

        UserError: a file that cannot be read, a missing column, no rows, an empty or impossible value (with its row).
        """
        tables = self._used_tables(found, split)
        train = tables[self.train_split].to_pylist()
        if split == "holdout":
            kept, held = draw.hold_out(train, self.group)
            return TaskRows(kept, {next(iter(self.report_splits)): held})
        report = {
            suffix: tables[name].to_pylist() for suffix, name in self.report_splits.items() if name in tables
        }
        return TaskRows(train, report)

    def fingerprint(self, found: Found, split: str) -> str:
        """sha256 of the rows that `load` starts from, whatever the file format; 64 hex digits."""
        return parquet.fingerprint(self._used_tables(found, split))

    def available(self, found: Found, split: str) -> dict[str, int]:
        """split of the source -> rows there; from file metadata where the source is parquet."""
        required, optional = self.wanted_splits(split)
        if found.files:
            return parquet.row_counts(
                {name: found.files[name] for name in [*required, *optional] if name in found.files}
            )
        return {name: table.num_rows for name, table in self._used_tables(found, split).items()}

    def counts(self, found: Found, split: str) -> dict[str, int]:
        """{"train": rows, "report": rows over all report sets} of `load`, before any cap, as cheaply as possible."""
        if split == "holdout" and self.group is not None:
            rows = self.load(found, split)
            return {"train": len(rows.train), "report": sum(len(part) for part in rows.report.values())}
        available = self.available(found, split)
        train = available.pop(self.train_split)
        held = draw.holdout_size(train) if split == "holdout" else 0
        return {"train": train - held, "report": held or sum(available.values())}

    def subset_note(
        self, available: Mapping[str, int], *, train_limit: int | None = None, report_limit: int | None = None
    ) -> str | None:
        """What is less than the published data set: "100 of 2490 training rows"; None if nothing is.

        Args:
            available: from the method of that name.
            train_limit, report_limit: caps on the rows, as given to `take`.
        """
        notes: list[str] = []
        for split, official in self.official_rows.items():
            word, limit = ("training", train_limit) if split == self.train_split else (split, report_limit)
            if split in available:
                used = available[split] if limit is None else min(available[split], limit)
                if used < official:
                    notes.append(f"{used} of {official} {word} rows")
            elif split in self.optional_splits and len(available) > 1:
                notes.append(f"no {split} rows")
        return ", ".join(notes) or None

    def score(
        self, predictions: Mapping[str, Sequence[Any]], report: Mapping[str, Sequence[Row]]
    ) -> dict[str, float]:
        """score name -> value, for predictions by suffix, each as long as the rows of that suffix."""
        return {
            _score_name(name, suffix): metrics.score(
                name, predictions[suffix], [row[self.label] for row in rows]
            )
            for suffix, rows in report.items()
            for name in self.metrics
        }

    def majority(self, report: Mapping[str, Sequence[Row]]) -> dict[str, float | None]:
        """Scores of always answering the most frequent label of these rows; None for a correlation (undefined)."""
        if self.kind == "regression":
            return {_score_name(name, suffix): None for suffix in report for name in self.metrics}
        predictions: dict[str, list[int]] = {}
        for suffix, rows in report.items():
            counted = Counter(row[self.label] for row in rows)
            best = min(counted, key=lambda label: (-counted[label], label))
            predictions[suffix] = [best] * len(rows)
        return dict(self.score(predictions, report))

    def encode(self, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, max_length: int) -> list[Row]:
        """Rows -> dicts of input_ids, token_type_ids (where the tokenizer has them), label, length. No padding.

        A pair is cut from its longer side, token by token, to `max_length` tokens with the special ones.
        """
        if not rows:
            return []
        columns = [[row[name] for row in rows] for name in self.text]
        batch = tokenizer(
            *columns, truncation="longest_first", max_length=max_length, return_attention_mask=False
        )
        names = [name for name in ("input_ids", "token_type_ids") if name in batch]
        return [
            {name: batch[name][i] for name in names}
            | {"label": row[self.label], "length": len(batch["input_ids"][i])}
            for i, row in enumerate(rows)
        ]

    def tables(self, found: Found, splits: Sequence[str]) -> dict[str, pa.Table]:
        """The rows of these splits, checked; here from parquet. An override ends in `checked` as well."""
        import pyarrow as pa

        tables: dict[str, pa.Table] = {}
        for split in splits:
            if split not in found.files:
                raise UserError(f"{found.detail} has no parquet files of the split {split!r}.")
            parts = [
                self.checked(parquet.read_table(path, self._columns()), str(path))
                for path in found.files[split]
            ]
            tables[split] = pa.concat_tables(parts)
        return tables

    def checked(self, table: pa.Table, where: str) -> pa.Table:
        """The table with text columns and labels (int64 or float64) only. UserError: names `where` and the row."""
        import pyarrow as pa

        if table.num_rows == 0:
            raise UserError(f"{where} has no rows.")
        columns = {
            name: parquet.text_column(table.column(name), where, name) for name in self._columns()[:-1]
        }
        label = table.column(self.label)
        if self.kind == "classification":
            columns[self.label] = parquet.class_column(label, where, self.label, self.labels)
        else:
            columns[self.label] = parquet.number_column(label, where, self.label)
        return pa.table(columns)

    def _columns(self) -> list[str]:
        return [*self.text, *([self.group] if self.group else []), self.label]

    def _certain_scores(self) -> list[str]:
        suffixes = [
            suffix for suffix, split in self.report_splits.items() if split not in self.optional_splits
        ]
        return [_score_name(name, suffix) for suffix in suffixes for name in self.metrics]

    def _used_tables(self, found: Found, split: str) -> dict[str, pa.Table]:
        required, optional = self.wanted_splits(split)
        return self.tables(found, [*required, *(name for name in optional if name in found.files)])


def take(rows: Sequence[T], limit: int | None) -> list[T]:
    """A fixed random sample of `limit` rows in their order, the same for every seed and method; None: all rows.

    A smaller limit takes a part of what a larger one takes.
    """
    if limit is None or limit >= len(rows):
        return list(rows)
    return [rows[i] for i in draw.sample(len(rows), limit, draw.TAKE)]


def _score_name(metric: str, suffix: str) -> str:
    return f"{metric}_{suffix}" if suffix else metric
