"""Importance scores as pure functions. Equation numbers are those of the papers named beside them."""

from __future__ import annotations

import math
from collections.abc import Sequence

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


def mean_orthogonality(matrices: Sequence[Tensor], *, squared: bool) -> Tensor:
    """The mean of `orthogonality` over A and B of every module: 2n matrices. AdaLoRA and IncreLoRA, as their codes."""
    terms = [orthogonality(x, squared=squared) for x in matrices]
    return sum(terms[1:], terms[0]) / len(terms)


def sensitivity(weight: Tensor, grad: Tensor) -> Tensor:
    """S = |w * dL/dw| of every single entry, AdaLoRA Eq. 8. Any shape."""
    return (weight * grad).abs()


def triplet(gate: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Importance of the triplets (singular value, row of A, row of B), AdaLoRA Eq. 7, shape (r,).

    Args:
        gate: scores of the singular values, (r,).
        a: scores of the entries of A, (r, in); their mean counts.
        b: scores of the entries of B, (r, out).
    """
    return gate + a.mean(1) + b.mean(1)


def soft_threshold(x: Tensor, xi: float) -> Tensor:
    """T_xi(x): x - xi above xi, 0 in [-xi, xi], x + xi below -xi. SoRA Eq. 11; any shape, xi >= 0.

    It is argmin_u xi |u| + (u - x)^2 / 2 (Eq. 13).
    """
    return torch.nn.functional.softshrink(x, xi)


def soft_threshold_authors(x: Tensor, xi: float) -> Tensor:
    """What SoRA's code does: T_xi, then everything below xi in size becomes 0, so xi < |x| < 2 xi is lost too.

    |x| = xi stays as it is (all their comparisons are strict), and xi = 0 leaves everything.
    """
    shrunk = torch.where(x.abs() > xi, x - xi * x.sign(), x)
    return torch.where(shrunk.abs() < xi, torch.zeros_like(x), shrunk)


def freezing_signal(weight: Tensor, grad: Tensor, *, kind: str = "grad") -> Tensor:
    """I(t) of AFLoRA Eq. 2 before smoothing, one number per entry: |grad|, or another score of its Figure 4.

    `kind` is grad, weight_times_grad or grad_over_weight; there a weight of 0 counts as 1e-12.
    """
    if kind == "grad":
        return grad.abs()
    if kind == "weight_times_grad":
        return (weight * grad).abs()
    return grad.abs() / weight.abs().clamp_min(1e-12)


def freezing_score(mean: Tensor, deviation: Tensor) -> Tensor:
    """s(t) = mean over the entries of I(t) o U(t), AFLoRA Eq. 4; a scalar for one projection matrix."""
    return (mean * deviation).mean()


def hard_concrete_sample(
    log_alpha: Tensor, uniform: Tensor, *, beta: float, low: float, high: float
) -> Tensor:
    """A gate in [0, 1] that is exactly 0 or 1 with positive probability (L0 regularisation, SaLoRA). Any shape.

    Args:
        log_alpha: location of the distribution, one per gate.
        uniform: draws from U(0, 1) of the same shape, strictly inside.
        beta: temperature.
        low, high: ends of the stretched interval, low < 0 and high > 1.
    """
    s = torch.sigmoid((torch.logit(uniform) + log_alpha) / beta)
    return (s * (high - low) + low).clamp(0, 1)


def hard_concrete_gate(log_alpha: Tensor, *, low: float, high: float) -> Tensor:
    """The gate at test time, without a draw: clamp(sigmoid(log_alpha) * (high - low) + low, 0, 1). Any shape."""
    return (torch.sigmoid(log_alpha) * (high - low) + low).clamp(0, 1)


def expected_open(log_alpha: Tensor, *, beta: float, low: float, high: float) -> Tensor:
    """P(gate > 0) = sigmoid(log_alpha - beta * log(-low / high)). Any shape; the sum is the expected rank E[L0]."""
    return torch.sigmoid(log_alpha - beta * math.log(-low / high))


def ablation_importance(full: Tensor, without: Tensor, only: Tensor) -> Tensor:
    """IS(r) = S(M) - S(M without r) + S(M with only r), ALoRA Eq. 6, with S = minus the loss. Any shape.

    Args:
        full: loss of the whole model M on the validation batch.
        without: loss with rank r taken away.
        only: loss with rank r as the only one.
    """
    return -full + without - only


def ablation_order(without: Tensor, only: Tensor) -> Tensor:
    """CS(r) = -S(M without r) + S(M with only r): ALoRA's IS less the constant S(M), so the same order. Any shape."""
    return without - only


def relaxed_gate(a: Tensor) -> Tensor:
    """alpha' = 2 sigmoid(a), ALoRA Eq. 5: in (0, 2), and 1 at the start, where a = 0. Any shape."""
    return 2 * torch.sigmoid(a)
