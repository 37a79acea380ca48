"""A task: which rows of which source, what is text and what is label, how it is scored. Imports no torch.

A task whose rows cannot be said in YAML alone derives from `Task` and overrides `tables`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from adalora_bench import metrics
from adalora_bench.data import columns, declared, draw, parquet, prompts
from adalora_bench.data.fields import Row, TaskFields, score_name
from adalora_bench.data.sources import DATASET, Found, Wanted
from adalora_bench.errors import UserError, unknown

if TYPE_CHECKING:
    import pyarrow as pa

T = TypeVar("T")

SPLITS = ("validation", "holdout", "dev_test")


@dataclass(frozen=True)
class TaskRows:
    """Rows to train on, rows to report on by suffix ("" where there is one report set), and dev rows by suffix."""

    train: list[Row]
    report: dict[str, list[Row]]
    dev: dict[str, list[Row]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Task(TaskFields):
    """A benchmark task: what its YAML says (`TaskFields`), and how that becomes rows and scores."""

    def __post_init__(self) -> None:
        declared.check(self)

    def wanted_splits(self, split: str) -> tuple[list[str], list[str]]:
        """(required, optional) splits of the source for `split` = "validation", "holdout" or "dev_test".

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
            if self.kind == "text" and self.group:
                held = prompts.merged(self, held)
            return TaskRows(kept, {next(iter(self.report_splits)): held})
        report = {
            suffix: tables[name].to_pylist() for suffix, name in self.report_splits.items() if name in tables
        }
        if split == "dev_test":
            return self._dev_test(train, report)
        return TaskRows(train, report)

    def _dev_test(self, train: list[Row], report: dict[str, list[Row]]) -> TaskRows:
        """SoRA's and ALoRA's protocol: of a small set the report rows are halved, of a large one training rows go."""
        official = self.official_rows.get(self.train_split)
        from_train, _ = draw.dev_size(len(train), 0, official=official)
        if from_train:
            kept, dev = draw.split_off(train, from_train)
            return TaskRows(kept, report, {next(iter(self.report_splits)): dev})
        halves = {suffix: draw.split_off(rows, len(rows) // 2) for suffix, rows in report.items()}
        return TaskRows(
            train,
            {suffix: test for suffix, (test, _) in halves.items()},
            {s: dev for s, (_, dev) in halves.items()},
        )

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
        if split == "dev_test":
            official = self.official_rows.get(self.train_split)
            sizes = [draw.dev_size(train, rows, official=official) for rows in available.values()]
            return {
                "train": train - sizes[0][0],
                "report": sum(available.values()) - sum(size for _, size in sizes),
            }
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
                    known = self.known_subsets.get(f"{split} {available[split]}")
                    notes.append(f"{used} of {official} {word} rows" + (f" ({known})" if known else ""))
            elif split in self.optional_splits and len(available) > 1:
                notes.append(f"no {split} rows")
        return ", ".join(notes) or None

    def other_note(self, found: Found, split: str) -> str | None:
        """What shows that these are other rows than the published ones: more of them, or other labels; else None."""
        notes = []
        for name, rows in self.available(found, split).items():
            word = "training" if name == self.train_split else name
            official, labels = self.official_rows.get(name), self.official_labels.get(name)
            if official is not None and rows > official:
                notes.append(f"other data: {rows} {word} rows where {official} are published")
            elif labels is not None and rows == sum(labels):
                counts = Counter(self._used_tables(found, split)[name].column(self.label).to_pylist())
                got = [counts.get(label, 0) for label in range(len(labels))]
                if got != labels:
                    notes.append(
                        f"other data: {word} rows with the labels {got} where {labels} are published"
                    )
        return ", ".join(notes) or None

    def score(
        self, predictions: Mapping[str, Sequence[Any]], report: Mapping[str, Sequence[Row]], variant: str = ""
    ) -> dict[str, float]:
        """score name -> value, for predictions by suffix, each as long as the rows of that suffix."""
        parts = {suffix: [suffix] for suffix in report} | {
            union: parts for union, parts in self.report_unions.items() if all(p in report for p in parts)
        }
        scores = {}
        for suffix, joined in parts.items():
            rows = [row for part in joined for row in report[part]]
            predicted = [value for part in joined for value in predictions[part]]
            gold = [self.gold(row) for row in rows]
            for name in self.metrics:
                wanted: list[Any] = gold
                if metrics.label_kind(name) == "grouped":
                    wanted = [
                        (row[str(self.score_group)], label) for row, label in zip(rows, gold, strict=True)
                    ]
                scores[score_name(name, suffix, variant)] = metrics.score(name, predicted, wanted)
        return scores

    def unparsed(self, predictions: Mapping[str, Sequence[Any]], variant: str = "") -> dict[str, int]:
        """Score name -> how many answers could not be read; a row of several turns has several answers."""
        counts = {}
        for suffix, values in predictions.items():
            answers = [part for value in values for part in (value if isinstance(value, tuple) else [value])]
            for name in self.metrics:
                counts[score_name(name, suffix, variant)] = metrics.unparsed(name, answers)
        return counts

    def next_prompt(self, row: Row, answers: Sequence[str]) -> str | None:
        """What is asked after these answers to the row; None: nothing more. For conversations (MT-Bench)."""
        return None

    def asked_apart(self) -> dict[str, str]:
        """Scores that no run gives but a later command may add to its record -> what the record says until then."""
        return {}

    def gold(self, row: Row) -> Any:
        """What a prediction is scored against: the label, or the list of right texts."""
        return prompts.references(self, row) if self.kind in ("span", "text") else row[self.label]

    def majority(self, report: Mapping[str, Sequence[Row]], variant: str = "") -> dict[str, float | None]:
        """Scores of always answering the most frequent label of these rows; None where there are no classes."""
        if self.kind not in ("classification", "choice"):
            return dict.fromkeys(self.score_names(), None)
        predictions: dict[str, list[int]] = {}
        for suffix, rows in report.items():
            counted = Counter(row[self.label] for row in rows)
            best = min(counted, key=lambda label: (-counted[label], label))
            predictions[suffix] = [best] * len(rows)
        return dict(self.score(predictions, report, variant))

    def tables(self, found: Found, splits: Sequence[str]) -> dict[str, pa.Table]:
        """The rows of these splits, checked; here from parquet. An override ends in `checked` as well."""
        import pyarrow as pa

        tables: dict[str, pa.Table] = {}
        for split in splits:
            if split not in found.files:
                raise UserError(f"{found.detail} has no parquet files of the split {split!r}.")
            parts = [
                self.checked(parquet.read_table(path, columns.names(self)), str(path))
                for path in found.files[split]
            ]
            tables[split] = pa.concat_tables(parts)
        return tables

    def checked(self, table: pa.Table, where: str) -> pa.Table:
        """The table with the columns of this kind only, in their types. UserError: names `where` and the row."""
        return columns.checked(self, table, where)

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
