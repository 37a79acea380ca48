"""Tables as Markdown, and which rows of a column are marked as the best and as the second. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


def pipe_table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Padded so that it reads as plain text too. What a cell holds can neither end it nor make a link or a tag."""
    texts = [[_cell(text) for text in line] for line in [head, *lines]]
    widths = [max(len(line[column]) for line in texts) for column in range(len(head))]
    padded = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |"
        for line in texts
    ]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([padded[0], rule, *padded[1:]])


def one_line(text: str) -> str:
    """Text from settings or records, which must neither break a line nor open a tag nor make a link or a picture."""
    return " ".join(text.split()).replace("<", "&lt;").replace("](", "]\\(").replace("]:", "]\\:")


def _cell(text: str) -> str:
    """Ours are the tags <u> and </u> alone."""
    marked = one_line(text).replace("&lt;u>", "<u>").replace("&lt;/u>", "</u>")
    return re.sub(r"(\\*)\|", lambda m: m[1] * 2 + "\\|", marked)  # a backslash before it must not free it


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
