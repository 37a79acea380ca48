"""What a command would do: units done, missing, stale or failed, the phases of each method, and what it costs.

Hours and GiB are expected from past records: seconds per step of the nearest cell that was run. Imports no torch.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from statistics import median
from typing import Any

from adalora_bench.engine.units import count
from adalora_bench.errors import UserError
from adalora_bench.methods.base import Facts
from adalora_bench.settings.cells import name_of
from adalora_bench.settings.config import Cell
from adalora_bench.store.schema import DONE, finished_at

Record = Mapping[str, Any]

STATES = ("done", "missing", "stale", "failed")
# How near a past record is to a cell: the first level that has records is taken.
LEVELS = (
    ("task", "backbone", "method", "scale"),
    ("task", "backbone", "method"),
    ("task", "backbone"),
    ("backbone", "method"),
    ("backbone",),
)
NEWEST = 10  # records that an expectation rests on, at most


@dataclass(frozen=True, kw_only=True)
class Expected:
    """Seconds of one unit, GiB of its process, and which past records say so: how many, alike in what."""

    seconds: float
    gib: float | None
    records: int
    level: tuple[str, ...]

    @property
    def basis(self) -> str:
        """For people."""
        return f"{self.records} records of the same {', '.join(self.level)}"


@dataclass(frozen=True, kw_only=True)
class PlannedCell:
    """One cell of a command.

    Args:
        units: state -> how many of its seeds.
        facts: steps; None where the data is not on this machine and no official row count is known.
        phases: lengths of the method in steps, by name of the setting.
        expected: of one unit; None where nothing like it was ever run.
    """

    cell: Cell
    units: dict[str, int]
    facts: Facts | None
    phases: dict[str, int]
    expected: Expected | None

    @property
    def left(self) -> int:
        """Units that a run would train."""
        return sum(self.units.values()) - self.units.get("done", 0)


def plan(
    cells: Sequence[Cell], facts: Sequence[Facts | None], records: Sequence[Record]
) -> list[PlannedCell]:
    """One entry per cell.

    Args:
        cells: with their keys where the data is on this machine; without (an empty key) nothing counts as done.
        facts: of each cell.
        records: everything in the store.
    """
    return [
        PlannedCell(
            cell=cell,
            units=_units(cell, records),
            facts=known,
            phases={} if known is None else phases_of(cell, known),
            expected=None if known is None else expect(cell, known.total_steps, records),
        )
        for cell, known in zip(cells, facts, strict=True)
    ]


def _units(cell: Cell, records: Iterable[Record]) -> dict[str, int]:
    exact = {r["seed"]: r["status"] for r in records if r["key"] == cell.key}
    older = {r["seed"] for r in records if r["settings_key"] == cell.settings_key and r["key"] != cell.key}
    states: Counter[str] = Counter()
    for seed in cell.seeds:
        if exact.get(seed) in DONE:
            states["done"] += 1
        elif seed in exact:
            states["failed"] += 1
        else:
            states["stale" if cell.key and seed in older else "missing"] += 1
    return {state: states[state] for state in STATES if states[state]}


def phases_of(cell: Cell, facts: Facts) -> dict[str, int]:
    """The method's settings that are lengths, in steps."""
    method = cell.method
    lengths = {f.name: getattr(method, f.name) for f in fields(method) if "Phase" in str(f.type)}
    found = {}
    for name, value in lengths.items():
        try:
            found[name] = facts.steps(f"method.{name}", value)
        except (UserError, AttributeError):  # null, or a share of something else than steps
            continue
    return found


