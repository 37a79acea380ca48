"""What every launcher knows of a command: how each unit ended, and what a stop signal asks for. Imports no torch.

ray.py and slurm.py beside this file and the local workers of local.py derive from `Launcher`, run the units as they
can and book the reply of each: ("done", outcome), ("failed", cause, traceback | None, ...), ("held", holder) or
("interrupted", signum).
"""

from __future__ import annotations

import signal
import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, Literal

from adalora_bench.engine.progress import Progress
from adalora_bench.engine.units import Done, Failure, Summary, Unit, labels, unit_folder, write_error_log
from adalora_bench.engine.worker import signal_name

GRACE_SECONDS = 30.0  # from the wish to stop until what runs is ended
SECOND_SIGNAL_SECONDS = 1.0  # signals that come together are one; a later one means more
Wish = Literal["finish", "checkpoint", "end"]


class Launcher(ABC):
    """What is known of the units of one command; derived classes add `run`."""

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
        self.ends: dict[int, Done | Failure | None] = {}  # None: held by another process
        self.stopped: dict[int, int] = {}  # units at a checkpoint, and the signal that their worker got
        self.signum: int | None = None  # the last stop signal
        self.asked, self.asked_at = False, 0.0  # for checkpoints; when that signal came
        self.grace_seconds = float(options.get("grace_seconds", GRACE_SECONDS))

    @abstractmethod
    def run(self, jobs: int | None, skipped: list[Unit]) -> Summary:
        """Run the units, at most `jobs` at once."""

    def book(self, job: int, reply: tuple[Any, ...], said: bytes = b"") -> None:
        """The reply of a unit's worker; `said` is the last output of the process."""
        kind = reply[0]
        if kind == "done":
            self.finish(job, reply[1])
        elif kind == "failed":
            self.fail(job, reply[1], reply[2], said)
        elif kind == "held":
            self.ends[job] = None
            self.progress.passed(self.labels[job], f"left to {reply[1]}")
        elif kind == "interrupted":
            self.stopped[job] = reply[1]
            self.progress.passed(self.labels[job], "stopped, its checkpoint is written")

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

    def wish(self, signum: int) -> Wish | None:
        """What a stop signal asks of running units; None: it is one with the signal before it.

        The first one asks for checkpoints, or after Ctrl-C with `on_interrupt=finish` that they run to their end; from
        then on each asks for more.
        """
        now, first = time.monotonic(), self.signum is None
        if not first and now - self.asked_at < SECOND_SIGNAL_SECONDS:
            return None
        self.signum, self.asked_at = signum, now
        if self.asked:
            return "end"
        if first and signum == signal.SIGINT and self.options.get("on_interrupt") == "finish":
            return "finish"
        self.asked = True
        return "checkpoint"

    def say_wish(self, wish: Wish, running: int) -> None:
        """Tell the user what becomes of so many running units; an end speaks for itself."""
        name = signal_name(self.signum or 0)
        if wish == "finish":
            self.progress.note(
                f"{name}: no other unit is started, {running} running go on to their end; once more to stop them"
            )
        elif wish == "checkpoint":
            self.progress.note(
                f"{name}: {running} running, asked to write a checkpoint and end within {self.grace_seconds:.0f} s; "
                f"once more to end now"
            )

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
