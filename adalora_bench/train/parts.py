"""Rows that a method keeps for its own decisions, and the loss on them as a list of parts.

A part is a closure without arguments that returns a scalar; the sum over a list of parts is the mean loss of one batch.
Every call of a part passes the very same input tensors to the model, so that what does not change need not run again
(lowrank/replay.py). Mode and grad mode are those of the caller.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from adalora_bench.data.collate import batch_positions, split_by_length
from adalora_bench.methods.base import Method
from adalora_bench.methods.run import Run
from adalora_bench.seeds import derive, generator
from adalora_bench.train.loop import Data, LoopSettings, micro_loss


@dataclass(frozen=True)
class Division:
    """Positions of the training rows: those that train the weights, and those that a method keeps."""

    weights: list[int]
    validation: list[list[int]]  # one list per batch
    architecture: list[int]


def divide(rows: int, method: Method, seed: int) -> Division:
    """Draw the rows that the method keeps; the same ones for a seed, whoever asks and whenever."""
    batches, size = method.validation_batches()
    left = method.rows_for_weights(rows)
    if left == rows:
        return Division(list(range(rows)), [], [])
    order = torch.randperm(rows, generator=generator(seed, "division")).tolist()
    held, rest = order[: batches * size], order[batches * size :]
    return Division(
        weights=sorted(rest[:left]),
        validation=[held[k * size : (k + 1) * size] for k in range(batches)],
        architecture=sorted(rest[left:]),
    )


def loss_parts(
    run: Run, data: Data, positions: Sequence[int], settings: LoopSettings
) -> list[Callable[[], Tensor]]:
    """The mean loss on these rows of `data.train`, cut into as many length-sorted parts as a training batch."""

    items = data.form.items(data.train, positions)

    def part(piece: Sequence[int]) -> Callable[[], Tensor]:
        micro = data.form.collate(data.train, piece).to(data.device)
        return lambda: micro_loss(run, micro, data, items=items, precision=settings.precision)

    return [part(piece) for piece in split_by_length(data.train, positions, settings.micro_batches)]


def architecture_batches(
    run: Run, data: Data, settings: LoopSettings, seed: int
) -> Callable[[], list[Callable[[], Tensor]]]:
    """For `Run.arch_parts`: the batch of the current step, in an order of its own."""

    def parts() -> list[Callable[[], Tensor]]:
        order = derive(seed, "architecture")
        return loss_parts(
            run, data, batch_positions(len(data.train), settings.batch_size, order, run.step), settings
        )

    return parts
