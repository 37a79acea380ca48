"""Tasks whose rows are not the rows of their files: other columns, several rows from one, or none. Imports no torch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from string import Formatter
from typing import TYPE_CHECKING, Any

from adalora_bench.data import columns, parquet
from adalora_bench.data.fields import Row
from adalora_bench.data.sources import Found, Wanted
from adalora_bench.data.tasks import Task
from adalora_bench.errors import UserError, unknown

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True, kw_only=True)
class Converted(Task, ABC):
    """A derived class says which columns it reads and what becomes of one row."""

    @abstractmethod
    def raw_columns(self, split: str) -> list[str]:
        """The columns of the files of a split that `expand` looks at."""

    @abstractmethod
    def expand(self, raw: Row, split: str) -> list[Row]:
        """The rows that one row of a file becomes. ValueError: what is wrong with it, in a few words."""

    def file_split(self, split: str) -> str:
        """The split of the source that holds the rows of one of this task's splits."""
        return split

    def wanted(self, name: str, split: str) -> Wanted:
        """As in `Task`, by the names of the source."""
        wanted = super().wanted(name, split)
        required = list(dict.fromkeys(map(self.file_split, wanted.splits)))
        optional = list(dict.fromkeys(map(self.file_split, wanted.optional)))
        return Wanted(name=name, source=wanted.source, kind=wanted.kind, splits=required, optional=optional)

    def tables(self, found: Found, splits: Sequence[str]) -> dict[str, pa.Table]:
        """As in `Task`; a fault of a row is named with its file."""
        import pyarrow as pa

        tables: dict[str, pa.Table] = {}
        for split in splits:
            if self.file_split(split) not in found.files:
                raise UserError(
                    f"{found.detail} has no parquet files of the split {self.file_split(split)!r}."
                )
            parts = []
            for path in found.files[self.file_split(split)]:
                raw = parquet.read_table(path, self.raw_columns(split))
                rows = [
                    row for i, one in enumerate(raw.to_pylist()) for row in self._rows(one, split, path, i)
                ]
                parts.append(self.checked(pa.Table.from_pylist(rows), str(path)))
            tables[split] = pa.concat_tables(parts, promote_options="permissive")
        return tables

    def _rows(self, raw: Row, split: str, path: object, number: int) -> list[Row]:
        try:
            for name, value in raw.items():
                if value is None:
                    raise ValueError(f"{name!r} is None; it must not be empty")
            return self.expand(raw, split)
        except ValueError as error:
            raise UserError(f"{path}, row {number} (from 0): {error}.") from None


@dataclass(frozen=True, kw_only=True)
class Recounted(Converted):
    """A task with more or fewer rows than its files: rows are counted after the conversion."""

    def available(self, found: Found, split: str) -> dict[str, int]:
        """split -> rows, as `official_rows` counts them."""
        return {name: table.num_rows for name, table in self._used_tables(found, split).items()}


@dataclass(frozen=True, kw_only=True)
class Derived(Converted):
    """A task some of whose columns are put together from those of its files.

    Attributes:
        derived: column -> template over the columns of the files: "{word}: {sentence1}", "{idx[question]}".
    """

    derived: dict[str, str]

    def __post_init__(self) -> None:
        super().__post_init__()
        mine = columns.names(self)
        for column, template in self.derived.items():
            if column not in mine:
                raise UserError(unknown("column in task.derived", column, mine))
            try:
                used = _columns_of(template)
            except ValueError as error:
                raise UserError(f"task.derived.{column}={template!r} is no template ({error}).") from None
            if not used:
                raise UserError(f"task.derived.{column}={template!r} names no column of the files.")

    def raw_columns(self, split: str) -> list[str]:
        """Those of the templates, and those that are taken as they are."""
        used = [name for template in self.derived.values() for name in _columns_of(template)]
        return list(dict.fromkeys([*used, *(n for n in columns.names(self) if n not in self.derived)]))

    def expand(self, raw: Row, split: str) -> list[Row]:
        """One row with the derived columns beside those of the file."""
        try:
            return [raw | {column: template.format_map(raw) for column, template in self.derived.items()}]
        except (LookupError, TypeError, AttributeError) as error:
            raise ValueError(
                f"task.derived does not fit this row ({type(error).__name__}: {error})"
            ) from error


def _columns_of(template: str) -> list[str]:
    names: list[Any] = [name for _, name, _, _ in Formatter().parse(template) if name is not None]
    return [name.split("[")[0].split(".")[0] for name in names]
