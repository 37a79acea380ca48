"""bench verify: is every record what its unit wrote? Checksum, key, schema, the files beside it. Imports no torch."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adalora_bench.store import packed
from adalora_bench.store.files import tensor_shapes
from adalora_bench.store.packed import PREDICTIONS, STEPS
from adalora_bench.store.records import ADAPTER, RecordStore
from adalora_bench.store.schema import FINISHED


@dataclass
class Verified:
    """What `verify` found: how many records there are and how many carry a checksum, and a sentence for each misfit."""

    records: int = 0
    with_checksum: int = 0
    said: list[str] = field(default_factory=list)


def verify(root: Path, keys_of: Callable[[Mapping[str, Any]], tuple[str | None, str]]) -> Verified:
    """Look at every record of a store, loose and packed. Changes nothing but the names of files that are no records.

    Args:
        root: the folder that holds <task>/.
        keys_of: (key, settings key) that follow from what a record says; no key where it cannot be told.
    """
    store, found = RecordStore(root), Verified()
    scan = store.scan()
    found.said += [f"{one.path} {one.reason}." for one in scan.quarantined]
    found.said += [f"{path} is no record and was set aside; its unit has none." for path in scan.aside]
    for path, damage in packed.damaged(root, predictions=True):
        found.said.append(f"{path} {damage}.")
    for record in scan.records:
        folder = store.folder(record["names"], record["key"], record["seed"])
        found.records += 1
        found.with_checksum += "checksum" in record
        found.said += [f"{folder}: {said}." for said in _misfits(store, folder, record, keys_of)]
    return found


def _misfits(
    store: RecordStore,
    folder: Path,
    record: Mapping[str, Any],
    keys_of: Callable[[Mapping[str, Any]], tuple[str | None, str]],
) -> list[str]:
    said = []
    try:
        key, settings_key = keys_of(record)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        said.append(f"its key cannot be worked out from its settings ({type(error).__name__}: {error})")
    else:
        if settings_key != record["settings_key"]:
            said.append(
                f"its settings give the key {settings_key[:8]}, but it says {record['settings_key'][:8]}"
            )
        elif key not in (None, record["key"]):
            said.append(
                f"its settings, data and weights give the key {key[:8]}, but it says {record['key'][:8]}"
            )
    said += _artefacts(store, folder, record)
    if record["status"] in FINISHED:
        said += _scores(record)
        said += _adapter(folder, record)
    return said


def _scores(record: Mapping[str, Any]) -> list[str]:
    """The last evaluation stands twice in a record."""
    history = record.get("history") or []
    if history and record["final"]["scores"].items() - history[-1]["scores"].items():
        extra = {name for name, _ in record["final"]["scores"].items() - history[-1]["scores"].items()}
        if extra - {"judge_score"}:
            return [f"its final scores are not those of its last evaluation ({', '.join(sorted(extra))})"]
    return []


def _artefacts(store: RecordStore, folder: Path, record: Mapping[str, Any]) -> list[str]:
    """Files whose content is not the one that the record was written with; one that is not kept is no misfit."""
    said = []
    for file, wanted in (record.get("artefacts") or {}).items():
        content = None
        try:
            if file in (STEPS, PREDICTIONS):
                content = store.text(folder, file)
            elif file == ADAPTER and (folder / file).is_file():
                with (folder / file).open("rb") as opened:
                    if hashlib.file_digest(opened, "sha256").hexdigest() != wanted:
                        said.append(f"{file} is not the file that was written with it")
        except OSError as error:
            said.append(f"{file} cannot be read: {error.strerror}")
        if content is not None and hashlib.sha256(content).hexdigest() != wanted:
            said.append(f"{file} is not what was written with it")
    return said


def _adapter(folder: Path, record: Mapping[str, Any]) -> list[str]:
    """Does the adapter file hold the ranks that the record tells?"""
    path = folder / ADAPTER
    ranks = (record.get("ranks") or {}).get("final") or {}
    if not path.is_file() or not ranks:
        return []
    try:
        shapes = tensor_shapes(path)
    except (OSError, ValueError):
        return [f"{ADAPTER} cannot be read"]
    held: dict[str, int] = {}
    for name, shape in shapes.items():
        module, found, rest = name.partition(".blocks.")
        if found and rest.endswith(".a") and shape:
            held[module] = held.get(module, 0) + int(shape[0])
    odd = sorted(module for module, rank in ranks.items() if module in held and held[module] < rank)
    lost = sorted(module for module, rank in ranks.items() if rank and held and module not in held)
    return [f"{ADAPTER} holds other ranks than it tells, first for {name}" for name in (odd or lost)[:1]]
