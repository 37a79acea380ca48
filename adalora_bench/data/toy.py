"""Made-up tasks that a tiny random model learns in a few dozen steps. For tests; no number of them means anything.

Rows are short "sentences" of plain words with key words among them, warm or cold. Classification: the first sentence
of a pair holds one key word, of the class's own. Regression: how many of the four key words in a pair are warm. Choice:
which of two sentences holds the warm key word. Span: the warm key word in a sentence. Text: both key words of a
sentence, in any order.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from adalora_bench.data.fields import CHOICES, REFERENCES
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
        tables = {}
        for split in splits:
            source = random.Random(_DRAW[split])
            rows = [_MAKERS[self.kind](source, i) for i in range(sizes[split])]
            columns: dict[str, list[Any]] = {
                name: [row[k] for row in rows] for k, name in enumerate(self.text)
            }
            columns[self.label] = [row[len(self.text)] for row in rows]
            if self.kind == "choice":
                columns[CHOICES] = [row[-1] for row in rows]
            if self.kind == "text" and split != self.train_split:
                columns[REFERENCES] = [[row[-1], " ".join(reversed(row[-1].split()))] for row in rows]
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


def _chosen(source: random.Random, row: int) -> tuple[str, int, list[str]]:
    label = int(source.random() * 2)
    keys = (WARM, COLD) if label == 0 else (COLD, WARM)
    question = _sentence(source, [])
    return question, label, [_sentence(source, [_pick(source, own)]) for own in keys]


def _found(source: random.Random, row: int) -> tuple[str, str, dict[str, list[Any]]]:
    key = _pick(source, WARM)
    context = _sentence(source, [key, _pick(source, COLD)])
    start = f" {context} ".index(f" {key} ")
    return "which word is warm", context, {"text": [key], "answer_start": [start]}


def _listed(source: random.Random, row: int) -> tuple[str, str]:
    keys = [_pick(source, WARM), _pick(source, COLD)]
    words = _sentence(source, keys).split()
    return " ".join(words), " ".join(word for word in words if word in keys)


_MAKERS: dict[str, Callable[[random.Random, int], tuple[Any, ...]]] = {
    "classification": _classified,
    "regression": _counted,
    "choice": _chosen,
    "span": _found,
    "text": _listed,
}
