"""What is minimised and what is predicted, by kind of task. One function each, no state."""

from __future__ import annotations

import torch
from torch import Tensor


def item_losses(kind: str, logits: Tensor, labels: Tensor) -> Tensor:
    """Loss of every item, (n,).

    Args:
        kind: "classification" (cross-entropy over logits (n, classes), labels (n,) of class numbers) or
            "regression" (squared error of logits (n, 1) against labels (n,) of floats).
    """
    if kind == "regression":
        return (logits.float().squeeze(-1) - labels).square()
    return torch.nn.functional.cross_entropy(logits.float(), labels, reduction="none")


def predictions(kind: str, logits: Tensor) -> list[float] | list[int]:
    """Class numbers, or the predicted value."""
    if kind == "regression":
        return [float(v) for v in logits.float().squeeze(-1)]
    return [int(v) for v in logits.argmax(-1)]
