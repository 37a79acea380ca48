"""`method.pattern_from`: the ranks that a record ended with, as settings of a new cell. Imports no torch.

The ranks enter the cell's key, the place of the record does not.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from adalora_bench.errors import UserError
from adalora_bench.store.records import RECORD, content_of
from adalora_bench.store.schema import FINISHED, misfit

SETTING = "method.pattern_from"


def resolve(config: Mapping[str, Any]) -> dict[str, Any]:
    """What becomes of `method` in a composed config that names a record: `ranks`, and the record's place in a store.

    Raises:
        UserError: there is no record, it has no ranks, or its modules are not those of this cell.
    """
    from adalora_bench.models.backbone import Backbone
    from adalora_bench.settings.config import build

    method = config["method"]
    place = str(method["pattern_from"])
    if method["ranks"] is not None:
        raise UserError(f"{SETTING}={place!r} and method.ranks both say the ranks; give one of them.")
    record = _read(place, Path(config["results_dir"]))
    backbone: Backbone = build(config["backbone"], "backbone")
    targets = method["targets"]
    backbone.check_targets(targets)
    wanted = [m for m, role in backbone.module_roles().items() if "all" in targets or role in targets]
    return {"ranks": _matched(record, wanted, place), "pattern_from": _place(record)}


def public(overrides: Sequence[str], config: Mapping[str, Any]) -> list[str]:
    """What the user typed, with the record's place in a store where a path of this machine may stand."""
    return [
        f"{SETTING}={config['method']['pattern_from']}" if text.startswith(f"{SETTING}=") else text
        for text in overrides
    ]


def _read(place: str, results: Path) -> dict[str, Any]:
    candidates = [Path(place), results / "runs" / place]
    candidates += [folder / RECORD for folder in candidates]
    try:
        content = next((found for path in candidates if (found := content_of(path)) is not None), None)
        if content is None:
            raise UserError(
                f"{SETTING}={place!r}: there is no record, neither here nor in {results / 'runs'}."
            )
        record = json.loads(content)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{SETTING}={place!r} cannot be read: {error}.") from error
    reason = misfit(record)
    if reason:
        raise UserError(f"{SETTING}={place!r} is no record: {reason}.")
    if record["status"] not in FINISHED:
        raise UserError(f"{SETTING}={place!r}: that unit is {record['status']}; its ranks are not final.")
    if not (record.get("ranks") or {}).get("final"):
        raise UserError(f"{SETTING}={place!r}: a record of {record['names']['method']} has no ranks.")
    whole: dict[str, Any] = record
    return whole


def _matched(record: Mapping[str, Any], wanted: Sequence[str], place: str) -> dict[str, int]:
    """Module below the body -> rank. A record's names begin with the path to the body, whatever its head was."""
    left = dict(record["ranks"]["final"])
    found: dict[str, int] = {}
    for module in wanted:
        name = next((n for n in left if n == module or n.endswith(f".{module}")), None)
        if name is None:
            raise UserError(_misfit(record, place, len(wanted), f"it has no rank for {module}"))
        found[module] = left.pop(name)
    if left:
        raise UserError(_misfit(record, place, len(wanted), f"{next(iter(left))} is not adapted here"))
    return found


def _misfit(record: Mapping[str, Any], place: str, modules: int, why: str) -> str:
    names, count = record["names"], len(record["ranks"]["final"])
    return (
        f"{SETTING}={place!r}: the record of {names['method']} on {names['backbone']} has {count} modules and does "
        f"not fit the {modules} of this backbone and method.targets: {why}."
    )


def _place(record: Mapping[str, Any]) -> str:
    names = record["names"]
    parts = (names["task"], names["backbone"], names["method"], record["key"][:8], f"seed{record['seed']}")
    return "/".join(parts)
