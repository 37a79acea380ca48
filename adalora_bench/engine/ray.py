"""launcher=ray: units as tasks of a Ray cluster, one that runs (launch.address) or one that is started here.

Ray places the tasks by their resources and runs a task again whose worker or node died; the unit goes on from its
checkpoint. One small actor carries news to the command and the wish to stop to the units. Imports no torch.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from select import select
from typing import Any

from adalora_bench.engine.launcher import Launcher
from adalora_bench.engine.unit_task import UnitTask, settings, unit_tasks
from adalora_bench.engine.units import Summary, Unit
from adalora_bench.engine.worker import STOP_SIGNALS, Mailbox, in_one_line
from adalora_bench.errors import UserError
from adalora_bench.store.environment import usable_cores

KNOCK_SECONDS = 10.0  # until a cluster's address must have answered
ASK_SECONDS = 1.0  # a unit asks the board at most this often whether to stop


class Board:
    """An actor: which units have started, their news, and whether they shall stop."""

    def __init__(self) -> None:
        self.news: list[tuple[int, dict[str, Any]]] = []
        self.begun: set[int] = set()
        self.closed = False  # nothing starts any more
        self.signum: int | None = None

    def begin(self, job: int) -> bool:
        """Whether a unit may start."""
        if not self.closed:
            self.begun.add(job)
            self.news.append((job, {"phase": "start"}))
        return not self.closed

    def tell(self, job: int, event: dict[str, Any]) -> None:
        """News of a unit."""
        self.news.append((job, event))

    def asked(self) -> int | None:
        """The signal that asks running units to stop."""
        return self.signum

    def close(self, signum: int | None) -> list[int]:
        """Start nothing more; with a signal, ask what runs to stop. Returns what has started so far."""
        self.closed, self.signum = True, signum
        return sorted(self.begun)

    def heard(self) -> list[tuple[int, dict[str, Any]]]:
        """The news since the last call."""
        news, self.news = self.news, []
        return news


class BoardMailbox(Mailbox):
    """A unit's end of the board."""

    pause = ASK_SECONDS

    def __init__(self, board: Any, job: int) -> None:
        self.board, self.job = board, job
        self.signum: int | None = None
        self.heard = (float("-inf"), "")
        self.asked_at = time.monotonic()

    def stop(self) -> int | None:
        """The signal that asked to stop, SIGTERM where the board is gone; it is asked once a second."""
        import ray

        if self.signum is None and time.monotonic() - self.asked_at >= ASK_SECONDS:
            self.asked_at = time.monotonic()
            try:
                self.signum = ray.get(self.board.asked.remote())
            except ray.exceptions.RayActorError:  # the board ends with the command's node
                self.signum = int(signal.SIGTERM)
        return self.signum

    def send(self, message: tuple[Any, ...]) -> bool:
        self.board.tell.remote(self.job, message[1])
        return True


def run_task(board: Any, job: int, unit_task: UnitTask) -> tuple[Any, ...] | None:
    """What runs on the cluster; None where the command was stopped before this unit began."""
    import ray

    if not ray.get(board.begin.remote(job)):
        return None
    return unit_task.run(BoardMailbox(board, job))


