"""Which record the user means, and its cell on this machine. Imports no torch."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adalora_bench.errors import UserError, unknown
from adalora_bench.settings.compose import compose_cells
from adalora_bench.settings.config import GROUPS, Cell
from adalora_bench.store.records import RECORD, content_of


def locate(where: str) -> Path:
    """The record.json that the user means; where the unit is packed, the path that it would have.

    UserError: there is none, with the nearest name.
    """
    path = Path(os.path.expanduser(where))
    if path.is_file():
        return path
    path = path.parent if path.name == RECORD else path
    wanted = path / RECORD
    if wanted.is_file() or content_of(wanted) is not None:
        return wanted
    here = next(folder for folder in (path, *path.parents) if folder.is_dir())
    names = sorted(child.name for child in here.iterdir() if child.is_dir())[:40]
    hint = "."
    if names and path == here:
        hint = f", which holds the folders {', '.join(names)}."
    elif names:
        hint = f": {unknown(f'folder in {here},', path.relative_to(here).parts[0], names)}"
    raise UserError(f"no record in {path}{hint} A record is results/runs/TASK/BACKBONE/METHOD/KEY/SEED.")


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
