"""A made-up task that a tiny random model learns in a few dozen steps. For tests; no number of it means anything.

Each row is a pair of short "sentences" of plain words. Classification: the first one holds one key word, of the
class's own. Regression: the label is how many of the four key words in the pair are of the class "warm".
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from adalora_bench.data.sources import Found
from adalora_bench.data.tasks import Task
from adalora_bench.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

COLD = ("ice", "snow", "frost", "winter")
WARM = ("sun", "fire", "summer", "stove")
# fmt: off
FILLER = (
    "the", "a", "one", "two", "this", "that", "boat", "chair", "door", "field", "garden", "hat", "hill",
    "house", "lamp", "leaf", "letter", "map", "mill", "moon", "night", "paper", "path", "pen", "river",
    "road", "roof", "sea", "ship", "shoe", "spoon", "stone", "street", "table", "tree", "wall", "water",
    "window", "wood",
)
# fmt: on
WORDS = (*COLD, *WARM, *FILLER)
_DRAW = {"train": 11, "validation": 12}


@dataclass(frozen=True, kw_only=True)
class Toy(Task):
    """Rows drawn by a fixed generator: the same on every machine and for every seed."""

    train_rows: int
    validation_rows: int

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.train_rows, self.validation_rows) < 2:
            raise UserError("task.train_rows and task.validation_rows must be at least 2.")

    def tables(self, found: Found, splits: Sequence[str]) -> dict[str, pa.Table]:
        import pyarrow as pa

        sizes = {"train": self.train_rows, "validation": self.validation_rows}
        make = _classified if self.kind == "classification" else _counted
        tables = {}
        for split in splits:
            source = random.Random(_DRAW[split])
            rows = [make(source, i) for i in range(sizes[split])]
            columns: dict[str, list[Any]] = {
                name: [row[k] for row in rows] for k, name in enumerate(self.text)
            }
            columns[self.label] = [row[2] for row in rows]
            tables[split] = self.checked(pa.table(columns), f"toy ({split})")
        return tables


def _pick(source: random.Random, words: Sequence[str]) -> str:
    # Of Random's draws only random() is promised to stay the same from version to version.
    return words[int(source.random() * len(words))]


def _sentence(source: random.Random, keys: Sequence[str]) -> str:
    """Four to nine filler words with the key words put in at random places."""
    words = [_pick(source, FILLER) for _ in range(4 + int(source.random() * 6))]
    for key in keys:
        words.insert(int(source.random() * (len(words) + 1)), key)
    return " ".join(words)


def _classified(source: random.Random, row: int) -> tuple[str, str, int]:
    label = row % 2
    return _sentence(source, [_pick(source, (COLD, WARM)[label])]), _sentence(source, []), label


def _counted(source: random.Random, row: int) -> tuple[str, str, float]:
    warm = row % 5
    keys = [_pick(source, WARM if k < warm else COLD) for k in range(4)]
    return _sentence(source, keys[::2]), _sentence(source, keys[1::2]), float(warm)
