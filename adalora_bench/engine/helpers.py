"""processes=2: a unit's worker process leads, the others are helpers that train along and write nothing.

The leader holds the lease, evaluates, saves and records, as with one process; a helper builds the same training, joins
the leader (train/team.py) over gloo, or on GPUs over NCCL, and is ended with it.

On GPUs every process has one: of those that the leader sees, the one of its own rank. That was not run on any GPU.
There a helper's death may be noticed only when the wait of its leader is over.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any

from adalora_bench.engine.units import Unit
from adalora_bench.engine.worker import STOP_SIGNALS
from adalora_bench.settings.config import Cell
from adalora_bench.store.files import TEMPORARY
from adalora_bench.train.device import backend, choose_device, fast_products, require_devices
from adalora_bench.train.team import ALONE, Team

if TYPE_CHECKING:
    import torch

READY = "ready\n"
LONGEST_WAIT = timedelta(hours=12)
"""Of a helper for a leader that evaluates. Over gloo the death of either is noticed at once."""


@contextmanager
def team_of(unit: Unit, folder: Path) -> Iterator[Team]:
    """The team of a unit whose lease this process holds; its helpers live as long as the context.

    Raises:
        RuntimeError: a helper ended before the training began; its words are in the worker's output.
    """
    size = int(unit.cell.config.get("processes", 1))
    if size == 1:
        yield ALONE
        return
    import torch.distributed as dist

    device = choose_device(unit.cell.config["device"])
    require_devices(device, size)
    meeting = folder / f"meeting{TEMPORARY}"
    meeting.unlink(missing_ok=True)
    helpers = [_helper(unit, folder, meeting, rank, size) for rank in range(1, size)]
    try:
        for helper in helpers:
            assert helper.stdout is not None
            if helper.stdout.readline() != READY:
                raise RuntimeError(f"a helper process ended with {helper.wait()} before the training began")
        _join(meeting, 0, size, device)
        yield Team(0, size)
    finally:
        for helper in helpers:
            helper.kill()
            helper.communicate()
        if dist.is_initialized():
            dist.destroy_process_group()
        meeting.unlink(missing_ok=True)


def _helper(unit: Unit, folder: Path, meeting: Path, rank: int, size: int) -> subprocess.Popen[str]:
    package = str(Path(__file__).parents[2])
    paths = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
    process = subprocess.Popen(
        [sys.executable, "-m", "adalora_bench.engine.helpers"],
        env={**os.environ, "PYTHONPATH": paths},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    errand = {
        "cell": asdict(unit.cell),
        "seed": unit.seed,
        "folder": str(folder),
        "meeting": str(meeting),
        "team": [rank, size],
    }
    process.stdin.write(json.dumps(errand) + "\n")
    process.stdin.flush()  # and left open: it closes when this process ends, however it ends
    return process


def _join(meeting: Path, rank: int, size: int, device: torch.device) -> None:
    import torch.distributed as dist

    where = f"file://{meeting.resolve()}"
    dist.init_process_group(
        backend(device), init_method=where, rank=rank, world_size=size, timeout=LONGEST_WAIT
    )


def _end_with_the_leader() -> None:
    """Wait until the leader's end of stdin closes, and end this process whatever it is doing."""
    os.read(sys.stdin.fileno(), 1)  # past Python's buffer, whose lock a thread must not hold at exit
    os._exit(1)


def _train_along(errand: dict[str, Any], team: Team) -> None:
    """The unit's training, with its own rows of every batch and nothing to say."""
    from adalora_bench.engine.training import Training
    from adalora_bench.train import loop

    values = errand["cell"] | {name: tuple(errand["cell"][name]) for name in ("overrides", "seeds")}
    training = Training(
        Unit(Cell(**values), errand["seed"]), Path(errand["folder"]), lambda _: None, lambda: None, team
    )
    sys.stdout.write(READY)
    sys.stdout.flush()
    _join(Path(errand["meeting"]), team.rank, team.size, training.device)
    silent = loop.Callbacks(
        evaluate=dict,
        log=lambda _: None,
        evaluated=lambda _: 0,
        milestone=lambda: None,
        stepped=lambda _, __: None,
        stop=lambda: None,
    )
    loop.train(
        training.method,
        training.run,
        training.data,
        training.unit.seed,
        training.loop_settings,
        training.meter,
        silent,
        team,
    )


def main() -> None:
    """A helper: build, say so, join, train along. Signals are the leader's business."""
    import torch

    for signum in STOP_SIGNALS:
        signal.signal(signum, signal.SIG_IGN)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    errand = json.loads(sys.stdin.readline())
    Thread(target=_end_with_the_leader, daemon=True).start()
    team = Team(*errand["team"])
    device = choose_device(errand["cell"]["config"]["device"])
    if device.type == "cuda":
        torch.cuda.set_device(team.rank)
    with fast_products(device):
        _train_along(errand, team)


if __name__ == "__main__":
    main()
