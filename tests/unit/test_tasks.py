"""Tasks: declarations, rows, checks that name file and row, holdout, caps, baselines; every task YAML."""

from __future__ import annotations

import bz2
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from adalora_bench.data import film_reviews, toy
from adalora_bench.data.sources import Found
from adalora_bench.data.tasks import Task, take
from adalora_bench.errors import UserError
from adalora_bench.settings import config

CONF = Path(__file__).parents[2] / "conf" / "task"
GLUE = ["cola", "mnli", "mrpc", "qnli", "qqp", "rte", "sst2", "stsb"]
GENERATED = Found("generated", None, {}, "generated")


def build(name: str) -> Any:
    node = yaml.safe_load((CONF / f"{name}.yaml").read_text())
    return config.build(node, "task")


def local(folder: Path, **splits: dict[str, list[Any]] | pa.Table) -> Found:
    files = {}
    for split, columns in splits.items():
        files[split] = [folder / f"{split}-00000-of-00001.parquet"]
        table = columns if isinstance(columns, pa.Table) else pa.table(columns)
        pq.write_table(table, files[split][0])
    return Found("local", folder, files, "folder test")


def pairs(rows: int, labels: list[int] | None = None) -> dict[str, list[Any]]:
    return {
        "sentence1": [f"first {i}" for i in range(rows)],
        "sentence2": [f"second {i}" for i in range(rows)],
        "label": labels or [i % 2 for i in range(rows)],
        "idx": list(range(rows)),
    }


@pytest.fixture
def rte() -> Task:
    task = build("rte")
    assert isinstance(task, Task)
    return task


# --- the YAML files


@pytest.mark.parametrize("name", sorted(path.stem for path in CONF.glob("*.yaml")))
def test_every_task_builds_and_says_what_it_reports_on(name: str) -> None:
    task = build(name)
    assert set(task.backbone_for) == {"paper", "cpu", "smoke"}
    assert task.score_names()[0] == task.main_metric
    head = [line for line in (CONF / f"{name}.yaml").read_text().splitlines() if line.startswith("#")]
    assert any("label:" in line for line in head), "an example row"
    signs = ("validation", "published splits", "test set is public")
    assert any(sign in line for line in head for sign in signs), "what stands in for the test set"


def test_all_of_glue_is_there() -> None:
    tasks = {name: build(name) for name in GLUE}
    assert {(task.source.hub, task.source.revision) for task in tasks.values()} == {
        ("nyu-mll/glue", "bcdcba79d07bc864c1c254ccfcedcce55bcc9a8c")
    }
    mains = {name: task.main_metric for name, task in tasks.items()}
    assert mains == dict.fromkeys(GLUE, "acc") | {"cola": "mcc", "stsb": "pearson", "mnli": "acc_matched"}
    assert tasks["stsb"].score_names() == ["pearson", "spearman"]
    assert tasks["stsb"].kind == "regression"
    assert tasks["mrpc"].score_names() == tasks["qqp"].score_names() == ["acc", "f1"]
    assert tasks["mnli"].score_names() == ["acc_matched", "acc_mismatched"]
    assert len(tasks["mnli"].labels) == 3


