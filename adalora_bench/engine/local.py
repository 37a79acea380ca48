"""Units on worker processes of this machine: hand out, listen, replace the dead, stop in good order.

`jobs` workers are spawned, so that each imports torch for itself with its own environment, and keeps it between units;
each gets the next free unit of the whole command. The parent is one thread; it trusts the pipes and the process
sentinels, not the workers. Imports no torch.
"""

from __future__ import annotations

import os
import signal
import time
from collections import deque
from collections.abc import Mapping
from multiprocessing import connection as mp_connection
from typing import Any

from adalora_bench.engine.launcher import Launcher
from adalora_bench.engine.units import Summary, Unit
from adalora_bench.engine.worker import Worker, signal_name
from adalora_bench.errors import UserError
from adalora_bench.store.environment import usable_cores


def worker_count(jobs: int | None, units: int, options: Mapping[str, Any]) -> int:
    """`jobs`, by default one per usable core or GPU (or `gpus_each` of them: what a unit in several processes takes),
    at most one per unit and GPU.

    Raises:
        UserError: `jobs` is below 1.
    """
    if jobs is not None and jobs < 1:
        raise UserError(f"jobs must be at least 1, got {jobs}.")
    gpus = options.get("gpus")
    most = (len(gpus) if gpus else usable_cores()) // (options.get("gpus_each") or 1)
    wanted = most if jobs is None else min(jobs, most) if gpus else jobs
    return max(1, min(wanted, units))


SILENT_SECONDS = 3.0  # from the wish to stop until a unit that has not answered is named


class LocalPool(Launcher):
    """One call of `launch` on local workers."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.waiting = deque(range(len(self.units)))
        self.workers: list[Worker] = []
        self.waited_for: set[int] = set()

    def run(self, jobs: int | None, skipped: list[Unit]) -> Summary:
        """`jobs` workers, by default one per core or GPU."""
        try:
            for slot in range(worker_count(jobs, len(self.units), self.options)):
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
            elif worker.deadline is not None:
                self.say_waiting(worker, worker.deadline - time.monotonic())
        self.progress.tick()

    def take(self, worker: Worker, message: tuple[Any, ...]) -> None:
        """One message of a worker; all but events end its unit."""
        kind, job = message[0], worker.job
        if job is None:
            return
        if kind == "event":
            self.progress.event(self.labels[job], message[1])
            return
        worker.listen()
        self.book(job, message, bytes(worker.said))
        fit = message[3] if kind == "failed" else kind != "interrupted"
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

    def say_waiting(self, worker: Worker, left: float) -> None:
        """Once for each: which unit has not answered the wish to stop, and until when it is waited for."""
        if self.signum is None or worker.job is None or worker.job in self.waited_for:
            return
        if self.grace_seconds - left >= SILENT_SECONDS:
            self.waited_for.add(worker.job)
            self.progress.note(
                f"still waiting for {self.labels[worker.job]}; in {left:.0f} s its process {worker.process.pid} is "
                "ended, and the unit goes on from its last checkpoint another time"
            )

    def stop(self, signum: int) -> None:
        """A signal: pass on what it asks of the workers."""
        wish, now = self.wish(signum), time.monotonic()
        busy = [worker for worker in self.workers if worker.job is not None]
        if wish == "end":
            for worker in self.workers:
                worker.deadline = now
        elif wish == "checkpoint":
            for worker in busy:
                worker.deadline = now + self.grace_seconds
                worker.send("stop", signum)
        if wish is not None:
            self.say_wish(wish, len(busy))


def _cause_of_death(code: int) -> str:
    """One line for the exit code of a worker that ended in the middle of a unit."""
    if code >= 0:
        return f"worker ended with exit code {code}"
    hint = "; often the system, because it is out of memory" if -code == signal.SIGKILL else ""
    return f"worker ended with signal {-code} ({signal_name(-code)}{hint})"
