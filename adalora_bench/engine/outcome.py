"""The record of one unit, put together from what its training left. The fields are those of schema.py."""

from __future__ import annotations

import gzip
import hashlib
import logging
import math
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adalora_bench.errors import UserError
from adalora_bench.lowrank.budget import stored, trainable
from adalora_bench.lowrank.ending import cosine, cosines, final_gates
from adalora_bench.methods.run import adapter_parameters
from adalora_bench.settings import pattern, prepare
from adalora_bench.settings.key import STEERING
from adalora_bench.store.packed import PREDICTIONS, STEPS
from adalora_bench.store.records import ADAPTER, FINISHED, SCHEMA, environment, git_state
from adalora_bench.train.device import products_by

if TYPE_CHECKING:
    from adalora_bench.data.sources import Found
    from adalora_bench.engine.training import Training
    from adalora_bench.methods.run import Run

log = logging.getLogger(__name__)

LOADED_AGAIN = 10**9  # numbers of the largest backbone that is loaded once more: 4 GB in float32


def record_of(training: Training) -> dict[str, Any]:
    """Train a unit to its end, and the record of what came out."""
    return describe(training, *training.course())


def describe(training: Training, status: str, reason: str | None) -> dict[str, Any]:
    """The record of a unit that ended: `ok`, `collapsed`, `diverged`, or `failed` for a broken promise."""
    cell, run = training.unit.cell, training.run
    whole = status in FINISHED
    head = trainable(run.head)
    seconds = {k: round(v, 3) for k, v in training.meter.seconds.items()}
    peak_memory_bytes = training.meter.peak_memory_bytes()  # before anything is looked at that took no part
    turned, not_compared = _compared(training) if whole else ({}, [])
    return {
        "schema": SCHEMA,
        "key": cell.key,
        "settings_key": cell.settings_key,
        "names": cell.names,
        "overrides": [
            text for text in pattern.public(cell.overrides, cell.config) if ".source.local=" not in text
        ],
        "config": _without_paths(cell.config),
        "seed": training.unit.seed,
        "versions": {
            "task": cell.task.version,
            "backbone": cell.backbone.version,
            "method": training.method.version,
            "engine": prepare.ENGINE_VERSION,
        },
        "data_fingerprint": cell.task.fingerprint(training.found.task(cell), cell.config["split"]),
        "split": cell.config["split"],
        "status": status,
        "reason": reason,
        "main_metric": training.form.main_metric,
        "final": training.scoring.history[-1] if whole else None,
        "best": training.scoring.best if whole else None,
        "history": training.scoring.history,
        "baseline": training.form.majority(training.rows.report),
        "rows": training.rows.counts | _kept(training),
        "subset": training.rows.subset,
        "notes": _notes(training) + not_compared if whole else [],
        "params": {
            "total": sum(p.numel() for p in run.model.parameters()) - sum(p.numel() for p in run.added()),
            "head": head,
            "adapter_initial": training.initial["adapter"],
            "adapter_final": adapter_parameters(run),
            "adapter_average": round(run.budget.average_trainable, 1),
            "stored_final": stored(run.added()),
            "trace": run.budget.trainable_trace,
        },
        "ranks": {
            "initial_total": training.initial["rank"] if run.adapters else None,
            "final_total": run.total_rank if run.adapters else None,
            "final": {name: layer.rank for name, layer in run.adapters.items()},
            "trace": run.budget.trace,
            **({"nonzero": run.budget.nonzero} if run.budget.nonzero else {}),
        },
        "cosine": turned,
        "gates": final_gates(run.adapters) if whole else {},
        "events": [event.as_dict() for event in run.events],
        "seconds": seconds | {"total": round(sum(seconds.values()), 3)},
        "peak_memory_bytes": peak_memory_bytes,
        "tokens": training.meter.tokens,
        "flops": training.meter.flops,
        "environment": environment() | {"device": str(training.device), "float32_products": products_by()},
        "git": git_state(Path(__file__).parents[2]),
        "sources": {
            "task": _asset(training.found.task(cell)),
            "backbone": _asset(training.found.backbone(cell)),
        },
        "metrics": training.form.signatures(),
        "artefacts": _artefacts(training.folder) if whole else {},
        "steps": run.step,
        "total_steps": run.total_steps,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _compared(training: Training) -> tuple[dict[str, float], list[str]]:
    """Module -> cosine, and a note on those that are left out: a lack of memory or of a file loses no training.

    The note has no path of this machine; the log has the whole error.
    """
    run = training.run
    moved = [name for name in run.modules if name not in run.adapters and _trains(run, name)]
    numbers = sum(p.numel() for p in run.model.parameters())
    if moved and numbers > LOADED_AGAIN:
        note = f"no cosine to the pretrained weights: {numbers:,} numbers are not loaded a second time"
        return _cosines(training, []), [note]
    try:
        return _cosines(training, moved), []
    except (MemoryError, OSError, RuntimeError, UserError) as error:  # RuntimeError: torch without memory
        log.warning("no cosine to the pretrained weights: %s", error, exc_info=True)
        return {}, [f"no cosine to the pretrained weights: {type(error).__name__} when they were looked at"]


def _cosines(training: Training, moved: list[str]) -> dict[str, float]:
    """Module -> cosine of its trained to its pretrained weight: Delta-LoRA, Figure 3, which takes means over a block.

    Of adapted matrices, and of those that a method without adapters trains (`moved`); these are compared with the
    backbone loaded once more. Layers that peft wraps are left out.
    """
    run = training.run
    found = cosines(run.adapters, training.method.total_update)
    if moved:
        assert run.optimizer is not None
        run.optimizer.zero_grad(set_to_none=True)  # room for the second model
        pretrained = training.load_backbone().model
        for name in moved:
            weight = run.model.get_submodule(name).get_parameter("weight")
            found[name] = cosine(
                pretrained.get_submodule(name).get_parameter("weight").to(weight.device), weight
            )
    return {name: value for name, value in found.items() if math.isfinite(value)}


def _trains(run: Run, name: str) -> bool:
    weight = getattr(run.model.get_submodule(name), "weight", None)
    return weight is not None and weight.requires_grad


def _notes(training: Training) -> list[str]:
    """What a reader must know: of the method, and of a training that ended before its schedule did."""
    run = training.run
    early = [f"stopped early at step {run.step} of {run.total_steps}"] if run.step < run.total_steps else []
    return training.method.notes(run) + early + training.notes


def _kept(training: Training) -> dict[str, int]:
    """Training rows that the method kept for its own decisions, where it kept any."""
    division = training.division
    held = {"validation": sum(map(len, division.validation)), "architecture": len(division.architecture)}
    return {"weights": len(division.weights)} | held if any(held.values()) else {}


def _artefacts(folder: Path) -> dict[str, str]:
    """File beside the record -> sha256 of its content, not compressed, by which `bench verify` knows it."""
    found = {}
    for name in (STEPS, PREDICTIONS, ADAPTER):
        path = folder / name
        if path.is_file():
            with gzip.open(path) if name.endswith(".gz") else path.open("rb") as file:
                digest = hashlib.sha256()
                while piece := file.read(1 << 20):
                    digest.update(piece)
            found[name] = digest.hexdigest()
    return found


def _asset(found: Found) -> dict[str, str]:
    """Who served an asset and under which pin; no path of this machine."""
    return {"served_by": found.served_by, "detail": found.detail}


def _without_paths(config: dict[str, Any]) -> dict[str, Any]:
    """The settings of a record: nothing that steers a command, and of a local source no more than that it was one."""
    kept = {key: value for key, value in config.items() if key == "recipe" or key not in STEERING}
    for group in ("task", "backbone"):
        source = kept[group]["source"]
        if source.get("local"):
            kept[group] = kept[group] | {"source": source | {"local": "a local folder"}}
    return kept