def expect(cell: Cell, steps: int, records: Iterable[Record]) -> Expected | None:
    """Seconds per step of the nearest cell that was run, times the steps; evaluation and loading are in it.

    Of what is equally near the newest count: they ran on the present machine and code.
    """
    usable = [
        r for r in records if r["status"] in DONE and r.get("steps") and (r.get("seconds") or {}).get("total")
    ]
    size = cell.config["train"]["batch_size"]
    for level in LEVELS:
        near = [
            r
            for r in usable
            if all(r["names"][part] == cell.names[part] for part in level)
            and r["config"].get("train", {}).get("batch_size", size) == size
        ]
        if near:
            near = sorted(near, key=finished_at)[-NEWEST:]
            per_step = median([r["seconds"]["total"] / r["steps"] for r in near])
            memory = [r["peak_memory_bytes"] for r in near if r.get("peak_memory_bytes")]
            return Expected(
                seconds=per_step * steps,
                gib=median(memory) / 2**30 if memory else None,
                records=len(near),
                level=level,
            )
    return None


def gib_of(cells: Iterable[Cell], records: Sequence[Record]) -> dict[str, float]:
    """Key of a cell -> GiB of its process by past records that are alike in all of LEVELS[0]; others are left out."""
    found = {}
    for cell in cells:
        expected = None if cell.key in found else expect(cell, 1, records)
        if expected is not None and expected.gib is not None and expected.level == LEVELS[0]:
            found[cell.key] = expected.gib
    return found


def plan_lines(planned: Sequence[PlannedCell], jobs: int) -> list[str]:
    """For people: one block per cell, and the whole."""
    lines = []
    for one in planned:
        cell = one.cell
        lines.append(f"{name_of(cell)}: {_states(one.units)}")
        if one.facts is None:
            lines.append("  steps unknown: the data is not on this machine (bench fetch brings it)")
            continue
        parts = [f"{one.facts.total_steps} steps ({one.facts.steps_per_epoch} an epoch)"]
        parts += [f"warmup {one.facts.warmup}", *(f"{key} {steps}" for key, steps in one.phases.items())]
        lines.append("  " + ", ".join(parts))
        if one.left and one.expected is not None:
            memory = "" if one.expected.gib is None else f", {one.expected.gib:.1f} GiB"
            lines.append(f"  about {duration(one.expected.seconds)} a unit{memory} ({one.expected.basis})")
        elif one.left:
            lines.append("  time unknown: nothing with this backbone was run yet")
    left = sum(one.left for one in planned)
    known = [one for one in planned if one.left and one.expected is not None]
    units = [one.expected.seconds for one in known if one.expected is not None for _ in range(one.left)]
    total = sum(sum(one.units.values()) for one in planned)
    unknown = sum(one.left for one in planned if one.left and one.expected is None)
    whole = Counter[str]()
    for one in planned:
        whole.update(one.units)
    lines.append(f"{count(len(planned), 'cell')}, {count(total, 'unit')}: {_states(whole)}; {left} to train")
    if nowhere := sorted({one.cell.names["task"] for one in planned if not one.cell.key}):
        lines.append(
            f"{', '.join(nowhere)}: the data is not on this machine (bench fetch, or ADALORA_BENCH_DATA), so records "
            "are not recognised and all units count as missing"
        )
    if known:
        rest = f", and {unknown} units of unknown length" if unknown else ""
        largest = max((one.expected.gib or 0.0 for one in known if one.expected is not None), default=0.0)
        room = f", {jobs} processes of {largest:.1f} GiB at most" if largest else ""
        lines.append(
            f"expected: {duration(sum(units))} of work, about {duration(makespan(units, jobs))} with "
            f"jobs={jobs}{room}{rest}"
        )
    return lines


def _states(units: Mapping[str, int]) -> str:
    return ", ".join(f"{units[state]} {state}" for state in STATES if units.get(state))


def makespan(seconds: Sequence[float], workers: int) -> float:
    """Seconds until the last unit has ended, where each worker that is free takes the next one in order."""
    ends = [0.0] * min(workers, max(1, len(seconds)))  # a heap: the first is the worker that is free first
    for one in seconds:
        heapq.heapreplace(ends, ends[0] + one)
    return max(ends)


def duration(seconds: float) -> str:
    """45 s, 12 min or 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
