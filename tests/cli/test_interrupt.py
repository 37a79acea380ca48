"""Ctrl-C and SIGTERM in the middle of a real training, the same command afterwards, and the rows on a terminal."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import termios
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from bench_process import (
    BENCH,
    PATIENCE,
    Stopped,
    bench,
    environment,
    facts,
    plain,
    records,
    running,
    stop,
    wait_for,
)
from fault_figures import Figure

from adalora_bench import cli
from adalora_bench.settings import prepare

pytestmark = pytest.mark.xdist_group("cli-interrupt")  # its fixtures are made once

EPOCHS = 60
STEPS = 5 * EPOCHS
# A short cell, and one that is long enough to be caught in the middle; one worker does them in this order.
# fmt: off
COMMAND = (
    "run", "-m", "method=lora", "task=toy", "scale=smoke", "scale.max_steps=null", f"train.epochs=1,{EPOCHS}",
    "train.eval_every=0", "train.log_every=1", "seeds=0", "jobs=1",
)
# fmt: on


class Story(NamedTuple):
    """One command, stopped twice and finished, and the same command uninterrupted on a terminal."""

    folder: Path
    stopped: subprocess.CompletedProcess[str]
    kept: list[str]  # files of the stopped unit
    recorded: int  # records after the first stop
    terminated: subprocess.CompletedProcess[str]
    reached: tuple[int, int]  # last logged step at each stop
    stops: tuple[Stopped, Stopped]
    finished: subprocess.CompletedProcess[str]
    reference: Path
    screen: str


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Story:
    reference, folder = tmp_path_factory.mktemp("reference"), tmp_path_factory.mktemp("stopped")
    terminal, screen = _on_a_terminal(reference)
    try:
        with running(folder, *COMMAND) as process:
            log = wait_for(lambda: _long_log(folder), process)
            wait_for(lambda: _last_step(log) > STEPS // 20, process)
            first = stop(process, signal.SIGINT, log.parent, group=True)
        kept = sorted(str(path.relative_to(log.parent)) for path in log.parent.rglob("*") if path.is_file())
        recorded, one = len(records(folder)), _last_step(log)
        _mark_first_row(log)
        with running(folder, *COMMAND) as process:
            wait_for(lambda: _last_step(log) > one + STEPS // 20, process)
            second = stop(process, signal.SIGTERM, log.parent, group=False)
        two = _last_step(log)
        finished = bench(folder, *COMMAND)
        assert terminal.wait(PATIENCE) == 0
    finally:
        if terminal.poll() is None:
            os.killpg(terminal.pid, signal.SIGKILL)
            terminal.wait()
    told = screen.result(PATIENCE)
    stops, reached = (first, second), (one, two)
    return Story(folder, first.done, kept, recorded, second.done, reached, stops, finished, reference, told)


def test_ctrl_c_ends_with_a_sentence_and_keeps_what_is_finished(story: Story) -> None:
    assert story.stopped.returncode == 130, story.stopped.stderr
    assert "interrupted: 1 unit left" in story.stopped.stdout
    assert "The same command goes on from here." in story.stopped.stdout
    assert "units: 1 done, 0 skipped, 0 failed, 1 left" in story.stopped.stdout
    assert "Traceback" not in story.stopped.stdout + story.stopped.stderr
    assert "SIGINT: 1 running" in story.stopped.stderr
    assert story.recorded == 1
    assert [name.split("/")[-1] for name in story.kept if name.startswith("checkpoints/")] == [
        "COMPLETE",
        "state.json",
        "tensors.safetensors",
    ]
    assert not [name for name in story.kept if name.endswith((".tmp", ".lease", "record.json"))]


def test_sigterm_ends_alike_with_143(story: Story) -> None:
    assert story.terminated.returncode == 143, story.terminated.stderr
    assert "skipped: 1 unit already recorded" in story.terminated.stdout
    assert "interrupted: 1 unit left" in story.terminated.stdout
    assert "Traceback" not in story.terminated.stdout + story.terminated.stderr
    assert 0 < story.reached[0] < story.reached[1] < STEPS - 1


@pytest.mark.fault("R11")
def test_a_signal_leaves_a_checkpoint_within_two_seconds(story: Story, figure: Figure) -> None:
    within = [one for one in story.stops if one.in_time]
    said = f"checkpoint after {max(one.checkpoint for one in story.stops):.2f} s at most"
    figure(tried=2, survived=len(within), said=said)
    assert len(within) == 2, story.stops


def test_the_same_command_goes_on_and_gives_the_same_result(story: Story) -> None:
    assert story.finished.returncode == 0, story.finished.stderr
    assert "units: 1 done, 1 skipped, 0 failed" in story.finished.stdout
    whole, parts = records(story.reference), records(story.folder)
    assert whole.keys() == parts.keys()
    assert len(whole) == 2
    for key, record in whole.items():
        assert facts(parts[key]) == facts(record)
    log, other = _long_log(story.folder), _long_log(story.reference)
    assert log is not None
    assert other is not None
    rows, expected = _rows(log), _rows(other)
    # The mark was set after the first stop: only a run that went on from the checkpoint still has it.
    assert rows[0].pop("marked")
    assert [row["step"] for row in rows] == [row["step"] for row in expected]
    assert [row["loss"] for row in rows] == [row["loss"] for row in expected]
    for name in ("adapter.safetensors", "predictions.jsonl.gz"):
        assert (log.parent / name).read_bytes() == (other.parent / name).read_bytes()
    assert not (log.parent / "checkpoints").exists()


def test_a_terminal_gets_live_rows(story: Story) -> None:
    assert "\x1b[" in story.screen
    text = plain(story.screen)
    header = next(line for line in text.splitlines() if line.split()[:1] == ["unit"])
    assert header.split() == ["unit", "step", "loss", "score", "rank", "left"]
    # The name is cut where the screen is narrow; the numbers never are.
    row = rf"lora toy seed 0 \(tiny_bert.* +[1-9]\d*/{STEPS} +\d\.\d{{4}} +- +96 +\d+ (s|min)\b"
    assert re.search(row, text), text[-3000:]
    assert re.search(r"1 of 2, ends about \d\d:\d\d \(in \d+ (s|min)\)", text)
    assert "units: 2 done, 0 skipped, 0 failed" in text


def test_ctrl_c_before_the_training_is_a_sentence_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(prepare, "look", interrupt)
    assert cli.main(["run", "method=lora", "task=toy", "scale=smoke"]) == 130
    assert capsys.readouterr().err.startswith("bench: interrupted")


def _on_a_terminal(folder: Path) -> tuple[subprocess.Popen[bytes], Future[str]]:
    """COMMAND with a pseudo-terminal of 30 x 110 as its stdout and stderr, and what it will have shown."""
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 110, 0, 0))
    process = subprocess.Popen(
        [*BENCH, *COMMAND],
        cwd=folder,
        env=environment(TERM="xterm-256color"),
        stdin=follower,
        stdout=follower,
        stderr=follower,
        start_new_session=True,
    )
    os.close(follower)
    reader = ThreadPoolExecutor(1)  # a terminal that nobody reads would block the command
    screen = reader.submit(_read, leader)
    reader.shutdown(wait=False)
    return process, screen


def _read(leader: int) -> str:
    """All that the terminal gets until the last process closes it."""
    pieces = []
    while True:
        try:
            piece = os.read(leader, 65536)
        except OSError:  # EIO: the other end is closed
            piece = b""
        if not piece:
            os.close(leader)
            return b"".join(pieces).decode()
        pieces.append(piece)


def _long_log(folder: Path) -> Path | None:
    """steps.jsonl of the long cell: the one that has come further than the short one can."""
    logs = folder.glob("results/runs/toy/tiny_bert/lora/*/seed0/steps.jsonl")
    return next((path for path in logs if _last_step(path) > 8), None)


def _rows(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text().split("\n")[:-1]]


def _last_step(log: Path) -> int:
    rows = _rows(log) if log.exists() else []
    return rows[-1]["step"] if rows else -1


def _mark_first_row(log: Path) -> None:
    rows = _rows(log)
    rows[0]["marked"] = True
    log.write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def test_its_tests_share_one_worker(request: pytest.FixtureRequest) -> None:
    """Else every worker makes the fixtures anew, as happened under a pytest that pytest-xdist did not know."""
    assert "PYTEST_XDIST_WORKER" not in os.environ or request.node.nodeid.endswith("@cli-interrupt")
