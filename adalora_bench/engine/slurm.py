"""launcher=slurm: units as job arrays of SLURM through submitit.

SIGUSR1 (sent by SLURM before the time limit, or by `scancel --signal=USR1`) writes the unit's checkpoint and requeues
its job; plain `scancel` writes it and ends. A node that fails is SLURM's to requeue. Jobs outlive the command: a unit
whose job ended meanwhile is found recorded by the next command. Imports no torch.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import signal
import time
from collections.abc import Callable, Iterable, Mapping
from select import select
from typing import Any

from adalora_bench.engine.launcher import Launcher
from adalora_bench.engine.unit_task import UnitTask, settings, unit_tasks
from adalora_bench.engine.units import Summary, Unit, count
from adalora_bench.engine.worker import STOP_SIGNALS, Mailbox, in_one_line
from adalora_bench.errors import UserError

REQUEUE = signal.SIGUSR1
POLL_SECONDS = 2.0
END_SECONDS = 60.0  # SLURM kills a job that it told to end well before


class SignalMailbox(Mailbox):
    """The wish to stop comes as a signal; news has nowhere to go."""

    def __init__(self) -> None:
        self.signum: int | None = None

    def stop(self) -> int | None:
        return self.signum

    def notify(self, event: dict[str, Any]) -> None:
        """Heard by nobody: the log of the job and steps.jsonl tell how far a unit is."""


class Task:
    """What submitit runs on a node; a class, so that it can be submitted again from its checkpoint."""

    def __init__(self, unit_task: UnitTask) -> None:
        self.unit_task = unit_task

    def __call__(self) -> tuple[Any, ...]:
        requeue = signal.getsignal(
            REQUEUE
        )  # submitit's own: saves `checkpoint()` and has SLURM requeue the job
        mailbox = SignalMailbox()
        for signum in STOP_SIGNALS:
            signal.signal(signum, mailbox.asked)
        reply = self.unit_task.run(mailbox)
        if reply[0] == "interrupted" and "SLURM_JOB_ID" in os.environ:
            _wait(
                lambda: mailbox.signum == REQUEUE
            )  # after SIGTERM: the end that SLURM has decided on, or a requeue
        if reply[0] == "interrupted" and mailbox.signum == REQUEUE and callable(requeue):
            requeue(REQUEUE, None)
        return reply

    def checkpoint(self) -> Any:
        """For submitit: the same unit, which goes on from its checkpoint and not from the start."""
        from submitit.helpers import DelayedSubmission

        options = {name: value for name, value in self.unit_task.options.items() if name != "force"}
        return DelayedSubmission(Task(dataclasses.replace(self.unit_task, options=options)))


class SlurmPool(Launcher):
    """One call of `launch` on SLURM."""

    def run(self, jobs: int | None, skipped: list[Unit]) -> Summary:
        """One job per unit, in arrays; at most `jobs` of an array at once."""
        chosen = settings(self)
        self.waiting: dict[int, Any] = dict(enumerate(self._submit(chosen, jobs)))
        self.running: set[int] = set()
        while self.waiting:
            for job, handle in list(self.waiting.items()):
                self._look(job, handle)
            if self.waiting and select([self.inbox], [], [], POLL_SECONDS)[0]:
                self._stop(os.read(self.inbox, 1)[0])
                break
            self.progress.tick()
        return self.summary(skipped)

    def _submit(self, chosen: Mapping[str, Any], jobs: int | None) -> Iterable[Any]:
        """The jobs of all units, in their order. UserError: SLURM is not here or refuses them."""
        os.environ["SUBMITIT_PREEMPT_SIGNAL"] = REQUEUE.name.removeprefix(
            "SIG"
        )  # read when submitit is imported
        import submitit

        logging.getLogger("submitit").setLevel(
            logging.ERROR
        )  # it warns at every look where there is no sacct
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        folder = self.store_root.resolve() / "slurm"
        tasks = [Task(unit_task) for unit_task in unit_tasks(self)]
        handles: list[Any] = []
        try:
            executor = submitit.AutoExecutor(
                folder, cluster=chosen["cluster"], slurm_max_num_timeout=chosen["retries"]
            )
            executor.update_parameters(**parameters(chosen, jobs))
            for start in range(0, len(tasks), chosen["array"]):
                with executor.batch():
                    new = [executor.submit(task) for task in tasks[start : start + chosen["array"]]]
                handles += new
        except (FailedJobError, FailedSubmissionError, RuntimeError) as error:
            if handles:  # what was queued before runs, and is found recorded later
                self.progress.note(f"{count(len(handles), 'job')} of {len(tasks)} queued, then SLURM refused")
            raise UserError(f"SLURM took no jobs: {in_one_line(error)}.") from error
        names = sorted({handle.job_id.split("_")[0] for handle in handles})
        self.progress.note(f"{count(len(handles), 'job')} queued: {', '.join(names)}; their files: {folder}")
        return handles

    def _look(self, job: int, handle: Any) -> None:
        """Book a job that has ended; say when one began."""
        if not handle.done():
            if job not in self.running and handle.paths.stderr.exists():
                self.running.add(job)
                self.progress.event(self.labels[job], {"phase": "start"})
            return
        del self.waiting[job]
        error = handle.exception()
        if error is None:
            self.book(job, handle.result())
            return
        if handle.paths.result_pickle.exists():
            cause = "failed outside of the unit; error.log has its trace"
        else:
            cause = f"ended without a result ({handle.state})"
        self.fail(job, f"job {handle.job_id} {cause}", str(error), b"", always_log=True)

    def _stop(self, signum: int) -> None:
        """Ctrl-C: leave the jobs to SLURM (`on_interrupt=finish`), or cancel them."""
        self.signum = signum
        name, live = signal.Signals(signum).name, list(self.waiting.values())
        if signum == signal.SIGINT and self.options.get("on_interrupt") == "finish":
            self.progress.note(
                f"{name}: {count(len(live), 'job')} left to SLURM, which runs them to their end; the same command "
                "finds what they record"
            )
            return
        arrays: dict[str, Any] = {}
        for handle in live:
            main, _, part = handle.job_id.partition("_")
            arrays.setdefault(main, type(handle)(handle.paths.folder, main) if part else handle)
        for handle in arrays.values():
            handle.cancel(check=False)
        self.progress.note(
            f"{name}: {count(len(live), 'job')} cancelled; those that ran write a checkpoint before SLURM ends them"
        )


def parameters(chosen: Mapping[str, Any], jobs: int | None) -> dict[str, Any]:
    """The settings below `launch` in submitit's words; what is null is left to the cluster."""
    slurm = {
        "partition": chosen["partition"],
        "account": chosen["account"],
        "qos": chosen["qos"],
        "array_parallelism": jobs,
        "signal_delay_s": 90 if chosen["minutes"] > 5 else 30,
    }
    common = {
        "name": "bench",
        "timeout_min": chosen["minutes"],
        "cpus_per_task": max(1, round(chosen["cpus"])),
        "gpus_per_node": round(chosen["gpus"]) or None,  # submitit takes no float
        "mem_gb": chosen["memory_gib"],
    }
    found = common | {f"slurm_{name}": value for name, value in slurm.items()}
    return {name: value for name, value in found.items() if value is not None}


def _wait(until: Callable[[], bool]) -> None:
    end = time.monotonic() + END_SECONDS
    while not until() and time.monotonic() < end:
        time.sleep(0.1)
