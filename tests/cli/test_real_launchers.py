"""One sweep of 12 units on local workers, on a real Ray and on a real SLURM: the same results, whatever is killed.

pytest -m launchers tests/cli/test_real_launchers.py; takes some minutes. A Ray of two workers is started here; a SLURM
must run (scripts/local_slurm.sh start FOLDER, and SLURM_CONF as it says).
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from bench_process import facts, records, running, tables, wait_for

pytestmark = [pytest.mark.launchers, pytest.mark.xdist_group("launchers")]
# fmt: off
SWEEP = (
    "run", "-m", "method=lora,increlora,sora", "task=toy", "scale=smoke", "scale.max_steps=null", "train.epochs=15",
    "train.log_every=1", "jobs=2", "checkpoint_minutes=0.005",
)
# fmt: on
UNITS = 12
OPEN = {
    "ADALORA_BENCH_TEST_SOCKET_LOG": None
}  # the launchers' own processes talk through sockets of this machine


def sweep(folder: Path, *more: str, meanwhile: Any = None, code: int = 0, seeds: str = "[0,1,2,3]") -> str:
    """The sweep in `folder`; `meanwhile` is called with the running command. What it said on stderr."""
    with running(folder, *SWEEP, f"seeds={seeds}", *more, **OPEN) as process:
        if meanwhile is not None:
            meanwhile(process)
        out, err = process.communicate(timeout=900)
    assert process.returncode == code, (out, err)
    return err


def assert_same(folder: Path, reference: Path) -> None:
    ours, theirs = records(folder), records(reference)
    assert len(ours) == UNITS
    assert {key: facts(one) for key, one in ours.items()} == {key: facts(one) for key, one in theirs.items()}
    assert tables(folder) == tables(reference)
    for name in ("predictions.jsonl.gz", "adapter.safetensors"):
        kept = {p.relative_to(folder): p.read_bytes() for p in folder.rglob(name)}
        assert kept == {p.relative_to(reference): p.read_bytes() for p in reference.rglob(name)}
    assert not list(folder.rglob("checkpoints"))


def saved_unit(folder: Path, pattern: str) -> Path | None:
    """The folder of a running unit that has a checkpoint."""
    leases = [path.parent for path in folder.glob(f"results/runs/toy/tiny_bert/{pattern}/holder.lease")]
    return next((path for path in leases if any(path.glob("checkpoints/*/COMPLETE"))), None)


def mark(unit: Path) -> None:
    """Write into the first logged row: it stays there if the unit goes on from its checkpoint."""
    first, *rest = (unit / "steps.jsonl").read_text().splitlines(keepends=True)
    (unit / "steps.jsonl").write_text("".join([json.dumps(json.loads(first) | {"marked": 1}) + "\n", *rest]))


def marked(folder: Path) -> list[str]:
    return [
        str(p.parent) for p in folder.rglob("steps.jsonl") if "marked" in p.read_text().partition("\n")[0]
    ]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("local")
    sweep(folder)
    return folder


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs ray: pip install '.[ray]'")
def test_ray_gives_the_same_though_a_worker_is_killed(reference: Path, tmp_path: Path) -> None:
    killed: list[Path] = []

    def kill(process: subprocess.Popen[str]) -> None:
        unit = wait_for(lambda: saved_unit(tmp_path, "*/*/seed*"), process)
        told = re.match(r"process (\d+) on ", (unit / "holder.lease").read_text())
        assert told is not None
        os.kill(int(told[1]), signal.SIGKILL)
        mark(unit)
        killed.append(unit)

    sweep(tmp_path, "launcher=ray", meanwhile=kill)
    assert marked(tmp_path) == [str(killed[0])]
    assert_same(tmp_path, reference)
    assert_nothing_runs_again(tmp_path, "launcher=ray")


def assert_nothing_runs_again(folder: Path, *more: str) -> None:
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("record.json")}
    with running(folder, *SWEEP, "seeds=[0,1,2,3]", *more, **OPEN) as process:
        out, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("record.json")} == before
    assert "units: 0 done, 12 skipped, 0 failed" in out


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs ray: pip install '.[ray]'")
@pytest.mark.parametrize("how", ["cancel", "finish"])
def test_ctrl_c_on_ray(tmp_path: Path, how: str) -> None:
    def interrupt(process: subprocess.Popen[str]) -> None:
        wait_for(lambda: saved_unit(tmp_path, "*/*/seed*"), process)
        os.killpg(process.pid, signal.SIGINT)

    said = sweep(tmp_path, "launcher=ray", f"on_interrupt={how}", meanwhile=interrupt, code=130)
    recorded, kept = len(records(tmp_path)), len(list(tmp_path.rglob("checkpoints")))
    if how == "cancel":
        assert "2 running, asked to write a checkpoint and end" in said
        assert kept == 2
    else:
        assert "2 running go on to their end" in said
        assert recorded >= 2
        assert kept == 0
    assert recorded < UNITS
    assert not list(tmp_path.rglob("holder.lease"))


@pytest.mark.skipif(shutil.which("sinfo") is None, reason="needs SLURM: scripts/local_slurm.sh says how")
@pytest.mark.skipif("SLURM_CONF" not in os.environ, reason="SLURM_CONF names no running SLURM")
def test_slurm_gives_the_same_though_a_unit_is_requeued(reference: Path, tmp_path: Path) -> None:
    def requeue(process: subprocess.Popen[str]) -> None:
        unit = wait_for(lambda: saved_unit(tmp_path, "lora/*/seed0"), process)
        [log] = (tmp_path / "results" / "slurm").glob(
            "*_0_0_log.err"
        )  # the first unit is the first of the array
        # it asks again and again where the job is requeued before SLURM has answered
        with subprocess.Popen(["scancel", "--signal=USR1", log.name.removesuffix("_0_log.err")]) as asking:
            wait_for(lambda: "Caught signal SIGUSR1" in log.read_text(), process)
            wait_for(lambda: not (unit / "holder.lease").exists(), process)
            mark(unit)
            asking.kill()

    sweep(tmp_path, "launcher=slurm", meanwhile=requeue)
    jobs = tmp_path / "results" / "slurm"
    [log] = [path for path in jobs.glob("*_log.err") if "this job is preempted" in path.read_text()]
    starts = {path.name: path.read_text().count("Loading pickle") for path in jobs.glob("*_log.out")}
    assert {name for name, count in starts.items() if count == 2} == {log.name.replace(".err", ".out")}
    assert len(starts) == UNITS
    assert [Path(name).parts[-3:] for name in marked(tmp_path)] == [
        next(p.parent for p in tmp_path.glob("results/runs/toy/tiny_bert/lora/*/seed0/record.json")).parts[
            -3:
        ]
    ]
    assert_same(tmp_path, reference)
    assert_nothing_runs_again(tmp_path, "launcher=slurm")


@pytest.mark.skipif(shutil.which("sinfo") is None, reason="needs SLURM: scripts/local_slurm.sh says how")
@pytest.mark.skipif("SLURM_CONF" not in os.environ, reason="SLURM_CONF names no running SLURM")
@pytest.mark.parametrize("how", ["cancel", "finish"])
def test_ctrl_c_on_slurm(tmp_path: Path, how: str) -> None:
    def interrupt(process: subprocess.Popen[str]) -> None:
        wait_for(lambda: saved_unit(tmp_path, "lora/*/seed0"), process)
        os.killpg(process.pid, signal.SIGINT)

    said = sweep(
        tmp_path, "launcher=slurm", f"on_interrupt={how}", seeds="[0]", meanwhile=interrupt, code=130
    )
    queue = ["squeue", "--noheader", "--format=%i %t"]
    with subprocess.Popen(["sleep", "120"]) as clock:
        wait_for(lambda: not subprocess.run(queue, capture_output=True, check=True).stdout, clock)
        clock.kill()
    if how == "cancel":
        assert "3 jobs cancelled" in said
        assert len(records(tmp_path)) == 0
        assert list(tmp_path.rglob("checkpoints"))
    else:
        assert "3 jobs left to SLURM" in said
        assert len(records(tmp_path)) == 3
    assert not list(tmp_path.rglob("holder.lease"))
