"""Which record the user means, whether it can be exported, and whether the assets found are its own. No torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from adalora_bench.errors import UserError
from adalora_bench.settings import prepare
from adalora_bench.settings.config import Cell
from adalora_bench.settings.key import with_key
from adalora_bench.settings.prepare import Assets
from adalora_bench.store.records import ADAPTER, content_of
from adalora_bench.store.schema import FINISHED, misfit


def read_record(path: Path) -> dict[str, Any]:
    """A record whose model can be exported. UserError: it is none, did not finish, or has no adapter."""
    try:
        record: dict[str, Any] = json.loads(content_of(path) or b"")
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


def check_assets(cell: Cell, record: Mapping[str, Any], found: Assets) -> list[str]:
    """Are the rows and weights those of the record? Notes for what cannot be told.

    Raises:
        UserError: they are others.
    """
    data = cell.task.fingerprint(found.task(cell), cell.config["split"])
    if data != record["data_fingerprint"]:
        raise UserError(f"the rows of {cell.names['task']} that were found are not those of the record.")
    here, there = found.backbone(cell), record["sources"]["backbone"]
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
