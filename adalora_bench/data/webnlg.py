"""WebNLG 2017: a text from one to seven facts. The test set has categories that were met in training, and others.

One row of the files (invented): category "Building", modified_triple_sets {mtriple_set: [["Old_Mill | location |
Delft", "Old_Mill | floorCount | 3"]]}, lex {text: ["The Old Mill in Delft has 3 floors."], comment: ["good"], ...},
test_category "testdata_with_lex" (of the test set; other files of it repeat inputs, some without texts).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from adalora_bench.data.converted import Recounted
from adalora_bench.data.fields import Row

# The categories of the training set.
# fmt: off
SEEN = frozenset((
    "Airport", "Astronaut", "Building", "City", "ComicsCharacter", "Food", "Monument", "SportsTeam", "University",
    "WrittenWork",
))
# fmt: on
WITH_TEXTS = "testdata_with_lex"


@dataclass(frozen=True, kw_only=True)
class WebNLG(Recounted):
    """Training rows: one for each text marked as good. Report rows: one for each input, with all its texts."""

    def raw_columns(self, split: str) -> list[str]:
        return ["category", "modified_triple_sets", "lex", "test_category"]

    def file_split(self, split: str) -> str:
        return "test" if split in ("test_seen", "test_unseen") else split

    def expand(self, raw: Row, split: str) -> list[Row]:
        if split.startswith("test"):
            wanted = (raw["category"] in SEEN) == (split == "test_seen")
            if raw["test_category"] != WITH_TEXTS or not wanted:
                return []
        facts = linear(raw["modified_triple_sets"]["mtriple_set"])
        lex = raw["lex"]
        texts = [text for text, mark in zip(lex["text"], lex["comment"], strict=True) if mark == "good"]
        if split == self.train_split:
            return [{"facts": facts, self.label: text} for text in texts]
        if not texts:
            raise ValueError("'lex' has no text marked as good")
        return [{"facts": facts, self.label: texts[0], "references": texts}]

    def score(
        self, predictions: Mapping[str, Sequence[Any]], report: Mapping[str, Sequence[Row]], variant: str = ""
    ) -> dict[str, float]:
        scores = super().score(predictions, report, variant)
        if "unseen" not in report:  # rows held out of the training rows: all of them are of seen categories
            scores |= {name.replace("_seen", "_all"): value for name, value in scores.items()}
        return scores


def linear(triple_sets: list[list[str]]) -> str:
    """The facts of the first set: `Old_Mill : location : Delft | Old_Mill : floorCount : 3`.

    ValueError: no facts, or one that has not three parts.
    """
    facts = [fact.split(" | ") for fact in triple_sets[0]] if triple_sets else []
    if not facts or any(len(fact) != 3 for fact in facts):
        raise ValueError(f"'mtriple_set' is {triple_sets}; it must hold facts of three parts, 'a | b | c'")
    return " | ".join(" : ".join(part.strip() for part in fact) for fact in facts)
