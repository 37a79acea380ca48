"""Record folders of several machines in one: what `bench collect` does. Trains nothing, loses nothing.

A unit's folder is copied whole, its record last, so that a kill leaves a unit that is collected again. Where a unit
is there already with another content, both stay: one in its place, the other in also-<hash>/ beside its record.json,
where no table reads it. Imports no torch.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from adalora_bench.errors import UserError
from adalora_bench.store.files import TEMPORARY, atomic_write, writing
from adalora_bench.store.records import LOCAL_FILES, RECORD, LeaseHeld, RecordStore
from adalora_bench.store.schema import DONE

ALSO = "also-"
# Two runs of one unit that differ in these alone have the same result.
OF_THE_RUN = ("seconds", "finished", "peak_memory_bytes", "git", "environment", "checksum", "artefacts")


@dataclass
class Collected:
    """What became of every unit that was found; paths are those in the store that was filled."""

    copied: list[Path] = field(default_factory=list)
    same: list[Path] = field(default_factory=list)  # there already, byte for byte
    both: list[tuple[Path, str]] = field(default_factory=list)  # the one set aside, and in what it differs
    held: list[str] = field(default_factory=list)  # being trained here
    refused: list[str] = field(default_factory=list)  # no records: damaged, or in the wrong place


def collect(folders: Sequence[Path], results: Path) -> Collected:
    """Bring the records of other results folders into `results`.

    Args:
        folders: results folders, each with its runs/.
        results: the folder that is filled; made where it is missing.

    Raises:
        UserError: a folder holds no runs/ or is `results` itself; the file system refuses.
    """
    for folder in folders:
        if not (folder / "runs").is_dir():
            raise UserError(
                f"{folder} holds no runs/; name a results folder, such as the results_dir of a run."
            )
        if folder.resolve() == results.resolve():
            raise UserError(f"{folder} is the folder to collect into; name the others.")
    target = RecordStore(results / "runs")
    target.check_writable()
    found = Collected()
    for folder in folders:
        source = RecordStore(folder / "runs")
        scan = source.scan(light=True)
        found.refused += [f"{one.path}: {one.reason}" for one in scan.quarantined]
        for record in scan.records:
            home = source.folder(record["names"], record["key"], record["seed"])
            there = target.folder(record["names"], record["key"], record["seed"])
            try:
                with target.lease(there), _loose(source, home) as whole:
                    for one in (whole, *sorted(home.glob(f"{ALSO}*"))):
                        if (one / RECORD).is_file():
                            _bring(one, there, target, found)
            except LeaseHeld as held:
                found.held.append(f"{home}: {held.holder} works on it here")
    return found


@contextmanager
def _loose(store: RecordStore, folder: Path) -> Iterator[Path]:
    """The unit's folder; of a packed unit, a folder with its files for the while."""
    if (folder / RECORD).is_file():
        yield folder
        return
    with TemporaryDirectory() as place:
        store.loosen(folder, Path(place))
        yield Path(place)


def _bring(source: Path, folder: Path, target: RecordStore, found: Collected) -> None:
    """One recorded unit into its leased folder."""
    content = (source / RECORD).read_bytes()
    if target.text(folder, RECORD) == content:
        found.same.append(folder)
        return
    target.loosen(folder)
    if any((place / RECORD).read_bytes() == content for place in _places(folder)):
        found.same.append(folder)
        return
    new, here = json.loads(content), target.read(folder)
    if here is None:
        _copy(source, folder)
        found.copied.append(folder)
        return
    if here["status"] not in DONE and new["status"] in DONE and here["key"] == new["key"]:
        aside = _copy(folder, _aside(folder, (folder / RECORD).read_bytes()))
        _copy(source, folder)
    else:
        aside = _copy(source, _aside(folder, content))
    found.both.append((aside, difference(here, new)))


def _places(folder: Path) -> Iterable[Path]:
    """Where a unit's folder holds a record: itself, and what was set aside."""
    return [place for place in (folder, *folder.glob(f"{ALSO}*")) if (place / RECORD).is_file()]


def _aside(folder: Path, content: bytes) -> Path:
    return folder / f"{ALSO}{hashlib.sha256(content).hexdigest()[:8]}"


def _copy(source: Path, folder: Path) -> Path:
    """The files of a unit but for its lease and checkpoints; the record last, as the sign that all is there."""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for path in sorted(source.iterdir()):
            own = path.name in (RECORD, *LOCAL_FILES) or path.name.endswith(TEMPORARY)
            if path.is_file() and not own:
                shutil.copyfile(path, folder / path.name)
    atomic_write(folder / RECORD, (source / RECORD).read_bytes())
    return folder


def difference(one: dict[str, Any], other: dict[str, Any]) -> str:
    """In words: which fields of two records differ."""
    names = sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))
    told = [name for name in names if name not in OF_THE_RUN]
    return f"differs in {', '.join(told)}" if told else "the same result of another run"
