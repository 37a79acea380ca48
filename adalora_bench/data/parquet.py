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
    """split -> its files in order; None if a required split is absent or lacks a shard.

    A split is `train-*.parquet`, or `train/*.parquet` as in the hub's own conversion of other formats.
    """
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
            there = file.schema_arrow.names
            twice = [name for name in columns if there.count(name) > 1]
            if twice:
                raise UserError(f"{path}: {there.count(twice[0])} columns are called {twice[0]!r}; keep one.")
            absent = [name for name in columns if name not in there]
            if absent:
                raise UserError(f"{path}: column {absent[0]!r} is missing; the file has {', '.join(there)}.")
            table = file.read(columns=list(columns))
        return table.cast(pa.schema([pa.field(one.name, _plain(one.type)) for one in table.schema]))
    except (pa.ArrowException, OSError) as error:
        raise UserError(unreadable(path, error)) from error


def _plain(kind: Any) -> Any:
    """The type that tasks know for one that other writers use: categories, views, fixed lists, truth values."""
    import pyarrow as pa

    t = pa.types
    if t.is_dictionary(kind):
        return _plain(kind.value_type)
    if t.is_string_view(kind):
        return pa.large_string()
    if t.is_boolean(kind):
        return pa.int8()
    if t.is_decimal(kind):
        return pa.float64()
    if t.is_list(kind) or t.is_fixed_size_list(kind) or t.is_list_view(kind):
        return pa.list_(_plain(kind.value_type))
    if t.is_large_list(kind) or t.is_large_list_view(kind):
        return pa.large_list(_plain(kind.value_type))
    if t.is_struct(kind):
        return pa.struct([pa.field(one.name, _plain(one.type)) for one in kind.fields])
    return kind


def unreadable(path: Path, error: Exception) -> str:
    """The sentence for a damaged or truncated file."""
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return f"{path} cannot be read as parquet ({reason}); copy or fetch it again."


def fingerprint(splits: Mapping[str, pa.Table]) -> str:
    """sha256 over split names and, per column in order, its name, kind and values; 64 hex digits.

    It depends on the rows alone: not on the file format, chunks, row groups, or the width of a number. Columns
    hold text, whole numbers or floats, or lists and structs of them, without nulls.
    """
    digest = hashlib.sha256()
    for split, table in splits.items():
        digest.update(f"split {split} rows {table.num_rows}\n".encode())
        for name in table.column_names:
            _add_column(digest, name, table.column(name))
    return digest.hexdigest()


def _add_column(digest: Any, name: str, column: pa.ChunkedArray) -> None:
    import pyarrow as pa
    import pyarrow.compute as pc

    if column.null_count:
        raise ValueError(f"column {name!r} has nulls")
    if pa.types.is_struct(column.type):
        for field in column.type.fields:
            _add_column(digest, f"{name}.{field.name}", pc.struct_field(column, field.name))
        return
    if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        _add_column(digest, f"lengths of {name}", pc.list_value_length(column))
        flat = [chunk.flatten() for chunk in column.chunks]
        _add_column(digest, f"items of {name}", pa.chunked_array(flat, type=column.type.value_type))
        return
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


def incomplete(folder: Path, splits: Sequence[str]) -> str | None:
    """A few words on files or splits that are missing beside others; None if none of the splits is there at all."""
    for split in splits:
        paths, totals = _present(folder, split)
        if paths and not _shards(folder, split):
            return f"{folder} has {len(paths)} of {max(totals)} {split} files"
    here = [split for split in splits if _shards(folder, split)]
    absent = [split for split in splits if split not in here]
    return f"{folder} has {' and '.join(here)}, but no {' and no '.join(absent)}" if here and absent else None


def _shards(folder: Path, split: str) -> list[Path]:
    """The files of the split; [] if a shard of `-00000-of-00003` is absent."""
    paths, totals = _present(folder, split)
    return paths if not totals or totals == {len(paths)} else []


def _present(folder: Path, split: str) -> tuple[list[Path], set[int]]:
    paths = sorted(path for path in folder.glob(f"{split}-*.parquet") if path.is_file()) or sorted(
        path for path in (folder / split).glob("*.parquet") if path.is_file()
    )
    matches = [re.search(r"-\d+-of-(\d+)\.parquet$", path.name) for path in paths]
    return paths, {int(match[1]) for match in matches if match}
