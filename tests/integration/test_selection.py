"""Which rows choose the best evaluation (split=dev_test), and when a training ends early."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from adalora_bench.data import draw
from adalora_bench.engine.outcome import record_of
from adalora_bench.engine.training import Training
from adalora_bench.engine.units import Unit
from adalora_bench.errors import UserError
from adalora_bench.settings import prepare
from adalora_bench.settings.compose import compose_cells
from adalora_bench.settings.config import Cell
from adalora_bench.train.evaluate import Scoring

SETTINGS = (
    "method=lora",
    "task=toy",
    "backbone=tiny_bert",
    "scale=smoke",
    "train.train_rows=12",
    "train.batch_size=4",
    "train.epochs=4",
    "train.eval_every=1",
)


def keyed(*more: str) -> Cell:
    (cell,) = compose_cells([*SETTINGS, *more])
    (cell,) = prepare.keyed([cell], prepare.assets([cell], prepare.places_of(cell.config)))
    return cell


def trained(folder: Path, *more: str) -> dict[str, Any]:
    cell = keyed(*more)
    prepare.check_late_failures(cell, prepare.look([cell], prepare.places_of(cell.config)))
    return record_of(Training(Unit(cell, 0), folder, lambda event: None, lambda: None))


@pytest.mark.parametrize(
    ("train", "report", "official", "sizes"),
    [
        (2490, 277, 2490, (0, 138)),  # RTE: half of the report rows
        (67349, 872, 67349, (1000, 0)),  # SST-2: 1,000 training rows
        (9999, 10, None, (0, 5)),
        (10000, 10, None, (1000, 0)),
        (1500, 100, 363846, (750, 0)),  # a subset of a large set is treated as the large set
    ],
)
def test_dev_rows_of_small_and_large_sets(
    train: int, report: int, official: int | None, sizes: tuple[int, int]
) -> None:
    assert draw.dev_size(train, report, official=official) == sizes


def test_split_off_is_fixed_and_complete() -> None:
    kept, off = draw.split_off(list(range(20)), 7)
    assert len(off) == 7
    assert sorted(kept + off) == list(range(20))
    assert (kept, off) == draw.split_off(list(range(20)), 7)


def test_dev_rows_choose_the_best_and_are_not_reported(tmp_path: Path) -> None:
    whole = keyed()
    cell = keyed("split=dev_test")
    assert cell.key != whole.key
    found = prepare.look([cell], prepare.places_of(cell.config))
    rows, all_rows = prepare.rows_of(cell, found.task(cell)), prepare.rows_of(whole, found.task(cell))
    assert rows.counts["report"] + rows.counts["dev"] == all_rows.counts["report"]
    assert not [row for row in rows.report[""] if row in rows.dev[""]]
    record = trained(tmp_path, "split=dev_test")
    assert record["rows"]["dev"] == rows.counts["dev"]
    assert record["split"] == "dev_test"
    assert record["best"]["selected_on"] == "dev"
    assert all("dev_scores" in point for point in record["history"])
    best = max(point["dev_scores"]["acc"] for point in record["history"])
    assert record["best"]["dev_scores"]["acc"] == best


def test_counts_agree_with_the_rows() -> None:
    cell = keyed("split=dev_test")
    found = prepare.look([cell], prepare.places_of(cell.config)).task(cell)

    task = cell.task
    loaded = task.load(found, "dev_test")
    assert task.counts(found, "dev_test") == {
        "train": len(loaded.train),
        "report": sum(len(part) for part in loaded.report.values()),
    }


def test_a_training_ends_when_nothing_gets_better(tmp_path: Path) -> None:
    record = trained(
        tmp_path, "train.early_stop={patience:2}", "method.lr=1e-9", "method.head_lr=1e-9", "train.warmup=0"
    )
    assert (record["steps"], record["total_steps"]) == (
        3,
        12,
    )  # the first is the best, two more are not better
    assert record["status"] in ("ok", "collapsed")
    assert "stopped early at step 3 of 12" in record["notes"]


def test_the_loss_can_choose(tmp_path: Path) -> None:
    record = trained(tmp_path, "train.early_stop={patience:20,metric:loss}", "split=dev_test")
    losses = [point["dev_scores"]["loss"] for point in record["history"]]
    assert record["best"]["dev_scores"]["loss"] == min(losses)
    assert record["steps"] == 12


def test_the_start_is_scored_too_and_changes_nothing_else(tmp_path: Path) -> None:
    plain, scored = (trained(tmp_path / name, *more) for name, more in START)
    first, *rest = scored["history"]
    assert (first["step"], set(first["scores"])) == (0, {"acc"})
    assert rest == plain["history"]
    assert scored["best"] == plain["best"]  # never the start, however good it was
    losses = [(tmp_path / name / "steps.jsonl").read_text() for name, _ in START]
    assert losses[0] == losses[1]
    assert plain["config"]["train"].pop("eval_at_start") is False
    assert scored["settings_key"] != plain["settings_key"]


START = (("plain", ()), ("scored", ("train.eval_at_start=true",)))


def test_no_early_stop_is_no_part_of_the_key() -> None:
    from adalora_bench.settings.key import settings_of

    assert "early_stop" not in settings_of(keyed().config)["train"]
    assert settings_of(keyed("train.early_stop={patience:3}").config)["train"]["early_stop"]["patience"] == 3


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["train.early_stop={patience:0}"], "patience=0"),
        (["train.early_stop={patience:3}", "train.eval_every=0"], "eval_every is 0"),
        (["train.early_stop={patience:3,metric:accc}"], "acc"),
    ],
)
def test_refusals(more: list[str], said: str) -> None:
    (cell,) = compose_cells([*(text for text in SETTINGS if text.split("=")[0] not in str(more)), *more])
    with pytest.raises(UserError, match=said):
        prepare.check_late_failures(cell, prepare.look([cell], prepare.places_of(cell.config)))


def test_evaluations_since_the_best_are_counted() -> None:
    scoring = object.__new__(Scoring)
    points = [0.5, 0.7, 0.7, 0.6]

    class Step:
        step, epoch = 0, 0.0

    class Form:
        main_metric = "acc"

        def unparsed(self, predicted: Any) -> dict[str, int]:
            return {}

    run = Step()
    vars(scoring).update(
        form=Form(), run=run, dev={}, split="validation", metric=None, history=[], best=None, predicted={}
    )
    vars(scoring).update(train_scores=None, dev_scores=None)
    since = []
    for number, value in enumerate(points, 1):
        run.step = number
        since.append(scoring.keep({"acc": value}))
    assert since == [0, 0, 1, 2]
    assert scoring.best is not None
    assert scoring.best["step"] == 2
