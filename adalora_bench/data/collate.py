"""Which examples make up a batch, and how it is cut into pieces of similar length. Imports torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch

from adalora_bench.seeds import generator

Example = Mapping[str, Any]  # "length" is all that is read here


def split_by_length(examples: Sequence[Example], positions: Sequence[int], pieces: int) -> list[list[int]]:
    """Cut one batch into at most `pieces` micro-batches of similar length, longest first.

    Which items make up the batch does not change, and so its gradient does not (but for rounding and dropout
    noise); only padding goes away.
    """
    ordered = sorted(positions, key=lambda i: (-examples[i]["length"], i))
    size = -(-len(ordered) // pieces)
    return [ordered[i : i + size] for i in range(0, len(ordered), size)]


@lru_cache(maxsize=2)
def epoch_order(rows: int, seed: int, epoch: int) -> list[int]:
    """The permutation of one epoch. It depends on (seed, epoch) alone, so a resumed run needs no sampler state."""
    return torch.randperm(rows, generator=generator(seed, "order", epoch)).tolist()


def batch_positions(rows: int, batch_size: int, seed: int, step: int) -> list[int]:
    """Rows of the batch of a step; the last batch of an epoch may be smaller."""
    per_epoch = -(-rows // batch_size)
    epoch, index = divmod(step, per_epoch)
    return epoch_order(rows, seed, epoch)[index * batch_size : (index + 1) * batch_size]


def evaluation_batches(examples: Sequence[Example], *, size: int) -> list[list[int]]:
    """Positions of all examples in batches, sorted by length so that little is padded."""
    return split_by_length(examples, range(len(examples)), -(-len(examples) // size))
