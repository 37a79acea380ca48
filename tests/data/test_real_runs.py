"""The command of the README on real rows, at smoke scale: four cells, then nothing left to do."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.data

SWEEP = ["run", "-m", "method=lora,increlora", "task=rte,mrpc", "scale=smoke", "seeds=[0,1]"]


def _bench(arguments: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "adalora_bench.cli", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=300)


def test_a_sweep_over_real_rows_records_every_unit_and_a_second_call_runs_none(tmp_path: Path) -> None:
    first = _bench(SWEEP, tmp_path)
    assert first.returncode == 0, first.stdout + first.stderr
    assert "units: 8 done, 0 skipped, 0 failed" in first.stdout
    records = [json.loads(path.read_text()) for path in tmp_path.glob("results/runs/**/record.json")]
    assert {(r["names"]["task"], r["names"]["method"], r["seed"]) for r in records} == {
        (task, method, seed)
        for task in ("rte", "mrpc")
        for method in ("lora", "increlora")
        for seed in (0, 1)
    }
    # a cap makes a subset of the official rows, and the record says so
    assert {r["subset"] for r in records if r["names"]["task"] == "rte"} == {
        "160 of 2490 training rows, 64 of 277 validation rows"
    }
    table = (tmp_path / "results/tables/smoke_tiny_bert.md").read_text()
    assert "mrpc" in table
    assert "n=2" in table

    second = _bench(SWEEP, tmp_path)
    assert second.returncode == 0
    assert "units: 0 done, 8 skipped, 0 failed" in second.stdout
    assert (tmp_path / "results/tables/smoke_tiny_bert.md").read_text() == table
