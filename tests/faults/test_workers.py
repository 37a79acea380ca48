"""Units that raise, exit, crash and are killed; commands that are interrupted. Real processes, no torch."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from rich.console import Console

from adalora_bench.engine.launch import launch
from adalora_bench.engine.progress import PlainProgress, Progress
from adalora_bench.engine.units import Summary, unit_folder

HERE = Path(__file__).parent
PATIENCE = 30.0  # seconds until a test gives up; the usual wait is far shorter


@pytest.fixture(autouse=True)
def fakes(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The fake units, under the name by which a worker process finds them."""
    monkeypatch.syspath_prepend(str(HERE))
    import fake_units

    return fake_units


@pytest.fixture
def run(fakes: ModuleType, tmp_path: Path) -> Callable[..., tuple[Summary, list[str]]]:
    def run(worker: str, count: int, jobs: int, **options: Any) -> tuple[Summary, list[str]]:
        log = io.StringIO()
        summary = launch(
            fakes.make_units(count),
            store_root=tmp_path,
            jobs=jobs,
            options=options,
            progress=PlainProgress(Console(file=log)),
            worker=worker,
        )
        return summary, log.getvalue().splitlines()

    return run


def seeds(ends: list[Any]) -> list[int]:
    return [end.unit.seed for end in ends]


def test_workers_share_the_units_and_stay(run: Any, fakes: ModuleType, tmp_path: Path) -> None:
    before = dict(os.environ)
    summary, log = run("fake_units:ok", 6, 2, threads=1)
    assert seeds(summary.done) == [0, 1, 2, 3, 4, 5]
    assert (summary.failed, summary.left, summary.interrupted, summary.exit_code) == ([], [], None, 0)
    assert summary.done[0].outcome["scores"] == {"acc": 0.5}
    told = [(unit_folder(tmp_path, u) / "record.txt").read_text().split() for u in fakes.make_units(6)]
    assert 1 <= len({pid for pid, _, _ in told}) <= 2  # one process runs unit after unit
    assert {(omp, threads) for _, omp, threads in told} == {("1", "1")}
    assert dict(os.environ) == before
    assert log[0] == "0:00:00 6 units to run"
    assert log[-1].endswith("ok, acc 0.5000, 0 s [6 of 6]")


def test_one_worker_keeps_the_order(run: Any) -> None:
    _, log = run("fake_units:ok", 3, 1)
    started = [line.split(": ")[0] for line in log if line.endswith("started")]
    assert [line.split("seed ")[1][0] for line in started] == ["0", "1", "2"]


@pytest.mark.fault("R7")
def test_every_fault_costs_its_own_unit_only(run: Any, fakes: ModuleType, tmp_path: Path) -> None:
    faults = {
        0: "raise",
        2: "user",
        3: "held",
        4: "lambda",
        6: "promise",
        7: "nothing",
        8: "_exit",
        9: "stopped_alone",
    }
    stale = unit_folder(tmp_path, fakes.make_units(2)[1])
    stale.mkdir(parents=True)
    (stale / "error.log").write_text("of an earlier run")
    summary, log = run("fake_units:faulty", 11, 2, faults=faults)
    assert seeds(summary.done) == [1, 5, 10]
    assert [unit.seed for unit in summary.held] == [3]
    assert summary.exit_code == 1
    causes = {failure.unit.seed: failure.cause for failure in summary.failed}
    assert causes == {
        0: "ValueError: a bad value",
        2: "rank 0 is not a rank.",
        4: "worker ended with exit code 1",
        6: "the target rank was not reached",
        7: "TypeError: 'NoneType' object is not iterable",
        8: "worker ended with exit code 9",
        9: "its worker alone was stopped by SIGTERM; a rerun resumes it",
    }
    logs = {failure.unit.seed: failure.error_log for failure in summary.failed}
    assert [seed for seed, path in logs.items() if path is None] == [2, 6, 9]
    text = logs[0].read_text()
    assert "with a second line" in text
    assert "UserWarning: watch out" in text
    assert "again: bench run method=lora task=rte backbone=tiny scale=smoke 'seeds=[0]'" in text
    assert "Traceback (most recent call last)" in text
    assert "to stdout of 0" in text
    assert "last words" in logs[8].read_text()
    assert not (stale / "error.log").exists()  # it ran well this time
    assert any(line.endswith("left to process 7 on elsewhere") for line in log)
    assert log[-1].endswith("[11 of 11]")


