"""Every task on a few invented rows: counts, what a row becomes, what is held apart, two turns of MT-Bench."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_data
from tiny_data import FILES, NEW, OLD, load, task_of

from adalora_bench.data import prompts
from adalora_bench.data.e2e import linear
from adalora_bench.data.mt_bench import MtBench, conversations, is_held_out
from adalora_bench.data.sources import DATASET, Places, ensure, find
from adalora_bench.errors import AssetError, UserError


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Places:
    return tiny_data.write_all(tmp_path_factory.mktemp("data"))


@pytest.mark.parametrize("name", [*NEW, *OLD])
def test_every_task_loads_counts_and_says_what_is_missing(name: str, places: Places) -> None:
    task = task_of(name)
    found = tiny_data.found(task, name, places)
    rows = task.load(found, "validation")
    report = sum(len(part) for part in rows.report.values())
    assert task.counts(found, "validation") == {"train": len(rows.train), "report": report}
    assert " of " in task.subset_note(task.available(found, "validation"))
    assert task.fingerprint(found, "validation") == task.fingerprint(found, "validation")
    held = task.load(found, "holdout")
    assert list(held.report) == [next(iter(task.report_splits))]
    assert task.counts(found, "holdout") == {
        "train": len(held.train),
        "report": len(next(iter(held.report.values()))),
    }


# name -> (column -> value of the first report row, prompt, answer)
FIRST: dict[str, tuple[dict[str, Any], str, str]] = {
    "alpaca": (
        {"request": "Name a tree 31.", "output": "Oak."},
        "### Instruction:\nName a tree 31.\n\n### Response:\n",
        "Oak.",
    ),
    "cb": (
        {"premise": "The mill is old.", "hypothesis": "A mill is old.", "label": 0},
        "The mill is old.\nQuestion: A mill is old.. True, false or unknown?\nAnswer:",
        " true",
    ),
    "cnn_dailymail": (
        {"article": "The mill shut. Ann said so.", "highlights": "mill shuts .\nAnn says so ."},
        "The mill shut. Ann said so.",
        "mill shuts .\nAnn says so .",
    ),
    "copa": (
        {
            "premise": "The mill fell.",
            "ask": "What was the cause of this?",
            "choices": ["It was loose.", "It was new."],
            "label": 0,
        },
        "The mill fell. What was the cause of this?\nA: It was loose.\nB: It was new.\nAnswer:",
        " A",
    ),
    "e2e": (
        {
            "data": "name : Green mill | customer rating : 0 out of 5",
            "human_reference": "The Green mill is rated 0 of 5.",
            "references": ["The Green mill is rated 0 of 5.", "Green mill: 0 out of 5."],
        },
        "Data: name : Green mill | customer rating : 0 out of 5\nText:",
        " The Green mill is rated 0 of 5.",
    ),
    "gsm8k": (
        {
            "question": "Ana packs 1 boxes of 2 cups. How many cups?",
            "answer": "Ana packs 1*2=2 cups.\n#### 2",
        },
        "Question: Ana packs 1 boxes of 2 cups. How many cups?\nAnswer:",
        " Ana packs 1*2=2 cups.\n#### 2",
    ),
    "multirc": (
        {"paragraph": "Mia saw the mill.", "claim": "Who saw it? Mia", "asked": "0-0", "label": 1},
        "Mia saw the mill.\nQuestion: Who saw it? Mia\nIs this answer right? yes or no\nAnswer:",
        " yes",
    ),
    "record": (
        {
            "query": "The mill of @placeholder was sold.",
            "passage": "Ann Roe sold the mill in Larne.\n@highlight\nAnn Roe is from Rye",
            "answers": {"text": ["Ann Roe"], "answer_start": [0]},
        },
        "Ann Roe sold the mill in Larne.\n@highlight\nAnn Roe is from Rye\n"
        "Sentence: The mill of @placeholder was sold.\nQuestion: What is @placeholder?\nAnswer:",
        " Ann Roe",
    ),
    "squad": (
        {
            "question": "What was sold?",
            "context": "Long ago the mill was sold.",
            "answers": {"text": ["mill"], "answer_start": [13]},
        },
        "Long ago the mill was sold.\nQuestion: What was sold?\nAnswer:",
        " mill",
    ),
    "webnlg": (
        {
            "facts": "Old_Mill : location : Delft | Old_Mill : floorCount : 3",
            "text": "The Old Mill in Delft has 3 floors.",
            "references": ["The Old Mill in Delft has 3 floors.", "Delft's Old Mill has three floors."],
        },
        "Facts: Old_Mill : location : Delft | Old_Mill : floorCount : 3\nText:",
        " The Old Mill in Delft has 3 floors.",
    ),
    "wic": (
        {"first": "old: The mill is old.", "second": "old: A mill is old.", "label": 0},
        "old: The mill is old.\nold: A mill is old.\n"
        "Question: Does the word before the colon mean the same in both? yes or no\nAnswer:",
        " no",
    ),
    "wsc": (
        {
            "text": "The mill fell on the cup because it was loose.",
            "claim": 'Here "it" means "The mill".',
            "label": 0,
        },
        "The mill fell on the cup because it was loose.\n"
        'Question: Here "it" means "The mill". yes or no\nAnswer:',
        " no",
    ),
    "xsum": (
        {"document": "The mill shut. It was old.", "summary": "mill shuts"},
        "The mill shut. It was old.",
        "mill shuts",
    ),
}


@pytest.mark.parametrize("name", sorted(FIRST))
def test_the_first_report_row_its_prompt_and_its_answer(name: str, places: Places) -> None:
    task = task_of(name)
    row = next(iter(load(name, places).report.values()))[0]
    expected, prompt, answer = FIRST[name]
    assert row == expected
    assert prompts.prompt_of(task, row) == prompt
    assert prompts.rendered(task, prompts.answer_of(task, row)) == answer


# --- the conversions


def test_e2e_trains_on_every_text_and_reports_on_every_set_of_attributes(places: Places) -> None:
    rows = load("e2e", places)
    assert len(rows.train) == 16
    assert rows.train[1]["human_reference"] == "Green mill: 0 out of 5."
    assert "references" not in rows.train[0]
    assert [len(row["references"]) for row in rows.report[""]] == [2, 2]
    held = load("e2e", places, "holdout")
    assert [len(row["references"]) for row in held.report[""]] == [2]
    assert held.report[""][0]["data"] not in {row["data"] for row in held.train}


@pytest.mark.parametrize("text", ["", "name", "name[Blue", "name[Blue] eatType[pub]", "name[Blue], and more"])
def test_e2e_refuses_attributes_in_another_form(text: str) -> None:
    with pytest.raises(ValueError, match=r"must read name\[value\]"):
        linear(text)


def test_e2e_attributes_may_hold_blanks_and_signs() -> None:
    assert linear("name[The Eagle], priceRange[\u00a320-25, or less], near[Caf\u00e9 Rouge]") == (
        "name : The Eagle | priceRange : \u00a320-25, or less | near : Caf\u00e9 Rouge"
    )


def test_webnlg_tells_seen_from_unseen_and_takes_good_texts_only(places: Places) -> None:
    task = task_of("webnlg")
    found = tiny_data.found(task, "webnlg", places)
    rows = task.load(found, "validation")
    assert [row["text"] for row in rows.train][:2] == ["Old mill has 3 floors.", "Old boat has 3 floors."]
    assert len(rows.train) == 8
    assert {k: [row["facts"][:8] for row in part] for k, part in rows.report.items()} == {
        "seen": ["Old_Mill"],
        "unseen": ["Old_Barn"],
    }
    assert task.available(found, "validation") == {"train": 8, "test_seen": 1, "test_unseen": 1}
    assert task.wanted("webnlg", "validation").splits == ["train", "test"]
    assert task.wanted("webnlg", "holdout").splits == ["train"]
    said = {k: [row["references"][1] for row in part] for k, part in rows.report.items()}
    scores = task.score(said, rows.report)
    assert set(scores) == set(task.score_names())
    assert [scores[f"bleu_webnlg_{suffix}"] for suffix in ("seen", "unseen", "all")] == pytest.approx(
        [1.0] * 3
    )
    assert scores["ter_pyter_all"] == 0.0
    # Held-out rows are of seen categories, and the main score is there for them as well.
    held = load("webnlg", places, "holdout")
    scores = task.score({"seen": [row["text"] for row in held.report["seen"]]}, held.report)
    assert scores[task.main_metric] == scores["bleu_webnlg_seen"] == pytest.approx(1.0)


def test_record_answers_stand_where_their_entity_stands_first(places: Places) -> None:
    rows = load("record", places).train
    assert rows[0]["answers"] == {"text": ["Ann Roe"], "answer_start": [0]}
    passage, answers = rows[1]["passage"], rows[1]["answers"]
    assert answers["text"] == ["Larne", "Rye"]
    assert [passage[start:].startswith(text) for text, start in zip(*answers.values(), strict=True)]


def test_multirc_keeps_the_answers_of_a_question_together(places: Places) -> None:
    task = task_of("multirc")
    rows = load("multirc", places)
    assert [row["asked"] for row in rows.train[:4]] == ["0-0", "0-0", "1-0", "1-0"]
    gold = {"": [row["label"] for row in rows.report[""]]}
    assert set(task.score(gold, rows.report).values()) == {1.0}
    gold[""][0] = 0  # of two questions one is now half right
    assert task.score(gold, rows.report) == {
        "multirc_f1a": pytest.approx(2 / 3),
        "multirc_em": 0.5,
        "acc": 0.75,
    }
    held = load("multirc", places, "holdout")
    assert len(held.report[""]) == 2
    assert {row["paragraph"] for row in held.report[""]}.isdisjoint(row["paragraph"] for row in held.train)


def test_alpaca_holds_out_by_instruction_and_reports_on_no_empty_answer(tmp_path: Path) -> None:
    places = tiny_data.write_all(tmp_path, task_of("alpaca"))
    rows = load("alpaca", places)
    assert [row["request"] for row in rows.report[""]] == [
        "Name a tree 31.",
        "Name a tree 73.\n\n### Input:\nNot an oak.",
    ]
    assert len(rows.train) == 6
    assert not any(is_held_out(row["request"].split("\n")[0]) for row in rows.train)
    empty = [
        row | {"output": " "} if i in (0, 7) else row
        for i, row in enumerate(FILES["tatsu-lab/alpaca"]["train"])
    ]
    tiny_data.write(empty, tmp_path / "tatsu-lab/alpaca/train-00000-of-00001.parquet")
    rows = load("alpaca", places)
    assert (len(rows.train), len(rows.report[""])) == (6, 1)


# --- MT-Bench


@pytest.fixture
def mt_bench(places: Places) -> tuple[MtBench, list[dict[str, Any]]]:
    rows = load("mt_bench", places)
    assert len(rows.train) == 8
    return task_of("mt_bench"), rows.report[""]


def test_mt_bench_asks_the_second_turn_after_the_first_answer(
    mt_bench: tuple[MtBench, list[dict[str, Any]]],
) -> None:
    task, rows = mt_bench
    first = "### Instruction:\nWrite of tea.\n\n### Response:\n"
    assert prompts.prompt_of(task, rows[0]) == first
    second = task.next_prompt(rows[0], ["Tea is hot."])
    assert second == f"{first}Tea is hot.\n\n### Instruction:\nNow shorter.\n\n### Response:\n"
    assert task.next_prompt(rows[0], ["Tea is hot.", "Tea."]) is None
    assert task.next_prompt({"request": "Name a colour.", "output": "Blue."}, ["Red."]) is None
    with pytest.raises(UserError, match=r"task.next_turn='again' must hold \{turn\}"):
        replace(task, next_turn="again")


def test_mt_bench_scores_what_has_a_reference_and_the_judge_sees_all(
    mt_bench: tuple[MtBench, list[dict[str, Any]]],
) -> None:
    task, rows = mt_bench
    said = [("Tea.", "T."), ("A two.", "Nothing of the kind"), ("Rain.", "R.")]
    assert task.score({"": said}, {"": rows}) == {"rougeL": pytest.approx(2 / 3)}
    with pytest.raises(UserError, match="none of the 1 questions has a reference answer"):
        task.score({"": said[:1]}, {"": rows[:1]})
    held = [{"request": "Name a colour.", "output": "Blue."}]
    assert task.score({"": ["Blue."]}, {"": held}) == {"rougeL": 1.0}
    talks = conversations(rows, json.loads(json.dumps(said)))
    assert [(talk.id, talk.category, talk.answers) for talk in talks] == [
        (81, "writing", ("Tea.", "T.")),
        (82, "math", ("A two.", "Nothing of the kind")),
        (83, "stem", ("Rain.", "R.")),
    ]
    assert talks[1].questions == ("Write of two.", "Now shorter.")
    assert talks[1].references == ("A two.", "two.")
    assert talks[0].references == ()


def test_mt_bench_needs_both_data_sets(tmp_path: Path) -> None:
    task = task_of("mt_bench")
    tiny_data.write(
        FILES["tatsu-lab/alpaca"]["train"], tmp_path / "tatsu-lab/alpaca/train-00000-of-00001.parquet"
    )
    places = Places(data_dir=tmp_path, cache_dir=tmp_path / "cache", offline=True)
    wanted = task.wanted("mt_bench", "validation")
    assert find(wanted.source, places, splits=wanted.splits, kind=DATASET) is None
    with pytest.raises(AssetError) as caught:
        ensure([wanted], places)
    message = str(caught.value)
    assert (
        "task mt_bench (tatsu-lab/alpaca and HuggingFaceH4/mt_bench_prompts): "
        "HuggingFaceH4/mt_bench_prompts is not on this machine" in message
    )
    assert "folder that holds tatsu-lab/alpaca and HuggingFaceH4/mt_bench_prompts" in message
    # Without the report set there is nothing to miss.
    assert ensure([task.wanted("mt_bench", "holdout")], places)[0].detail == "folder tatsu-lab/alpaca"
