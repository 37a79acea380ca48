"""Leases between machines: a name of another host counts while it is touched, and is taken over when it is not."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from pathlib import Path

import pytest

from adalora_bench.store import lease
from adalora_bench.store.lease import HOLDER, LOCK, LeaseHeld, hold, wait_for_dead

ELSEWHERE = "process 7 on another-host since 2026-01-01T00:00:00+00:00\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "unit"


def left_by(folder: Path, text: str, age: float) -> None:
    """What a holder left whose last touch is `age` seconds ago; its lock does not reach us."""
    folder.mkdir(exist_ok=True)
    (folder / HOLDER).write_text(text)
    past = time.time() - age
    os.utime(folder / HOLDER, (past, past))


def test_a_living_holder_on_another_machine_keeps_its_unit(folder: Path) -> None:
    left_by(folder, ELSEWHERE, lease.DEAD_SECONDS - 5)
    with pytest.raises(LeaseHeld) as held, hold(folder):
        pass
    assert held.value.holder == ELSEWHERE.strip()
    assert (folder / HOLDER).read_text() == ELSEWHERE  # untouched, and the lock is free again
    left_by(folder, ELSEWHERE, lease.DEAD_SECONDS + 5)
    with hold(folder):
        assert (folder / HOLDER).read_text().startswith(f"process {os.getpid()} on ")
    assert [path.name for path in folder.iterdir()] == [LOCK]


@pytest.mark.parametrize("text", ["", f"process 7 on {os.uname().nodename} since 2026-01-01\n"])
def test_a_dead_holder_on_this_machine_is_succeeded_at_once(folder: Path, text: str) -> None:
    left_by(folder, text, 0)
    with hold(folder):
        pass


def test_the_holder_touches_its_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "HEARTBEAT_SECONDS", 0.01)
    with hold(folder):
        os.utime(folder / HOLDER, (1, 1))
        end = time.monotonic() + 20
        while (folder / HOLDER).stat().st_mtime < 2:
            assert time.monotonic() < end
            time.sleep(0.01)
    assert "lease" not in [thread.name for thread in threading.enumerate()]


def test_a_lease_that_was_taken_over_is_neither_touched_nor_removed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "HEARTBEAT_SECONDS", 0.01)
    with hold(folder):
        left_by(folder, ELSEWHERE, 1000)
        before = (folder / HOLDER).stat().st_mtime
        time.sleep(0.1)
        assert (folder / HOLDER).stat().st_mtime == before
    assert (folder / HOLDER).read_text() == ELSEWHERE


def test_of_two_machines_the_first_name_counts(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "_touched", lambda _: left_by(folder, ELSEWHERE, 0))  # between look and write
    with pytest.raises(LeaseHeld, match="another-host"), hold(folder):
        pass
    assert (folder / HOLDER).read_text() == ELSEWHERE


def test_waiting_for_a_holder_tells_the_dead_from_the_living(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "HEARTBEAT_SECONDS", 0.04)
    monkeypatch.setattr(lease, "DEAD_SECONDS", 0.2)
    left_by(folder, ELSEWHERE, 0)
    assert wait_for_dead(folder)
    with hold(folder):
        pass
    with hold(folder):
        assert not wait_for_dead(folder)
    assert wait_for_dead(folder)  # its name is gone


# -- a file system without locks ---------------------------------------------------------------------------------


@pytest.fixture(params=lease.NO_LOCKS)
def without_locks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl

    def refuse(*_: object) -> None:
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(fcntl, "flock", refuse)


def test_without_locks_a_dead_holder_elsewhere_is_succeeded_and_a_living_one_is_not(
    folder: Path, without_locks: None
) -> None:
    left_by(folder, ELSEWHERE, lease.DEAD_SECONDS - 5)
    with pytest.raises(LeaseHeld), hold(folder):
        pass
    left_by(folder, ELSEWHERE, lease.DEAD_SECONDS + 5)
    with hold(folder):
        assert (folder / HOLDER).read_text().startswith(f"process {os.getpid()} on ")
    assert not (folder / HOLDER).exists()


def test_without_locks_a_living_process_of_this_machine_keeps_its_unit(
    folder: Path, without_locks: None
) -> None:
    with hold(folder), pytest.raises(LeaseHeld), hold(folder):
        pass
    child = subprocess.Popen(["sleep", "60"])
    left_by(folder, f"process {child.pid} on {os.uname().nodename} since 2026-01-01\n", 0)
    with pytest.raises(LeaseHeld), hold(folder):
        pass
    child.kill()
    child.wait()
    with hold(folder):
        pass