@pytest.mark.fault("R7")
@pytest.mark.parametrize(
    ("fault", "cause", "logged"),
    [
        ("kill", "worker ended with signal 9 (SIGKILL; often the system, because it is out of memory)", ""),
        ("segfault", "worker ended with signal 11 (SIGSEGV)", "Fatal Python error: Segmentation fault"),
        ("exit", "worker ended with exit code 3", ""),
        ("quiet_exit", "worker ended with exit code 0", ""),
        ("interrupt", "worker ended with exit code 1", "KeyboardInterrupt"),
        ("memory", "MemoryError", "Traceback"),
        ("huge", "MemoryError", "bytearray"),
    ],
)
def test_a_dead_or_exhausted_worker_is_replaced(run: Any, fault: str, cause: str, logged: str) -> None:
    summary, log = run("fake_units:faulty", 3, 1, faults={0: fault})
    assert seeds(summary.done) == [1, 2]
    assert [(failure.unit.seed, failure.cause) for failure in summary.failed] == [(0, cause)]
    assert logged in summary.failed[0].error_log.read_text()
    assert any(f"seed 0 (tiny): failed: {cause}" in line for line in log)


def test_a_worker_that_cannot_be_imported_fails_each_unit(run: Any) -> None:
    summary, _ = run("no_such_module:run", 2, 1)
    assert [failure.cause for failure in summary.failed] == [
        "ModuleNotFoundError: No module named 'no_such_module'"
    ] * 2


def test_a_log_that_cannot_be_written_costs_nothing_else(run: Any, tmp_path: Path, fakes: ModuleType) -> None:
    folder = unit_folder(tmp_path, fakes.make_units(1)[0])
    folder.parent.mkdir(parents=True)
    folder.write_text("a file where the folder should be")
    summary, _ = run("fake_units:faulty", 2, 1, faults={0: "raise"})
    assert seeds(summary.done) == [1]
    assert summary.failed[0].error_log is None
    cause = "ValueError: a bad value (error.log could not be written: File exists)"
    assert summary.failed[0].cause == cause


def test_an_error_in_the_parent_leaves_no_worker(fakes: ModuleType, tmp_path: Path) -> None:
    class Broken(Progress):
        def event(self, unit_name: str, event: Any) -> None:
            super().event(unit_name, event)
            if event["phase"] == "train":
                raise RuntimeError("the display broke")

    with pytest.raises(RuntimeError, match="the display broke"):
        launch(fakes.make_units(3), store_root=tmp_path, jobs=2, progress=Broken(), worker="fake_units:slow")
    for path in tmp_path.rglob("running.txt"):
        assert not alive(int(path.read_text()))


def test_in_a_thread_signals_are_left_alone(fakes: ModuleType, tmp_path: Path) -> None:
    found: list[Summary] = []
    handler = signal.getsignal(signal.SIGTERM)

    def work() -> None:
        found.append(
            launch(
                fakes.make_units(1), store_root=tmp_path, jobs=1, progress=Progress(), worker="fake_units:ok"
            )
        )

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(PATIENCE)
    assert seeds(found[0].done) == [0]
    assert signal.getsignal(signal.SIGTERM) is handler


# A whole command, from outside.


