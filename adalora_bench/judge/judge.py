"""MT-Bench's judge: a language model that grades stored answers, behind any OpenAI-compatible endpoint.

Grades are appended one by one to a file beside the answers, so that a second call asks only for what is missing.
Without a complete set of grades there is no score: `Verdict.score` is None, and its words are "not judged". The
key comes from an environment variable, goes into one header, and is nowhere logged or stored.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adalora_bench.data.mt_bench import Conversation
from adalora_bench.errors import AssetError, UserError
from adalora_bench.judge.chat import Endpoint, ask
from adalora_bench.metrics import GRADE, NOT_JUDGED
from adalora_bench.store.files import append_jsonl, read_jsonl

_log = logging.getLogger(__name__)

GRADES = "judge.jsonl"
PROMPTS_FILE = "judge_prompts.jsonl"
REFERENCES_FILE = "reference_answer_gpt-4.jsonl"
# The categories in which MT-Bench shows its judge a reference answer, where there is one.
WITH_REFERENCE = ("math", "reasoning", "coding")

# Ours. The names of the four prompts and of their blanks are those of MT-Bench's own file, which is read instead
# where it is given.
_GRADE = (
    "Consider whether it is right, helpful, relevant, complete and clear. Explain your grade in a few sentences. "
    'Then give it on a line of its own, from 1 (useless) to 10 (could not be better), as in "Rating: [[5]]".'
)
_SYSTEM = "You are a strict and impartial examiner of answers that an assistant gave."
_ONE_TURN = (
    "# Question\n{question}\n\n%s# Answer to grade\n{answer}\n\n# Your task\nGrade the answer. " + _GRADE
)
_TWO_TURNS = (
    "# First question\n{question_1}\n\n%s# First answer\n{answer_1}\n\n# Second question\n{question_2}\n\n%s"
    "# Second answer, to grade\n{answer_2}\n\n# Your task\nGrade the second answer. " + _GRADE
)
_REFERENCE = "# Reference answer\n{ref_answer_%d}\n\n"
OWN_PROMPTS: dict[str, tuple[str, str]] = {
    "single-v1": (_SYSTEM, _ONE_TURN % ""),
    "single-math-v1": (_SYSTEM, _ONE_TURN % (_REFERENCE % 1)),
    "single-v1-multi-turn": (_SYSTEM, _TWO_TURNS % ("", "")),
    "single-math-v1-multi-turn": (_SYSTEM, _TWO_TURNS % (_REFERENCE % 1, _REFERENCE % 2)),
}


@dataclass(frozen=True, kw_only=True)
class Judge(Endpoint):
    """Who judges, and how.

    Attributes:
        folder: a folder with MT-Bench's own judge_prompts.jsonl and reference_answer_gpt-4.jsonl; None takes our
            wording and the references of the questions. The signature tells them apart.
    """

    folder: str | None = None


@dataclass(frozen=True)
class Verdict:
    """What the judge said.

    Attributes:
        score: mean grade (1 to 10) over both turns of all conversations, None unless every answer was judged.
        judged: answers with a reply of the judge.
        unreadable: replies without a grade; they are left out of the mean, as MT-Bench does.
        total: answers.
    """

    score: float | None
    judged: int
    unreadable: int
    total: int

    def __str__(self) -> str:
        if self.score is None:
            some = f" ({self.judged} of {self.total} answers are)" if self.judged else ""
            return f"{NOT_JUDGED}{some}"
        hidden = f", {self.unreadable} replies without a grade" if self.unreadable else ""
        return f"{self.score:.2f} of 10{hidden}"


@dataclass(frozen=True)
class _Question:
    """One request: `digest` is that of the messages and the model, so that a changed answer is judged anew."""

    id: int
    turn: int
    messages: list[dict[str, str]]
    digest: str


def signature(judge: Judge) -> str:
    """What a record or caption stores beside a grade: model, prompts and references, no address, no key."""
    if judge.folder is None:
        return f"{GRADE}|{judge.model}|our wording, references of the questions, temperature 0"
    digest = hashlib.sha256()
    for name in (PROMPTS_FILE, REFERENCES_FILE):
        digest.update(_content(Path(os.path.expanduser(judge.folder)) / name))
    return f"{GRADE}|{judge.model}|MT-Bench's files sha256:{digest.hexdigest()[:16]}, temperature 0"


def stored_verdict(conversations: Sequence[Conversation], judge: Judge, folder: Path) -> Verdict:
    """The verdict of the grades that are in `folder` already. Opens no socket and needs no key."""
    return _verdict(_questions(conversations, judge), _grades(folder))


def judge_answers(
    conversations: Sequence[Conversation],
    judge: Judge,
    folder: Path,
    *,
    offline: bool = False,
    sleep: Callable[[float], None] = time.sleep,
) -> Verdict:
    """Ask for every grade that `folder`/judge.jsonl lacks, and append each as it comes.

    Raises:
        UserError: no key, an offline run, an endpoint that refuses (wrong key or model), a damaged prompt file.
        AssetError: the endpoint did not answer in `attempts` tries. What was graded before is kept.
    """
    questions = _questions(conversations, judge)
    grades = _grades(folder)
    missing = [question for question in questions if question.digest not in grades]
    if missing and offline:
        raise UserError(f"{len(missing)} answers are not judged yet, and this is an offline run.")
    key = judge.key() if missing else None
    for done, question in enumerate(missing):
        try:
            reply = ask(question.messages, judge, key, sleep=sleep)
        except AssetError as error:
            raise AssetError(
                f"{error}; {len(questions) - len(missing) + done} of {len(questions)} answers are judged and "
                f"kept, and the same command goes on from there"
            ) from error
        row = {"id": question.id, "turn": question.turn, "digest": question.digest, "model": judge.model}
        append_jsonl(folder / GRADES, row | {"grade": grade_of(reply), "reply": reply})
        _log.info(
            "judged question %d, turn %d (%d of %d)", question.id, question.turn, done + 1, len(missing)
        )
    return _verdict(questions, _grades(folder))


def grade_of(reply: str) -> float | None:
    """The grade in `[[7]]` (or, failing that, `[7]`); None where there is none from 1 to 10."""
    for pattern in (r"\[\[(\d+\.?\d*)\]\]", r"\[(\d+\.?\d*)\]"):
        found = re.search(pattern, reply)
        if found:
            grade = float(found[1])
            return grade if 1 <= grade <= 10 else None
    return None


# -- requests and grades ---------------------------------------------------------------------------------------


def _questions(conversations: Sequence[Conversation], judge: Judge) -> list[_Question]:
    prompts, references = OWN_PROMPTS, {talk.id: talk.references for talk in conversations}
    if judge.folder is not None:
        prompts = _prompts(Path(os.path.expanduser(judge.folder)) / PROMPTS_FILE)
        references = _references(Path(os.path.expanduser(judge.folder)) / REFERENCES_FILE)
    questions = []
    for talk in conversations:
        given = references.get(talk.id, ()) if talk.category in WITH_REFERENCE else ()
        blanks = {"question": talk.questions[0], "answer": talk.answers[0]}
        for turn in (1, 2):
            blanks[f"question_{turn}"] = talk.questions[turn - 1]
            blanks[f"answer_{turn}"] = talk.answers[turn - 1]
            blanks[f"ref_answer_{turn}"] = given[turn - 1] if given else ""
        for turn in (1, 2):
            guided = len(given) == 2 and all(text.strip() for text in given[:turn])
            name = ("single-math-v1" if guided else "single-v1") + ("-multi-turn" if turn == 2 else "")
            system, text = prompts[name]
            messages = [
                {"role": "system", "content": system},
                {"role": "user", "content": _filled(text, blanks, name)},
            ]
            digest = hashlib.sha256(json.dumps([judge.model, messages]).encode()).hexdigest()
            questions.append(_Question(talk.id, turn, messages, digest))
    return questions


def _filled(text: str, blanks: Mapping[str, str], name: str) -> str:
    def value(match: re.Match[str]) -> str:
        if match[1] not in blanks:
            raise UserError(f"the judge prompt {name!r} has a blank {match[0]} that nothing is known for.")
        return blanks[match[1]]

    return re.sub(r"\{(\w+)\}", value, text)


def _prompts(path: Path) -> dict[str, tuple[str, str]]:
    rows = {row.get("name"): row for row in _rows(path)}
    absent = [
        name
        for name in OWN_PROMPTS
        if not all(isinstance(rows.get(name, {}).get(k), str) for k in ("system_prompt", "prompt_template"))
    ]
    if absent:
        raise UserError(f"{path} has no usable prompt {absent[0]!r}.")
    return {name: (rows[name]["system_prompt"], rows[name]["prompt_template"]) for name in OWN_PROMPTS}


def _references(path: Path) -> dict[int, tuple[str, ...]]:
    references: dict[int, tuple[str, ...]] = {}
    for number, row in enumerate(_rows(path)):
        try:
            first, second = row["choices"][0]["turns"]
            references[int(row["question_id"])] = (str(first), str(second))
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise UserError(f"{path}, row {number} (from 0): no question_id with two turns.") from error
    return references


def _rows(path: Path) -> list[dict[str, Any]]:
    rows, damaged = read_jsonl(path) if _content(path) else ([], 0)
    if damaged or not rows:
        raise UserError(f"{path} holds {damaged} damaged lines and {len(rows)} good ones; copy it again.")
    return rows


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"judge.folder: {path} cannot be read ({error.strerror or error}).") from error


def _grades(folder: Path) -> dict[str, float | None]:
    """digest -> grade of what was judged before; a line that a kill cut short is judged again."""
    rows, _ = read_jsonl(folder / GRADES)
    return {row["digest"]: row["grade"] for row in rows if "digest" in row and "grade" in row}


def _verdict(questions: Sequence[_Question], grades: Mapping[str, float | None]) -> Verdict:
    given = [grades[question.digest] for question in questions if question.digest in grades]
    readable = [grade for grade in given if grade is not None]
    whole = len(given) == len(questions) and bool(readable)
    score = sum(readable) / len(readable) if whole else None
    return Verdict(score, len(given), len(given) - len(readable), len(questions))
