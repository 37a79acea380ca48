"""Numbers gone bad: a seed stops as diverged within one logging interval, one that says one thing alone is marked."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from report_records import diverged, record
from tiny_runs import FIRST, Course, begin

from adalora_bench.engine.outcome import record_of
from adalora_bench.lowrank import scores
from adalora_bench.methods.run import Run
from adalora_bench.report.tables import build_tables
from adalora_bench.store.records import RecordStore
from adalora_bench.train import loop

STEP, INTERVAL = 5, 3  # INTERVAL is train.log_every of tiny_runs
BAD = {"NaN": float("nan"), "infinity": float("inf")}


def spoil_loss(course: Course, bad: float, patch: pytest.MonkeyPatch) -> None:
    old = loop.micro_loss

    def micro_loss(run: Run, *arguments: Any, **more: Any) -> torch.Tensor:
        loss = old(run, *arguments, **more)
        return loss * bad if run.step == STEP else loss

    patch.setattr(loop, "micro_loss", micro_loss)


def spoil_gradient(course: Course, bad: float, patch: pytest.MonkeyPatch) -> None:
    old = Run.clip

    def clip(run: Run, max_norm: float) -> float:
        if run.step == STEP:
            grad = run.trainable_parameters()[0].grad
            assert grad is not None
            grad.view(-1)[0] = bad
        return old(run, max_norm)

    patch.setattr(Run, "clip", clip)


def spoil_weight(course: Course, bad: float, patch: pytest.MonkeyPatch) -> None:
    """After the step, where only the next one can notice."""
    old = Run.observe

    def observe(run: Run) -> None:
        old(run)
        if run.step == STEP:
            with torch.no_grad():
                run.head[-1].view(-1)[0] = bad

    patch.setattr(Run, "observe", observe)


def spoil_prediction(course: Course, bad: float, patch: pytest.MonkeyPatch) -> None:
    """In the last step, so that the evaluation is the first to see it."""
    old = Run.observe

    def observe(run: Run) -> None:
        old(run)
        if run.step == run.total_steps - 1:
            with torch.no_grad():
                run.trainable_parameters()[-1].view(-1)[0] = bad

    patch.setattr(Run, "observe", observe)


def spoil_score(name: str) -> Callable[[Course, float, pytest.MonkeyPatch], None]:
    """The importance that a method computes, where its gradients are fine."""

    def spoil(course: Course, bad: float, patch: pytest.MonkeyPatch) -> None:
        old = getattr(scores, name)
        run = course.training.run

        def score(*arguments: Any, **more: Any) -> Any:
            found = old(*arguments, **more)
            return found * bad if run.step == STEP else found

        patch.setattr(scores, name, score)

    return spoil


# place -> method, backbone, how
CASES = {
    "loss": ("lora", FIRST, spoil_loss),
    "gradient": ("lora", FIRST, spoil_gradient),
    "weight": ("lora", FIRST, spoil_weight),
    "prediction": ("lora", FIRST, spoil_prediction),
    "prediction of a text": ("lora", "tiny_gpt2", spoil_prediction),
    "increlora's score": ("increlora", FIRST, spoil_score("update_sensitivity")),
    "aflora's score": ("aflora", FIRST, spoil_score("freezing_signal")),
    "adalora's score": ("adalora", FIRST, spoil_score("uncertainty")),
}


@pytest.mark.fault("R10")
@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("place", CASES)
def test_a_seed_that_goes_bad_is_diverged_within_one_logging_interval(
    place: str, bad: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    method, backbone, spoil = CASES[place]
    short = [] if "score" in place else ["train.epochs=5"]
    course = begin(method, backbone, tmp_path, *short)
    spoil(course, BAD[bad], monkeypatch)
    record = record_of(course.training)
    assert record["status"] == "diverged", record["reason"]
    came = record["total_steps"] if "prediction" in place else STEP
    assert came <= record["steps"] <= came + INTERVAL
    assert record["final"] is None
    assert "finite" in record["reason"] or f"at step {record['steps']}" in record["reason"]
    store = RecordStore(tmp_path / "runs")
    store.write(record)  # NaN and infinity become null
    assert store.scan().records[0]["status"] == "diverged"


@pytest.mark.fault("R10 one")
@pytest.mark.parametrize("task", ["toy_regression", "toy"])
def test_one_answer_to_every_row_is_collapsed_and_keeps_its_score(
    task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the score, a correlation, is not defined for a constant."""
    course = begin("lora", FIRST, tmp_path, f"task={task}", "train.epochs=2", "train.report_rows=12")
    old = Run.observe

    def observe(run: Run) -> None:
        old(run)
        for p in run.head:
            p.data.zero_()

    monkeypatch.setattr(Run, "observe", observe)
    record = record_of(course.training)
    assert (record["status"], record["reason"]) == (
        "collapsed",
        "one and the same answer to every report row",
    )
    assert 0 <= record["final"]["scores"][record["main_metric"]] <= 1
    RecordStore(tmp_path / "runs").write(record)


@pytest.mark.fault("R10 one")
def test_captions_count_every_kind_of_seed_and_a_diverged_one_is_last() -> None:
    records = [record("lora", "rte", seed) for seed in range(5)]
    records[2] = {
        **records[2],
        "status": "collapsed",
        "reason": "one and the same answer to every report row",
    }
    records[2]["final"] = {**records[2]["final"], "scores": {"acc": 0.01}}
    records[4] = diverged(records[4])
    [text] = build_tables(records).values()
    assert "- Seeds in this table: 3 ok, 1 collapsed, 1 diverged, 0 failed." in text
    [row] = [line for line in text.splitlines() if line.startswith("| lora ")]
    assert "n=4/5" in row
    assert "*" in row
    # median of five with the diverged one below the collapsed one: the lowest finished score but one
    finished = sorted(one["final"]["scores"]["acc"] for one in records if one["status"] != "diverged")
    assert f"{100 * finished[1]:.2f}*" in row
    assert "[diverged" in row or "[-" in row or f"{100 * finished[-1]:.2f}]" in row
