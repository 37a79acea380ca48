"""One unit sent to another process or machine: all that it needs there, and how it is run there. Imports no torch."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adalora_bench.engine.launcher import Launcher
from adalora_bench.engine.units import Unit, unit_folder
from adalora_bench.engine.worker import Mailbox, in_one_line, run_one, worker_environment
from adalora_bench.store.lease import wait_for_dead

# Variables of the command that decide what a unit reads (data/hub.py); a node has its own of everything else. Those of
# the hub by their whole names: HF_TOKEN is a secret, and what travels is written into files (slurm).
CARRIED = {
    "HF_HOME",
    "HF_HUB_CACHE",
    "HF_HUB_OFFLINE",
    "HF_TOKEN_PATH",
    "HUGGINGFACE_HUB_CACHE",
    "TRANSFORMERS_OFFLINE",
    "XDG_CACHE_HOME",
}
OWN = "ADALORA_BENCH_"
# Options of the command that mean nothing on a node.
OF_THE_COMMAND = ("gpus", "gib", "launch", "on_interrupt", "grace_seconds", "gpus_each", "show_output")


@dataclass(frozen=True)
class UnitTask:
    """A unit on its way: `folder` is where the command was started, `target` is "module:function"."""

    unit: Unit
    target: str
    store_root: Path
    options: dict[str, Any]
    folder: Path
    environment: dict[str, str]

    def run(self, mailbox: Mailbox) -> tuple[Any, ...]:
        """Run the unit here and return its reply (worker.py). Called before the process has imported torch.

        A predecessor that died with its machine still has its lease for a while: it is waited for, unless it is alive.
        """
        os.environ.update(self.environment)
        try:
            os.chdir(self.folder)
        except OSError as error:
            cause = f"the folder of the command is not on {os.uname().nodename}: {in_one_line(error)}"
            return ("failed", cause, None, True)
        reply = run_one(self.unit, self.target, self.store_root, mailbox, self.options)
        if reply[0] == "held" and wait_for_dead(unit_folder(self.store_root, self.unit)):
            reply = run_one(self.unit, self.target, self.store_root, mailbox, self.options)
        return reply


def unit_tasks(launcher: Launcher) -> list[UnitTask]:
    """All units of a command, ready to be sent. Paths are made absolute: they must mean the same on every node."""
    carried = {name: value for name, value in os.environ.items() if name in CARRIED or name.startswith(OWN)}
    kept = {name: value for name, value in launcher.options.items() if name not in OF_THE_COMMAND}
    environment = carried | worker_environment(0, {"threads": kept.get("threads")})
    root = launcher.store_root.resolve()
    return [UnitTask(unit, launcher.target, root, kept, Path.cwd(), environment) for unit in launcher.units]


def settings(launcher: Launcher) -> dict[str, Any]:
    """The settings below `launch` (config.LaunchOptions)."""
    return dict(launcher.options["launch"])
