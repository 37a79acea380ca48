"""The tasks beyond GLUE on real rows, found through ADALORA_BENCH_DATA: counts, subsets, first prompts, gold scores."""

from __future__ import annotations

import json
import os
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from tiny_data import found, task_of

from adalora_bench.data import prompts
from adalora_bench.data.mt_bench import conversations
from adalora_bench.data.sources import DATASET, Found, Places, find
from adalora_bench.data.tasks import TaskRows
from adalora_bench.judge.judge import Judge, stored_verdict

pytestmark = pytest.mark.data

# task -> (training rows, report rows by suffix, what is said of the subset). The README of the data folder has the
# rows of the files; e2e, webnlg and alpaca have others, by the rule that their YAML gives.
ROWS: dict[str, tuple[int, dict[str, int], str | None]] = {
    "alpaca": (13019, {"": 294}, "13314 of 52002 training rows"),
    "cnn_dailymail": (100, {"": 15}, "100 of 287113 training rows, 15 of 13368 validation rows"),
    "copa": (400, {"": 100}, None),
    "e2e": (42061, {"": 630}, None),
    "gsm8k": (7473, {"": 1319}, None),
    "mt_bench": (13314, {"": 80}, "13314 of 52002 training rows"),
    "multirc": (27243, {"": 4848}, None),
    "squad": (
        3545,
        {"": 1190},
        "3545 of 87599 training rows, 1190 of 10570 validation rows (XQuAD's, with one answer to each question)",
    ),
    "webnlg": (18025, {"seen": 971, "unseen": 891}, None),
    "wic": (5428, {"": 638}, None),
    "wsc": (554, {"": 104}, None),
}
# Share of the most frequent label, from the label counts in the README of the data folder.
MAJORITY = {"copa": 55 / 100, "multirc": 2773 / 4848, "wic": 319 / 638, "wsc": 66 / 104}


@pytest.fixture(scope="module")
def places() -> Places:
    assert os.environ.get("ADALORA_BENCH_DATA"), "set ADALORA_BENCH_DATA to a folder of real data sets"
    return Places.from_environment()


@lru_cache
def loaded(name: str, places: Places, split: str = "validation") -> tuple[Found, TaskRows]:
    task = task_of(name)
    hit = found(task, name, places, split)
    assert hit.served_by == "local"
    return hit, task.load(hit, split)


@pytest.mark.parametrize("name", sorted(ROWS))
def test_rows_and_what_is_said_of_a_subset(name: str, places: Places) -> None:
    task = task_of(name)
    hit, rows = loaded(name, places)
    train, report, note = ROWS[name]
    assert (len(rows.train), {k: len(part) for k, part in rows.report.items()}) == (train, report)
    assert task.counts(hit, "validation") == {"train": train, "report": sum(report.values())}
    assert task.subset_note(task.available(hit, "validation")) == note
    if name in MAJORITY:
        assert task.majority(rows.report)["acc"] == pytest.approx(MAJORITY[name])


@pytest.mark.parametrize("name", sorted(ROWS))
def test_gold_answers_score_the_maximum(name: str, places: Places) -> None:
    task = task_of(name)
    _, rows = loaded(name, places)
    report = {suffix: part[:50] for suffix, part in rows.report.items()}
    if name == "mt_bench":
        gold: dict[str, list[Any]] = {
            "": [tuple(row["talk"]["references"]) or ("a", "b") for row in report[""]]
        }
    elif task.kind in ("classification", "choice"):
        gold = {k: [row[task.label] for row in part] for k, part in report.items()}
    else:
        gold = {k: [task.gold(row)[0] for row in part] for k, part in report.items()}
    for metric, value in task.score(gold, report).items():
        best = {"ter": 0.0, "nist": None, "cide": None, "mete": None}.get(metric[:4].rstrip("_"), 1.0)
        assert best is None or value == pytest.approx(best), metric