# --- declarations


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"version": 0}, "versions start at 1"),
        ({"kind": "clasification"}, "did you mean 'classification'"),
        ({"text": []}, "task.text names 0 columns"),
        ({"labels": ["yes"]}, "two or more different names"),
        ({"labels": ["yes", "yes"]}, "two or more different names"),
        ({"kind": "regression"}, "no label names"),
        ({"metrics": ["accc"]}, "unknown metric 'accc'; did you mean 'acc'"),
        ({"metrics": ["pearson"]}, "does not fit a classification"),
        ({"labels": ["a", "b", "c"], "metrics": ["f1"]}, "'f1', which is for two classes"),
        ({"report_splits": {}}, "at least one split"),
        ({"report_splits": {"": "train"}}, "none that is trained on"),
        ({"optional_splits": ["validaton"]}, "did you mean 'validation'"),
        ({"optional_splits": ["validation"]}, "unknown task.main_metric 'acc'"),
        ({"main_metric": "ac"}, "did you mean 'acc'"),
        ({"max_length": 0}, "max_length is 0"),
    ],
)
def test_a_wrong_declaration_is_one_sentence(rte: Task, change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        replace(rte, **change)


def test_wanted_splits(rte: Task) -> None:
    assert rte.wanted_splits("validation") == (["train", "validation"], [])
    assert rte.wanted_splits("holdout") == (["train"], [])
    assert build("mnli").wanted_splits("validation") == (
        ["train", "validation_matched"],
        ["validation_mismatched"],
    )
    with pytest.raises(UserError, match="split=test has no labels"):
        rte.wanted_splits("test")
    with pytest.raises(UserError, match="unknown split 'validaton'; did you mean 'validation'"):
        rte.wanted_splits("validaton")
    wanted = build("mnli").wanted("mnli", "validation")
    assert (wanted.name, wanted.kind, wanted.optional) == ("mnli", "dataset", ["validation_mismatched"])


# --- rows


def test_load_takes_text_and_label(rte: Task, tmp_path: Path) -> None:
    found = local(tmp_path, train=pairs(6), validation=pairs(2))
    rows = rte.load(found, "validation")
    assert len(rows.train) == 6
    assert rows.report == {
        "": [{"sentence1": f"first {i}", "sentence2": f"second {i}", "label": i} for i in range(2)]
    }
    assert rte.counts(found, "validation") == {"train": 6, "report": 2}


def test_float_labels_of_a_regression(tmp_path: Path) -> None:
    table = pa.table(pairs(2)).set_column(2, "label", pa.array([2.5, 5.0], pa.float32()))
    rows = build("stsb").load(local(tmp_path, train=table, validation=table), "validation")
    assert [row["label"] for row in rows.train] == [2.5, 5.0]


def test_mnli_without_its_mismatched_set(tmp_path: Path) -> None:
    mnli = build("mnli")
    columns = {"premise": ["a", "b"], "hypothesis": ["c", "d"], "label": [0, 2]}
    found = local(tmp_path, train=columns, validation_matched=columns)
    assert list(mnli.load(found, "validation").report) == ["matched"]
    assert mnli.subset_note(mnli.available(found, "validation")) == (
        "2 of 392702 training rows, 2 of 9815 validation_matched rows, no validation_mismatched rows"
    )
    both = local(tmp_path, train=columns, validation_matched=columns, validation_mismatched=columns)
    rows = mnli.load(both, "validation")
    assert list(rows.report) == ["matched", "mismatched"]
    assert mnli.counts(both, "validation") == {"train": 2, "report": 4}
    assert mnli.score({"matched": [0, 2], "mismatched": [0, 0]}, rows.report) == {
        "acc_matched": 1.0,
        "acc_mismatched": 0.5,
    }


def test_holdout_is_carved_out_of_train(rte: Task, tmp_path: Path) -> None:
    found = local(tmp_path, train=pairs(50))  # no validation set there, and none is missed
    rows = rte.load(found, "holdout")
    held = {row["sentence1"] for row in rows.report[""]}
    assert (len(rows.train), len(held)) == (45, 5)
    assert held.isdisjoint(row["sentence1"] for row in rows.train)
    assert held == {row["sentence1"] for row in rte.load(found, "holdout").report[""]}
    assert rte.counts(found, "holdout") == {"train": 45, "report": 5}
    assert rte.fingerprint(found, "holdout") != rte.fingerprint(
        local(tmp_path, train=pairs(50), validation=pairs(2)), "validation"
    )
    columns = {"premise": ["a"] * 20, "hypothesis": ["c"] * 20, "label": [0, 2] * 10}
    assert list(build("mnli").load(local(tmp_path, train=columns), "holdout").report) == ["matched"]


def test_holdout_is_at_most_a_thousand_rows(rte: Task, tmp_path: Path) -> None:
    found = local(tmp_path, train=pairs(20_000))
    assert rte.counts(found, "holdout") == {"train": 19_000, "report": 1000}


def test_holdout_keeps_groups_together(rte: Task, tmp_path: Path) -> None:
    grouped = replace(rte, group="film")
    columns = pairs(60) | {"film": [f"film {i // 4}" for i in range(60)]}
    found = local(tmp_path, train=columns)
    rows = grouped.load(found, "holdout")
    held = {row["film"] for row in rows.report[""]}
    assert held.isdisjoint(row["film"] for row in rows.train)
    assert len(rows.report[""]) == 8  # 6 asked for, in films of 4
    assert grouped.counts(found, "holdout") == {"train": 52, "report": 8}


def test_take_is_fixed_nested_and_in_order() -> None:
    rows = list(range(1000))
    small, large = take(rows, 10), take(rows, 100)
    assert small == take(rows, 10) == sorted(small)
    assert set(small) < set(large)
    assert large != rows[:100]
    assert take(rows, None) == take(rows, 5000) == rows
    assert small == [25, 120, 244, 402, 406, 618, 881, 894, 921, 999]  # other rows would make records stale


def test_subset_note(rte: Task) -> None:
    full = {"train": 2490, "validation": 277}
    assert rte.subset_note(full) is None
    assert rte.subset_note({"train": 2490}) is None  # holdout: the validation set is not asked for
    assert rte.subset_note(full, train_limit=100) == "100 of 2490 training rows"
    assert rte.subset_note(full, train_limit=9999, report_limit=9999) is None
    assert rte.subset_note({"train": 2000, "validation": 277}, report_limit=50) == (
        "2000 of 2490 training rows, 50 of 277 validation rows"
    )
    assert build("film_reviews").subset_note({"train": 5}) is None
    qqp = build("qqp")
    assert qqp.subset_note({"train": 363846, "validation": 1000}, report_limit=64) == (
        "64 of 40430 validation rows (validation is not the official one)"
    )
    assert qqp.subset_note({"train": 363846, "validation": 40430}, report_limit=1000) == (
        "1000 of 40430 validation rows"
    )


# --- what can be wrong with a file


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"label": [0, 1, 2, 0]},
            r"train-00000-of-00001.parquet, row 2 \(from 0\): 'label' is 2; it must be one of 0 ",
        ),
        ({"label": [0, -1, 0, 0]}, r"row 1 \(from 0\): 'label' is -1 \(-1 marks a hidden label\)"),
        ({"label": [0, 1, 0, None]}, r"row 3 \(from 0\): 'label' is None"),
        ({"label": ["yes", "no", "no", "no"]}, "column 'label' holds string; each label must be one of 0"),
        ({"label": [0.5, 0.5, 0.5, 0.5]}, "column 'label' holds double"),
        ({"sentence2": ["a", None, "b", "c"]}, r"row 1 \(from 0\): 'sentence2' is None; it must be a text"),
        ({"sentence1": [1, 2, 3, 4]}, "column 'sentence1' holds int64, not text"),
    ],
)
def test_bad_values_are_named(rte: Task, tmp_path: Path, change: dict[str, list[Any]], sentence: str) -> None:
    found = local(tmp_path, train=pairs(4) | change, validation=pairs(2))
    with pytest.raises(UserError, match=sentence):
        rte.load(found, "validation")


