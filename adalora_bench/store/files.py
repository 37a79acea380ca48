"""Files that are whole or absent: atomic replacement, tensors, JSON lines that survive a kill, reproducible gzip."""

from __future__ import annotations

import errno
import gzip
import io
import json
import math
import os
import re
import shutil
import stat
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from adalora_bench.errors import UserError

TEMPORARY = ".tmp"


def atomic_write(path: Path, content: bytes) -> None:
    """Put `content` at `path`; whatever happens meanwhile, the old file or the new one is there, whole.

    UserError: the file system refuses (full, read-only, no folder); an earlier file is intact.
    """

    def write(temporary: Path) -> None:
        temporary.write_bytes(content)

    _put(path, write, need=len(content))


def write_tensors(path: Path, tensors: Mapping[str, Any], metadata: Mapping[str, str] | None = None) -> None:
    """Put a safetensors file at `path`, as `atomic_write` does. UserError: as there."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    def write(temporary: Path) -> None:
        try:
            save_file(dict(tensors), temporary, metadata=dict(metadata) if metadata else None)
        except SafetensorError as error:  # it tells what the system said in words alone
            number = re.search(r"\(os error (\d+)\)", str(error))
            if number is None:
                raise
            raise OSError(int(number[1]), os.strerror(int(number[1]))) from error

    _put(path, write, need=sum(tensor.numel() * tensor.itemsize for tensor in tensors.values()))


def _put(path: Path, write: Callable[[Path], None], need: int) -> None:
    # Made here, not by tempfile, so that the usual permissions hold; the process id keeps two writers apart.
    temporary = path.with_name(f"{path.name}.{os.getpid()}{TEMPORARY}")
    with writing(path, need):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.touch()
            usual = stat.S_IMODE(temporary.stat().st_mode)  # by the umask; safetensors would keep others out
            write(temporary)
            temporary.chmod(usual)
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            # The cause is raised on; a temporary file that cannot be removed either must not hide it.
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)


def write_if_changed(path: Path, content: bytes | str) -> bool:
    """`atomic_write` where the file holds something else or is not there; whether it wrote. UserError: as there."""
    data = content.encode() if isinstance(content, str) else content
    with suppress(OSError):  # what cannot be read is written anew, or refused by the system
        if path.is_file() and path.read_bytes() == data:
            return False
    atomic_write(path, data)
    return True


def write_all(files: Iterable[tuple[Path, bytes | str]]) -> list[Path]:
    """`write_if_changed` of each; what changed. UserError, when all the others are written: what the system refused."""
    written, refused = [], []
    for path, content in files:
        try:
            if write_if_changed(path, content):
                written.append(path)
        except UserError as error:
            refused.append(str(error))
    if refused:
        raise UserError("\n".join(refused))
    return written


@contextmanager
def writing(path: Path, need: int | None = None) -> Iterator[None]:
    """Turn the refusal of the file system to write `path` into a UserError that names path, reason and need.

    Args:
        need: bytes that are to be written, where they are known.
    """
    try:
        yield
    except OSError as error:
        reason = (error.strerror or str(error)) + _shortage(path, error.errno, need)
        raise UserError(f"cannot write {path}: {reason}; what was there before is intact.") from error


def _shortage(path: Path, number: int | None, need: int | None) -> str:
    """What it takes and what there is, in brackets; "" where room is not the trouble."""
    if need is None or number not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return ""
    if number == errno.EFBIG:
        return f" ({_size(need)} are needed; a file may not grow so large here, see ulimit -f)"
    place = next(folder for folder in path.absolute().parents if folder.is_dir())
    return f" ({_size(need)} are needed, {_size(shutil.disk_usage(place).free)} are free)"


def _size(count: float) -> str:
    for unit in ("bytes", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


def finite(value: Any) -> tuple[Any, list[str]]:
    """A copy in plain JSON types with null for each NaN and infinity, and their places ("final.scores.acc").

    Tuples become lists, zero-dimensional arrays and NumPy scalars become Python numbers.
    """
    found: list[str] = []
    return _plain(value, "", found), found


def append_jsonl(path: Path, row: Mapping[str, Any]) -> None:
    """Append one row as a line of JSON (NaN and infinity as null), in one write.

    A line that a kill cut short is closed first, so that at most that row is lost.
    UserError: the file cannot be written.
    """
    line = json.dumps(finite(row)[0], sort_keys=True, allow_nan=False).encode() + b"\n"
    with writing(path, len(line)):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b", buffering=0) as file:
            end = file.seek(0, os.SEEK_END)
            if end:
                file.seek(end - 1)
                if file.read(1) != b"\n":
                    line = b"\n" + line
            while line:  # an unbuffered write may stop early; the next one says why
                line = line[file.write(line) :]


LARGEST = 256 * 2**20
"""Bytes of a file that is read whole; what this project writes is a thousandth of it."""


def read_whole(path: Path, limit: int = LARGEST) -> bytes:
    """The content of an ordinary file. OSError: it is none (a device, a pipe, a folder), or larger than the limit."""
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe without a writer would wait for ever
    with os.fdopen(handle, "rb") as file:
        seen = os.fstat(file.fileno())
        if not stat.S_ISREG(seen.st_mode):
            raise OSError(errno.EINVAL, "it is no ordinary file", str(path))
        if seen.st_size > limit:
            raise OSError(errno.EFBIG, f"it has {_size(seen.st_size)}, more than {_size(limit)}", str(path))
        return file.read(limit + 1)


def tensor_shapes(path: Path) -> dict[str, list[int]]:
    """Name -> shape of every tensor of a safetensors file, by its header. OSError, ValueError: it has none."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if not 0 < size < LARGEST:
            raise ValueError(f"a header of {size:,} bytes")
        try:
            header = json.loads(file.read(size))
            return {name: [*one["shape"]] for name, one in header.items() if name != "__metadata__"}
        except (KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"no header of tensors ({type(error).__name__})") from error


