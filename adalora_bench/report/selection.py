"""Which evaluation of a run its tables, claims and figures show: the last, or the best one where dev rows chose it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

Selection = Literal["last", "best"]
SELECTIONS: dict[str, str] = {"last": "final", "best": "best"}
CHOSEN_ON_DEV = "dev_test"  # the split whose protocol reports the evaluation that was best on dev rows


def selection_of(split: str) -> Selection:
    """Which evaluation stands for a run: the one that was best on dev rows, where there are some; else the last."""
    return "best" if split == CHOSEN_ON_DEV else "last"


def reported(record: Mapping[str, Any], selection: Selection | None = None) -> Mapping[str, Any] | None:
    """The evaluation of a record that tables, claims and figures show; None where it has none at all.

    Without a `selection` its split has its own. A record without a best evaluation stands with its last.
    """
    chosen = SELECTIONS[selection or selection_of(record["split"])]
    point: Mapping[str, Any] | None = record.get(chosen) or record.get("final")
    return point
