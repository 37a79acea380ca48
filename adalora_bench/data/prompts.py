"""Rows as text, for generative backbones: the prompt, the answer that is trained on, and what an answer means.

A template is plain text with {column}; a choice may be named as {choices[0]}. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from adalora_bench.data.fields import CHOICES, REFERENCES, Row, TaskFields
from adalora_bench.errors import UserError

UNPARSED = -1
"""The class of an answer that is none of the words."""


# -- rows as text ----------------------------------------------------------------------------------------------


def prompt_of(task: TaskFields, row: Mapping[str, Any]) -> str:
    """The filled prompt."""
    assert task.prompt is not None
    return task.prompt.format_map(row)


def answer_of(task: TaskFields, row: Mapping[str, Any]) -> str:
    """The bare answer that a generative backbone is trained on: a word, a candidate, a text."""
    label = row[task.label]
    if task.kind in ("classification", "choice"):
        return candidates(task, row)[label]
    return str(label["text"][0] if task.kind == "span" else label)


def candidates(task: TaskFields, row: Mapping[str, Any]) -> list[str]:
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


def references(task: TaskFields, row: Mapping[str, Any]) -> list[str]:
    """The texts of which any one is a right answer (kinds span and text)."""
    if task.kind == "span":
        return list(row[task.label]["text"])
    return list(row[REFERENCES]) if REFERENCES in row else [row[task.label]]


def rendered(task: TaskFields, answer: str) -> str:
    """The bare answer in its template, as it follows the prompt."""
    return task.answer.format(answer=answer)


def bare(task: TaskFields, text: str) -> str:
    """What was generated without the outer blanks and the template's fixed words."""
    before, after = task.answer.format(answer="\0").split("\0")
    return text.strip().removeprefix(before.strip()).removesuffix(after.strip()).strip()


def parsed(words: Sequence[str], text: str) -> int:
    """Which of the words a bare answer is, capitals aside; UNPARSED if it is none of them."""
    known = [plain(word) for word in words]
    return known.index(plain(text)) if plain(text) in known else UNPARSED


def merged(task: TaskFields, rows: Sequence[Row]) -> list[Row]:
    """One row for each group of held-out rows, with all the answers of its members."""
    groups: dict[str, Row] = {}
    for row in rows:
        first = groups.setdefault(row[str(task.group)], row | {REFERENCES: []})
        first[REFERENCES] += [text for text in references(task, row) if text not in first[REFERENCES]]
    return list(groups.values())


def plain(text: str) -> str:
    """How answers are compared: without outer blanks and capitals."""
    return text.strip().casefold()
