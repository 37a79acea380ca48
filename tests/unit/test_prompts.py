"""Rows as text, and what a task of choice, span or text may say and hold; faults are named with file and row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from toy_forms import NOWHERE, task_of

from adalora_bench.data import columns, prompts
from adalora_bench.data.fields import Row
from adalora_bench.data.parquet import fingerprint
from adalora_bench.data.sources import Found
from adalora_bench.data.tasks import Task
from adalora_bench.errors import UserError

# --- rows as text


def test_prompt_and_answer_of_every_kind() -> None:
    pair: Row = {"sentence1": "A b.", "sentence2": "{c}", "label": 1}
    task = task_of("rte", prompt="{sentence1} {{?}} {sentence2}:", answer=" {answer}.")
    assert prompts.prompt_of(task, pair) == "A b. {?} {c}:"
    assert prompts.answer_of(task, pair) == "no"
    assert prompts.candidates(task, pair) == ["yes", "no"]
    assert prompts.rendered(task, "no") == " no."

    row: Row = {"sentence": "S", "choices": ["one", "two"], "label": 1}
    lettered = task_of("toy_choice")
    assert prompts.prompt_of(lettered, row) == "S | A one | B two ="
    assert (prompts.answer_of(lettered, row), prompts.candidates(lettered, row)) == ("B", ["A", "B"])
    spelt = task_of("toy_choice", answer_words={})
    assert (prompts.answer_of(spelt, row), prompts.candidates(spelt, row)) == ("two", ["one", "two"])
    with pytest.raises(UserError, match="2 words, but a row has 3 choices"):
        prompts.candidates(lettered, row | {"choices": ["a", "b", "c"]})

    span: Row = {"question": "q", "sentence": "c d", "label": {"text": ["d", "c d"], "answer_start": [2, 0]}}
    assert prompts.answer_of(task_of("toy_span"), span) == "d"
    assert prompts.references(task_of("toy_span"), span) == ["d", "c d"]

    text: Row = {"sentence": "s", "label": "l"}
    assert prompts.references(task_of("toy_text"), text) == ["l"]
    assert prompts.references(task_of("toy_text"), text | {"references": ["l", "m"]}) == ["l", "m"]


def test_the_fixed_words_of_an_answer_are_taken_off_again() -> None:
    task = task_of("toy_text", answer=" The answer is {answer}.\n")
    assert prompts.bare(task, "  The answer is x. ") == "x"
    assert prompts.bare(task, "x") == "x"
    assert prompts.bare(task_of("toy_text"), " x y\n") == "x y"


@pytest.mark.parametrize(
    ("text", "label"), [("yes", 0), (" Maybe\n", 1), ("yes.", -1), ("", -1), ("yes no", -1)]
)
def test_an_answer_names_a_word_or_nothing(text: str, label: int) -> None:
    assert prompts.parsed(["Yes", "maybe"], text) == label


def test_held_out_rows_of_a_group_become_one_row_with_all_its_answers() -> None:
    task = task_of("toy_text", group="sentence")
    rows: list[Row] = [
        {"sentence": s, "label": label} for s, label in (("a", "x"), ("b", "y"), ("a", "z"), ("a", "x"))
    ]
    assert prompts.merged(task, rows) == [
        {"sentence": "a", "label": "x", "references": ["x", "z"]},
        {"sentence": "b", "label": "y", "references": ["y"]},
    ]
    held = task.load(NOWHERE, "holdout").report[""]
    assert all(row["references"] == [row["label"]] for row in held)


# --- declarations


@pytest.mark.parametrize(
    ("name", "change", "sentence"),
    [
        ("toy_text", {"prompt": None}, "task.prompt is missing"),
        (
            "toy_text",
            {"prompt": "{sentense}"},
            "unknown column in task.prompt 'sentense'; did you mean 'sentence'",
        ),
        ("toy_text", {"prompt": "{label}"}, "unknown column in task.prompt 'label'"),
        ("toy_text", {"prompt": "{sentence"}, "is no template"),
        ("toy_text", {"prompt": "{sentence!r}"}, "must be the plain name of a column"),
        ("toy_text", {"prompt": "{sentence.upper}"}, "must be the plain name of a column"),
        ("toy_text", {"prompt": "{choices[0]}"}, r"unknown column in task.prompt 'choices\[0\]'"),
        ("toy_choice", {"prompt": "{choices}"}, "unknown column in task.prompt 'choices'"),
        ("toy_text", {"answer": "none"}, "must hold {answer}, once"),
        ("toy_text", {"answer": "{answer}{answer}"}, "must hold {answer}, once"),
        ("toy_text", {"cut": "label"}, "unknown column in task.cut 'label'"),
        ("toy_text", {"max_answer": 1}, "max_answer=1 must be at least 2"),
        ("toy_text", {"label_smoothing": 1.0}, r"must lie in \[0, 1\)"),
        ("toy_text", {"answer_by": "likelihood"}, "needs given answers, which a task of kind text lacks"),
        ("toy_choice", {"answer_by": "generating"}, "did you mean 'generation'"),
        ("toy_text", {"answer_words": {"a": "b"}}, "is for classes and choices"),
        ("toy_choice", {"answer_words": {"A": "a", "B": "b"}}, "for choices they are '0', '1'"),
        ("toy", {"answer_words": {"cold": "a"}}, "no word for the label 'warm'"),
        ("toy", {"answer_words": {"cold": "a", "warm": "b", "wram": "c"}}, "did you mean 'warm'"),
        ("toy", {"answer_words": {"cold": "a", "warm": " A"}}, "the words must differ"),
        ("toy", {"answer_words": {"cold": "a", "warm": ""}}, "none may be empty"),
        ("toy_span", {"text": ["question"]}, "names the question and the context"),
        ("toy_choice", {"labels": ["a", "b"]}, "a choice has no label names"),
        ("toy_span", {"metrics": ["acc"], "main_metric": "acc"}, "'acc', which does not fit a span"),
        ("toy", {"metrics": ["squad_f1"], "main_metric": "squad_f1"}, "does not fit a classification"),
        ("toy", {"metrics": ["multirc_em"], "main_metric": "multirc_em"}, "needs task.score_group"),
        ("mnli", {"report_unions": {"all": ["matched", "mismached"]}}, "did you mean 'mismatched'"),
        ("mnli", {"report_unions": {"matched": ["matched"]}}, "is the name of a split"),
        ("toy_text", {"metrics": ["ter"], "main_metric": "ter"}, "less is better"),
        ("toy_text", {"generation": {"beams": 0}}, "task.generation.beams=0 must be at least 1"),
        ("toy_text", {"generation": {"max_new_tokens": 0}}, "max_new_tokens=0 must be at least 1"),
        ("toy_text", {"generation": {"no_repeat_ngram": -1}}, "must not be negative"),
        ("toy_text", {"generation": {"stop": [""]}}, "empty string"),
        ("toy_text", {"generation": {"beam": 2}}, "unknown setting 'task.generation.beam'"),
        ("toy_span", {"span": {"max_answer": 0}}, "task.span.max_answer=0 must be at least 1"),
        ("toy_span", {"span": {"stride": -1}}, "must not be negative"),
    ],
)
def test_a_wrong_declaration_is_one_sentence(name: str, change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        task_of(name, **change)


def test_rows_of_several_report_sets_are_also_scored_together() -> None:
    task = task_of("mnli", report_unions={"all": ["matched", "mismatched"]})
    assert task.score_names() == ["acc_matched", "acc_mismatched", "acc_all"]
    report: dict[str, list[Row]] = {"matched": [{"label": 0}], "mismatched": [{"label": 1}] * 3}
    predictions = {"matched": [0], "mismatched": [1, 1, 2]}
    scores = task.score(predictions, report)
    assert scores == {"acc_matched": 1.0, "acc_mismatched": pytest.approx(2 / 3), "acc_all": 0.75}
    assert task.score({"matched": [0]}, {"matched": report["matched"]}) == {"acc_matched": 1.0}
    # the union hangs on a split that a local folder may lack, so it cannot be the main metric
    with pytest.raises(UserError, match="unknown task.main_metric 'acc_all'"):
        task_of("mnli", report_unions={"all": ["matched", "mismatched"]}, main_metric="acc_all")


def test_metrics_over_groups_are_given_the_group_of_each_row() -> None:
    task = task_of("toy", metrics=["multirc_em", "acc"], main_metric="multirc_em", score_group="asked")
    rows: list[Row] = [{"asked": asked, "label": 1} for asked in ("p", "p", "q", "r")]
    assert task.score({"": [1, 0, 1, 1]}, {"": rows}) == {"multirc_em": pytest.approx(2 / 3), "acc": 0.75}


# --- columns

ANSWERS = pa.struct({"text": pa.list_(pa.string()), "answer_start": pa.list_(pa.int32())})


def span_table(*answers: Any) -> pa.Table:
    return pa.table(
        {
            "question": ["q"] * len(answers),
            "sentence": ["one two"] * len(answers),
            "label": pa.array(answers, ANSWERS),
            "id": ["x"] * len(answers),
        }
    )


GOOD = {"text": ["two"], "answer_start": [4]}


@pytest.mark.parametrize(
    "bad",
    [
        {"text": [], "answer_start": []},
        {"text": ["two"], "answer_start": [3]},
        {"text": ["two"], "answer_start": [-3]},
        {"text": ["two"], "answer_start": []},
        {"text": [""], "answer_start": [0]},
        {"text": [None], "answer_start": [0]},
        {"text": None, "answer_start": None},
        None,
    ],
)
def test_answers_must_stand_in_the_context(bad: Any) -> None:
    task = task_of("toy_span")
    kept = columns.checked(task, span_table(GOOD, GOOD), "file")
    assert kept.column_names == ["question", "sentence", "label"]
    with pytest.raises(
        UserError, match=r"file, row 1 \(from 0\): 'label' is .*texts that stand in the context"
    ):
        columns.checked(task, span_table(GOOD, bad), "file")


def choice_table(choices: Any, labels: list[Any], kind: Any = None) -> pa.Table:
    return pa.table(
        {
            "sentence": ["s"] * len(labels),
            "choices": pa.array(choices, kind or pa.list_(pa.string())),
            "label": labels,
        }
    )


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        (choice_table([["a", "b"], ["a"]], [0, 0]), r"row 1 .*'choices' is \['a'\].*2 or more texts"),
        (choice_table([["a", "b"], None], [0, 0]), "row 1 .*2 or more texts"),
        (choice_table([["a", "b"], ["a", None]], [0, 0]), "row 1 .*without gaps"),
        (
            choice_table([["a", "b"], ["a", "b"]], [0, 2]),
            "row 1 .*'label' is 2; .*number .* of one of 'choices'",
        ),
        (choice_table([["a", "b"], ["a", "b"]], [0, -1]), "-1 marks a hidden label"),
        (choice_table([["a", "b"]], ["0"]), "must number a choice"),
        (choice_table([[1, 2]], [0], pa.list_(pa.int64())), "not lists of texts"),
    ],
)
def test_choices_are_texts_and_the_label_numbers_one(table: pa.Table, sentence: str) -> None:
    task = task_of("toy_choice")
    good = columns.checked(task, choice_table([["a", "b"], ["c", "d", "e"]], [1, 2]), "file")
    assert good.column_names == ["sentence", "choices", "label"]
    with pytest.raises(UserError, match=sentence):
        columns.checked(task, table, "file")


def test_a_text_task_keeps_its_references_and_needs_one_of_them() -> None:
    task = task_of("toy_text")
    plain = {"sentence": ["s", "t"], "label": ["l", "m"]}
    assert columns.checked(task, pa.table(plain), "file").column_names == ["sentence", "label"]
    full = columns.checked(task, pa.table(plain | {"references": [["l", "k"], ["m"]]}), "file")
    assert full.column_names == ["sentence", "label", "references"]
    with pytest.raises(UserError, match="row 1 .*'references' is .*1 or more texts"):
        columns.checked(task, pa.table(plain | {"references": [["l"], []]}), "file")
    with pytest.raises(UserError, match="holds struct<a: int64>, not {text: texts"):
        columns.checked(
            task_of("toy_span"), pa.table({"question": ["q"], "sentence": ["s"], "label": [{"a": 1}]}), "f"
        )


def test_lists_and_structs_are_part_of_the_fingerprint(tmp_path: Path) -> None:
    one = choice_table([["a", "b"], ["c", "d"]], [0, 1])
    moved = choice_table([["a", "b", "c"], ["d"]], [0, 1])
    other = choice_table([["a", "b"], ["c", "e"]], [0, 1])
    assert len({fingerprint({"train": table}) for table in (one, moved, other)}) == 3
    pq.write_table(one, tmp_path / "one.parquet", row_group_size=1)
    again = pa.concat_tables([one.slice(0, 1), one.slice(1, 1)])
    for same in (pq.read_table(tmp_path / "one.parquet"), again):
        assert fingerprint({"train": same}) == fingerprint({"train": one})
    wide = one.set_column(1, "choices", one.column("choices").cast(pa.large_list(pa.large_string())))
    assert fingerprint({"train": wide}) == fingerprint({"train": one})
    spans = [span_table(GOOD), span_table({"text": ["two"], "answer_start": [5]})]
    assert fingerprint({"train": spans[0]}) != fingerprint({"train": spans[1]})


@pytest.mark.parametrize("name", ["toy_choice", "toy_span", "toy_text"])
def test_toy_tasks_load_the_same_rows_from_parquet_and_hold_some_out(name: str, tmp_path: Path) -> None:
    task = task_of(name)
    tables = task.tables(NOWHERE, ["train", "validation"])
    files = {split: [tmp_path / f"{split}-00000-of-00001.parquet"] for split in tables}
    for split, table in tables.items():
        pq.write_table(table, files[split][0])
    del files["validation"]
    assert Task.tables(task, Found("local", tmp_path, files, "folder"), ["train"])["train"].equals(
        tables["train"]
    )
    held = task.load(NOWHERE, "holdout")
    assert (len(held.train), len(held.report[""])) == (231, 25)
