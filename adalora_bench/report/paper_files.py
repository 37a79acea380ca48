"""The papers' tables as conf/table holds them: rows, columns and published numbers with their sources."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adalora_bench.errors import UserError, unknown
from adalora_bench.store.schema import OURS

STATISTICS = ("median", "mean")


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column: the mean of one or more metrics (or a cost) on one task."""

    label: str
    task: str
    metrics: list[str]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row: a method with the settings that make it this row, and what the paper printed for it.

    Args:
        set: dotted setting -> value, as it must stand in a record's config.
        published: column label -> printed number; a column without one was not found.
        source: where the numbers are from, if not from the table's source.
    """

    label: str
    method: str
    set: dict[str, Any] = field(default_factory=dict)
    params: str | None = None
    published: dict[str, float] = field(default_factory=dict)
    source: str | None = None

    @property
    def is_ours(self) -> bool:
        """Whether the method is our reading of a baseline whose source is not at hand."""
        return self.label.endswith(OURS)


@dataclass(frozen=True, kw_only=True)
class PaperTable:
    """One table of a paper; see conf/table."""

    paper: str
    number: str
    title: str
    backbone: str
    split: str
    statistic: str
    columns: list[Column]
    rows: list[Row]
    source: str
    notes: list[str]

    def __post_init__(self) -> None:
        if self.statistic not in STATISTICS:
            raise UserError(unknown("statistic of a table", self.statistic, STATISTICS))
        labels = [column.label for column in self.columns]
        for row in self.rows:
            for label in row.published:
                if label not in labels:
                    raise UserError(unknown(f"published column of {row.label!r}", label, labels))

    @property
    def tasks(self) -> list[str]:
        """Tasks of the columns, each once, in their order."""
        return list(dict.fromkeys(column.task for column in self.columns))


def table_names(folder: Path) -> list[str]:
    """Names of the tables in conf/table, sorted."""
    return sorted(path.stem for path in folder.glob("*.yaml"))


def load_table(folder: Path, name: str) -> PaperTable:
    """One table of conf/table. UserError: no such table, or a file that does not fit."""
    import yaml

    from adalora_bench.config import typed

    if name not in table_names(folder):
        raise UserError(unknown("table", name, table_names(folder)))
    table: PaperTable = typed(
        PaperTable, yaml.safe_load((folder / f"{name}.yaml").read_text()), f"table/{name}"
    )
    return table
