"""What a record says beside its numbers can fail; the record of a finished training is written all the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from adalora_bench.engine import outcome
from adalora_bench.engine.outcome import record_of
from adalora_bench.engine.training import Training
from adalora_bench.engine.units import Unit
from adalora_bench.errors import UserError
from adalora_bench.settings import prepare
from adalora_bench.settings.compose import compose_cells

SETTINGS = (
    "method=full",
    "task=toy",
    "backbone=tiny_bert",
    "scale=smoke",
    "train.train_rows=8",
    "train.batch_size=4",
    "train.epochs=1",
)


@pytest.fixture
def training(tmp_path: Path) -> Training:
    (cell,) = compose_cells(SETTINGS)
    (cell,) = prepare.keyed([cell], prepare.assets([cell], prepare.places_of(cell.config)))
    prepare.check_late_failures(cell, prepare.look([cell], prepare.places_of(cell.config)))
    return Training(Unit(cell, 0), tmp_path, lambda event: None, lambda: None)


def loading_fails(training: Training, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """The training has its backbone; it can be loaded no second time."""

    def fail() -> None:
        raise error

    monkeypatch.setattr(training, "load_backbone", fail)


@pytest.mark.parametrize(
    "error",
    [MemoryError(), RuntimeError("not enough memory"), OSError("/home/me/weights"), UserError("/home/me")],
)
def test_a_backbone_that_cannot_be_loaded_once_more_costs_the_cosine_alone(
    error: Exception, training: Training, monkeypatch: pytest.MonkeyPatch
) -> None:
    loading_fails(training, monkeypatch, error)
    record = record_of(training)
    assert record["status"] in ("ok", "collapsed")
    assert record["cosine"] == {}
    (note,) = record["notes"]
    assert f"{type(error).__name__} when" in note
    assert "/home" not in note


def test_a_large_backbone_is_not_loaded_once_more(
    training: Training, monkeypatch: pytest.MonkeyPatch
) -> None:
    loading_fails(training, monkeypatch, AssertionError("loaded twice"))
    monkeypatch.setattr(outcome, "LOADED_AGAIN", 1000)
    record = record_of(training)
    assert record["cosine"] == {}
    assert "numbers are not loaded a second time" in record["notes"][0]
