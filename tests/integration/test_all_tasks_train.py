"""Every task on a tiny backbone of every form: it trains three steps and is scored, gold answers get the best score."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import tiny_data
import yaml
from tiny_data import CONF, NEW, OLD, task_of

from adalora_bench import forms
from adalora_bench.data import prompts
from adalora_bench.data.fields import Generation
from adalora_bench.data.mt_bench import TALK
from adalora_bench.data.sources import Found, Places
from adalora_bench.engine.outcome import record_of
from adalora_bench.engine.training import Training
from adalora_bench.engine.units import Unit
from adalora_bench.errors import UserError
from adalora_bench.forms import text as text_form
from adalora_bench.metrics import METRICS
from adalora_bench.models.backbone import Backbone
from adalora_bench.settings import prepare
from adalora_bench.settings.compose import compose_cells
from adalora_bench.settings.config import build

TASKS = (*NEW, *OLD)
BACKBONES = ("tiny_bert", "tiny_gpt2", "tiny_bart")
GENERATED = Found("generated", None, {}, "generated")
# Points without a common best value; METEOR's own penalty keeps equal texts below 1.
NO_MAXIMUM = ("nist_mteval", "cider", "meteor_nltk_exact_stem")


def fits(name: str, backbone: str) -> bool:
    kind = task_of(name).kind
    return kind != "text" if backbone == "tiny_bert" else kind != "regression"


PAIRS = [(name, backbone) for name in TASKS for backbone in BACKBONES if fits(name, backbone)]
MISFITS = [(name, backbone) for name in TASKS for backbone in BACKBONES if not fits(name, backbone)]


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Places:
    return tiny_data.write_all(tmp_path_factory.mktemp("data"))


@lru_cache
def backbone_of(name: str) -> Backbone:
    node = yaml.safe_load((CONF.parent / "backbone" / f"{name}.yaml").read_text())
    backbone: Backbone = build(node, "backbone")
    return backbone


def cell_of(name: str, backbone: str, places: Places) -> Any:
    settings: dict[str, object] = {
        "method": "lora",
        "method.targets": "[q,v]",
        "task": name,
        "backbone": backbone,
        "scale": "smoke",
        "scale.max_length": 64,
        "scale.max_steps": 3,
        "train.batch_size": 4,
        "train.micro_batches": 1,
        "train.epochs": 3,
        "train.eval_every": 3,
        "train.report_rows": 3,
        "data_dir": places.data_dir,
    }
    if backbone != "tiny_bert":
        settings |= {"task.generation.beams": 2, "task.generation.max_new_tokens": 4}
    (cell,) = compose_cells([f"{key}={value}" for key, value in settings.items()])
    return cell


@pytest.mark.parametrize(("name", "backbone"), PAIRS)
def test_it_trains_three_steps_and_is_scored(
    name: str, backbone: str, places: Places, tmp_path: Path
) -> None:
    cell = cell_of(name, backbone, places)
    (cell,) = prepare.keyed([cell], prepare.assets([cell], prepare.places_of(cell.config)))
    record = record_of(Training(Unit(cell, 0), tmp_path, lambda event: None, lambda: None))
    assert record["status"] in ("ok", "collapsed")
    assert record["steps"] == 3
    scores = record["final"]["scores"]
    task = task_of(name)
    suffix = "" if backbone == "tiny_bert" or task.kind not in ("classification", "choice") else "gen"
    assert set(scores) == set(task.score_names(suffix))
    assert all(math.isfinite(value) for value in scores.values())
    assert "rows" in record["subset"]


@pytest.mark.parametrize(("name", "backbone"), MISFITS)
def test_a_pair_that_does_not_fit_is_refused_in_one_sentence(name: str, backbone: str) -> None:
    with pytest.raises(
        UserError, match=r"^the task asks for (text|a number), but .*; use (an encoder|a backbone)"
    ):
        forms.check_fit(task_of(name), backbone_of(backbone))


def gold_predictions(name: str, backbone: str, places: Places, monkeypatch: Any) -> tuple[Any, Any, Any]:
    """(form, gold predictions by suffix, report rows): a generative backbone writes the gold answers token by token."""
    task = task_of(name)
    rows = tiny_data.load(name, places).report
    built = backbone_of(backbone)
    short = replace(task, max_length=384, max_answer=100, generation=Generation(max_new_tokens=100))
    form = forms.make(short, built, built.tokenizer(GENERATED))
    if backbone == "tiny_bert":
        gold = {k: [task.gold(row) for row in part] for k, part in rows.items()}
        return form, {k: [g[0] if isinstance(g, list) else g for g in v] for k, v in gold.items()}, rows

    answers: list[str] = []

    def written(model: Any, tokenizer: Any, asked: Any, generation: Any, device: Any) -> list[list[int]]:
        """In the place of the model: the answers that were put in `answers`, as tokens with an end."""
        texts = [answers.pop(0) for _ in asked]
        return [
            [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
            for text in texts
        ]

    monkeypatch.setattr(text_form, "answer_ids", written)
    monkeypatch.setattr(text_form, "TextModel", object)
    predicted = {}
    for suffix, part in rows.items():
        turns = [
            row[TALK]["references"] or ["a", "b"] if TALK in row else [rendered(task, row)] for row in part
        ]
        # Once more for each turn, in the order of the rows.
        answers += [turn[k] for k in range(2) for turn in turns if k < len(turn)]
        examples = form.encode(part, train=False)
        predicted[suffix] = form.answers(object(), examples, range(len(part)), None)  # type: ignore[arg-type]
        assert answers == []
    return form, predicted, rows


def rendered(task: Any, row: dict[str, Any]) -> str:
    return prompts.rendered(task, prompts.answer_of(task, row))


@pytest.mark.parametrize(("name", "backbone"), PAIRS)
def test_gold_answers_score_the_maximum(
    name: str, backbone: str, places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    form, gold, rows = gold_predictions(name, backbone, places, monkeypatch)
    for score, value in form.score(gold, rows).items():
        metric = next(m for m in sorted(METRICS, key=len, reverse=True) if score.startswith(m))
        if metric not in NO_MAXIMUM:
            assert value == pytest.approx(1.0 if METRICS[metric].higher_is_better else 0.0), score
        else:
            assert value > 0.9 if metric.startswith("meteor") else value >= 0, score
    assert not any(form.unparsed({k: v for k, v in gold.items() if name != "mt_bench"}).values())


@pytest.mark.parametrize("name", [n for n in TASKS if task_of(n).kind in ("classification", "choice")])
def test_shuffled_answers_score_about_chance(name: str, places: Places) -> None:
    task = task_of(name)
    rows = tiny_data.load(name, places).train * 100
    suffix = next(iter(task.report_splits))
    labels = [row[task.label] for row in rows]
    shuffled = random.Random(0).sample(labels, len(labels))
    chance = sum((labels.count(label) / len(labels)) ** 2 for label in set(labels))
    if task.score_group:  # a question comes a hundred times here, and is right only if all of it is
        rows = [row | {task.score_group: str(i // 2)} for i, row in enumerate(rows)]
    scores = task.score({suffix: shuffled}, {suffix: rows})
    accuracy = next((value for key, value in scores.items() if key.startswith("acc")), None)
    assert accuracy is not None
    assert accuracy == pytest.approx(chance, abs=4 * math.sqrt(chance * (1 - chance) / len(rows)))
    if "mcc" in scores:
        assert scores["mcc"] == pytest.approx(0, abs=0.15)


@pytest.mark.parametrize("name", [n for n in TASKS if task_of(n).kind in ("span", "text", "regression")])
def test_answers_of_other_rows_score_far_below_the_maximum(name: str, places: Places) -> None:
    task = task_of(name)
    report = tiny_data.load(name, places).report
    if name == "webnlg":  # one row in each of its sets: they answer each other
        gold = {k: [task.gold(row)[0] for row in part] for k, part in report.items()}
        others = {"seen": gold["unseen"], "unseen": gold["seen"]}
    elif name == "mt_bench":
        others = {"": [("Nothing of the kind.", "No idea.")] * len(report[""])}
        gold = {"": [tuple(row[TALK]["references"]) for row in report[""]]}
    else:
        values = [g[0] if isinstance(g := task.gold(row), list) else g for row in report[""]]
        gold, others = {"": values}, {"": values[1:] + values[:1]}
    # The main metric alone: a tiny set leaves BLEU's fourth order without a count.
    best, worse = task.score(gold, report)[task.main_metric], task.score(others, report)[task.main_metric]
    assert worse < 0.9 * best
