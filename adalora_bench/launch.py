"""Units on local worker processes: hand out, listen, replace the dead, stop in good order.

A unit is one (cell, seed). `launch` starts `jobs` workers (spawned, so that each imports torch for itself
with its own environment, and keeps it between units) and hands each the next free unit of the whole command.
What goes wrong stays in its unit: an exception is a failed unit with its traceback in the unit's error.log, a
worker that dies (exit, segfault, kill) is replaced. Ctrl-C, SIGTERM and SIGUSR1 ask the workers to write
their checkpoints and end.

The parent is one thread; it trusts the pipes and the process sentinels, not the workers. Imports no torch.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing import connection as mp_connection
from pathlib import Path
from typing import Any

from adalora_bench.errors import UserError
from adalora_bench.progress import Progress
from adalora_bench.units import (
    Done,
    Failure,
    Summary,
    Unit,
    labels,
    rerun_command,
    unit_folder,
    write_error_log,
)
from adalora_bench.worker import STOP_SIGNALS, Worker, signal_name

__all__ = ["Done", "Failure", "Summary", "Unit", "launch", "rerun_command", "unit_folder", "usable_cores"]

DEFAULT_WORKER = "adalora_bench.run:run_unit"
GRACE_SECONDS = 30.0  # from the wish to stop until a worker is killed
SECOND_SIGNAL_SECONDS = 1.0  # signals that come together are one; a later one means "now"


def usable_cores() -> int:
    """The cores that this process may use: under taskset or in a batch job fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def worker_count(jobs: int | None, units: int, options: Mapping[str, Any]) -> int:
    """`jobs`, by default one per usable core or GPU, at most one per unit and GPU; UserError below 1."""
    if jobs is not None and jobs < 1:
        raise UserError(f"jobs must be at least 1, got {jobs}.")
    gpus = options.get("gpus")
    most = len(gpus) if gpus else usable_cores()
    wanted = most if jobs is None else min(jobs, most) if gpus else jobs
    return max(1, min(wanted, units))


def launch(
    units: Sequence[Unit],
    *,
    store_root: Path,
    jobs: int | None = None,
    options: Mapping[str, Any] | None = None,
    progress: Progress,
    worker: str = DEFAULT_WORKER,
    skipped: Sequence[Unit] = (),
) -> Summary:
    """Run every unit once and say how each ended; raises nothing for what goes wrong inside a unit.

    `worker` is "module:function", called in the child as `(unit, store_root, notify, stop, options)`, which
    writes the record itself; `store_root` is the results folder. `options` go to it as they are;
    read here: `threads`, `gpus`, `grace_seconds`, and `show_output=True`, which leaves the workers' stdout
    and stderr alone instead of keeping their end for error.log.
    """
    options = dict(options or {})
    count = worker_count(jobs, len(units), options)
    progress.start(len(units), len(skipped))
    try:
        with _stop_signals() as inbox:
            pool = _Pool(list(units), store_root, options, progress, worker, inbox)
            return pool.run(count, list(skipped))
    finally:
        progress.stop()


