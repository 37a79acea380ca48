"""COPA: which of two sentences is the cause, or the effect, of a third.

One row of the files (invented): premise "The lamp went out.", question "cause", choice1 "The oil was used up.",
choice2 "The room was warm.", label 0.
"""

from __future__ import annotations

from dataclasses import dataclass

from adalora_bench.data.converted import Converted
from adalora_bench.data.fields import Row

# The wording of the task's own question for the two kinds.
QUESTIONS = {"cause": "What was the cause of this?", "effect": "What happened as a result?"}


@dataclass(frozen=True, kw_only=True)
class Copa(Converted):
    """Rows of `premise`, `ask` and the two `choices`."""

    def raw_columns(self, split: str) -> list[str]:
        return ["premise", "question", "choice1", "choice2", self.label]

    def expand(self, raw: Row, split: str) -> list[Row]:
        if raw["question"] not in QUESTIONS:
            raise ValueError(f"'question' is {raw['question']!r}; it must be cause or effect")
        row = {
            "premise": raw["premise"],
            "ask": QUESTIONS[raw["question"]],
            "choices": [raw["choice1"], raw["choice2"]],
            self.label: raw[self.label],
        }
        return [row]