def test_bad_files_are_named(rte: Task, tmp_path: Path) -> None:
    columns = pairs(4)
    del columns["sentence2"]
    with pytest.raises(UserError, match="column 'sentence2' is missing; the file has sentence1, label, idx"):
        rte.load(local(tmp_path, train=columns, validation=pairs(2)), "validation")
    empty = pa.table(pairs(4)).slice(0, 0)
    with pytest.raises(UserError, match="train-00000-of-00001.parquet has no rows"):
        rte.load(local(tmp_path, train=empty, validation=pairs(2)), "validation")
    found = local(tmp_path, train=pairs(4), validation=pairs(2))
    path = found.files["validation"][0]
    path.write_bytes(path.read_bytes()[:-20])
    for ask in (rte.load, rte.fingerprint, rte.counts):
        with pytest.raises(UserError, match=r"validation-00000-of-00001\.parquet cannot be read as parquet"):
            ask(found, "validation")
    with pytest.raises(UserError, match="no parquet files of the split 'train'"):
        rte.load(Found("wheel", tmp_path, {}, "a wheel"), "validation")


def test_regression_labels_must_be_finite(tmp_path: Path) -> None:
    columns = pairs(3) | {"label": [1.0, float("nan"), 2.0]}
    with pytest.raises(UserError, match=r"row 1 \(from 0\): 'label' is nan; it must be a finite number"):
        build("stsb").load(local(tmp_path, train=columns), "holdout")


def test_the_row_is_that_of_its_own_file(rte: Task, tmp_path: Path) -> None:
    good, bad = tmp_path / "train-00000-of-00002.parquet", tmp_path / "train-00001-of-00002.parquet"
    pq.write_table(pa.table(pairs(4)), good)
    pq.write_table(pa.table(pairs(2, [1, 7])), bad)
    with pytest.raises(UserError, match=r"train-00001-of-00002\.parquet, row 1 "):
        rte.load(Found("local", tmp_path, {"train": [good, bad]}, "x"), "holdout")


# --- baselines


def test_majority_is_of_the_report_rows() -> None:
    mrpc = build("mrpc")
    report = {"": [{"label": label} for label in (1, 1, 0)]}
    assert mrpc.majority(report) == {"acc": pytest.approx(2 / 3), "f1": pytest.approx(0.8)}
    assert mrpc.majority({"": [{"label": 1}, {"label": 0}]})["acc"] == 0.5
    assert build("stsb").majority(report) == {"pearson": None, "spearman": None}
    matched = {"matched": report[""], "mismatched": [{"label": 2}]}
    assert build("mnli").majority(matched) == {"acc_matched": pytest.approx(2 / 3), "acc_mismatched": 1.0}


