"""bench export as a user types it: what it prints, and how it ends."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from adalora_bench import cli
from adalora_bench.engine.unit import run_unit
from adalora_bench.engine.units import Unit, unit_folder
from adalora_bench.export import peft_files
from adalora_bench.settings import prepare
from adalora_bench.settings.compose import compose_cells

pytestmark = pytest.mark.xdist_group("cli-export")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("recorded") / "results"


def recorded(results: Path, method: str) -> Path:
    """The folder of a unit that was run, or is run here."""
    names = [f"method={method}", "task=toy", "backbone=tiny_bert", "scale=smoke", "train.epochs=1"]
    (cell,) = compose_cells(names)
    (cell,) = prepare.keyed([cell], prepare.assets([cell], prepare.places_of(cell.config)))
    unit = Unit(cell, 0)
    run_unit(unit, results, lambda event: None, lambda: None, {})
    return unit_folder(results, unit)


def test_an_adapter_is_written_checked_and_announced(
    results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    unit = recorded(results, "lora")
    assert cli.main(["export", str(unit / "record.json"), f"to={tmp_path / 'mine'}", "offline=true"]) == 0
    out, err = capsys.readouterr()
    wrote, check = out.splitlines()
    assert wrote.startswith(
        f"wrote {tmp_path / 'mine'}: a PEFT adapter, 12 layers with 96 ranks, 7,168 numbers"
    )
    assert check.startswith("check: on 8 report rows the logits differ by ")
    assert err == ""
    config = json.loads((tmp_path / "mine" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], len(config["target_modules"])) == (8, 8, 12)
    assert cli.main(["export", str(unit), f"to={tmp_path / 'mine'}"]) == 2
    assert "is there already" in capsys.readouterr().err


def test_a_failed_check_ends_with_1_and_leaves_nothing(
    results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    unit = recorded(results, "lora")
    right = peft_files.config_of
    monkeypatch.setattr(peft_files, "config_of", lambda adapter: right(adapter) | {"lora_alpha": 16})
    assert cli.main(["export", str(unit), f"to={tmp_path / 'mine'}"]) == 1
    err = capsys.readouterr().err
    assert err.startswith("bench: the exported form is not the trained model: on 8 report rows")
    assert len(err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_method_without_adapter_is_refused(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    unit = recorded(results, "full")
    assert cli.main(["export", str(unit)]) == 2
    err = capsys.readouterr().err
    assert err == (
        "bench: method full has no low-rank adapter, and the weights of such a run are not kept.\n"
    )
    assert {path.suffix for path in unit.iterdir()} <= {".json", ".jsonl", ".gz", ".lock"}


def test_a_wrong_path_is_answered_with_the_nearest_name(
    results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    unit = recorded(results, "lora")
    method = unit.parent.parent
    for wrong, words in (
        (method.parent / "lorra" / unit.parent.name / "seed0", "'lorra'; did you mean 'lora'?"),
        (unit.parent / "seed1" / "record.json", "'seed1'; did you mean 'seed0'?"),
        (method, f"holds the folders {unit.parent.name}"),
        (unit / "steps.jsonl", "is no record that can be read"),
    ):
        assert cli.main(["export", str(wrong)]) == 2
        err = capsys.readouterr().err
        assert words in err
        assert err.startswith("bench: ")
        assert len(err.splitlines()) == 1
