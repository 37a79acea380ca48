"""Tables as Markdown. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence


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
