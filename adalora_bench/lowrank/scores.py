"""Importance scores as pure functions. Equation numbers are those of the papers named beside them."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def update_sensitivity(delta: Tensor, grad: Tensor, *, norm: str = "avg") -> Tensor:
    """S = avg(|dW o grad(dW)|), IncreLoRA Eq. 5; a scalar for one module.

    Args:
        delta: dW (out, in).
        grad: dL/d(dW) (out, in), of the task loss alone, summed over the micro-batches of the step.
        norm: "avg" is the paper's mean; "sqrt" divides the sum by sqrt(out * in), as the authors' code does
            (it favours large matrices).
    """
    total = (delta * grad).abs().sum()
    return total / (delta.numel() if norm == "avg" else math.sqrt(delta.numel()))


def smooth(previous: Tensor, value: Tensor, beta: float) -> Tensor:
    """I(t) = beta * I(t-1) + (1 - beta) * S(t): IncreLoRA Eq. 6, AdaLoRA Eq. 9, AFLoRA Eq. 2. Any shape."""
    return beta * previous + (1 - beta) * value


def uncertainty(previous: Tensor, value: Tensor, mean: Tensor, beta: float) -> Tensor:
    """U(t) = beta * U(t-1) + (1 - beta) * |S(t) - mean|. Any shape.

    `mean` is I(t), the updated one, for IncreLoRA Eq. 7 and AdaLoRA Eq. 10, and I(t-1) for AFLoRA Eq. 3.
    """
    return beta * previous + (1 - beta) * (value - mean).abs()


def orthogonality(x: Tensor, *, squared: bool) -> Tensor:
    """||X X^T - I||_F, or its square, for X (r, n) whose rows are to become orthonormal. A scalar.

    IncreLoRA Eq. 4 (and AdaLoRA) writes the square; both authors' codes, and so the published weights gamma,
    use the plain norm.
    """
    gap = x @ x.T - torch.eye(x.shape[0], dtype=x.dtype, device=x.device)
    return gap.square().sum() if squared else torch.linalg.matrix_norm(gap)
