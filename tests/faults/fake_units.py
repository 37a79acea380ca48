"""Units that need no torch and go wrong in every way; as a script, a command that runs them (see `main`)."""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from adalora_bench.engine.launch import launch
from adalora_bench.engine.progress import make_progress
from adalora_bench.engine.units import Unit, unit_folder
from adalora_bench.errors import Interrupted, UserError
from adalora_bench.store.records import LeaseHeld

Notify = Callable[[dict[str, Any]], None]
Stop = Callable[[], int | None]
OK = {"status": "ok", "reason": None, "scores": {"acc": 0.5}, "seconds": 0.1}


def make_units(count: int) -> list[Unit]:
    names = {"method": "lora", "task": "rte", "backbone": "tiny", "scale": "smoke"}
    cell: Any = SimpleNamespace(names=names, overrides=(), key="0" * 64, config={}, seeds=tuple(range(count)))
    return [Unit(cell, seed) for seed in range(count)]


def leave(store_root: Path, unit: Unit, text: str = "whole") -> dict[str, Any]:
    folder = unit_folder(store_root, unit)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "record.txt").write_text(text)
    return dict(OK)


def ok(unit: Unit, store_root: Path, notify: Notify, stop: Stop, options: dict[str, Any]) -> dict[str, Any]:
    for step in (1, 2):
        notify({"step": step, "total_steps": 2, "loss": 0.5, "phase": "train"})
    return leave(store_root, unit, f"{os.getpid()} {os.environ['OMP_NUM_THREADS']} {options.get('threads')}")


def faulty(
    unit: Unit, store_root: Path, notify: Notify, stop: Stop, options: dict[str, Any]
) -> dict[str, Any]:
    """Seed -> fault as `options["faults"]` says, else fine."""
    fault = options["faults"].get(unit.seed)
    sys.stdout.write(f"to stdout of {unit.seed}\n")
    match fault:
        case "raise":
            warnings.warn("watch out", stacklevel=1)
            raise ValueError("a bad value\nwith a second line")
        case "user":
            raise UserError("rank 0 is not a rank.")
        case "memory":
            raise MemoryError
        case "huge":
            return {"status": "ok", "size": len(bytearray(1 << 60))}
        case "nothing":
            return None  # type: ignore[return-value]
        case "lambda":
            return {"status": "ok", "scores": lambda: 1}
        case "promise":
            return {"status": "failed", "reason": "the target rank was not reached"}
        case "exit":
            sys.exit(3)
        case "_exit":
            os.write(2, b"last words\n")
            os._exit(9)
        case "quiet_exit":
            sys.exit(0)
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "segfault":
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # no core file in the folder of the project
            ctypes.string_at(0)
        case "interrupt":
            raise KeyboardInterrupt
        case "held":
            raise LeaseHeld(unit_folder(store_root, unit), "process 7 on elsewhere")
        case "stopped_alone":
            os.kill(os.getpid(), signal.SIGTERM)
            raise Interrupted(stop() or 0)
    return leave(store_root, unit)


def slow(unit: Unit, store_root: Path, notify: Notify, stop: Stop, options: dict[str, Any]) -> dict[str, Any]:
    """Seed 0 is quick; the others go on until they are stopped, and write a checkpoint then."""
    if unit.seed == 0:
        return leave(store_root, unit)
    folder = unit_folder(store_root, unit)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "running.txt").write_text(str(os.getpid()))
    for step in range(1, 100_000):
        notify({"step": step, "total_steps": 100_000, "loss": 1.0, "phase": "train"})
        if (signum := stop()) is not None:
            (folder / "checkpoint.txt").write_text(f"{step} {signum}")
            raise Interrupted(signum)
        time.sleep(0.01)
    raise AssertionError("nobody stopped this unit")


def deaf(unit: Unit, store_root: Path, notify: Notify, stop: Stop, options: dict[str, Any]) -> dict[str, Any]:
    """Never asks whether to stop."""
    folder = unit_folder(store_root, unit)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "running.txt").write_text(str(os.getpid()))
    time.sleep(60)
    raise AssertionError("nobody killed this unit")


def main(store: str, worker: str, jobs: str, count: str, options: str) -> int:
    """Run `count` units and print how the command ended."""
    if hasattr(signal, "default_int_handler"):  # a test run in the background of a shell inherits "ignored"
        signal.signal(signal.SIGINT, signal.default_int_handler)
    summary = launch(
        make_units(int(count)),
        store_root=Path(store),
        jobs=int(jobs),
        options=json.loads(options),
        progress=make_progress(),
        worker=worker,
    )
    seen = {
        "done": [end.unit.seed for end in summary.done],
        "failed": [end.unit.seed for end in summary.failed],
        "left": [unit.seed for unit in summary.left],
        "interrupted": summary.interrupted,
    }
    sys.stdout.write(json.dumps(seen))
    return summary.exit_code


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
