"""Numbers of one record that claims and figures ask for by name: scores, costs, ranks by role, times of freezing."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from adalora_bench.report.papers import COSTS, seed_value
from adalora_bench.report.rows import Record
from adalora_bench.store.schema import FINISHED

# Name -> (field, part) of a record, as it stands there.
FACTS: dict[str, tuple[str, str]] = {
    "params_initial": ("params", "adapter_initial"),
    "params_final": ("params", "adapter_final"),
    "params_average": ("params", "adapter_average"),
    "flops": ("flops", "first_step"),
}
ANGLE = "angle"  # degrees between trained and pretrained weights: arc cosine of the mean cosine of the blocks
THIRDS = ("shallow", "middle", "deep")


def is_score(metric: str) -> bool:
    """Whether a name is a metric of the report rows: a diverged seed is then worse than every finished one."""
    known = {*COSTS, *FACTS, ANGLE}
    return metric not in known and not metric.startswith(("rank.", "freeze_step."))


def measure(record: Record, metrics: Sequence[str]) -> float | None:
    """Mean of the named numbers of one seed; None where it did not finish or one of them is unknown.

    Args:
        metrics: names; of alternatives ("acc_gen|acc") the first that the record has.
    """
    if record["status"] not in FINISHED:
        return None
    values = [_first(record, metric.split("|")) for metric in metrics]
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if values and len(known) == len(values) else None


def places(record: Record) -> dict[str, tuple[str, str, int]]:
    """Module name without its first part -> (stack, role, block), for every matrix that the backbone's roles name.

    The stack is what stands before the number of the block, so that encoder and decoder stay apart.
    """
    backbone = record["config"].get("backbone") or {}
    found = {}
    for role, names in (backbone.get("roles") or {}).items():
        for pattern in names if isinstance(names, list) else [names]:
            stack = pattern.partition("{i}")[0].rstrip(".")
            for block in range(backbone.get("layers") or 0):
                found[pattern.replace("{i}", str(block))] = (stack, role, block)
    return found


def place_of(name: str, known: Mapping[str, tuple[str, str, int]]) -> tuple[str, str, int] | None:
    """Where a module of a record ("body.encoder.layer.0.output.dense") lies; None for one outside the roles."""
    return known.get(name) or known.get(name.partition(".")[2])


def ranks_by_place(record: Record) -> dict[tuple[str, str, int], int]:
    """(stack, role, block) -> final rank."""
    known = places(record)
    ranks: dict[str, int] = (record.get("ranks") or {}).get("final") or {}
    placed = {name: place_of(name, known) for name in ranks}
    return {place: ranks[name] for name, place in placed.items() if place is not None}


def freezing(record: Record) -> dict[tuple[str, str, str, int], int]:
    """(stack, role, A or B, block) -> step at which AFLoRA froze it."""
    known, found = places(record), {}
    for event in record.get("events") or []:
        if event["kind"] == "freeze":
            module, _, letter = event["module"].rpartition(".")
            place = place_of(module, known)
            if place is not None:
                stack, role, block = place
                found[stack, role, letter, block] = event["step"]
    return found


def cosine_by_block(record: Record) -> dict[tuple[str, int], float]:
    """(stack, block) -> mean cosine of its trained matrices to their pretrained weights (Delta-LoRA, Figure 3)."""
    known, blocks = places(record), defaultdict(list)
    for name, value in (record.get("cosine") or {}).items():
        place = place_of(name, known)
        if place is not None:
            blocks[place[0], place[2]].append(value)
    return {place: sum(values) / len(values) for place, values in sorted(blocks.items())}


def third(block: int, layers: int) -> str:
    """Shallow, middle or deep: the block's third of the stack."""
    return THIRDS[min(3 * block // layers, 2)]


def _first(record: Record, names: Sequence[str]) -> float | None:
    return next((value for name in names if (value := _one(record, name)) is not None), None)


def _one(record: Record, name: str) -> float | None:
    if name in FACTS:
        field, part = FACTS[name]
        node: Any = record.get(field)
        value = node.get(part) if isinstance(node, Mapping) else None
        return None if value is None else float(value)
    if name == ANGLE:
        blocks = list(cosine_by_block(record).values())
        return math.degrees(math.acos(sum(blocks) / len(blocks))) if blocks else None
    kind, _, part = name.partition(".")
    if kind == "rank":
        return _mean_rank(record, part)
    if kind == "freeze_step":
        role, _, letter = part.partition(".")
        steps = [step for (_, at, of, _), step in freezing(record).items() if (at, of) == (role, letter)]
        return sum(steps) / len(steps) if steps else None
    return seed_value(record, name)


def _mean_rank(record: Record, part: str) -> float | None:
    """Mean final rank of a role, or of a third of the layers."""
    layers = (record["config"].get("backbone") or {}).get("layers") or 1
    groups: dict[str, list[int]] = defaultdict(list)
    for (_, role, block), rank in ranks_by_place(record).items():
        groups[role].append(rank)
        groups[third(block, layers)].append(rank)
    return sum(groups[part]) / len(groups[part]) if part in groups else None
