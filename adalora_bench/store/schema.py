"""The schema of a record: which fields it has, of which type, and what holds between them."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from adalora_bench.store.shapes import RECORD, SCORE, plain, shortly

SCHEMA = 1
STATUSES = ("ok", "collapsed", "diverged", "failed")
FINISHED = ("ok", "collapsed")  # trained to the end: has a score
DONE = ("ok", "collapsed", "diverged")  # is a result: not run again
OURS = (
    "(ours)"  # marks a method built after a name whose source was not at hand: its note in a record, its rows
)
KEY = re.compile(r"[0-9a-f]{64}")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")  # what may be part of a path below results/

_NAMES = ("method", "task", "backbone", "scale")
_REQUIRED: dict[str, type] = {
    "key": str,
    "settings_key": str,
    "names": dict,
    "overrides": list,
    "config": dict,
    "seed": int,
    "versions": dict,
    "data_fingerprint": str,
    "split": str,
    "status": str,
    "main_metric": str,
    "finished": str,
}


def misfit(record: object) -> str | None:
    """Why this is no record of schema 1, as the end of a sentence without a full stop; None if it is one."""
    if not isinstance(record, dict):
        return f"it is no object but {type(record).__name__}"
    if record.get("schema") != SCHEMA:
        return f"schema is {record.get('schema')!r}, not {SCHEMA}"
    for name, kind in _REQUIRED.items():
        if name not in record:
            return f"{name} is missing"
        if not isinstance(record[name], kind) or isinstance(record[name], bool):
            return f"{name} is {shortly(record[name])}, not {kind.__name__}"
    reason = plain(record) or _identity(record)
    for name, check in RECORD.items():
        reason = reason or (check(record[name], name) if name in record else None)
    return reason or _outcome(record)


def finished_at(record: Mapping[str, Any]) -> datetime:
    """When the unit ended; a time without a zone is taken as UTC."""
    time = datetime.fromisoformat(record["finished"])
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def checksum(record: Mapping[str, Any]) -> str:
    """sha256 of all that a record says but for its own checksum; the order and the spacing of its JSON do not count."""
    said = {name: value for name, value in record.items() if name != "checksum"}
    return hashlib.sha256(json.dumps(said, sort_keys=True, allow_nan=False).encode()).hexdigest()


def is_edited(record: Mapping[str, Any]) -> bool:
    """Whether a record that has a checksum says something else than when it was written."""
    return "checksum" in record and record["checksum"] != checksum(record)


def _identity(record: Mapping[str, Any]) -> str | None:
    for name in ("key", "settings_key"):
        if not KEY.fullmatch(record[name]):
            return f"{name} is {shortly(record[name])}, not 64 hex characters"
    for name in _NAMES:
        if not isinstance(record["names"].get(name), str):
            return f"names.{name} is {shortly(record['names'].get(name))}, not str"
    for value in (*(record["names"][name] for name in _NAMES), record["split"]):
        if not NAME.fullmatch(value):
            return f"{value!r} is no name for a folder: letters, digits, '_', '.', '-', at most 100"
    if not SCORE.fullmatch(record["main_metric"]):
        return f"main_metric is {shortly(record['main_metric'])}, not the name of a score"
    if record["seed"] < 0:
        return f"seed is {record['seed']}, below 0"
    try:
        finished_at(record)
    except ValueError:
        return f"finished is {shortly(record['finished'])}, not an ISO time"
    return None


def _outcome(record: Mapping[str, Any]) -> str | None:
    status = record["status"]
    if status not in STATUSES:
        return f"status is {status!r}, not one of {', '.join(STATUSES)}"
    for name in ("final", "best"):
        point = record.get(name)
        if point is None:
            continue
        if not isinstance(point.get("scores"), dict):
            return f"{name}.scores is {shortly(point.get('scores'))}, not dict"
    if status in FINISHED:
        final = record.get("final")
        if final is None or final["scores"].get(record["main_metric"]) is None:
            return f"status is {status!r} without a final score of {record['main_metric']}"
    elif not record.get("reason"):
        return f"status is {status!r} without a reason"
    return None
