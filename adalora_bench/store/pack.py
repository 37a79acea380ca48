"""bench pack and bench unpack: the records of a store as a few compressed files, and back.

Packing adds lines to the last part of a task, or begins another one, and writes it whole before a loose file is
removed; unpacking writes every loose file before a part is removed. A kill at any moment therefore leaves each unit
in one of the two forms, or in both with the same content. Imports no torch.
"""

from __future__ import annotations

import gzip
import json
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from adalora_bench.errors import UserError, unknown
from adalora_bench.store import packed
from adalora_bench.store.files import atomic_write, write_if_changed, writing, zipped
from adalora_bench.store.lease import LOCK, LeaseHeld
from adalora_bench.store.packed import PACKED, PREDICTIONS, RECORD
from adalora_bench.store.records import RecordStore

PART_BYTES = 400_000
"""A part is closed when it would grow beyond this; one file of a unit that is larger has a part of its own."""
AT_ONCE = 50
"""Units that are held at the same time."""
LOCK_FILE = "pack.lock"
SUMMARY = "README.md"


@dataclass
class Packing:
    """What became of the units: those written in the other form, and why others were left."""

    units: list[str] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)  # parts that were written or removed
    left: list[str] = field(default_factory=list)  # sentences


def pack(root: Path, tasks: Sequence[str] = ()) -> Packing:
    """Pack every loose unit of a store, or of some of its tasks, and write its summary.

    A unit that is being trained, or whose record is none, stays loose and is named.
    UserError: there is no such task; another process packs; the file system refuses.
    """
    store, done = RecordStore(root), Packing()
    with _alone(root):
        for task in _chosen(root, tasks):
            for folders in batched(sorted((root / task).glob(f"*/*/*/seed*/{RECORD}")), AT_ONCE):
                _pack(store, task, [path.parent for path in folders], done)
        if packed.parts(root):
            write_if_changed(root / SUMMARY, summary(store.scan(light=True).records))
    return done


def _pack(store: RecordStore, task: str, folders: Sequence[Path], done: Packing) -> None:
    """Some units of a task, all held until they are packed."""
    with _held(store, folders, done) as free:
        texts = {folder: _texts(folder) for folder in free}
        units = {store.unit(folder): files for folder, files in texts.items() if files}
        _add(store.root, task, units, done, predictions=False)
        _add(store.root, task, units, done, predictions=True)
        for folder, files in texts.items():
            if not files:
                done.left.append(f"{folder}: a file of this unit cannot be read, so it stays as it is.")
            elif _same(store.root, store.unit(folder), files):
                _remove(folder)
                done.units.append(store.unit(folder))
    for folder in folders:
        _prune(folder, store.root)


def unpack(root: Path, tasks: Sequence[str] = ()) -> Packing:
    """Write the files of every packed unit into its folder, and remove the parts. A loose unit stays as it is.

    A part that is damaged stays; what can be read of it is written.
    UserError: as for `pack`.
    """
    store, done = RecordStore(root), Packing()
    with _alone(root):
        for task in _chosen(root, tasks):
            parts = [*packed.parts(root, task), *packed.parts(root, task, predictions=True)]
            folders = sorted({root / unit for path in parts for unit in packed.read_part(path).texts})
            held = 0
            for some in batched(folders, AT_ONCE):
                with _held(store, some, done) as free:
                    held += len(some) - len(free)
                    for folder in free:
                        if not (folder / RECORD).is_file() and store.text(folder, RECORD) is not None:
                            store.loosen(folder)
                            done.units.append(store.unit(folder))
            for path in parts:
                if damage := packed.read_part(path).damage:
                    done.left.append(f"{path} {damage}; it stays, and what could be read of it lies loose.")
                elif not held:
                    with writing(path):
                        path.unlink()
                    done.files.append(path)
        if not packed.parts(root):
            with writing(root / SUMMARY):
                (root / SUMMARY).unlink(missing_ok=True)
    return done


