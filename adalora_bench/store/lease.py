"""One holder per folder, on this machine and across machines that share the folder.

Two signs say that a folder is held. The operating system's lock (unit.lock) is free again as soon as its holder is
dead, and decides on one machine. Not every shared file system carries such locks to other machines, and some have
none, so the holder also leaves its name (holder.lease) and touches it every HEARTBEAT_SECONDS: a name of another
machine counts until it was not touched for DEAD_SECONDS, then it is taken over. Ages are differences of times of the
file system itself; no clock of a machine is compared with another's. Imports no torch.
"""

from __future__ import annotations

import errno
import os
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from adalora_bench.store.files import writing

LOCK = "unit.lock"
HOLDER = "holder.lease"
NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)
"""What a file system without locks answers (Lustre without -o flock, some volumes): the holder's name alone counts."""
HEARTBEAT_SECONDS = 10.0
DEAD_SECONDS = 90.0


class LeaseHeld(Exception):
    """Another process works on this unit; `holder` says which, as far as it is known."""

    def __init__(self, folder: Path, holder: str) -> None:
        super().__init__(f"{folder} is being worked on by {holder}.")
        self.holder = holder


@contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Hold a folder while working on it; it is made where it is missing.

    Where locks do not reach other machines, two of them that find the same dead lease within milliseconds may both
    take it: both then train the unit, and each writes its record whole.

    Raises:
        LeaseHeld: another process holds it.
        UserError: the folder cannot be written.
    """
    from filelock import FileLock, Timeout

    lock, locked = FileLock(folder / LOCK, timeout=0, fallback_to_soft=False), True
    with writing(folder / LOCK):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire()
        except Timeout:
            raise LeaseHeld(folder, _named(folder)) from None
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            locked = False
            (folder / LOCK).touch()
    try:
        with writing(folder / HOLDER):
            name = _take(folder, locked=locked)
        over = threading.Event()
        heart = threading.Thread(target=_beat, args=(folder / HOLDER, name, over), name="lease", daemon=True)
        heart.start()
        try:
            yield
        finally:
            over.set()
            heart.join()
            if _text(folder) == name:
                (folder / HOLDER).unlink(missing_ok=True)
    finally:
        lock.release()


def wait_for_dead(folder: Path) -> bool:
    """Whether a held folder came free while watching: its holder ended, or did not touch it until it counts as dead.

    False as soon as the holder shows a sign of life: within two heartbeats.
    """
    first = _touched(folder)
    end = time.monotonic() + DEAD_SECONDS + HEARTBEAT_SECONDS
    while first is not None and time.monotonic() < end:
        time.sleep(HEARTBEAT_SECONDS / 4)
        last = _touched(folder)
        if last is None:
            return True
        if last != first:
            return False
    return True


def _take(folder: Path, *, locked: bool) -> str:
    """Leave this process's name in a folder; what it wrote. LeaseHeld: another holder counts.

    Args:
        locked: whether the folder's lock is ours, so that no other process of this machine can hold it.
    """
    earlier, beaten = _text(folder), _touched(folder)
    if earlier is not None and beaten is not None:
        # none where a kill came before the name was written
        said = re.match(r"process (\d+) on (\S+) since ", earlier)
        os.utime(folder / LOCK)  # the file system's own idea of the time
        age = (folder / LOCK).stat().st_mtime - beaten
        here = said is not None and said[2] == socket.gethostname()
        if said is not None and age < DEAD_SECONDS and (not here or (not locked and _lives(int(said[1])))):
            raise LeaseHeld(folder, _named(folder))
        (folder / HOLDER).unlink(missing_ok=True)
    since = datetime.now(UTC).isoformat(timespec="seconds")
    name = f"process {os.getpid()} on {socket.gethostname()} since {since}\n"
    try:
        with (folder / HOLDER).open("x") as file:  # fails where another machine was quicker
            file.write(name)
    except FileExistsError:
        raise LeaseHeld(folder, _named(folder)) from None
    if not locked and _text(folder) != name:  # two found the same dead lease
        raise LeaseHeld(folder, _named(folder))
    return name


def _lives(process: int) -> bool:
    """Whether a process of this machine is there; our own is not another holder's."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _beat(path: Path, name: str, over: threading.Event) -> None:
    """Touch our own lease until it is over; one that another machine took over is left alone."""
    while not over.wait(HEARTBEAT_SECONDS):
        with suppress(OSError):  # a share that is away for a moment: the next beat counts
            if path.read_text() == name:
                os.utime(path)


def _touched(folder: Path) -> float | None:
    """When the holder last touched its name; None where there is none. Opened, since a share may remember old times."""
    try:
        with (folder / HOLDER).open("rb") as file:
            return os.fstat(file.fileno()).st_mtime
    except FileNotFoundError:
        return None


def _text(folder: Path) -> str | None:
    try:
        return (folder / HOLDER).read_text()
    except OSError:
        return None


def _named(folder: Path) -> str:
    return (_text(folder) or "").strip() or "a process that has not said its name yet"
