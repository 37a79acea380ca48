"""The schema of a record: which fields it has, of which type, and what holds between them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

SCHEMA = 1
STATUSES = ("ok", "collapsed", "diverged", "failed")
FINISHED = ("ok", "collapsed")  # trained to the end: has a score
DONE = ("ok", "collapsed", "diverged")  # is a result: not run again
OURS = (
    "(ours)"  # marks a method built after a name whose source was not at hand: its note in a record, its rows
)
KEY = re.compile(r"[0-9a-f]{64}")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")  # what may be part of a path below results/

_Types = tuple[type, ...]
_NAMES = ("method", "task", "backbone", "scale")
_REQUIRED: dict[str, _Types] = {
    "key": (str,),
    "settings_key": (str,),
    "names": (dict,),
    "overrides": (list,),
    "config": (dict,),
    "seed": (int,),
    "versions": (dict,),
    "data_fingerprint": (str,),
    "split": (str,),
    "status": (str,),
    "main_metric": (str,),
    "finished": (str,),
}
# These may be absent or null, for a unit that failed early knows none of them.
_OPTIONAL: dict[str, _Types] = {
    "reason": (str,),
    "final": (dict,),
    "best": (dict,),
    "history": (list,),
    "baseline": (dict,),
    "rows": (dict,),
    "subset": (str,),
    "params": (dict,),
    "ranks": (dict,),
    "cosine": (dict,),
    "gates": (dict,),
    "events": (list,),
    "notes": (list,),
    "seconds": (dict,),
    "peak_memory_bytes": (int,),
    "tokens": (dict,),
    "flops": (dict, int, float),
    "environment": (dict,),
    "git": (dict,),
    "sources": (dict,),
    "metrics": (dict,),
    "steps": (int,),
    "total_steps": (int,),
}
# Numbers (or null) that tables calculate with.
_NUMBERS: dict[str, tuple[str, ...]] = {
    "rows": ("train", "report"),
    "params": ("adapter_initial", "adapter_final"),
    "seconds": ("total",),
    "ranks": ("initial_total", "final_total"),
}


def misfit(record: object) -> str | None:
    """Why this is no record of schema 1, as the end of a sentence without a full stop; None if it is one."""
    if not isinstance(record, dict):
        return f"it is no object but {type(record).__name__}"
    if record.get("schema") != SCHEMA:
        return f"schema is {record.get('schema')!r}, not {SCHEMA}"
    for name, types in _REQUIRED.items():
        if name not in record:
            return f"{name} is missing"
        if not _is(record[name], types):
            return f"{name} is {_short(record[name])}, not {_type_names(types)}"
    for name, types in _OPTIONAL.items():
        if record.get(name) is not None and not _is(record[name], types):
            return f"{name} is {_short(record[name])}, not {_type_names(types)} or null"
    return _identity(record) or _numbers(record) or _outcome(record)


def finished_at(record: Mapping[str, Any]) -> datetime:
    """When the unit ended; a time without a zone is taken as UTC."""
    time = datetime.fromisoformat(record["finished"])
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def _identity(record: Mapping[str, Any]) -> str | None:
    for name in ("key", "settings_key"):
        if not KEY.fullmatch(record[name]):
            return f"{name} is {_short(record[name])}, not 64 hex characters"
    for name in _NAMES:
        if not isinstance(record["names"].get(name), str):
            return f"names.{name} is {_short(record['names'].get(name))}, not str"
    for value in (*(record["names"][name] for name in _NAMES), record["split"]):
        if not NAME.fullmatch(value):
            return f"{value!r} is no name for a folder: letters, digits, '_', '.', '-', at most 100"
    if not all(isinstance(override, str) for override in record["overrides"]):
        return "overrides holds something that is no text"
    if record["seed"] < 0:
        return f"seed is {record['seed']}, below 0"
    try:
        finished_at(record)
    except ValueError:
        return f"finished is {_short(record['finished'])}, not an ISO time"
    return None


def _numbers(record: Mapping[str, Any]) -> str | None:
    for name, parts in {**_NUMBERS, "baseline": tuple(record.get("baseline") or ())}.items():
        values = record.get(name) or {}
        for part in parts:
            if values.get(part) is not None and not _is_number(values[part]):
                return f"{name}.{part} is {_short(values[part])}, not a number or null"
    return None


def _outcome(record: Mapping[str, Any]) -> str | None:
    status = record["status"]
    if status not in STATUSES:
        return f"status is {status!r}, not one of {', '.join(STATUSES)}"
    for name in ("final", "best"):
        point = record.get(name)
        if point is None:
            continue
        scores = point.get("scores")
        if not isinstance(scores, dict):
            return f"{name}.scores is {_short(scores)}, not dict"
        for metric, value in scores.items():
            if value is not None and not _is_number(value):
                return f"{name}.scores.{metric} is {_short(value)}, not a number or null"
    if status in FINISHED:
        final = record.get("final")
        if final is None or final["scores"].get(record["main_metric"]) is None:
            return f"status is {status!r} without a final score of {record['main_metric']}"
    elif not record.get("reason"):
        return f"status is {status!r} without a reason"
    return None


def _is(value: object, types: _Types) -> bool:
    return isinstance(value, types) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _type_names(types: _Types) -> str:
    return " or ".join(one.__name__ for one in types)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
