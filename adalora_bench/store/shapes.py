"""The fields of a record to their leaves, as small checks that name the place that does not fit. Pure.

What reads a record (tables, figures, the page, collect) may rely on all that stands here; `schema.misfit` asks it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

Check = Callable[[Any, str], "str | None"]
"""A value and its place in the record -> why it does not fit, as the end of a sentence, or None."""

DEPTH = 40
LARGEST = 1e300  # of a number: what tables multiply and add up must stay finite
LONGEST = 200_000  # letters of a text
UNSHOWN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ufff9-\ufffb\ud800-\udfff]"
)
# The name of a score stands in files, tables and pictures.
SCORE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@-]{0,99}")


def printable(value: Any) -> Any:
    """The value with every text as it may be shown: no control characters but line ends and tabs, no marks that turn
    the direction of writing. What is shown reaches terminals, pages and documents of people who trust the table."""
    if isinstance(value, str):
        return UNSHOWN.sub("\ufffd", value)
    if isinstance(value, dict):
        return {UNSHOWN.sub("\ufffd", name): printable(part) for name, part in value.items()}
    return [printable(part) for part in value] if isinstance(value, list) else value


def plain(value: Any, place: str = "", depth: int = 0) -> str | None:
    """Anything that JSON holds, within what can be printed and calculated with."""
    if depth > DEPTH:
        return f"{place} is nested more than {DEPTH} deep"
    if isinstance(value, str):
        if len(value) > LONGEST:
            return f"{place} is a text of {len(value):,} letters"
        if any("\ud800" <= letter <= "\udfff" for letter in value):
            return f"{place} holds half a character (a lone surrogate)"
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        if not (math.isfinite(value) if isinstance(value, float) else True) or abs(value) > LARGEST:
            return f"{place} is {shortly(value)}, beyond what tables calculate with"
    elif isinstance(value, Mapping):
        for name, part in value.items():
            found = plain(name, f"a name in {place or 'the record'}", depth + 1)
            found = found or plain(part, f"{place}.{name}" if place else name, depth + 1)
            if found:
                return found
    elif isinstance(value, list):
        for number, part in enumerate(value):
            if found := plain(part, f"{place}[{number}]", depth + 1):
                return found
    return None


def shortly(value: object) -> str:
    """A value for a sentence, cut where it is long."""
    try:
        text = repr(value)
    except ValueError:  # a whole number of thousands of digits
        return "a number of thousands of digits"
    return text if len(text) <= 60 else f"{text[:57]}..."


def is_number(value: object) -> bool:
    """Whether it is a finite number that tables can calculate with; true and false are none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= LARGEST


def text(value: Any, place: str) -> str | None:
    """A text."""
    return None if isinstance(value, str) else _not(value, place, "a text")


def number(value: Any, place: str) -> str | None:
    """A number that tables can calculate with."""
    return None if is_number(value) else _not(value, place, "a number")


def whole(value: Any, place: str) -> str | None:
    """A whole number."""
    return None if is_number(value) and isinstance(value, int) else _not(value, place, "a whole number")


def count(value: Any, place: str) -> str | None:
    """How many there are of something that is gone through one by one."""
    return None if whole(value, place) is None and 0 <= value <= 10_000 else _not(value, place, "a count")


def anything(value: Any, place: str) -> str | None:
    """Any value; `plain` has looked at it."""
    return None


def optional(check: Check) -> Check:
    """The same, or null."""
    return lambda value, place: None if value is None else check(value, place)


def either(*checks: Check) -> Check:
    """One of them fits; the first one says why not."""
    return lambda value, place: (
        None if any(check(value, place) is None for check in checks) else checks[0](value, place)
    )


def mapping(of: Check, names: re.Pattern[str] | None = None) -> Check:
    """An object whose values fit, whatever their names (or names of this form)."""

    def check(value: Any, place: str) -> str | None:
        if not isinstance(value, dict):
            return _not(value, place, "an object")
        for name, part in value.items():
            if names is not None and not names.fullmatch(name):
                return (
                    f"{shortly(name)} in {place} is no name: letters, digits, '_', '.', '@', '-', at most 100"
                )
            if found := of(part, f"{place}.{name}"):
                return found
        return None

    return check


