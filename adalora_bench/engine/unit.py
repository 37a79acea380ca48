"""One unit: build -> train -> record. What happens to one (cell, seed), in the order in which it happens."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch

from adalora_bench.engine.helpers import team_of
from adalora_bench.engine.outcome import record_of
from adalora_bench.engine.training import Notify, Stop, Training, with_room
from adalora_bench.engine.units import Unit
from adalora_bench.store.records import CHECKPOINTS, RecordStore
from adalora_bench.train.device import choose_device, fast_products


def run_unit(
    unit: Unit, store_root: Path, notify: Notify, stop: Stop, options: dict[str, Any]
) -> dict[str, Any]:
    """Train one unit and write its record. Continues from a checkpoint where there is one.

    Args:
        unit: the cell, with its key, and the seed.
        store_root: the results folder.
        notify: takes progress events.
        stop: gives the number of a signal that asks to stop, or None.
        options: "force" runs again what is recorded; "threads" is torch's thread count (1).

    Returns:
        status, reason, scores and seconds, for the summary of the command.

    Raises:
        Interrupted: `stop` named a signal; the checkpoint is written.
        LeaseHeld: another process works on this unit.
    """
    torch.set_num_threads(int(options.get("threads", 1)))
    store = RecordStore(store_root / "runs")
    folder = store.folder(unit.cell.names, unit.cell.key, unit.seed)
    with store.lease(folder):
        record = None if options.get("force") else store.read(folder)
        if record is None or not store.is_done(unit.cell, unit.seed):
            if options.get("force"):
                shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
            device = choose_device(unit.cell.config["device"])
            with team_of(unit, folder) as team, fast_products(device):
                record = record_of(Training(unit, folder, notify, stop, team))
            finished = record
            with_room(folder / CHECKPOINTS, lambda: store.write(finished))
        # also those of a process that was killed after it had written its record
        shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
    return {
        "status": record["status"],
        "reason": record["reason"],
        "scores": (record["final"] or {}).get("scores", {}),
        "seconds": record["seconds"]["total"],
    }
