"""Ctrl-C with on_interrupt=finish on local workers: what runs ends well, nothing else starts, and it says so."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def start(store: Path, count: int) -> subprocess.Popen[str]:
    """A command over `count` units on one worker, as the leader of a process group, as a shell starts it."""
    paths = [str(HERE), str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")]
    options = json.dumps({"on_interrupt": "finish"})
    return subprocess.Popen(
        [
            sys.executable,
            str(HERE / "fake_units.py"),
            str(store),
            "fake_long:a_while",
            "1",
            str(count),
            options,
        ],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for_the_first(store: Path, process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 30
    while not list(store.rglob("running.txt")):
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.parametrize("again", [False, True])
def test_ctrl_c_lets_running_units_finish_and_a_second_one_stops_them(tmp_path: Path, again: bool) -> None:
    process = start(tmp_path, 3)
    wait_for_the_first(tmp_path, process)
    os.killpg(process.pid, signal.SIGINT)  # the terminal's Ctrl-C reaches the workers as well
    if again:
        time.sleep(1.1)
        os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    seen = json.loads(out)
    assert process.returncode == 130
    assert (seen["done"], seen["left"]) == (([], [0, 1, 2]) if again else ([0], [1, 2]))
    assert "SIGINT: no other unit is started, 1 running go on to their end; once more to stop them" in err
    assert ("1 running, asked to write a checkpoint" in err) is again
    assert len(list(tmp_path.rglob("record.txt"))) == (0 if again else 1)