# --- tasks with rows of their own


def test_film_reviews_are_split_by_film(tmp_path: Path) -> None:
    task = build("film_reviews")
    films = [f"film_{i}" for i in range(200)]
    lines = ["category,text,movie_name,has_plot_and_reviews"]
    for i, film in enumerate(films):
        lines += [f'fresh,"Good, film {i}.",{film},True', f"rotten,Bad film {i}.,{film},True"]
        lines += [f"plot,A plot {i}.,{film},True", f"fresh,  ,{film},True", f"fresh,Said twice.,{film},True"]
    (tmp_path / film_reviews.FILE).write_bytes(bz2.compress("\n".join(lines).encode()))
    found = Found("wheel", tmp_path, {}, "wheel")
    rows = task.load(found, "validation")
    both = rows.train + rows.report[""]
    assert len(both) == 401  # two per film, and the repeated one once
    assert {row["movie_name"] for row in rows.train}.isdisjoint(row["movie_name"] for row in rows.report[""])
    assert 20 <= len({row["movie_name"] for row in rows.report[""]}) <= 60
    assert {row["text"]: row["label"] for row in both}["Good, film 7."] == 1
    assert {row["text"]: row["label"] for row in both}["Bad film 7."] == 0
    held = task.load(found, "holdout")
    assert {row["movie_name"] for row in held.train}.isdisjoint(row["movie_name"] for row in held.report[""])
    assert task.counts(found, "validation") == {"train": len(rows.train), "report": len(rows.report[""])}
    (tmp_path / film_reviews.FILE).write_bytes(b"no bz2")
    with pytest.raises(UserError, match="cannot be read"):
        task.load(found, "validation")


def test_boolq_of_the_wheel_equals_boolq_of_parquet(tmp_path: Path) -> None:
    task = build("boolq")
    rows = [{"question": f"q{i}", "passage": f"p{i}", "label": i % 3 == 0, "idx": i} for i in range(12)]
    train, validation = rows[:8], [row | {"idx": i} for i, row in enumerate(rows[8:])]
    hidden = [{"question": "t", "passage": "p", "idx": 0}]
    mixed = [*validation[::-1], *hidden, *train[::-1]]
    (tmp_path / "combined.jsonl").write_text("".join(json.dumps(row) + "\n" for row in mixed))
    (tmp_path / "dev.jsonl").write_text(
        "".join(json.dumps({"question": row["question"]}) + "\n" for row in validation)
    )
    wheel = Found("wheel", tmp_path, {}, "wheel")
    got = task.load(wheel, "validation")
    assert [row["question"] for row in got.train] == [f"q{i}" for i in range(8)]
    assert [row["label"] for row in got.report[""]] == [0, 1, 0, 0]
    columns = {
        name: {
            key: [int(row[key]) if key == "label" else row[key] for row in part]
            for key in ("question", "passage", "label")
        }
        for name, part in (("train", train), ("validation", validation))
    }
    assert task.fingerprint(wheel, "validation") == task.fingerprint(local(tmp_path, **columns), "validation")
    (tmp_path / "combined.jsonl").write_text(json.dumps(mixed[0]) + "\n{")
    with pytest.raises(UserError, match=r"combined\.jsonl, row 1: cannot be read"):
        task.load(wheel, "validation")


@pytest.mark.parametrize("name", ["toy", "toy_regression"])
def test_toy_rows_are_fixed_and_follow_their_rule(name: str) -> None:
    task = build(name)
    rows = task.load(GENERATED, "validation")
    assert (len(rows.train), len(rows.report[""])) == (256, 64)
    assert rows == task.load(GENERATED, "validation")
    for row in rows.train + rows.report[""]:
        words = f"{row['sentence1']} {row['sentence2']}".split()
        assert set(words) <= set(toy.WORDS)
        warm, cold = (sum(word in keys for word in words) for keys in (toy.WARM, toy.COLD))
        assert (warm, cold) == (
            (row["label"], 1 - row["label"]) if name == "toy" else (row["label"], 4 - row["label"])
        )
    assert len({row["label"] for row in rows.train}) == (2 if name == "toy" else 5)
    assert (
        task.fingerprint(GENERATED, "validation")
        == {
            "toy": "8409324d0122a69c1948e43719f1e1d862dd2def9b196ba5cd2da652a2182ff8",
            "toy_regression": "4e1e0a3fce3e7f4c2fae416b2e2876d6c66048dde9e234a0d77f52dc74602459",
        }[name]
    )
    with pytest.raises(UserError, match="at least 2"):
        replace(task, train_rows=1)
