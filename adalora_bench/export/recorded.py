"""Which record the user means, whether it can be exported, and whether the assets found are its own. No torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from adalora_bench import prepare
from adalora_bench.compose import compose_cells
from adalora_bench.config import GROUPS, Cell, build
from adalora_bench.data.sources import Found
from adalora_bench.data.tasks import Task
from adalora_bench.errors import UserError, unknown
from adalora_bench.key import with_key
from adalora_bench.store.records import RECORD
from adalora_bench.store.schema import FINISHED, misfit

ADAPTER = "adapter.safetensors"


def locate(where: str) -> Path:
    """The record.json that the user means. UserError: there is none, with the nearest name."""
    path = Path(where).expanduser()
    if path.is_file():
        return path
    path = path.parent if path.name == RECORD else path
    wanted = path / RECORD
    if wanted.is_file():
        return wanted
    here = next(folder for folder in (path, *path.parents) if folder.is_dir())
    names = sorted(child.name for child in here.iterdir() if child.is_dir())[:40]
    hint = "."
    if names and path == here:
        hint = f", which holds the folders {', '.join(names)}."
    elif names:
        hint = f": {unknown(f'folder in {here},', path.relative_to(here).parts[0], names)}"
    raise UserError(f"no record in {path}{hint} A record is results/runs/TASK/BACKBONE/METHOD/KEY/SEED.")


def read_record(path: Path) -> dict[str, Any]:
    """A record whose model can be exported. UserError: it is none, did not finish, or has no adapter."""
    try:
        record: dict[str, Any] = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is no record that can be read: {error}.") from None
    reason = misfit(record)
    if reason:
        raise UserError(f"{path} is no record: {reason}.")
    if record["status"] not in FINISHED:
        raise UserError(
            f"{path}: the unit is {record['status']} ({record['reason']}), so there is no model to export."
        )
    if not (record.get("ranks") or {}).get("final"):
        raise UserError(
            f"method {record['names']['method']} has no low-rank adapter, and the weights of such a run are not kept."
        )
    if record["config"]["backbone"].get("load_in_4bit"):
        raise UserError(
            f"{path}: the backbone was kept in 4 bits, and what was learned fits no other weights."
        )
    if not (path.parent / ADAPTER).is_file():
        raise UserError(
            f"{path.parent / ADAPTER} is missing (git carries no weights); run the unit again with force=true."
        )
    return record


def cell_of(record: Mapping[str, Any], settings: Mapping[str, str]) -> Cell:
    """The cell of a record with the places of this machine.

    A setting that was added after the record was written has the value that the YAML gives it.

    Raises:
        UserError: a place that no record keeps is not given, or the record's method, task or backbone is not known.
    """
    offline = settings.get("offline", "false")
    if offline not in ("true", "false"):
        raise UserError(f"offline={offline!r} must be true or false.")
    (present,) = compose_cells([f"{group}={record['names'][group]}" for group in GROUPS])
    config = dict(record["config"])
    for group in (*GROUPS, "train"):
        config[group] = present.config[group] | config[group]
    config |= {"data_dir": settings.get("data_dir"), "offline": offline == "true"}
    for group in ("task", "backbone"):
        local = settings.get(f"{group}.source.local")
        source = config[group]["source"]
        if local:
            config[group] = config[group] | {"source": source | {"local": local}}
        elif source.get("local"):
            raise UserError(
                f"the {group} of this record came from a local folder, and a record keeps no paths; name it: "
                f"{group}.source.local=FOLDER."
            )
    return Cell(
        names=record["names"], config=config, overrides=(), seeds=(record["seed"],), key=record["key"]
    )


def check_assets(cell: Cell, record: Mapping[str, Any], found: Mapping[str, Found]) -> list[str]:
    """Are the rows and weights those of the record? Notes for what cannot be told.

    Raises:
        UserError: they are others.
    """
    task: Task = build(cell.config["task"], "task")
    data = task.fingerprint(found[cell.names["task"]], cell.config["split"])
    if data != record["data_fingerprint"]:
        raise UserError(f"the rows of {cell.names['task']} that were found are not those of the record.")
    here, there = found[cell.names["backbone"]], record["sources"]["backbone"]
    again = with_key(
        replace(cell, config=record["config"]),
        data_fingerprint=data,
        weights=prepare.weights_identity(here),
        engine=record["versions"]["engine"],
    )
    if again.key == record["key"]:
        return []
    if here.served_by == there["served_by"] and again.settings_key == record["settings_key"]:
        raise UserError(
            f"the weights of {cell.names['backbone']} that were found ({here.detail}) are not those of the record "
            f"({there['detail']})."
        )
    return [
        f"note: the key of the record does not tell whether the weights that were found ({here.detail}) are its own "
        f"({there['detail']})"
    ]
