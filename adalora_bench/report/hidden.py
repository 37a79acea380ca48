"""What a caption says of records that a table does not show. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from adalora_bench.report.cells import Hidden

NAMED = 12  # keys; of more the rest is counted


def not_shown(hidden: Sequence[Hidden], which: str) -> str:
    """7 further records with other settings are not shown: lora on rte, key 1a2b3c4d (5); lora on cola, ..."""
    total = sum(one.records for one in hidden)
    names = [f"{one.label} on {one.task}, key {one.key8} ({one.records})" for one in hidden[:NAMED]]
    rest = len(hidden) - NAMED
    names += [f"and {rest} more keys ({sum(one.records for one in hidden[NAMED:])})"] if rest > 0 else []
    noun, verb = ("record", "is") if total == 1 else ("records", "are")
    return f"{total} further {noun} {which} {verb} not shown: {'; '.join(names)}."
