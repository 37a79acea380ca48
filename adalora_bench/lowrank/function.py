"""The one autograd function behind every low-rank layer: only the input and the small factors are kept.

With x (N, in), W (out, in), A (r, in), B (r, out), d = gate (r,), b = out_gate (out,), s = scale:

    y  = x W^T + bias + s * b o ((x A^T) o d) B        W_e = W + s * diag(b) B^T diag(d) A

and, for g = dL/dy (N, out), h = x A^T and q = s * (g o b) B^T (N, r):

    V = q^T x:  dA = d o V,  dd = rowsum(V o A)         T = s * (h o d)^T g:  dB = b o T,  db = colsum(T o B)
    dx = g W + (q o d) A                                G = g^T x = dL/d(dW), on demand only

Two exact paths give the same numbers up to rounding: `low` streams skinny products, `merged` forms W_e for the
time of one product. `merged_is_cheaper` chooses by counting the work.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def merged_is_cheaper(tokens: int, out_features: int, in_features: int, rank: int) -> bool:
    """Whether forming W_e = W + s B^T A costs less than the skinny products of the low-rank path.

    The merged path writes and reads one (out, in) temporary, forward and backward: 2 * out * in numbers. The
    low-rank path streams the input and the output once more each way: 2 * tokens * (out + in) numbers. A
    skinny product is bound by this traffic, not by its arithmetic, so the traffic decides. The factor 2 is
    the measured tie of 12x576 shapes at 1,024 tokens (docs/log.md).
    """
    return rank > 0 and tokens * (out_features + in_features) > 2 * out_features * in_features


class LowRankFunction(torch.autograd.Function):
    """y = F.linear(x, W, bias) + the low-rank branch; see the module docstring for the formulas."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,  # (N, in)
        weight: Tensor | None,  # (out, in), of any precision; None leaves the base out (the branch alone)
        bias: Tensor | None,  # (out,)
        a: Tensor,  # (r, in)
        b: Tensor,  # (r, out)
        gate: Tensor,  # (r,)
        out_gate: Tensor | None,  # (out,)
        scale: float,
        merged: bool,
        receive: Callable[[Tensor], None] | None,  # is given G (out, in) in backward, to keep
    ) -> Tensor:
        h = None
        if weight is not None and merged:
            y = torch.nn.functional.linear(x, _merge(weight, a, b, gate, out_gate, scale), bias)
        else:
            h = x @ a.T
            up = b if out_gate is None else b * out_gate
            if weight is None:
                y = (h * gate) @ up * scale
            else:
                y = torch.nn.functional.linear(x, weight.to(x.dtype), bias)
                y = y.addmm_(h * gate, up, alpha=scale)
        # the weight as it is stored: a cast copy of it would stay in memory until backward
        ctx.save_for_backward(x, weight, a, b, gate, out_gate, h)
        ctx.scale, ctx.merged, ctx.receive = scale, merged and weight is not None, receive
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, a, b, gate, out_gate, h = ctx.saved_tensors
        scale, merged, receive = ctx.scale, ctx.merged, ctx.receive
        need_x, need_w, need_bias, need_a, need_b, need_gate, need_out = ctx.needs_input_grad[:7]
        up = b if out_gate is None else b * out_gate

        # G (out, in): when it exists, T and V come from it and no skinny product touches the tokens
        big: Tensor | None = None
        if receive is not None or need_w:
            big = g.T @ x

        need_v = need_a or need_gate
        need_q = (need_v and big is None) or (need_x and not merged)
        q: Any = (g @ up.T).mul_(scale) if need_q else None  # (N, r)

        grad_a = grad_b = grad_gate = grad_out = None
        if need_v:
            v = scale * (up @ big) if big is not None else q.T @ x  # (r, in)
            grad_a = gate[:, None] * v if need_a else None
            grad_gate = (v * a).sum(1) if need_gate else None
        if need_b or need_out:
            if big is not None:
                t = scale * gate[:, None] * (a @ big.T)  # (r, out)
            else:
                h = x @ a.T if h is None else h
                t = (h * gate).T @ g * scale
            grad_b = (t if out_gate is None else t * out_gate) if need_b else None
            grad_out = (t * b).sum(0) if need_out else None

        grad_x = None
        if need_x:
            if merged:
                grad_x = g @ _merge(weight, a, b, gate, out_gate, scale)
            elif weight is None:
                grad_x = (q * gate) @ a
            else:
                grad_x = (g @ weight.to(g.dtype)).addmm_(q * gate, a)
        grad_w = big.to(weight.dtype) if need_w and big is not None else None
        grad_bias = g.sum(0) if need_bias else None
        if receive is not None and big is not None:
            receive(big if grad_w is None else big.clone())
        return grad_x, grad_w, grad_bias, grad_a, grad_b, grad_gate, grad_out, None, None, None


def delta(a: Tensor, b: Tensor, gate: Tensor, out_gate: Tensor | None, scale: float) -> Tensor:
    """dW (out, in) = scale * diag(out_gate) B^T diag(gate) A."""
    up = b if out_gate is None else b * out_gate
    return scale * (up * gate[:, None]).T @ a


def product_step(a0: Tensor, b0: Tensor, a1: Tensor, b1: Tensor) -> tuple[Tensor, Tensor]:
    """(a, b), (2r, in) and (2r, out), with b^T a = b1^T a1 - b0^T a0: Delta-LoRA's dAB of Eq. 6, never formed."""
    return torch.cat([a1, a0]), torch.cat([b1, -b0])


def _merge(
    weight: Tensor, a: Tensor, b: Tensor, gate: Tensor, out_gate: Tensor | None, scale: float
) -> Tensor:
    """W + dW as a temporary (out, in)."""
    up = b if out_gate is None else b * out_gate
    return torch.addmm(weight, (up * gate[:, None]).T, a, alpha=scale)