FIRST = {
    "copa": (
        "The man turned on the faucet. What happened as a result?\nA: The toilet filled with water.\n",
        " B",
    ),
    "e2e": (
        "Data: name : Blue Spice | eatType : coffee shop | area : city centre\nText:",
        " A coffee shop in",
    ),
    "gsm8k": ("Question: Janet", " Janet sells 16 - 3 - 4 = 9 duck eggs a day.\nShe makes 9 * 2 = $18 every"),
    "mt_bench": ("### Instruction:\nCompose an engaging travel blog post about a recent trip to Hawaii", ""),
    "multirc": ("What causes a change in motion? The application of a force. ", " no"),
    "squad": ("The Panthers defense gave up just 308 points, ranking sixth", " 308"),
    "webnlg": ("Facts: Abilene_Regional_Airport : cityServed : Abilene,_Texas\nText:", " Abilene, Texas is"),
    "wic": ("class: An emerging professional class.\nclass: Apologizing for losing", " no"),
}


@pytest.mark.parametrize("name", sorted(FIRST))
def test_the_first_report_row_as_prompt_and_answer(name: str, places: Places) -> None:
    task = task_of(name)
    row = next(iter(loaded(name, places)[1].report.values()))[0]
    prompt, answer = prompts.prompt_of(task, row), prompts.rendered(task, prompts.answer_of(task, row))
    assert prompt.startswith(FIRST[name][0])
    assert answer.startswith(FIRST[name][1])


def test_record_has_training_rows_only(places: Places) -> None:
    task = task_of("record")
    wanted = task.wanted("record", "validation")
    assert find(wanted.source, places, splits=wanted.splits, kind=DATASET) is None
    hit, rows = loaded("record", places, "holdout")
    assert (len(rows.train), len(rows.report[""])) == (58, 6)
    assert task.subset_note(task.available(hit, "holdout")) == "64 of 100730 training rows"
    for row in rows.train:
        for text, start in zip(*row["answers"].values(), strict=True):
            assert row["passage"].startswith(text, start)


def test_xsum_has_report_rows_only(places: Places) -> None:
    task = task_of("xsum")
    hit = find(task.source, places, splits=["validation"], kind=DATASET)
    assert hit is not None
    table = task.tables(hit, ["validation"])["validation"]
    assert table.num_rows == 1000
    assert task.subset_note({"validation": 1000}) == "1000 of 11332 validation rows"


@pytest.mark.parametrize("name", ["multirc", "wic", "wsc"])
def test_label_names_are_those_stored_in_the_files(name: str, places: Places) -> None:
    path = loaded(name, places)[0].files["train"][0]
    features = json.loads(pq.read_schema(path).metadata[b"huggingface"])["info"]["features"]
    assert task_of(name).labels == features["label"]["names"]


def test_every_question_of_multirc_is_one_group(places: Places) -> None:
    _, rows = loaded("multirc", places)
    assert len({row["asked"] for row in rows.report[""]}) == 953
    assert len({row["asked"] for row in rows.train}) == 5131


def test_webnlg_has_every_text_that_is_marked_as_good(places: Places) -> None:
    _, rows = loaded("webnlg", places)
    texts = [text for part in rows.report.values() for row in part for text in row["references"]]
    assert len(texts) == 4928
    assert max(len(row["references"]) for part in rows.report.values() for row in part) == 8


def test_gsm8k_solutions_lose_the_calculator_and_keep_the_number(places: Places) -> None:
    _, rows = loaded("gsm8k", places)
    answers = [row["answer"] for row in rows.train + rows.report[""]]
    assert not any("<<" in text for text in answers)
    assert all("\n#### " in text for text in answers)


def test_mt_bench_is_put_before_a_judge_with_its_own_prompts(places: Places, tmp_path: Path) -> None:
    _, rows = loaded("mt_bench", places)
    talks = conversations(rows.report[""], [("first", "second")] * 80)
    assert sum(bool(talk.references) for talk in talks) == 39
    assert places.data_dir is not None
    judge = Judge(url="http://127.0.0.1:9/v1", model="m", folder=str(places.data_dir / "lmsys/mt_bench"))
    verdict = stored_verdict(talks, judge, tmp_path)
    assert (verdict.score, verdict.total, str(verdict)) == (None, 160, "not judged")
