"""Which rows of a column are marked as the best and as the second. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Rank:
    """A finite score with its lowest and highest seed; a diverged seed is infinite."""

    value: float | None
    low: float | None
    high: float | None


def best_and_second(rows: Mapping[str, Rank], *, higher: bool) -> dict[str, str]:
    """Row -> "best" or "second"; what lies within the best row's range is not ranked apart from it.

    Rows within the noise of each other share a mark; with one row there is none.
    """
    if len(rows) < 2:
        return {}
    sign = 1.0 if higher else -1.0
    marked: dict[str, str] = {}
    for mark in ("best", "second"):
        left = {label: row for label, row in rows.items() if label not in marked}
        if not left:
            break
        top = max(left.values(), key=lambda row: sign * (row.value or 0.0))
        edge = top.low if higher else top.high
        if edge is None or not math.isfinite(edge):
            edge = top.value  # a diverged seed tells nothing about the noise of the others
        for label, row in left.items():
            if row is top or (edge is not None and sign * (row.value or 0.0) >= sign * edge):
                marked[label] = mark
    return marked


def marked_markdown(text: str, mark: str | None) -> str:
    """The first word of a cell, its number, in bold or underlined."""
    number, _, rest = text.partition(" ")
    if mark == "best":
        return f"**{number}** {rest}"
    return f"<u>{number}</u> {rest}" if mark == "second" else text
