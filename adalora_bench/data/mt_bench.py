"""MT-Bench: 80 questions of two turns, answered after training on Alpaca's instructions.

One row of Alpaca (invented): instruction "Name a colour of the sea.", input "", output "Blue.", text (not read).
One row of MT-Bench (invented): prompt ["Write a haiku about tea.", "Now about coffee."], reference [] or one text
for each turn, category "writing", prompt_id 81.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from adalora_bench import metrics
from adalora_bench.data import prompts
from adalora_bench.data.converted import Converted
from adalora_bench.data.fields import Row
from adalora_bench.data.sources import Found
from adalora_bench.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

TALK = "talk"
"""Column of the report rows: id, category, turns and references of a conversation."""
_ONE_IN = 50  # about so many instructions of which one is held out by the task alpaca


def request(raw: Row) -> str:
    """An instruction, with its input below it where it has one."""
    return f"{raw['instruction']}\n\n### Input:\n{raw['input']}" if raw["input"] else str(raw["instruction"])


@dataclass(frozen=True, kw_only=True)
class Alpaca(Converted):
    """Alpaca's one file in two: about a fiftieth is held out by a hash of the instruction, and reported on."""

    def raw_columns(self, split: str) -> list[str]:
        return ["instruction", "input", "output"]

    def file_split(self, split: str) -> str:
        return self.train_split

    def expand(self, raw: Row, split: str) -> list[Row]:
        train = split == self.train_split
        # Nothing can be compared with an empty output.
        if is_held_out(raw["instruction"]) == train or not (train or raw["output"].strip()):
            return []
        return [{"request": request(raw), self.label: raw["output"]}]

    def counts(self, found: Found, split: str) -> dict[str, int]:
        """Of the rows themselves; `available` gives those of the file, which tell a subset."""
        rows = self.load(found, split)
        return {"train": len(rows.train), "report": sum(map(len, rows.report.values()))}


def is_held_out(instruction: str) -> bool:
    """Whether the rows of an instruction are held out: by its hash, hence for good."""
    return int.from_bytes(hashlib.sha256(instruction.encode()).digest()[:4], "big") % _ONE_IN == 0


@dataclass(frozen=True, kw_only=True)
class MtBench(Converted):
    """Alpaca's rows to train on; a report row is a conversation, its prediction the tuple of both answers.

    Attributes:
        next_turn: template with {turn}: what stands between an answer and the next one.
    """

    next_turn: str

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.next_turn.count("{turn}") != 1:
            raise UserError(f"task.next_turn={self.next_turn!r} must hold {{turn}}, once.")

    def raw_columns(self, split: str) -> list[str]:
        if split == self.train_split:
            return ["instruction", "input", "output"]
        return ["prompt", "reference", "category", "prompt_id"]

    def expand(self, raw: Row, split: str) -> list[Row]:
        if split == self.train_split:
            return [{"request": request(raw), self.label: raw["output"]}]
        if len(raw["prompt"]) != 2 or len(raw["reference"]) not in (0, 2):
            raise ValueError("'prompt' must hold two turns, and 'reference' none or one for each")
        talk = {
            "id": raw["prompt_id"],
            "category": raw["category"],
            "turns": raw["prompt"],
            "references": raw["reference"],
        }
        # The label of a row without a reference is empty and never read: `score` looks at the references.
        return [{"request": raw["prompt"][0], self.label: (raw["reference"] or [""])[0], TALK: talk}]

    def checked(self, table: pa.Table, where: str) -> pa.Table:
        plain = super().checked(table, where)
        return plain.append_column(TALK, table.column(TALK)) if TALK in table.column_names else plain

    def next_prompt(self, row: Row, answers: Sequence[str]) -> str | None:
        """The conversation so far and its next turn; None after the last one."""
        turns = row[TALK]["turns"] if TALK in row else [row["request"]]
        if len(answers) >= len(turns):
            return None
        text = prompts.prompt_of(self, row)
        for answer, turn in zip(answers, turns[1:], strict=False):
            text += prompts.rendered(self, answer) + self.next_turn.format(turn=turn)
        return text

    def asked_apart(self) -> dict[str, str]:
        return {metrics.GRADE: f"{metrics.GRADE}|{metrics.NOT_JUDGED}"}

    def score(
        self, predictions: Mapping[str, Sequence[Any]], report: Mapping[str, Sequence[Row]], variant: str = ""
    ) -> dict[str, float]:
        """The metrics over the answers that have a reference. The judge's grade is not among them: judge/command.py."""
        rows = report.get("", [])
        if not rows or TALK not in rows[0]:  # instructions held out of the training rows
            return super().score(predictions, report, variant)
        pairs = [
            (answer, [reference])
            for answers, row in zip(predictions[""], rows, strict=True)
            for answer, reference in zip(answers, row[TALK]["references"], strict=False)
            if reference.strip()  # some have one for one turn only
        ]
        if not pairs:
            raise UserError(f"none of the {len(rows)} questions has a reference answer; take more of them.")
        said, wanted = zip(*pairs, strict=True)
        return {name: metrics.score(name, said, wanted) for name in self.metrics}


@dataclass(frozen=True)
class Conversation:
    """One question of two turns with the answers to both; references: () or one for each turn."""

    id: int
    category: str
    questions: tuple[str, str]
    answers: tuple[str, str]
    references: tuple[str, ...] = ()


def conversations(rows: Sequence[Row], answers: Sequence[Sequence[str]]) -> list[Conversation]:
    """What the judge is shown: the report rows with the stored predictions."""
    talks = []
    for row, (first, second) in zip(rows, answers, strict=True):
        talk = row[TALK]
        talks.append(
            Conversation(
                talk["id"], talk["category"], tuple(talk["turns"]), (first, second), tuple(talk["references"])
            )
        )
    return talks
