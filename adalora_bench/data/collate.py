"""From encoded examples to padded tensors, with as little padding as the batch allows. Imports torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from adalora_bench.train.seeds import generator

Example = dict[str, Any]  # input_ids, maybe token_type_ids, label


@dataclass(frozen=True)
class MicroBatch:
    """inputs: tensors (n, length) for the model; labels (n,); positions of the items in the caller's list."""

    inputs: dict[str, Tensor]
    labels: Tensor
    positions: list[int]

    def to(self, device: torch.device) -> MicroBatch:
        """The same batch with its tensors on a device."""
        inputs = {name: tensor.to(device) for name, tensor in self.inputs.items()}
        return MicroBatch(inputs, self.labels.to(device), self.positions)

    @property
    def real_tokens(self) -> int:
        return int(self.inputs["attention_mask"].sum())

    @property
    def processed_tokens(self) -> int:
        return self.inputs["attention_mask"].numel()


def collate(
    examples: Sequence[Example], positions: Sequence[int], *, pad_id: int, regression: bool
) -> MicroBatch:
    """Pad to the longest of these examples, on the right."""
    chosen = [examples[i] for i in positions]
    length = max(len(e["input_ids"]) for e in chosen)
    inputs = {
        "input_ids": _padded([e["input_ids"] for e in chosen], length, pad_id),
        "attention_mask": _padded([[1] * len(e["input_ids"]) for e in chosen], length, 0),
    }
    if "token_type_ids" in chosen[0]:
        inputs["token_type_ids"] = _padded([e["token_type_ids"] for e in chosen], length, 0)
    labels = torch.tensor([e["label"] for e in chosen], dtype=torch.float32 if regression else torch.long)
    return MicroBatch(inputs, labels, list(positions))


def split_by_length(examples: Sequence[Example], positions: Sequence[int], pieces: int) -> list[list[int]]:
    """Cut one batch into at most `pieces` micro-batches of similar length, longest first.

    Which items make up the batch does not change, and so its gradient does not (but for rounding and dropout
    noise); only padding goes away.
    """
    ordered = sorted(positions, key=lambda i: (-len(examples[i]["input_ids"]), i))
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


def evaluation_batches(
    examples: Sequence[Example], *, size: int, pad_id: int, regression: bool
) -> Iterator[MicroBatch]:
    """All examples, sorted by length so that little is padded; `positions` leads back to their places."""
    for positions in split_by_length(examples, range(len(examples)), -(-len(examples) // size)):
        yield collate(examples, positions, pad_id=pad_id, regression=regression)


def _padded(rows: Sequence[Sequence[int]], length: int, fill: int) -> Tensor:
    out = torch.full((len(rows), length), fill, dtype=torch.long)
    for i, row in enumerate(rows):
        out[i, : len(row)] = torch.tensor(row, dtype=torch.long)
    return out