def unzipped(content: bytes, limit: int = LARGEST) -> bytes:
    """What gzip holds. OSError: damaged, or larger than the limit."""
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(content)) as packed:
            found = packed.read(limit + 1)
    except (EOFError, zlib.error) as error:
        raise OSError(errno.EIO, f"gzip that is damaged: {error}") from error
    if len(found) > limit:
        raise OSError(errno.EFBIG, f"it unpacks to more than {_size(limit)}")
    return found


def read_jsonl(path: Path) -> tuple[list[dict[str, Any]], int]:
    """All rows that parse, in file order, and how many lines do not. A file that is not there has no rows."""
    return rows_of(read_whole(path)) if path.exists() else ([], 0)


def rows_of(lines: bytes) -> tuple[list[dict[str, Any]], int]:
    """All rows that parse, in order, and how many lines do not."""
    rows: list[dict[str, Any]] = []
    damaged = 0
    for line in lines.split(b"\n"):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            damaged += 1
            continue
        if isinstance(row, dict):
            rows.append(row)
        else:
            damaged += 1
    return rows, damaged


def write_predictions(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows as gzipped JSON lines, atomically; equal rows give equal bytes."""
    lines = (json.dumps(finite(row)[0], sort_keys=True, allow_nan=False).encode() + b"\n" for row in rows)
    atomic_write(path, zipped(lines))


def zipped(chunks: Iterable[bytes]) -> bytes:
    """gzip without a name or a time inside, so that equal content gives equal bytes."""
    buffer = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", fileobj=buffer, mtime=0, compresslevel=6) as packed:
        for chunk in chunks:
            packed.write(chunk)
    return buffer.getvalue()


def _plain(value: Any, place: str, found: list[str]) -> Any:
    if isinstance(value, Mapping):
        return {
            name: _plain(part, f"{place}.{name}" if place else str(name), found)
            for name, part in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [_plain(part, f"{place}[{index}]", found) for index, part in enumerate(value)]
    if hasattr(value, "item") and getattr(value, "ndim", 0) == 0:
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        found.append(place)
        return None
    return value


def _sync_folder(folder: Path) -> None:
    # Makes the rename itself survive a power cut. Some file systems cannot sync a folder and say so.
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)
