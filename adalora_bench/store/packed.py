"""Records packed into a few compressed files, as git keeps them: read here, written by `adalora_bench.store.pack`.

    <root>/<task>.jsonl.gz, <task>+2.jsonl.gz, ...               records and steps
    <root>/<task>+predictions.jsonl.gz, ...                      predictions

Each line is one file of one unit: {"unit": "<task>/<backbone>/<method>/<key[:8]>/seed<k>", "file": "record.json",
"text": ...}. A later line replaces an earlier one of the same unit and file, and parts are read in the order of their
numbers, so packing only ever adds. A record that lies loose in its folder stands before a packed one, with the files
beside it. Imports no torch.
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

LARGEST = 64 * 2**20  # bytes of a part, or of one line of it
RECORD = "record.json"
STEPS = "steps.jsonl"
PREDICTIONS = "predictions.jsonl.gz"
PACKED = (RECORD, STEPS, PREDICTIONS)  # what is packed of a unit's folder
PART = re.compile(r"([A-Za-z0-9][A-Za-z0-9_.-]{0,99})(\+predictions)?(?:\+(\d{1,4}))?\.jsonl\.gz")


@dataclass(frozen=True)
class Part:
    """One packed file: the texts of its units, and why it could not be read to its end."""

    texts: dict[str, dict[str, str | None]] = field(
        default_factory=dict
    )  # unit -> file -> text; None: removed
    damage: str = ""


def part_name(task: str, number: int, *, predictions: bool) -> str:
    """The name of a packed file; numbers begin at 1."""
    return f"{task}{'+predictions' if predictions else ''}{f'+{number}' if number > 1 else ''}.jsonl.gz"


def parts(root: Path, task: str | None = None, *, predictions: bool = False) -> list[Path]:
    """The packed files below `root`, of one task or all, in the order in which they are read."""
    found = []
    for path in root.iterdir() if root.is_dir() else ():
        match = PART.fullmatch(path.name)
        if match and bool(match[2]) == predictions and task in (None, match[1]) and path.is_file():
            found.append((match[1], int(match[3] or 1), path))
    return [path for _, _, path in sorted(found)]


def read_part(path: Path) -> Part:
    """What a packed file holds; one that was read before and did not change is not read again."""
    try:
        seen = path.stat()
    except OSError as error:
        return Part(damage=f"cannot be read: {error.strerror}")
    return _read(path.absolute(), (seen.st_ino, seen.st_mtime_ns, seen.st_size))


@lru_cache(maxsize=64)
def _read(path: Path, _: tuple[int, int, int]) -> Part:
    part = Part()
    number = 0
    try:
        if not path.is_file() or path.stat().st_size > LARGEST:
            return Part(damage="is no ordinary file, or larger than any that is packed")
        with gzip.open(path, "rb") as lines:
            while line := lines.readline(LARGEST):
                number += 1
                row = json.loads(line)
                texts = part.texts.setdefault(row["unit"], {})
                texts[str(row["file"])] = None if row["text"] is None else row["text"] + ""
    except (OSError, EOFError, zlib.error) as error:
        return Part(part.texts, f"is damaged after line {number}: {error}")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        return Part(part.texts, f"is damaged at line {number}: {type(error).__name__}: {error}")
    return part if part.texts else Part(damage="is empty, as no packed file is")


def text_of(root: Path, unit: str, file: str) -> str | None:
    """One packed file of a unit ("<task>/.../seed<k>"); None where it is not packed."""
    found = None
    for path in parts(root, unit.partition("/")[0], predictions=file == PREDICTIONS):
        found = read_part(path).texts.get(unit, {}).get(file, found)
    return found


def records(root: Path) -> Iterator[tuple[str, Path, str]]:
    """(unit, the packed file, text of its record), sorted by unit."""
    found = {
        unit: (path, text)
        for path in parts(root)
        for unit, texts in read_part(path).texts.items()
        if (text := texts.get(RECORD)) is not None
    }
    for unit in sorted(found):
        yield (unit, *found[unit])


def damaged(root: Path, *, predictions: bool = False) -> list[tuple[Path, str]]:
    """The packed files of records, or those of predictions, that cannot be read to their end, and why."""
    return [
        (path, damage) for path in parts(root, predictions=predictions) if (damage := read_part(path).damage)
    ]