class RayPool(Launcher):
    """One call of `launch` on a Ray cluster."""

    deadline: float | None = (
        None  # after a signal: until then the running units have time for their checkpoints
    )

    def run(self, jobs: int | None, skipped: list[Unit]) -> Summary:
        """At most `jobs` units at once: a cluster that is started here gets so many CPUs, one that runs has its own."""
        import ray

        self.chosen = settings(self)
        self._connect(jobs)
        try:
            here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
                ray.get_runtime_context().get_node_id(), soft=False
            )  # elsewhere the board would end with a node that the command can do without
            self.board = ray.remote(num_cpus=0, scheduling_strategy=here)(Board).remote()
            self._watch(jobs)
        except ray.exceptions.RayActorError as error:  # of the board alone: `_end` takes those of units
            raise UserError(
                f"the actor on this machine that Ray's units report to has ended ({in_one_line(error).rstrip('.')}); "
                "the same command goes on from what is recorded."
            ) from error
        finally:
            ray.shutdown()
        return self.summary(skipped)

    def _connect(self, jobs: int | None) -> None:
        import ray

        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # what Ray will do by default
        handlers = {signum: signal.getsignal(signum) for signum in STOP_SIGNALS}
        address = self.chosen["address"]
        if address:
            try:
                host, _, port = address.rpartition(":")
                if (
                    host and port.isdigit() and "/" not in host
                ):  # Ray itself would ask a dead address for minutes
                    socket.create_connection((host, int(port)), timeout=KNOCK_SECONDS).close()
                ray.init(address=address, log_to_driver=False, logging_level="warning")
            except (OSError, RuntimeError, ValueError) as error:
                raise UserError(
                    f"no Ray cluster answers at launch.address={address!r}: {in_one_line(error).rstrip('.')}."
                ) from error
        else:
            cpus = self.chosen["cpus"]
            cores = cpus * jobs if jobs else max(cpus, usable_cores())
            ray.init(
                address="local",
                num_cpus=max(1, round(cores)),
                include_dashboard=False,
                log_to_driver=False,
                logging_level="warning",
            )
        for (
            signum,
            handler,
        ) in handlers.items():  # Ray puts one of its own for SIGTERM, which would end the command
            if handler is not None and threading.current_thread() is threading.main_thread():
                signal.signal(signum, handler)

    def _submit(self, job: int, unit_task: UnitTask) -> Any:
        import ray

        gib = self.chosen["memory_gib"] or self.options.get("gib", {}).get(unit_task.unit.cell.key)
        task = ray.remote(run_task).options(
            name=self.labels[job],
            num_cpus=self.chosen["cpus"],
            num_gpus=self.chosen["gpus"],
            memory=int(gib * 2**30) if gib else None,
            max_retries=self.chosen["retries"],
        )
        return task.remote(self.board, job, unit_task)

    def _watch(self, jobs: int | None) -> None:
        """Until every unit has ended, or those that run when a signal comes."""
        import ray

        waiting = list(enumerate(unit_tasks(self)))[::-1]
        running: dict[Any, int] = {}
        while running or (waiting and self.signum is None):
            while waiting and self.signum is None and len(running) < (jobs or len(self.units)):
                job, unit_task = waiting.pop()
                running[self._submit(job, unit_task)] = job
            ready, _ = ray.wait(list(running), num_returns=len(running), timeout=0.5, fetch_local=True)
            for job, event in ray.get(self.board.heard.remote()):
                if job not in self.ends:
                    self.progress.event(self.labels[job], event)
            for one in ready:
                self._end(running.pop(one), one)
            if select([self.inbox], [], [], 0)[0]:
                begun = self._stop(os.read(self.inbox, 1)[0])
                running = {one: job for one, job in running.items() if job in begun}
            if self.deadline is not None and time.monotonic() > self.deadline:
                return
            self.progress.tick()

    def _end(self, job: int, reference: Any) -> None:
        """Book a task that has ended."""
        import ray

        try:
            reply = ray.get(reference)
        except ray.exceptions.RayError as error:  # its worker died too often, or never came to run the unit
            self.fail(job, f"Ray: {in_one_line(error)}", str(error), b"")
            return
        if reply is not None:
            self.book(job, reply)

    def _stop(self, signum: int) -> list[int]:
        """A signal: pass on what it asks of the units. Returns which have started; no other one will."""
        import ray

        wish = self.wish(signum)
        begun: list[int] = ray.get(self.board.close.remote(signum if self.asked else None))
        if wish == "end":
            self.deadline = time.monotonic()
        elif wish == "checkpoint":
            self.deadline = time.monotonic() + self.grace_seconds
        if wish is not None:
            self.say_wish(wish, sum(job not in self.ends and job not in self.stopped for job in begun))
        return begun
