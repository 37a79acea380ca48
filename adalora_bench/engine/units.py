"""A unit of work, one (cell, seed), and how a command over many of them ended. Imports no torch."""

from __future__ import annotations

import shlex
import signal
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from adalora_bench.errors import EXIT_INTERRUPTED, EXIT_OK, EXIT_TERMINATED, EXIT_UNIT_FAILED

if TYPE_CHECKING:
    from adalora_bench.settings.config import Cell


@dataclass(frozen=True)
class Unit:
    """One cell under one seed: what is run, recorded, resumed and lost as a whole."""

    cell: Cell
    seed: int

    @property
    def name(self) -> str:
        """For people: "increlora rte seed 3 (minilm_l6, method.rank=2)"."""
        names = self.cell.names
        rest = ", ".join([names["backbone"], *self.cell.overrides])
        return f"{names['method']} {names['task']} seed {self.seed} ({rest})"


class Done(NamedTuple):
    """A unit with a result; `outcome` is what run_unit returned."""

    unit: Unit
    outcome: dict[str, Any]


class Failure(NamedTuple):
    """A unit without a result: the cause in one line, and its log where there is more to say."""

    unit: Unit
    cause: str
    error_log: Path | None


@dataclass
class Summary:
    """How a command ended; every list in the order in which the units were given."""

    done: list[Done] = field(default_factory=list)
    failed: list[Failure] = field(default_factory=list)
    held: list[Unit] = field(default_factory=list)  # another process has their lease
    # not run, or stopped at a checkpoint, because of the signal
    left: list[Unit] = field(default_factory=list)
    skipped: list[Unit] = field(default_factory=list)  # recorded before; passed through
    interrupted: int | None = None

    @property
    def exit_code(self) -> int:
        """0 all done, 1 some failed or held by another process, 130 after Ctrl-C, 143 after SIGTERM or SIGUSR1."""
        if self.interrupted is not None:
            return EXIT_INTERRUPTED if self.interrupted == signal.SIGINT else EXIT_TERMINATED
        return EXIT_UNIT_FAILED if self.failed or self.held else EXIT_OK


def summary_lines(summary: Summary, *, forced: bool) -> list[str]:
    """How a command ended, for people: counts, and for each failed unit the cause, its log and the command for it."""
    parts = [f"{len(summary.done)} done", f"{len(summary.skipped)} skipped", f"{len(summary.failed)} failed"]
    for name in ("held", "left"):
        if getattr(summary, name):
            parts.append(f"{len(getattr(summary, name))} {name}")
    lines = ["units: " + ", ".join(parts)]
    for failure in summary.failed:
        lines.append(f"failed: {failure.unit.name}: {failure.cause}")
        if failure.error_log:
            lines.append(f"  log:   {failure.error_log}")
        lines.append(f"  again: {rerun_command(failure.unit)}")
    lines += [f"held: {unit.name} is being trained by another process" for unit in summary.held]
    if summary.interrupted is not None:
        again = " without force=true" if forced else ""
        lines.append(
            f"interrupted: {count(len(summary.left), 'unit')} left, each saved where it was; what was finished is "
            f"kept. The same command{again} goes on from here."
        )
    return lines


def count(number: int, noun: str) -> str:
    """Such as "1 unit" and "2 units"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def unit_folder(store_root: Path, unit: Unit) -> Path:
    """The unit's folder in the store; `store_root` is the results folder."""
    from adalora_bench.store.records import RecordStore

    return RecordStore(store_root / "runs").folder(unit.cell.names, unit.cell.key, unit.seed)


def rerun_command(unit: Unit) -> str:
    """The command, quoted for a shell, that runs this unit alone."""
    from adalora_bench.settings.conf_files import conf_dirs

    names = [f"{group}={unit.cell.names[group]}" for group in ("method", "task", "backbone", "scale")]
    typed = [text for text in unit.cell.overrides if not text.startswith("seeds=")]
    own = [word for folder in conf_dirs()[1:] for word in ("--config-dir", str(folder))]
    return shlex.join(["bench", "run", *own, *names, *typed, *_places(unit.cell), f"seeds=[{unit.seed}]"])


def _places(cell: Cell) -> list[str]:
    """The steering settings without which the same unit would be looked for elsewhere, or be skipped."""
    from omegaconf import OmegaConf

    from adalora_bench.settings.compose import in_hydra
    from adalora_bench.settings.conf_files import conf_dir

    usual = OmegaConf.load(conf_dir() / "run.yaml")
    changed = [
        (name, value)
        for name in ("results_dir", "data_dir", "device", "processes", "offline", "force")
        if (value := cell.config.get(name)) is not None and value != OmegaConf.select(usual, name)
    ]
    return [
        f"{name}={in_hydra(str(value).lower() if isinstance(value, bool) else str(value))}"
        for name, value in changed
    ]


def labels(units: Sequence[Unit]) -> list[str]:
    """The name of each unit; where two are alike (other scale, say), the start of the key is added."""
    names = [unit.name for unit in units]
    times = Counter(names)
    return [
        f"{name} {unit.cell.key[:8]}" if times[name] > 1 else name
        for name, unit in zip(names, units, strict=True)
    ]


def write_error_log(folder: Path, unit: Unit, cause: str, details: str | None, output: str) -> Path:
    """All that is known about a failure, in the unit's folder."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = [f"{unit.name}\n{cause}\nagain: {rerun_command(unit)}\n"]
    if details:
        parts.append(details)
    if output.strip():
        parts.append(f"-- last output of the worker --\n{output.rstrip()}\n")
    path = folder / "error.log"
    path.write_text("\n".join(parts), encoding="utf-8")
    return path