class _Pool:
    """One call of `launch`."""

    def __init__(
        self,
        units: list[Unit],
        store_root: Path,
        options: dict[str, Any],
        progress: Progress,
        target: str,
        inbox: int,
    ) -> None:
        self.units, self.store_root, self.options = units, store_root, options
        self.progress, self.target, self.inbox = progress, target, inbox
        self.labels = labels(units)
        self.waiting = deque(range(len(units)))
        self.workers: list[Worker] = []
        self.ends: dict[int, Done | Failure | None] = {}  # None: held by another process
        self.stopped: dict[int, int] = {}  # units at a checkpoint, and the signal that their worker got
        self.signum: int | None = None
        self.asked_at = 0.0

    def run(self, count: int, skipped: list[Unit]) -> Summary:
        try:
            for slot in range(count):
                self.employ(slot)
            while self.workers:
                self.wait()
        finally:  # an error in the parent itself leaves no worker behind
            for worker in self.workers:
                worker.process.kill()
                worker.bury()
        return self.summary(skipped)

    def employ(self, slot: int) -> None:
        """A new worker for the next free unit, if there is one."""
        if self.waiting and self.signum is None:
            worker = Worker(slot, self.target, self.store_root, self.options)
            self.workers.append(worker)
            self.hand_out(worker)

    def hand_out(self, worker: Worker) -> None:
        """The next free unit, or the end."""
        worker.job = None
        if not self.waiting or self.signum is not None:
            worker.retire()
            return
        worker.job = self.waiting.popleft()
        worker.said.clear()
        self.progress.event(self.labels[worker.job], {"phase": "start"})
        worker.send("unit", self.units[worker.job])

    def wait(self) -> None:
        """One round: until something happens, at most a second."""
        sources = [self.inbox, *(source for worker in self.workers for source in worker.sources())]
        now = time.monotonic()
        deadlines = [worker.deadline - now for worker in self.workers if worker.deadline is not None]
        ready = set(mp_connection.wait(sources, timeout=max(0.0, min([1.0, *deadlines]))))
        if self.inbox in ready:
            self.stop(os.read(self.inbox, 1)[0])
        for worker in list(self.workers):
            ended = worker.process.sentinel in ready
            worker.listen()
            for message in worker.messages():
                self.take(worker, message)
            if ended:
                self.replace(worker)
            elif worker.deadline is not None and time.monotonic() >= worker.deadline:
                worker.process.kill()
        self.progress.tick()

    def take(self, worker: Worker, message: tuple[Any, ...]) -> None:
        """One message of a worker; all but events end its unit."""
        kind, job, fit = message[0], worker.job, True
        if job is None:
            return
        if kind == "event":
            self.progress.event(self.labels[job], message[1])
            return
        if kind == "done":
            self.finish(job, message[1])
        elif kind == "failed":
            worker.listen()
            _, cause, details, fit = message
            self.fail(job, cause, details, bytes(worker.said))
        elif kind == "held":
            self.ends[job] = None
            self.progress.passed(self.labels[job], f"left to {message[1]}")
        elif kind == "interrupted":
            self.stopped[job] = message[1]
            self.progress.passed(self.labels[job], "stopped, its checkpoint is written")
            fit = False
        if fit:
            self.hand_out(worker)
        else:
            worker.job = None
            worker.retire()  # its successor is employed when it has ended

    def replace(self, worker: Worker) -> None:
        """A worker has ended: expected, or with its unit."""
        self.workers.remove(worker)
        job, slot = worker.job, worker.slot
        code = worker.bury()
        if job is not None and self.signum is None:
            self.fail(job, _cause_of_death(code), None, bytes(worker.said), always_log=True)
        elif job is not None:
            self.progress.passed(self.labels[job], "stopped without a new checkpoint")
        self.employ(slot)

    def finish(self, job: int, outcome: dict[str, Any]) -> None:
        """A result; one with status "failed" (a broken promise of the method, say) counts as a failure."""
        if outcome.get("status") == "failed":
            self.fail(job, str(outcome.get("reason") or "failed without a reason"), None, b"")
            return
        self.ends[job] = Done(self.units[job], outcome)
        (unit_folder(self.store_root, self.units[job]) / "error.log").unlink(missing_ok=True)
        self.progress.done(self.labels[job], outcome)

    def fail(
        self, job: int, cause: str, details: str | None, said: bytes, *, always_log: bool = False
    ) -> None:
        """Book the failure; a traceback or a death goes to error.log with the last output of the worker."""
        unit, log = self.units[job], None
        if details is not None or always_log:
            output = said.decode(errors="replace")
            try:
                log = write_error_log(unit_folder(self.store_root, unit), unit, cause, details, output)
            except OSError as error:  # a full disk must not take the other units along
                cause += f" (error.log could not be written: {error.strerror})"
        self.ends[job] = Failure(unit, cause, log)
        self.progress.failed(self.labels[job], cause)

    def stop(self, signum: int) -> None:
        """First signal: ask for checkpoints. A later one: kill."""
        now = time.monotonic()
        if self.signum is None:
            self.signum, self.asked_at = signum, now
            grace = float(self.options.get("grace_seconds", GRACE_SECONDS))
            busy = [worker for worker in self.workers if worker.job is not None]
            for worker in busy:
                worker.deadline = now + grace
                worker.send("stop", signum)
            self.progress.note(
                f"{signal.Signals(signum).name}: {len(busy)} running, asked to write a checkpoint and end "
                f"within {grace:.0f} s; once more to end now"
            )
        elif now - self.asked_at >= SECOND_SIGNAL_SECONDS:
            for worker in self.workers:
                worker.deadline = now

    def summary(self, skipped: list[Unit]) -> Summary:
        result = Summary(skipped=skipped, interrupted=self.signum)
        for job, unit in enumerate(self.units):
            if job not in self.ends and job in self.stopped and self.signum is None:
                self.fail(
                    job,
                    f"its worker alone was stopped by {signal_name(self.stopped[job])}; a rerun resumes it",
                    None,
                    b"",
                )
            end = self.ends.get(job)
            if isinstance(end, Done):
                result.done.append(end)
            elif isinstance(end, Failure):
                result.failed.append(end)
            elif job in self.ends:
                result.held.append(unit)
            else:
                result.left.append(unit)
        return result


def _cause_of_death(code: int) -> str:
    """One line for the exit code of a worker that ended in the middle of a unit."""
    if code >= 0:
        return f"worker ended with exit code {code}"
    hint = "; often the system for want of memory" if -code == signal.SIGKILL else ""
    return f"worker ended with signal {-code} ({signal_name(-code)}{hint})"


@contextmanager
def _stop_signals() -> Iterator[int]:
    """A file descriptor that gives each stop signal as one byte, so that waiting for workers wakes up.

    A signal that was ignored when the command started (nohup, a background job of a shell) stays ignored.
    """
    inbox, outbox = os.pipe()
    os.set_blocking(outbox, False)
    main = threading.current_thread() is threading.main_thread()  # elsewhere Python allows no handlers

    def remember(signum: int, _frame: object) -> None:
        os.write(outbox, bytes([signum]))

    before: dict[signal.Signals, Callable[..., Any] | int | None] = {}
    try:
        for signum in STOP_SIGNALS:
            if main and signal.getsignal(signum) is not signal.SIG_IGN:
                before[signum] = signal.signal(signum, remember)
        yield inbox
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler if handler is not None else signal.SIG_DFL)
        os.close(inbox)
        os.close(outbox)
