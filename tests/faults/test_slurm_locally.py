"""launcher=slurm on submitit's local executor: replies, deaths, and a checkpoint that a requeue goes on from."""

from __future__ import annotations

import io
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from rich.console import Console

from adalora_bench.engine.launch import launch
from adalora_bench.engine.progress import PlainProgress
from adalora_bench.engine.units import Summary, unit_folder
from adalora_bench.settings.config import LaunchOptions

submitit = pytest.importorskip("submitit", reason="launcher=slurm needs submitit: pip install '.[slurm]'")
HERE = Path(__file__).parent
LOCALLY = LaunchOptions(
    cpus=1,
    gpus=0,
    memory_gib=None,
    retries=1,
    address=None,
    cluster="local",
    partition=None,
    account=None,
    qos=None,
    minutes=30,  # submitit takes a signal near the end of a short job for the time limit
    array=2,
)


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The fake units, under the name by which a job finds them."""
    monkeypatch.syspath_prepend(str(HERE))
    package = str(HERE.parents[1])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(HERE), package, os.environ.get("PYTHONPATH", "")]))
    import fake_units

    return fake_units


@pytest.fixture
def run(fakes: ModuleType, tmp_path: Path) -> Callable[..., tuple[Summary, str]]:
    def run(worker: str, count: int, **options: Any) -> tuple[Summary, str]:
        log = io.StringIO()
        summary = launch(
            fakes.make_units(count),
            store_root=tmp_path,
            options={"launch": vars(LOCALLY), **options},
            progress=PlainProgress(Console(file=log)),
            worker=worker,
            launcher="slurm",
        )
        return summary, log.getvalue()

    return run


def test_units_end_as_they_do_on_local_workers(run: Any, tmp_path: Path) -> None:
    summary, log = run("fake_units:faulty", 4, faults={1: "raise", 2: "held", 3: "user"})
    assert [end.unit.seed for end in summary.done] == [0]
    assert [unit.seed for unit in summary.held] == [2]
    assert summary.exit_code == 1
    causes = {failure.unit.seed: failure.cause for failure in summary.failed}
    assert causes == {1: "ValueError: a bad value", 3: "rank 0 is not a rank."}
    [error_log] = [failure.error_log for failure in summary.failed if failure.error_log]
    assert "with a second line" in error_log.read_text()
    assert "4 jobs queued" in log
    assert (tmp_path / "slurm").is_dir()


def test_usr1_requeues_a_unit_from_its_checkpoint(run: Any, fakes: ModuleType, tmp_path: Path) -> None:
    folder = unit_folder(tmp_path, fakes.make_units(1)[0])

    def preempt() -> None:
        end = time.monotonic() + 30
        while not (folder / "running.txt").exists() and time.monotonic() < end:
            time.sleep(0.05)
        time.sleep(0.1)  # until its number is written
        os.kill(int((folder / "running.txt").read_text()), signal.SIGUSR1)

    thread = threading.Thread(target=preempt)
    thread.start()
    summary, _ = run("fake_long:twice", 1, force=True)
    thread.join()
    [done] = summary.done
    assert done.outcome["scores"] == {"acc": 1.0}
    assert (folder / "checkpoint.txt").read_text() == str(int(signal.SIGUSR1))
    [log] = (tmp_path / "slurm").glob("*_log.err")
    assert "this job is preempted" in log.read_text()


def test_a_job_that_dies_costs_its_own_unit_only(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submitit.Job, "_results_timeout_s", 0)  # it waits for slow file systems
    summary, _ = run("fake_units:faulty", 2, faults={1: "kill"})
    assert [end.unit.seed for end in summary.done] == [0]
    [failure] = summary.failed
    assert "ended without a result" in failure.cause
    assert failure.error_log is not None