def summary(records: Iterable[Mapping[str, Any]]) -> str:
    """What the packed files hold, as a Markdown table that a reader of the repository sees: one row a key."""
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for record in records:
        names = record["names"]
        cell = (names["task"], names["backbone"], names["method"], names["scale"], record["key"][:8])
        groups.setdefault(cell, []).append(record)
    lines = [
        "# Records",
        "",
        "Each `*.jsonl.gz` holds files of units, a line each; `bench unpack` writes them as files. `git diff` shows",
        "them as text after `git config diff.gzip.textconv 'gzip -dc'`. `bench pack` writes this table.",
        "",
        "| task | backbone | method | scale | key | seeds | not ok | metric | median |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for cell, group in sorted(groups.items()):
        metric = group[0]["main_metric"]
        scores = [(record.get("final") or {}).get("scores", {}).get(metric) for record in group]
        known = [score for score in scores if score is not None]
        cells = (
            *cell,
            " ".join(str(seed) for seed in sorted(record["seed"] for record in group)),
            " ".join(sorted(record["status"] for record in group if record["status"] != "ok")),
            metric,
            f"{median(known):.4f}" if known else "",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def batched(paths: Sequence[Path], size: int) -> Iterator[Sequence[Path]]:
    """Consecutive pieces of at most `size`."""
    for start in range(0, len(paths), size):
        yield paths[start : start + size]


@contextmanager
def _alone(root: Path) -> Iterator[None]:
    """One process packs or unpacks a store at a time."""
    from filelock import FileLock, Timeout

    if not root.is_dir():
        raise UserError(f"{root} is not there; name the folder that holds runs/: results_dir=FOLDER.")
    lock = FileLock(root / LOCK_FILE, timeout=0)
    with writing(root / LOCK_FILE):
        try:
            lock.acquire()
        except Timeout:
            raise UserError(f"another process packs or unpacks {root}.") from None
    try:
        yield
    finally:
        lock.release()
        with suppress(OSError):
            (root / LOCK_FILE).unlink(missing_ok=True)


def _chosen(root: Path, tasks: Sequence[str]) -> list[str]:
    there = {path.name for path in root.iterdir() if path.is_dir()}
    there |= {path.name.split("+")[0].removesuffix(".jsonl.gz") for path in packed.parts(root)}
    for task in tasks:
        if task not in there:
            raise UserError(unknown("task in this folder", task, sorted(there)))
    return sorted(tasks or there)


@contextmanager
def _held(store: RecordStore, folders: Sequence[Path], done: Packing) -> Iterator[list[Path]]:
    """The folders whose unit nobody works on, held meanwhile."""
    with ExitStack() as leases:
        free = []
        for folder in folders:
            try:
                leases.enter_context(store.lease(folder))
            except LeaseHeld as held:
                done.left.append(f"{folder} is being worked on by {held.holder}, so it stays as it is.")
                continue
            free.append(folder)
        yield free


def _texts(folder: Path) -> dict[str, str]:
    """File -> its text, of what is packed of a unit; {} where its record or another file cannot be packed."""
    store = RecordStore.around(folder)
    if store.read(folder) is None:
        return {}
    found = {}
    for file in PACKED:
        try:
            content = store.text(folder, file)
        except (OSError, EOFError, zlib.error):
            return {}
        if content is not None:
            found[file] = content.decode("utf-8", "surrogateescape")
    return found


def _add(
    root: Path, task: str, texts: Mapping[str, Mapping[str, str]], done: Packing, *, predictions: bool
) -> None:
    """Put what is not packed yet into the last part of a task, and into further ones as it fills."""
    lines = [
        json.dumps({"unit": unit, "file": file, "text": text}, sort_keys=True).encode() + b"\n"
        for unit, files in texts.items()
        for file in PACKED
        for text in (files.get(file),)  # null where an earlier packed unit had a file that this one has not
        if (file == PREDICTIONS) == predictions and packed.text_of(root, unit, file) != text
    ]
    if not lines:
        return
    parts = packed.parts(root, task, predictions=predictions)
    number = len(parts) and int(packed.PART.fullmatch(parts[-1].name)[3] or 1)  # type: ignore[index]
    kept: list[bytes] = []
    if parts and not packed.read_part(parts[-1]).damage:
        with gzip.open(parts[-1], "rb") as earlier:
            kept = earlier.readlines()
    else:
        number += 1
    while lines:
        content = zipped([*kept, lines[0]])
        taken = 1
        if kept and len(content) > PART_BYTES:
            kept, number = [], number + 1
            continue
        # The size of a part is measured now and then only: a line adds at most what it takes alone.
        size = len(content)
        while taken < len(lines) and size + len(zipped([lines[taken]])) <= PART_BYTES:
            size += len(zipped([lines[taken]]))
            taken += 1
        kept += lines[:taken]
        del lines[:taken]
        path = root / packed.part_name(task, number, predictions=predictions)
        atomic_write(path, zipped(kept))
        done.files += [path] if path not in done.files else []


def _same(root: Path, unit: str, texts: Mapping[str, str]) -> bool:
    """Whether the packed form of a unit is what lies loose: read back from the files."""
    return bool(texts) and all(packed.text_of(root, unit, file) == texts.get(file) for file in PACKED)


def _remove(folder: Path) -> None:
    """The loose files of a packed unit, the record first: from then on the packed one counts."""
    for file in PACKED:
        with writing(folder / file):
            (folder / file).unlink(missing_ok=True)


def _prune(folder: Path, root: Path) -> None:
    """Remove the unit's folder and those above it where nothing is left in them."""
    with suppress(OSError):  # another process may have come meanwhile
        if {path.name for path in folder.iterdir()} <= {LOCK}:
            (folder / LOCK).unlink(missing_ok=True)
            for place in (folder, *folder.parents):
                if place == root or any(place.iterdir()):
                    break
                os.rmdir(place)
