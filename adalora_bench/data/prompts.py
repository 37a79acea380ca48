"""Rows as text, for generative backbones: the prompt, the answer that is trained on, and what an answer means.

A template is plain text with {column}; a choice may be named as {choices[0]}. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from adalora_bench.errors import UserError

if TYPE_CHECKING:
    from adalora_bench.data.tasks import Task

Row = dict[str, Any]

CHOICES = "choices"
REFERENCES = "references"
UNPARSED = -1
"""The class of an answer that is none of the words."""


@dataclass(frozen=True, kw_only=True)
class Generation:
    """How a generative backbone answers.

    Attributes:
        max_new_tokens: at most so many tokens; an answer also ends at the end-of-sequence token.
        beams: width of the beam search; 1 takes the likeliest token.
        length_penalty: a beam's log-likelihood is divided by its length to this power; no effect without beams.
        no_repeat_ngram: no n tokens may come twice in an answer; 0 allows it.
        stop: an answer ends before the first of these strings.
    """

    max_new_tokens: int = 64
    beams: int = 1
    length_penalty: float = 1.0
    no_repeat_ngram: int = 0
    stop: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "beams"):
            if getattr(self, name) < 1:
                raise UserError(f"task.generation.{name}={getattr(self, name)} must be at least 1.")
        if self.no_repeat_ngram < 0:
            raise UserError(f"task.generation.no_repeat_ngram={self.no_repeat_ngram} must not be negative.")
        if "" in self.stop:
            raise UserError("task.generation.stop holds an empty string, which would end every answer.")


@dataclass(frozen=True, kw_only=True)
class Span:
    """How an encoder looks for a span.

    Attributes:
        stride: tokens that two neighbouring windows of a long context share.
        max_answer: longest span that may be predicted, in tokens.
    """

    stride: int = 128
    max_answer: int = 30

    def __post_init__(self) -> None:
        if self.stride < 0:
            raise UserError(f"task.span.stride={self.stride} must not be negative.")
        if self.max_answer < 1:
            raise UserError(f"task.span.max_answer={self.max_answer} must be at least 1.")


# -- rows as text ----------------------------------------------------------------------------------------------


def prompt_of(task: Task, row: Mapping[str, Any]) -> str:
    """The filled prompt."""
    assert task.prompt is not None
    return task.prompt.format_map(row)


def answer_of(task: Task, row: Mapping[str, Any]) -> str:
    """The bare answer that a generative backbone is trained on: a word, a candidate, a text."""
    label = row[task.label]
    if task.kind in ("classification", "choice"):
        return candidates(task, row)[label]
    return str(label["text"][0] if task.kind == "span" else label)


def candidates(task: Task, row: Mapping[str, Any]) -> list[str]:
    """The bare answers among which a classification or a choice decides, in the order of the labels.

    UserError: task.answer_words has fewer words than the row has choices.
    """
    if task.kind == "classification":
        return [task.answer_words[label] for label in task.labels]
    if not task.answer_words:
        return list(row[CHOICES])
    count = len(row[CHOICES])
    if count > len(task.answer_words):
        raise UserError(
            f"task.answer_words has {len(task.answer_words)} words, but a row has {count} choices."
        )
    return [task.answer_words[str(i)] for i in range(count)]


def references(task: Task, row: Mapping[str, Any]) -> list[str]:
    """The texts of which any one is a right answer (kinds span and text)."""
    if task.kind == "span":
        return list(row[task.label]["text"])
    return list(row[REFERENCES]) if REFERENCES in row else [row[task.label]]


def rendered(task: Task, answer: str) -> str:
    """The bare answer in its template, as it follows the prompt."""
    return task.answer.format(answer=answer)


def bare(task: Task, text: str) -> str:
    """What was generated without the outer blanks and the template's fixed words."""
    before, after = task.answer.format(answer="\0").split("\0")
    return text.strip().removeprefix(before.strip()).removesuffix(after.strip()).strip()


def parsed(words: Sequence[str], text: str) -> int:
    """Which of the words a bare answer is, capitals aside; UNPARSED if it is none of them."""
    known = [plain(word) for word in words]
    return known.index(plain(text)) if plain(text) in known else UNPARSED


def merged(task: Task, rows: Sequence[Row]) -> list[Row]:
    """One row for each group of held-out rows, with all the answers of its members."""
    groups: dict[str, Row] = {}
    for row in rows:
        first = groups.setdefault(row[str(task.group)], row | {REFERENCES: []})
        first[REFERENCES] += [text for text in references(task, row) if text not in first[REFERENCES]]
    return list(groups.values())


def plain(text: str) -> str:
    """How answers are compared: without outer blanks and capitals."""
    return text.strip().casefold()
