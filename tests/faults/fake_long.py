"""Units that take their time: one that needs two starts, and one that ends by itself after a while."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from adalora_bench.engine.units import Unit, unit_folder
from adalora_bench.errors import Interrupted

Notify = Callable[[dict[str, Any]], None]
Stop = Callable[[], int | None]
OK = {"status": "ok", "reason": None, "scores": {"acc": 1.0}, "seconds": 0.1}


def twice(
    unit: Unit,
    store_root: Path,
    notify: Notify,
    stop: Stop,
    options: dict[str, Any],
) -> dict[str, Any]:
    """Goes on until it is stopped; from its checkpoint it ends well."""
    folder = unit_folder(store_root, unit)
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / "checkpoint.txt").exists():
        assert "force" not in options  # it would begin again from nothing
        return dict(OK)
    (folder / "running.txt").write_text(str(os.getpid()))
    for _ in range(3000):
        if (signum := stop()) is not None:
            (folder / "checkpoint.txt").write_text(str(signum))
            raise Interrupted(signum)
        time.sleep(0.01)
    raise AssertionError("nobody stopped this unit")


def a_while(
    unit: Unit, store_root: Path, notify: Notify, stop: Stop, options: dict[str, Any]
) -> dict[str, Any]:
    """Ends after two seconds, or at once where it is asked to stop."""
    folder = unit_folder(store_root, unit)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "running.txt").write_text(str(os.getpid()))
    for _ in range(200):
        if (signum := stop()) is not None:
            raise Interrupted(signum)
        time.sleep(0.01)
    (folder / "record.txt").write_text("whole")
    return dict(OK)