def fields(needed: tuple[str, ...] = (), /, **known: Check) -> Check:
    """An object in which these fields, where they are there, fit; the needed ones are. Others may stand beside them."""

    def check(value: Any, place: str) -> str | None:
        if not isinstance(value, dict):
            return _not(value, place, "an object")
        for name in needed:
            if name not in value:
                return f"{place}.{name} is missing"
        for name, of in known.items():
            if name in value and (found := of(value[name], f"{place}.{name}")):
                return found
        return None

    return check


def items(of: Check) -> Check:
    """A list whose items fit."""

    def check(value: Any, place: str) -> str | None:
        if not isinstance(value, list):
            return _not(value, place, "a list")
        for at, part in enumerate(value):
            if found := of(part, f"{place}[{at}]"):
                return found
        return None

    return check


def row(*of: Check) -> Check:
    """A list of exactly so many items, each with its own check."""

    def check(value: Any, place: str) -> str | None:
        if not isinstance(value, list) or len(value) != len(of):
            return _not(value, place, f"a list of {len(of)}")
        return next(
            (
                found
                for at, (one, part) in enumerate(zip(of, value, strict=True))
                if (found := one(part, f"{place}[{at}]"))
            ),
            None,
        )

    return check


def _not(value: Any, place: str, wanted: str) -> str:
    return f"{place} is {shortly(value)}, not {wanted}"


SCORES = mapping(optional(number), SCORE)
_POINT: dict[str, Check] = {
    "step": number,
    "epoch": optional(number),
    "scores": SCORES,
    "train_scores": optional(SCORES),
    "dev_scores": optional(SCORES),
    "unparsed": optional(mapping(number)),
    "selected_on": optional(text),
}
POINT = fields(("scores",), **_POINT)
SETTINGS = optional(mapping(anything))
BY_NAME = optional(mapping(optional(number)))
RECORD: dict[str, Check] = {
    "config": fields(
        method=optional(fields(targets=optional(items(text)))),
        task=SETTINGS,
        backbone=optional(
            fields(
                layers=optional(count),
                roles=optional(mapping(either(text, items(text)))),
                caveat=optional(text),
                architecture=optional(text),
                source=SETTINGS,
            )
        ),
        train=SETTINGS,
        scale=SETTINGS,
        recipe=optional(fields(source=optional(text), values=SETTINGS)),
        split=text,
    ),
    "versions": mapping(optional(number)),
    "overrides": items(text),
    "reason": optional(text),
    "subset": optional(text),
    "notes": optional(items(text)),
    "final": optional(POINT),
    "best": optional(POINT),
    "history": optional(items(fields(("step", "scores"), **_POINT))),
    "baseline": optional(SCORES),
    "rows": BY_NAME,
    "params": optional(
        fields(
            trace=optional(items(row(number, number))),
            **dict.fromkeys(
                ("total", "head", "adapter_initial", "adapter_final", "adapter_average", "stored_final"),
                optional(number),
            ),
        )
    ),
    "ranks": optional(
        fields(
            initial_total=optional(number),
            final_total=optional(number),
            final=optional(mapping(number)),
            trace=optional(items(row(number, optional(number)))),
            nonzero=optional(items(row(number, number, number))),
        )
    ),
    "cosine": optional(mapping(number)),
    "gates": optional(mapping(items(optional(number)))),
    "events": optional(items(fields(step=number, kind=text, module=text))),
    "seconds": BY_NAME,
    "peak_memory_bytes": optional(number),
    "tokens": BY_NAME,
    "flops": BY_NAME,
    "environment": SETTINGS,
    "git": optional(fields(commit=optional(text))),
    "sources": optional(mapping(fields(served_by=optional(text), detail=optional(text)))),
    "metrics": optional(mapping(text, SCORE)),
    "steps": optional(number),
    "total_steps": optional(number),
    "checksum": text,
    "artefacts": optional(mapping(text)),
}
