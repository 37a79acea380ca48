"""Rank allocation as pure functions on plain numbers: who grows, who is pruned. Ties go to the lower index."""

from __future__ import annotations

from collections.abc import Sequence


def grow_top(scores: Sequence[float], *, modules: int, ranks: int, remaining: int) -> dict[int, int]:
    """IncreLoRA, Algorithm 1: the `modules` best-scored modules gain `ranks` each, never past `remaining`.

    Args:
        scores: one per module.
        modules: h, the number of modules that may grow in one event.
        ranks: ranks per grown module.
        remaining: ranks left until the final total; the last module takes only what is left.

    Returns:
        module index -> ranks gained, best module first.
    """
    order = sorted(range(len(scores)), key=lambda k: (-scores[k], k))
    gained: dict[int, int] = {}
    for k in order[:modules]:
        if remaining <= 0:
            break
        gained[k] = min(ranks, remaining)
        remaining -= gained[k]
    return gained
