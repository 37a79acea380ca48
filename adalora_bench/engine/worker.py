"""One worker process, both sides: `Worker` is how local.py sees it, `serve` is what runs in it.

Messages are tuples. To the worker: ("unit", unit), ("stop", signum); a closed connection means "end". From
the worker: ("event", dict) while a unit runs, then exactly one of ("done", outcome), ("failed", cause,
traceback | None, fit), ("held", holder), ("interrupted", signum). `fit` is False where the process should
not run another unit. Imports no torch.
"""

from __future__ import annotations

import faulthandler
import importlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from multiprocessing import get_context, resource_tracker
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adalora_bench.errors import Interrupted, UserError

if TYPE_CHECKING:
    from adalora_bench.engine.units import Unit

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
RETIRE_SECONDS = 10.0  # from the end of its last unit until a worker is killed
OUTPUT_BYTES = 64 * 1024  # of a unit's stdout and stderr, the last ones, kept for error.log
EVENT_SECONDS = 0.1  # a loop may notify at every step; the parent hears at most ten events a second


def worker_environment(slot: int, options: Mapping[str, Any]) -> dict[str, str]:
    """What a worker must find in its environment before it imports torch.

    One thread unless `options["threads"]` says otherwise, whatever `jobs` is: a sum split among other threads
    rounds differently, and a result must not depend on how many units ran beside it. With `options["gpus"]`
    (a list of device numbers or ids) each worker sees one of them, or `options["gpus_each"]`; not run on a GPU.
    """
    threads = str(options.get("threads") or 1)
    values = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), threads)
    values["OMP_WAIT_POLICY"] = "PASSIVE"
    # Of the products that oneDNN has compiled, by shape; its own 1,024 hold 0.35 GiB and save no time (docs/log.md).
    values["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] = "64"
    gpus = options.get("gpus")
    if gpus:
        each = options.get("gpus_each") or 1
        first = slot * each % len(gpus)
        values["CUDA_VISIBLE_DEVICES"] = ",".join(str(gpu) for gpu in gpus[first : first + each])
    return values


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set variables for the time of a process start: the child must have them before its first import."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def signal_name(signum: int) -> str:
    """SIGKILL for 9; numbers without a name stay numbers."""
    return signal.Signals(signum).name if signum in set(signal.Signals) else f"signal {signum}"


class Worker:
    """The parent's view of one worker process."""

    def __init__(self, slot: int, target: str, store_root: Path, options: dict[str, Any]) -> None:
        context = get_context("spawn")
        self.slot = slot
        self.job: int | None = None  # index of the unit it runs
        self.deadline: float | None = None
        self.said = bytearray()
        self.connection, theirs = context.Pipe(duplex=True)
        self.output, written = context.Pipe(duplex=False)
        os.set_blocking(self.output.fileno(), False)
        show = bool(options.get("show_output"))
        self.process = context.Process(
            target=serve, args=(theirs, None if show else written, target, store_root, options), daemon=True
        )
        resource_tracker.ensure_running()  # it would unblock the signals if it were started in between
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        try:
            with _environment(worker_environment(slot, options)):
                self.process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
            theirs.close()  # the child's copies are the only ones: their end is seen as its end
            written.close()

    def sources(self) -> list[Any]:
        """What to wait for: closed ends are left out, since they would be ready for ever."""
        return [end for end in (self.connection, self.output) if not end.closed] + [self.process.sentinel]

    def send(self, kind: str, value: object) -> None:
        """Tell the worker; one that is dead or dying is noticed by its sentinel."""
        try:
            self.connection.send((kind, value))
        except OSError:
            self.retire()

    def messages(self) -> Iterator[tuple[Any, ...]]:
        """All that has arrived. Closes the connection at its end, also where a kill cut a message in two."""
        while not self.connection.closed:
            try:
                if not self.connection.poll(0):
                    return
                message = self.connection.recv()
            except (EOFError, OSError):
                self.retire()
                return
            yield message

    def listen(self) -> None:
        """Keep the end of what the process writes to stdout and stderr."""
        while not self.output.closed:
            try:
                piece = os.read(self.output.fileno(), OUTPUT_BYTES)
            except BlockingIOError:
                return
            if not piece:
                self.output.close()
            self.said += piece
            del self.said[:-OUTPUT_BYTES]

    def retire(self) -> None:
        """Hang up: the worker ends by itself after what it is doing, or is killed some seconds later."""
        self.connection.close()
        self.deadline = self.deadline or time.monotonic() + RETIRE_SECONDS

    def bury(self) -> int:
        """The exit code of the ended process (negative: the signal); frees what belongs to it."""
        self.process.join()
        code = self.process.exitcode
        self.listen()
        self.connection.close()
        self.output.close()
        self.process.close()
        return code if code is not None else -signal.SIGKILL


def serve(
    connection: Connection, output: Connection | None, worker: str, store_root: Path, options: dict[str, Any]
) -> None:
    """Run units until told to end. `output` takes stdout and stderr of the process, None leaves them."""
    if output is not None:
        _send_output_to(output)
    mailbox = Mailbox(connection)
    for signum in STOP_SIGNALS:
        signal.signal(signum, mailbox.asked)
    if options.get("on_interrupt") == "finish":  # Ctrl-C reaches the workers too; the parent decides
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    # The parent blocked them before it started this process: a Ctrl-C during the start is delivered here.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    while (unit := mailbox.next_unit()) is not None:
        if not mailbox.send(run_one(unit, worker, store_root, mailbox, options)):
            return


def run_one(
    unit: Unit, worker: str, store_root: Path, mailbox: Mailbox, options: dict[str, Any]
) -> tuple[Any, ...]:
    """The reply for one unit; whatever the unit raises becomes a reply."""
    from adalora_bench.store.records import LeaseHeld

    if mailbox.signum is not None:
        return ("interrupted", mailbox.signum)
    try:
        outcome = resolve(worker)(unit, store_root, mailbox.notify, mailbox.stop, options)
        return ("done", dict(outcome))
    except Interrupted as stopped:
        return ("interrupted", stopped.signum)
    except LeaseHeld as held:
        return ("held", held.holder)
    except UserError as error:
        return ("failed", str(error), None, True)
    except Exception as error:
        short_of_memory = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
        return ("failed", in_one_line(error), traceback.format_exc(), not short_of_memory)


def resolve(dotted: str) -> Callable[..., Mapping[str, Any]]:
    """The callable of "package.module:name"; an ImportError or AttributeError is the unit's failure."""
    module, _, name = dotted.partition(":")
    found: Callable[..., Mapping[str, Any]] = getattr(importlib.import_module(module), name)
    return found


def in_one_line(error: BaseException) -> str:
    """The type and the first line of the message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


class Mailbox:
    """The worker's end of the connection, and the wish to stop: by a signal, the parent, or its death."""

    pause = EVENT_SECONDS

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.signum: int | None = None
        self.heard = (float("-inf"), "")  # when the last event was sent, and its phase

    def asked(self, signum: int, _frame: object) -> None:
        """Signal handler: only remembers, so that no step, write or lease is cut in the middle."""
        self.signum = signum

    def next_unit(self) -> Unit | None:
        """Wait for the next unit; None to end."""
        try:
            kind, value = self.connection.recv()
        except (EOFError, OSError):
            return None
        return value if kind == "unit" else None

    def stop(self) -> int | None:
        """The signal that asked to stop, if any; SIGTERM where the parent has died. Costs microseconds."""
        if self.signum is None:
            try:
                if self.connection.poll(0):
                    self.signum = int(self.connection.recv()[1])
            except (EOFError, OSError):
                self.signum = int(signal.SIGTERM)
        return self.signum

    def notify(self, event: dict[str, Any]) -> None:
        """Send an event, unless one of its phase just went; a score and the last step always go."""
        now, phase = time.monotonic(), str(event.get("phase", ""))
        last_step = event.get("step") is not None and event["step"] == event.get("total_steps")
        news = event.get("score") is not None or last_step or phase != self.heard[1]
        if news or now - self.heard[0] >= self.pause:
            self.heard = (now, phase)
            self.send(("event", dict(event)))

    def send(self, message: tuple[Any, ...]) -> bool:
        """False where the parent has died; then `stop` says so too."""
        try:
            self.connection.send(message)
        except OSError:
            self.signum = self.signum or int(signal.SIGTERM)
            return False
        return True


def _send_output_to(output: Connection) -> None:
    """Point the process's stdout and stderr, C libraries and crash dumps included, at the parent."""
    for stream, number in ((sys.stdout, 1), (sys.stderr, 2)):
        stream.flush()
        os.dup2(output.fileno(), number)
    output.close()
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    faulthandler.enable()