def state_and_group(pid: str) -> tuple[str, int] | None:
    try:
        fields = Path("/proc", pid, "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return fields[0], int(fields[2])


def alive(pid: int) -> bool:
    found = state_and_group(str(pid))
    return found is not None and found[0] != "Z"


def members(group: int) -> list[int]:
    """The living processes of a process group; a zombie is not living."""
    found = {int(pid): state_and_group(pid) for pid in os.listdir("/proc") if pid.isdigit()}
    return [pid for pid, seen in found.items() if seen is not None and seen[0] != "Z" and seen[1] == group]


def wait_until(condition: Callable[[], Any], what: str) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, f"waited in vain until {what}"
        time.sleep(0.02)


class Command:
    """fake_units.py as a process with a group of its own, as a shell would start it."""

    def __init__(self, root: Path, worker: str, jobs: int, count: int, **options: Any) -> None:
        self.root = root
        arguments = [str(root), f"fake_units:{worker}", str(jobs), str(count), json.dumps(options)]
        path = os.pathsep.join([str(HERE), str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")])
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "fake_units.py"), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": path},
        )
        self.group = self.process.pid

    def wait_for(self, pattern: str, count: int) -> None:
        wait_until(lambda: len(list(self.root.rglob(pattern))) >= count, f"{count} of {pattern} are there")

    def wait_for_the_last(self) -> None:
        """No worker stays; the helper process of multiprocessing ends a moment after its parent."""
        wait_until(lambda: members(self.group) == [], "the last process has ended")

    def end(self) -> tuple[int, dict[str, Any], str]:
        out, err = self.process.communicate(timeout=PATIENCE)
        return self.process.returncode, json.loads(out) if out else {}, err


@pytest.fixture
def command(tmp_path: Path) -> Iterator[Callable[..., Command]]:
    started: list[Command] = []

    def command(worker: str, jobs: int, count: int, **options: Any) -> Command:
        started.append(Command(tmp_path, worker, jobs, count, **options))
        return started[-1]

    yield command
    for one in started:
        for pid in members(one.group):
            os.kill(pid, signal.SIGKILL)
        one.process.communicate()


@pytest.mark.fault("R11")
@pytest.mark.parametrize(
    ("signum", "whole_group", "code"),
    [(signal.SIGINT, True, 130), (signal.SIGTERM, False, 143), (signal.SIGUSR1, True, 143)],
)
def test_a_stopped_command_keeps_what_it_has(
    command: Any, tmp_path: Path, signum: int, whole_group: bool, code: int
) -> None:
    """Ctrl-C reaches every process of the terminal; a kill reaches the parent alone. Both end alike."""
    running = command("slow", 2, 5)
    running.wait_for("running.txt", 2)
    if whole_group:
        os.killpg(running.group, signum)
    else:
        running.process.send_signal(signum)
    exit_code, seen, err = running.end()
    assert exit_code == code
    assert seen == {"done": [0], "failed": [], "left": [1, 2, 3, 4], "interrupted": signum}
    assert [path.read_text().split()[1] for path in tmp_path.rglob("checkpoint.txt")] == [
        str(int(signum))
    ] * 2
    # a worker that got the signal itself may have ended before the parent counts
    name = signal.Signals(signum).name
    assert re.search(rf"{name}: [012] running, asked to write a checkpoint and end within 30 s", err)
    assert "Traceback" not in err
    running.wait_for_the_last()
    assert sorted({path.name for path in tmp_path.rglob("*") if path.is_file()}) == [
        "checkpoint.txt",
        "record.txt",
        "running.txt",
    ]


@pytest.mark.fault("R11")
def test_ctrl_c_while_the_workers_start(command: Any) -> None:
    running = command("slow", 2, 5)
    wait_until(lambda: len(members(running.group)) >= 3, "the first worker is there")
    os.killpg(running.group, signal.SIGINT)
    exit_code, seen, err = running.end()
    assert exit_code == 130
    assert seen["interrupted"] == signal.SIGINT
    assert seen["failed"] == []
    assert "Traceback" not in err
    running.wait_for_the_last()


def test_a_deaf_worker_is_killed_after_the_grace_time(command: Any) -> None:
    running = command("deaf", 1, 2, grace_seconds=0.2)
    running.wait_for("running.txt", 1)
    running.process.send_signal(signal.SIGINT)
    exit_code, seen, err = running.end()
    assert exit_code == 130
    assert seen["left"] == [0, 1]
    assert "seed 0 (tiny): stopped without a new checkpoint" in err
    running.wait_for_the_last()


def test_a_second_ctrl_c_ends_at_once(command: Any) -> None:
    running = command("deaf", 1, 1, grace_seconds=600)
    running.wait_for("running.txt", 1)
    running.process.send_signal(signal.SIGINT)
    running.process.send_signal(signal.SIGINT)  # together with the first: no second wish
    time.sleep(1.2)
    assert running.process.poll() is None
    running.process.send_signal(signal.SIGINT)
    assert running.end()[0] == 130
    running.wait_for_the_last()


def test_workers_end_when_their_parent_is_killed(command: Any, tmp_path: Path) -> None:
    running = command("slow", 2, 4)
    running.wait_for("running.txt", 2)
    running.process.kill()
    running.wait_for_the_last()
    checkpoints = [path.read_text().split()[1] for path in tmp_path.rglob("checkpoint.txt")]
    assert checkpoints == [str(int(signal.SIGTERM))] * 2


@pytest.mark.fault("R7")
def test_a_worker_killed_from_outside(command: Any, tmp_path: Path) -> None:
    running = command("slow", 2, 3)
    running.wait_for("running.txt", 2)
    victim = unit_seed_one(tmp_path)
    os.kill(victim, signal.SIGKILL)
    time.sleep(0.3)
    running.process.send_signal(signal.SIGTERM)
    exit_code, seen, err = running.end()
    assert exit_code == 143
    assert seen == {"done": [0], "failed": [1], "left": [2], "interrupted": signal.SIGTERM}
    assert "seed 1 (tiny): failed: worker ended with signal 9" in err
    assert len(list(tmp_path.rglob("error.log"))) == 1


def unit_seed_one(root: Path) -> int:
    (path,) = root.rglob("seed1/running.txt")
    return int(path.read_text())
