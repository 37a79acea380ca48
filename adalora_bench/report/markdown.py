"""Tables as Markdown. Pure."""

from __future__ import annotations

from collections.abc import Sequence


def pipe_table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Padded so that it reads as plain text too. Cells are taken as they are, but for a `|`."""
    texts = [[cell.replace("|", "\\|") for cell in line] for line in [head, *lines]]
    widths = [max(len(line[column]) for line in texts) for column in range(len(head))]
    padded = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |"
        for line in texts
    ]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([padded[0], rule, *padded[1:]])


def one_line(text: str) -> str:
    """Text from settings or records, which must neither break a line nor open a tag."""
    return " ".join(text.split()).replace("<", "&lt;")
