"""From a model to predictions and scores on the report rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from adalora_bench.data.collate import Example, evaluation_batches
from adalora_bench.errors import Diverged
from adalora_bench.train.loop import autocast
from adalora_bench.train.objective import predictions

Predictions = list[float] | list[int]


@torch.inference_mode()
def predict(
    model: nn.Module,
    examples: Sequence[Example],
    *,
    kind: str,
    pad_id: int,
    device: torch.device,
    precision: str,
    batch_size: int = 32,
) -> Predictions:
    """One prediction for each example, in the order given. Leaves the model in evaluation mode.

    Raises:
        Diverged: a logit is NaN or infinite (the largest of them would still name a class).
    """
    model.eval()
    out: list[Any] = [None] * len(examples)
    for batch in evaluation_batches(
        examples, size=batch_size, pad_id=pad_id, regression=kind == "regression"
    ):
        with autocast(device, precision):
            logits = model(**{k: v.to(device) for k, v in batch.inputs.items()})
        if not bool(torch.isfinite(logits).all()):
            raise Diverged("a logit of the report rows is not finite")
        for position, value in zip(batch.positions, predictions(kind, logits), strict=True):
            out[position] = value
    return out


def is_collapsed(predicted: Mapping[str, Predictions], labels: Mapping[str, Sequence[Any]]) -> bool:
    """Whether one and the same answer was given to every row although the labels differ."""
    answers = {value for values in predicted.values() for value in values}
    return len(answers) == 1 and len({label for values in labels.values() for label in values}) > 1
