"""The content key of a cell: what of its settings can change a number, and a hash of that, the data and the weights."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from adalora_bench.settings.config import MOVED, Cell

STEERING = (
    "seeds",
    "results_dir",
    "data_dir",
    "device",
    "jobs",
    "launcher",
    "on_interrupt",
    "launch",
    "offline",
    "force",
    "checkpoint_minutes",
    "recipe",
)
"""Top-level settings that change no number of a unit."""
DESCRIPTIVE = {
    "task": (
        "source",
        "description",
        "backbone_for",
        "official_rows",
        "known_subsets",
        "official_labels",
    ),  # the rows themselves are fingerprinted
    # the weights have an identity of their own in the key, and the form follows from the architecture
    "backbone": ("source", "description", "caveat", "form"),
    "train": ("log_every",),
    "method": ("pattern_from",),  # the ranks that it stands for are settings of their own
    "scale": (),
}
"""Settings below a group that change no number of a unit."""
FIRST_NAMES = {now: first for first, now in MOVED.items()}
"""A class that moved to another module keeps the name under which its first records were hashed."""


def settings_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a resolved config that can change a number: no seeds, paths, steering or prose.

    Prompts and decoding are left out for an encoder, which reads none of them: so a task can be given a prompt without
    making a stranger of what an encoder has recorded. 4-bit weights and gradient checkpointing are left out where off,
    and so is what weight decay reaches where there is none. A class stands under its first name.
    """
    from adalora_bench.data.fields import TEXT_SETTINGS

    kept = {key: value for key, value in config.items() if key not in STEERING}
    for group, names in DESCRIPTIVE.items():
        kept[group] = {key: value for key, value in kept[group].items() if key not in names}
        if (target := kept[group].get("_target_")) in FIRST_NAMES:
            kept[group]["_target_"] = FIRST_NAMES[target]
    if config["backbone"].get("form", "encoder") == "encoder":
        kept["task"] = {key: value for key, value in kept["task"].items() if key not in TEXT_SETTINGS}
    for name in ("load_in_4bit", "gradient_checkpointing"):
        if not kept["backbone"].get(name, True):
            del kept["backbone"][name]
    unused = (("early_stop", None), ("eval_at_start", False))
    kept["train"] = {k: v for k, v in kept["train"].items() if (k, v) not in unused}
    if not kept["train"].get("weight_decay"):
        kept["train"].pop("decay_biases", None)
    if kept.get("processes") == 1:
        del kept["processes"]
    return kept


def digest(value: Any) -> str:
    """sha256 of a plain value, as 64 hexadecimal digits; the order of mappings does not matter."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def with_key(cell: Cell, *, data_fingerprint: str, weights: str, engine: int) -> Cell:
    """The cell with its keys.

    Args:
        data_fingerprint: of the rows really used.
        weights: identity of the backbone's weights (hub id and revision, wheel hash, or file hash).
        engine: version of loop and layer. The versions of method and task stand in their settings.
    """
    return cell.with_keys(*_keys(cell.config, data_fingerprint, weights, engine))


def keys_of_record(record: Mapping[str, Any]) -> tuple[str | None, str]:
    """(key, settings key), worked out anew from what a record says.

    No key where the weights came from a local folder: a record keeps the folder's name and not the hash of its files.
    """
    weights = record["sources"]["backbone"]
    key, settings_key = _keys(
        record["config"], record["data_fingerprint"], weights["detail"], record["versions"]["engine"]
    )
    return (None if weights["served_by"] == "local" else key), settings_key


def _keys(config: Mapping[str, Any], data: str, weights: str, engine: int) -> tuple[str, str]:
    """(key, settings key) of a resolved config, its rows, its weights and the engine's version."""
    settings = settings_of(config)
    versions = {"engine": engine} | {
        group: settings[group].pop("version") for group in ("method", "task", "backbone")
    }
    whole = {"settings": settings, "versions": versions, "data": data, "weights": weights}
    return digest(whole), digest(settings)
