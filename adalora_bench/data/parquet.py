"""Parquet files of a data set: which belong to a split, how many rows, the rows, a fingerprint of the rows.

pyarrow is imported inside the functions; `split_files` needs none.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adalora_bench.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa


def split_files(
    folder: Path, required: Sequence[str], optional: Sequence[str] = ()
) -> dict[str, list[Path]] | None:
    """split -> its files in order; None if a required split is absent or lacks a shard."""
    files = {split: shards for split in [*required, *optional] if (shards := _shards(folder, split))}
    return files if files and all(split in files for split in required) else None


def row_counts(files: Mapping[str, Sequence[Path]]) -> dict[str, int]:
    """split -> number of rows, from the metadata at the end of each file. UserError: unreadable."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    counts: dict[str, int] = {}
    for split, paths in files.items():
        counts[split] = 0
        for path in paths:
            try:
                counts[split] += pq.read_metadata(path).num_rows
            except (pa.ArrowException, OSError) as error:
                raise UserError(unreadable(path, error)) from error
    return counts


def read_table(path: Path, columns: Sequence[str]) -> pa.Table:
    """These columns of one file. UserError: unreadable, or a column is missing."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            absent = [name for name in columns if name not in file.schema_arrow.names]
            if absent:
                raise UserError(
                    f"{path}: column {absent[0]!r} is missing; the file has {', '.join(file.schema_arrow.names)}."
                )
            return file.read(columns=list(columns))
    except (pa.ArrowException, OSError) as error:
        raise UserError(unreadable(path, error)) from error


def unreadable(path: Path, error: Exception) -> str:
    """The sentence for a damaged or truncated file."""
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return f"{path} cannot be read as parquet ({reason}); copy or fetch it again."


def fingerprint(splits: Mapping[str, pa.Table]) -> str:
    """sha256 over split names and, per column in order, its name, kind and values; 64 hex digits.

    It depends on the rows alone: not on the file format, chunks, row groups, or the width of a number. Columns
    hold text, whole numbers or floats, without nulls.
    """
    digest = hashlib.sha256()
    for split, table in splits.items():
        digest.update(f"split {split} rows {table.num_rows}\n".encode())
        for name in table.column_names:
            _add_column(digest, name, table.column(name))
    return digest.hexdigest()


def _add_column(digest: Any, name: str, column: pa.ChunkedArray) -> None:
    import pyarrow as pa

    if column.null_count:
        raise ValueError(f"column {name!r} has nulls")
    if pa.types.is_integer(column.type):
        kind, column = "int", column.cast(pa.int64())
    elif pa.types.is_floating(column.type):
        kind, column = "float", column.cast(pa.float64())
    else:
        kind, column = "text", column.cast(pa.large_string())
    digest.update(f"column {name} {kind}\n".encode())
    if kind != "text":
        for chunk in column.chunks:
            digest.update(_window(chunk, 1, 8 * chunk.offset, 8 * (chunk.offset + len(chunk))))
        return
    # All lengths, then all bytes, so that moving a letter from one row to the next is seen.
    import pyarrow.compute as pc

    for chunk in column.chunks:
        lengths = pc.binary_length(chunk)
        digest.update(_window(lengths, 1, 8 * lengths.offset, 8 * (lengths.offset + len(lengths))))
    for chunk in column.chunks:
        if len(chunk):
            offsets = memoryview(chunk.buffers()[1]).cast("B").cast("q")
            digest.update(_window(chunk, 2, offsets[chunk.offset], offsets[chunk.offset + len(chunk)]))


def _window(array: pa.Array, buffer: int, start: int, stop: int) -> memoryview:
    """Bytes start..stop of one of the array's buffers; little-endian, as Arrow is everywhere we run."""
    held = array.buffers()[buffer]
    return memoryview(held)[start:stop] if held is not None else memoryview(b"")


def text_column(column: pa.ChunkedArray, where: str, name: str) -> pa.ChunkedArray:
    """The column as large_string. UserError: another type, or a null; names `where` and the row."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        raise UserError(f"{where}: column {name!r} holds {column.type}, not text.")
    _refuse(column, pc.is_null(column), where, name, "a text")
    return column.cast(pa.large_string())


def class_column(column: pa.ChunkedArray, where: str, name: str, labels: Sequence[str]) -> pa.ChunkedArray:
    """The column as int64. UserError: no whole numbers, or a number that is none of the classes 0..n-1."""
    import pyarrow as pa
    import pyarrow.compute as pc

    valid = "one of " + ", ".join(f"{i} ({label})" for i, label in enumerate(labels))
    if not pa.types.is_integer(column.type):
        raise UserError(f"{where}: column {name!r} holds {column.type}; each label must be {valid}.")
    good = pc.and_(pc.greater_equal(column, 0), pc.less(column, len(labels)))
    _refuse(column, pc.invert(pc.fill_null(good, False)), where, name, valid)
    return column.cast(pa.int64())


def number_column(column: pa.ChunkedArray, where: str, name: str) -> pa.ChunkedArray:
    """The column as float64. UserError: no numbers, or one that is null, NaN or infinite."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        raise UserError(f"{where}: column {name!r} holds {column.type}; each label must be a finite number.")
    good = pc.fill_null(pc.is_finite(column), False)
    _refuse(column, pc.invert(good), where, name, "a finite number")
    return column.cast(pa.float64())


def _refuse(column: pa.ChunkedArray, bad: pa.ChunkedArray, where: str, name: str, valid: str) -> None:
    """UserError for the first row that is marked bad."""
    import pyarrow.compute as pc

    row = pc.index(bad, True).as_py()
    if row >= 0:
        value = column[row].as_py()
        hint = " (-1 marks a hidden label)" if value == -1 else ""
        raise UserError(f"{where}, row {row} (from 0): {name!r} is {value!r}{hint}; it must be {valid}.")


def incomplete(folder: Path, splits: Sequence[str]) -> str | None:
    """A few words on the first split of which only some of the files are there; None if there is no such split."""
    for split in splits:
        paths, totals = _present(folder, split)
        if paths and not _shards(folder, split):
            return f"{folder} has {len(paths)} of {max(totals)} {split} files"
    return None


def _shards(folder: Path, split: str) -> list[Path]:
    """The files `<split>-*.parquet`; [] if a shard of `-00000-of-00003` is absent."""
    paths, totals = _present(folder, split)
    return paths if not totals or totals == {len(paths)} else []


def _present(folder: Path, split: str) -> tuple[list[Path], set[int]]:
    paths = sorted(path for path in folder.glob(f"{split}-*.parquet") if path.is_file())
    matches = [re.search(r"-\d+-of-(\d+)\.parquet$", path.name) for path in paths]
    return paths, {int(match[1]) for match in matches if match}
