"""Results as facts on disk: one JSON per (cell, seed), checked, written whole, leased to one worker.

    <root>/<task>/<backbone>/<method>/<key[:8]>/seed<k>/record.json

Beside a record lie steps.jsonl, predictions.jsonl.gz and what else the unit leaves (`adalora_bench.store.files`).
All of it may be packed (`adalora_bench.store.packed`); a loose record stands before a packed one of the same unit.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from adalora_bench.errors import UserError
from adalora_bench.store import packed
from adalora_bench.store.environment import environment, git_state
from adalora_bench.store.files import (
    TEMPORARY,
    append_jsonl,
    atomic_write,
    finite,
    read_jsonl,
    read_whole,
    rows_of,
    unzipped,
    write_predictions,
    writing,
    zipped,
)
from adalora_bench.store.lease import HOLDER, LOCK, LeaseHeld, hold
from adalora_bench.store.packed import PACKED, PREDICTIONS, RECORD, STEPS
from adalora_bench.store.schema import (
    DONE,
    FINISHED,
    KEY,
    NAME,
    SCHEMA,
    STATUSES,
    checksum,
    finished_at,
    is_edited,
    misfit,
)
from adalora_bench.store.shapes import printable

__all__ = [
    "DONE",
    "FINISHED",
    "SCHEMA",
    "STATUSES",
    "LeaseHeld",
    "Quarantined",
    "RecordStore",
    "Scan",
    "append_jsonl",
    "atomic_write",
    "environment",
    "finished_at",
    "finite",
    "git_state",
    "misfit",
    "read_jsonl",
    "write_predictions",
]

log = logging.getLogger(__name__)

EDITED = "was changed after it was written: its checksum does not fit"
LOCAL_FILES = (LOCK, HOLDER)  # they mean something in their own folder alone
CHECKPOINTS = "checkpoints"
ADAPTER = "adapter.safetensors"
# What a table never shows and what makes a record large.
_HEAVY = ("history", "events", "environment", "cosine", "gates")
_HEAVY_PARTS = {"ranks": ("final", "trace", "nonzero"), "params": ("trace",)}


class Keyed(Protocol):
    """The part of a cell that the store needs."""

    @property
    def names(self) -> Mapping[str, str]:
        """Method, task, backbone and scale."""

    @property
    def key(self) -> str:
        """The content key, 64 hex characters."""


@dataclass(frozen=True)
class Quarantined:
    """A file that is not counted as a record: where it lies now, and why."""

    path: Path
    reason: str


@dataclass(frozen=True)
class Scan:
    """All records of a store in the order of their paths, and the files that count as none.

    Args:
        quarantined: what this scan refused.
        aside: what an earlier one renamed, of units that have no record since.
    """

    records: list[dict[str, Any]] = field(default_factory=list)
    quarantined: list[Quarantined] = field(default_factory=list)
    aside: list[Path] = field(default_factory=list)

    def not_counted(self, root: Path) -> list[str]:
        """Paths below `root` of all files that count as no record, sorted; the same in every scan."""
        return sorted(
            str(path.relative_to(root)) for path in [*(q.path for q in self.quarantined), *self.aside]
        )


@dataclass(frozen=True)
class RecordStore:
    """The folder of records; `root` is what holds <task>/, for instance results/runs."""

    root: Path

    def folder(self, names: Mapping[str, str], key: str, seed: int) -> Path:
        """The folder of one unit. ValueError: a name, key or seed that could lead out of the root."""
        parts = [names["task"], names["backbone"], names["method"]]
        for part in parts:
            if not NAME.fullmatch(part):
                raise ValueError(
                    f"{part!r} is no name for a folder: letters, digits, '_', '.', '-', at most 100."
                )
        if not KEY.fullmatch(key):
            raise ValueError(f"a key is 64 hex characters, not {key!r}.")
        if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
            raise ValueError(f"a seed is a whole number from 0 on, not {seed!r}.")
        return self.root.joinpath(*parts, key[:8], f"seed{seed}")

    def write(self, record: Mapping[str, Any]) -> Path:
        """Write one record and return its path. NaN and infinity become null: diverged and failed ones only.

        ValueError: the record fits no schema, or holds a NaN under another status.
        UserError: the file system refuses, or the folder belongs to a key with the same first 8 letters.
        In every case of an error the earlier record is intact.
        """
        plain, broken = finite(record)
        if broken and plain.get("status") in FINISHED:
            raise ValueError(f"{broken[0]} is NaN or infinite, but the status is {plain['status']!r}.")
        reason = misfit(plain)
        if reason:
            raise ValueError(f"the record fits no schema: {reason}.")
        folder = self.folder(plain["names"], plain["key"], plain["seed"])
        earlier = self.read(folder)
        if earlier is not None and earlier["key"] != plain["key"]:
            raise UserError(
                f"{folder} belongs to the key {earlier['key']}; move it away to store {plain['key']}."
            )
        path = folder / RECORD
        atomic_write(path, _text(plain | {"checksum": checksum(plain)}).encode())
        return path

    def read(self, folder: Path) -> dict[str, Any] | None:
        """The record of a unit's folder; None where there is none or it was quarantined (and logged)."""
        record, refused = self._load(folder / RECORD)
        if record is None and refused is None:
            text = packed.text_of(self.root, self.unit(folder), RECORD)
            record, refused = self._unpacked(folder, text) if text is not None else (None, None)
        if refused:
            log.warning("%s: %s", refused.path, refused.reason)
        return record

    @classmethod
    def around(cls, folder: Path) -> RecordStore:
        """The store that a unit's folder lies in."""
        return cls(folder.absolute().parents[4])

    def unit(self, folder: Path) -> str:
        """The name of a unit's folder below the root: <task>/<backbone>/<method>/<key[:8]>/seed<k>."""
        return folder.absolute().relative_to(self.root.absolute()).as_posix()

    def text(self, folder: Path, file: str) -> bytes | None:
        """A file that belongs to the unit's record, not compressed; None where there is none.

        Args:
            file: RECORD, STEPS or PREDICTIONS.
        """
        if (folder / RECORD).is_file():
            path = folder / file
            if not path.is_file():
                return None
            content = read_whole(path)
            return unzipped(content) if file.endswith(".gz") else content
        found = packed.text_of(self.root, self.unit(folder), file)
        return None if found is None else found.encode("utf-8", "surrogateescape")

    def steps(self, folder: Path) -> list[dict[str, Any]]:
        """The rows of the unit's steps.jsonl that parse; none where there is no such file."""
        return rows_of(self._beside(folder, STEPS) or b"")[0]

    def predictions(self, folder: Path) -> list[dict[str, Any]] | None:
        """The unit's predictions in order; None where they are not kept."""
        lines = self._beside(folder, PREDICTIONS)
        return None if lines is None else rows_of(lines)[0]

    def _beside(self, folder: Path, file: str) -> bytes | None:
        """`text`, but a file that cannot be read is as one that is not there (and logged)."""
        try:
            return self.text(folder, file)
        except OSError as error:
            log.warning("%s: %s", folder / file, error.strerror or error)
            return None

    def loosen(self, folder: Path, into: Path | None = None) -> None:
        """Write the files of a packed unit into its folder, or `into` another; nothing where it lies loose.

        The record comes last, so that a kill leaves the unit packed.
        """
        if (folder / RECORD).is_file():
            return
        for file in reversed(PACKED):
            text = self.text(folder, file)
            if text is not None:
                content = zipped([text]) if file.endswith(".gz") else text
                atomic_write((into or folder) / file, content)

    def scan(self, *, light: bool = False) -> Scan:
        """Read every record. A file that does not parse or fits no schema is renamed to record.json.bad-<n>.

        Both lists follow the sorted paths. A file that cannot be read, or lies in a folder other than its
        own, is named but left where it is, and so is a packed file that is damaged; what can be read of it
        counts. `light` drops what tables never show and what fills the memory:
        history, events, environment, traces, and what is told per module.
        """
        found = Scan()
        loose = sorted(self.root.glob(f"*/*/*/*/seed*/{RECORD}*"))
        # Packed files are listed after the loose ones: what is being packed meanwhile is seen in one of the two.
        texts = {self.root / unit: text for unit, _, text in packed.records(self.root)}
        aside = [path for path in loose if path.name.startswith(f"{RECORD}.bad-")]
        for folder in sorted({path.parent for path in loose if path.name == RECORD} | texts.keys()):
            record, refused = self._load(folder / RECORD)
            if record is None and refused is None and folder in texts:
                record, refused = self._unpacked(folder, texts[folder])
            if record is not None and (home := self._home(record)) != folder:
                refused = Quarantined(
                    folder / RECORD, f"lies outside its own folder {home.relative_to(self.root)}"
                )
                record = None
            if refused:
                log.warning("%s: %s", refused.path, refused.reason)
                found.quarantined.append(refused)
            if record is not None:
                found.records.append(_lighten(record) if light else record)
        for path in aside:
            if not path.with_name(RECORD).exists() and path.parent not in texts:
                log.warning("%s: not counted, as it was no record; run the unit again", path)
                found.aside.append(path)
        for path, reason in packed.damaged(self.root):
            log.warning("%s: %s", path, reason)
            found.quarantined.append(Quarantined(path, reason))
        return found

    @contextmanager
    def lease(self, folder: Path) -> Iterator[None]:
        """Hold a unit's folder while working on it; the folder is made where it is missing.

        It is free again when its holder is dead (`adalora_bench.store.lease`).
        LeaseHeld: another process holds it. UserError: the folder cannot be written.
        """
        with hold(folder):
            with writing(folder):
                for rest in folder.glob(
                    f"*{TEMPORARY}"
                ):  # of a writer that was killed; nobody else writes here
                    rest.unlink(missing_ok=True)
            yield

    def is_done(self, cell: Keyed, seed: int) -> bool:
        """Whether this key and seed has a result: ok, collapsed or diverged. A failed unit is not done."""
        record = self.read(self.folder(cell.names, cell.key, seed))
        return record is not None and record["key"] == cell.key and record["status"] in DONE

    def tidy(self, folder: Path) -> None:
        """Remove what a kill left beside a finished record. Left alone while another process works there."""
        left = (folder / CHECKPOINTS, folder / HOLDER)
        if any(path.exists() for path in left):
            with suppress(LeaseHeld), self.lease(folder):
                shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)

    def check_writable(self) -> None:
        """Refuse a store that cannot be written before anything is trained. UserError: path and reason."""
        probe = self.root / f".probe-{os.getpid()}{TEMPORARY}"
        with writing(self.root):
            self.root.mkdir(parents=True, exist_ok=True)
            try:
                probe.write_bytes(b"probe")
            finally:
                probe.unlink(missing_ok=True)

    def may_be_written(self) -> bool:
        """Whether the system would let us write here, by its permissions alone; nothing is written."""
        there = next(
            folder for folder in (self.root.absolute(), *self.root.absolute().parents) if folder.exists()
        )
        return there.is_dir() and os.access(there, os.W_OK | os.X_OK)

    def _home(self, record: Mapping[str, Any]) -> Path:
        return self.folder(record["names"], record["key"], record["seed"])

    def _load(self, path: Path) -> tuple[dict[str, Any] | None, Quarantined | None]:
        try:
            seen, content = path.stat(), read_whole(path)
        except (FileNotFoundError, NotADirectoryError):
            return None, None
        except OSError as error:
            return None, Quarantined(path, f"cannot be read: {error.strerror}")
        record, reason = self._parsed(content)
        if reason == EDITED:  # a whole record that somebody changed: it stays where it is, for them
            return None, Quarantined(path, reason)
        return (None, _quarantine(path, seen, reason)) if reason else (record, None)

    def _unpacked(self, folder: Path, text: str) -> tuple[dict[str, Any] | None, Quarantined | None]:
        """The record of a packed unit; what is none is named by the path that it would have."""
        record, reason = self._parsed(text.encode("utf-8", "surrogateescape"))
        return (None, Quarantined(folder / RECORD, f"packed, {reason}")) if reason else (record, None)

    def _parsed(self, content: bytes) -> tuple[dict[str, Any] | None, str]:
        """The record, or why this is none."""
        try:
            record: dict[str, Any] = json.loads(content, parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:
            return None, f"does not parse: {error}"
        reason = misfit(record) or self._unfit_names(record)
        if reason:
            return None, f"fits no schema: {reason}"
        return (None, EDITED) if is_edited(record) else (printable(record), "")

    def _unfit_names(self, record: Mapping[str, Any]) -> str | None:
        try:
            self._home(record)
        except ValueError as error:
            return str(error).rstrip(".")
        return None


def content_of(path: Path) -> bytes | None:
    """What a record.json holds, loose or packed; None where there is none. OSError: it cannot be read."""
    if path.is_file():
        return read_whole(path)
    folder = path.absolute().parent
    return RecordStore.around(folder).text(folder, RECORD) if len(folder.parents) > 4 else None


def _text(record: Mapping[str, Any]) -> str:
    # One line per top-level field: small, and still readable and comparable line by line.
    lines = [
        f"{json.dumps(name)}: {json.dumps(record[name], sort_keys=True, allow_nan=False)}"
        for name in sorted(record)
    ]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _quarantine(path: Path, seen: os.stat_result, reason: str) -> Quarantined:
    number = 1
    while (aside := path.with_name(f"{path.name}.bad-{number}")).exists():
        number += 1
    try:
        # A writer may have replaced the file since it was read; then the good one must stay.
        if path.stat().st_ino == seen.st_ino:
            os.rename(path, aside)
            return Quarantined(aside, reason)
    except OSError as error:
        return Quarantined(path, f"{reason} (left in place: {error.strerror})")
    return Quarantined(path, f"{reason} (replaced meanwhile, left in place)")


def _lighten(record: dict[str, Any]) -> dict[str, Any]:
    light = {name: value for name, value in record.items() if name not in _HEAVY}
    for field_name, parts in _HEAVY_PARTS.items():
        if light.get(field_name):
            light[field_name] = {k: v for k, v in light[field_name].items() if k not in parts}
    return light
