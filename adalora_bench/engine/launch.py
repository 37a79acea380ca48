"""`launch`: run every unit of a command once, through launcher=local, ray or slurm, and say how each ended.

A unit is one (cell, seed). Each launcher is one class over `Launcher`, found here by its name.
What goes wrong stays in its unit: an exception is a failed unit with its traceback in the unit's error.log, a
worker that dies (exit, segfault, kill) is replaced. Ctrl-C, SIGTERM and SIGUSR1 ask the workers to write
their checkpoints and end.

Imports no torch.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from adalora_bench.engine.launcher import Launcher
from adalora_bench.engine.progress import Progress
from adalora_bench.engine.units import Summary, Unit
from adalora_bench.engine.worker import STOP_SIGNALS
from adalora_bench.errors import UserError, unknown

DEFAULT_WORKER = "adalora_bench.engine.unit:run_unit"

# launcher -> (module, class, the package that pip brings as an extra of the same name)
CLASSES = {
    "local": ("adalora_bench.engine.local", "LocalPool", None),
    "ray": ("adalora_bench.engine.ray", "RayPool", "ray"),
    "slurm": ("adalora_bench.engine.slurm", "SlurmPool", "submitit"),
}


def launch(
    units: Sequence[Unit],
    *,
    store_root: Path,
    jobs: int | None = None,
    options: Mapping[str, Any] | None = None,
    progress: Progress,
    worker: str = DEFAULT_WORKER,
    skipped: Sequence[Unit] = (),
    launcher: str = "local",
) -> Summary:
    """Run every unit once and say how each ended; raises nothing for what goes wrong inside a unit.

    `worker` is "module:function", called in the child as `(unit, store_root, notify, stop, options)`, which
    writes the record itself; `store_root` is the results folder. `options` go to it as they are;
    read here: `threads`, `gpus`, `gpus_each`, `grace_seconds`, and `show_output=True`, which leaves the workers' stdout
    and stderr alone instead of keeping their end for error.log. `launcher` names what runs the units
    (`CLASSES`); `on_interrupt="finish"` lets running units go on to their end after a Ctrl-C.
    """
    options = dict(options or {})
    progress.start(len(units), len(skipped))
    try:
        with _stop_signals() as inbox:
            pool = launcher_class(launcher)(list(units), store_root, options, progress, worker, inbox)
            return pool.run(jobs, list(skipped))
    finally:
        progress.stop()


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


def check(name: str) -> None:
    """UserError: no such launcher, or its package is not installed."""
    if name not in CLASSES:
        raise UserError(unknown("launcher", name, CLASSES))
    package = CLASSES[name][2]
    if package is not None and importlib.util.find_spec(package) is None:
        raise UserError(f"launcher={name} needs {package}; pip install 'adalora_bench[{name}]' brings it.")


def launcher_class(name: str) -> type[Launcher]:
    """The class of a launcher. UserError: as `check`."""
    check(name)
    module, cls, _ = CLASSES[name]
    found: type[Launcher] = getattr(importlib.import_module(module), cls)
    return found
