"""processes=2: one command, two processes per unit, the decisions and losses of one process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
from bench_process import bench, records

from adalora_bench.settings import prepare
from adalora_bench.settings.compose import compose_cells

METHODS = ("increlora", "salora")  # salora reduces scores once more at the end
COMMAND = (
    "run", "-m", f"method={','.join(METHODS)}", "task=toy", "scale=smoke", "train.log_every=1", "seeds=0", "device=cpu",
    "jobs=1",
)  # fmt: skip


def losses(folder: Path, method: str) -> list[float]:
    [log] = folder.glob(f"results/runs/*/*/{method}/*/seed0/steps.jsonl")
    return [json.loads(line)["loss"] for line in log.read_text().splitlines()]


def test_two_processes_train_a_unit_as_one_does(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for folder, more in ((one, []), (two, ["processes=2"])):
        folder.mkdir()
        ended = bench(folder, *COMMAND, *more)
        assert ended.returncode == 0, ended.stderr
    alone, together = ({key[1]: r for key, r in records(folder).items()} for folder in (one, two))
    for method in METHODS:
        assert losses(two, method) == pytest.approx(losses(one, method), abs=1e-5)
        assert len(losses(one, method)) >= 12
        assert together[method]["key"] != alone[method]["key"]  # sums are rounded otherwise: another cell
        assert together[method]["events"] == alone[method]["events"] != []
        assert together[method]["ranks"] == alone[method]["ranks"]
        assert together[method]["config"]["processes"] == 2
        [unit] = two.glob(f"results/runs/*/*/{method}/*/seed0")
        assert not [path.name for path in unit.iterdir() if path.suffix in (".tmp", ".lease")]


def test_a_helper_ends_with_its_leader_while_it_waits_for_it(tmp_path: Path) -> None:
    (cell,) = compose_cells(["method=increlora", "task=toy", "scale=smoke", "seeds=0", "device=cpu"])
    (cell,) = prepare.keyed([cell], prepare.assets([cell], prepare.places_of(cell.config)))
    errand = {"cell": asdict(cell), "seed": 0, "folder": str(tmp_path), "team": [1, 2]}
    errand["meeting"] = str(tmp_path / "meeting")  # to which nobody else comes
    helper = subprocess.Popen(
        [sys.executable, "-m", "adalora_bench.engine.helpers"],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with helper:
        assert helper.stdin is not None
        assert helper.stdout is not None
        helper.stdin.write(json.dumps(errand) + "\n")
        helper.stdin.flush()
        assert helper.stdout.readline() == "ready\n"
        assert helper.poll() is None
        helper.stdin.close()
        assert helper.wait(30) == 1
