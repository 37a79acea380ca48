"""The one autograd function behind every low-rank layer: only the input and the small factors are kept.

With x (N, in), W (out, in), A (r, in), B (r, out), d = gate (r,), b = out_gate (out,), s = scale:

    y  = x W^T + bias + s * b o ((x A^T) o d) B        W_e = W + s * diag(b) B^T diag(d) A

and, for g = dL/dy (N, out), h = x A^T and q = s * (g o b) B^T (N, r):

    V = q^T x:  dA = d o V,  dd = rowsum(V o A)         T = h^T g:  dB = s * d o T o b,  db = s * d (T o B)
    dx = g W + (q o d) A                                G = g^T x = dL/d(dW), on demand

Where A does not train, x is not kept: T needs h only, and dd = s * (T o B) b.

Four exact paths give the same numbers up to rounding; `cheapest_path` chooses by counting the work:

    low      skinny products over the tokens, forward and backward
    kept     as low, for frozen A and B of a large rank: (h o d) B waits for backward too, and T is not needed
    merged   W_e for the time of one product, forward and backward; V and T from the tokens
    dense    as merged, but V = s * (B o b) G and T = A G^T: nothing of width r touches the tokens
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Path = Literal["low", "kept", "merged", "dense"]
Gradients = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]  # of A, B, gate and out_gate

# Fitted to timings of single layers on a CPU, docs/log.md.
TRAFFIC = 16  # multiply-adds in the time in which one number passes between memory and core
TEMPORARY = 3  # numbers that pass per entry of a matrix that is made, used once and thrown away


def cheapest_path(
    tokens: int,
    out_features: int,
    in_features: int,
    rank: int,
    *,
    gates_only: bool,
    merge: bool = True,
    scores: bool = False,
) -> Path:
    """The path of least work, forward and backward together: multiply-adds plus TRAFFIC times numbers moved.

    The skinny products of small ranks are bound by what they stream, large ranks by arithmetic. What all
    paths do alike (the frozen layer itself) is left out.

    Args:
        tokens: rows of x.
        gates_only: A and B are frozen, gate and out_gate train.
        merge: whether W_e may be formed.
        scores: G is wanted anyway.
    """
    if rank == 0:
        return "low"
    streams, area = tokens * (out_features + in_features), out_features * in_features
    hidden, factors = tokens * rank, rank * (out_features + in_features)
    products = 0 if scores else 1 if gates_only else 2  # T, or V and T
    work: dict[Path, float] = {
        "low": streams * (rank * (2 + products / 2) + TRAFFIC * (3 + products / 2)) + 8 * TRAFFIC * hidden
    }
    if merge:
        twice = area * (rank * 2 + TRAFFIC * 2 * TEMPORARY) + 4 * TRAFFIC * factors
        work["merged"] = twice + products * (streams * (rank + TRAFFIC) + 2 * TRAFFIC * hidden)
    if gates_only and not scores:
        work["kept"] = streams * (rank * 2 + TRAFFIC * 4) + 8 * TRAFFIC * hidden
    if (
        gates_only and merge and not scores
    ):  # for the two gradients of a trained pair, G pays at no usual rank
        work["dense"] = twice + area * (tokens + rank + TRAFFIC * (TEMPORARY + 1)) + 4 * TRAFFIC * factors
    return min(work, key=lambda path: work[path])


class _Wanted(NamedTuple):
    """What backward has to make. The gradient of the gate comes from V where A trains, else from T."""

    a: bool
    b: bool
    gate: bool
    out_gate: bool
    t: bool
    big: bool

    @classmethod
    def of(cls, ctx: Any, path: Path, receive: object) -> _Wanted:
        _, weight, _, gate, out_gate, _, _, _, *blocks = ctx.needs_input_grad
        a, b = any(blocks[: len(blocks) // 2]), any(blocks[len(blocks) // 2 :])
        t = b or out_gate or (gate and not a)
        return cls(a, b, gate, out_gate, t, receive is not None or weight or (path == "dense" and (a or t)))


class LowRankFunction(torch.autograd.Function):
    """y = F.linear(x, W, bias) + the low-rank branch; see the module docstring for the formulas."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,  # (N, in)
        weight: Tensor | None,  # (out, in), of any precision; None leaves the base out: the branch alone
        bias: Tensor | None,  # (out,)
        gate: Tensor,  # (r,)
        out_gate: Tensor | None,  # (out,), needed by the path `kept`
        scale: float,
        path: Path,  # low or kept without a weight
        receive: Callable[[Tensor], None] | None,  # is given G (out, in) in backward, to keep
        *blocks: Tensor,  # A (r_k, in) of every block, then B (r_k, out) of every block
    ) -> Tensor:
        a, b = _joined(blocks)
        want = _Wanted.of(ctx, path, receive)
        h = branch = None
        if weight is not None and path in ("merged", "dense"):
            y = torch.nn.functional.linear(x, _merge(weight, a, b, gate, out_gate, scale), bias)
            if want.t and not (want.a or want.big) and a.shape[0] < a.shape[1]:
                h = x @ a.T  # all that T wants of x, and smaller
        else:
            h = x @ a.T
            base = None if weight is None else torch.nn.functional.linear(x, weight.to(x.dtype), bias)
            if path == "kept" and out_gate is not None:
                branch = (h * gate) @ b
                columns = out_gate * scale
                y = branch * columns if base is None else base.addcmul_(branch, columns)
            else:
                up = _up(b, out_gate)
                y = (h * gate) @ up * scale if base is None else accumulate(base, h * gate, up, scale)
                h = None if want.big or not want.t else h
        kept_x = x if want.a or want.big or (want.t and h is None) else None
        # the weight and the blocks as they are stored: a cast or joined copy would stay in memory until backward
        ctx.save_for_backward(kept_x, weight, gate, out_gate, h, branch, *blocks)
        ctx.scale, ctx.path, ctx.receive = scale, path, receive
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, gate, out_gate, h, branch, *blocks = ctx.saved_tensors
        scale, path, receive = ctx.scale, ctx.path, ctx.receive
        need_x, need_w, need_bias = ctx.needs_input_grad[:3]
        want = _Wanted.of(ctx, path, receive)
        a, b = _joined(blocks)

        # G (out, in): when it exists, V and T come from it and no skinny product touches the tokens
        big = g.T @ x if want.big else None
        merged = path in ("merged", "dense")
        q: Any = None  # (N, r)
        if path == "kept":
            q = ((g * out_gate) @ b.T).mul_(scale)
        elif (need_x and not merged) or (want.a and big is None):
            q = (g @ _up(b, out_gate).T).mul_(scale)

        grad_a = grad_b = grad_gate = grad_out = None
        if want.a:
            v = scale * (_up(b, out_gate) @ big) if big is not None else q.T @ x  # (r, in)
            grad_a = gate[:, None] * v
            grad_gate = (v * a).sum(1) if want.gate else None
        if path == "kept":
            grad_gate, grad_out = (h * q).sum(0), (g * branch).sum(0) * scale
        elif want.t:
            gated = want.a and big is None  # d is in T already, since nothing wants T without it
            if big is None:
                h = x @ a.T if h is None else h
                t = (h * gate if gated else h).T @ g  # (r, out)
            else:
                t = a @ big.T
            if want.b:
                t_up = t if out_gate is None else t * out_gate
                grad_b = t_up * scale if gated else scale * gate[:, None] * t_up
            if want.out_gate or not want.a:
                z = t.mul_(b)
                grad_gate = grad_gate if want.a else scale * (z.sum(1) if out_gate is None else z @ out_gate)
                grad_out = scale * (z.sum(0) if gated else gate @ z) if want.out_gate else None

        grad_x = None
        if need_x:
            if merged:
                grad_x = g @ _merge(weight, a, b, gate, out_gate, scale)
            elif weight is None:
                grad_x = (q * gate) @ a
            else:
                grad_x = accumulate(g @ weight.to(g.dtype), q * gate, a, 1.0)
        grad_w = big.to(weight.dtype) if need_w and big is not None else None
        grad_bias = g.sum(0) if need_bias else None
        if receive is not None and big is not None:
            receive(big if grad_w is None else big.clone())
        ranks = [block.shape[0] for block in blocks[: len(blocks) // 2]]
        pieces = (*_split(grad_a, ranks), *_split(grad_b, ranks))
        return grad_x, grad_w, grad_bias, grad_gate, grad_out, None, None, None, *pieces


def delta(a: Tensor, b: Tensor, gate: Tensor, out_gate: Tensor | None, scale: float) -> Tensor:
    """dW (out, in) = scale * diag(out_gate) B^T diag(gate) A."""
    return scale * (_up(b, out_gate) * gate[:, None]).T @ a


def product_step(a0: Tensor, b0: Tensor, a1: Tensor, b1: Tensor) -> tuple[Tensor, Tensor]:
    """(a, b), (2r, in) and (2r, out), with b^T a = b1^T a1 - b0^T a0: Delta-LoRA's dAB of Eq. 6, never formed."""
    return torch.cat([a1, a0]), torch.cat([b1, -b0])


def accumulate(total: Tensor, left: Tensor, right: Tensor, scale: float) -> Tensor:
    """total += scale * left @ right, in place. Not `addmm_`, which torch's counter of operations does not know."""
    return torch.addmm(total, left, right, alpha=scale, out=total)


def _joined(blocks: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """A (r, in) and B (r, out) of all blocks."""
    half = len(blocks) // 2
    if half == 1:
        return blocks[0], blocks[1]
    return torch.cat(tuple(blocks[:half])), torch.cat(tuple(blocks[half:]))


def _split(grad: Tensor | None, ranks: list[int]) -> Sequence[Tensor | None]:
    """The gradient of joined blocks, block by block."""
    return [None] * len(ranks) if grad is None else grad.split(ranks)


def _up(b: Tensor, out_gate: Tensor | None) -> Tensor:
    """B diag(out_gate), (r, out)."""
    return b if out_gate is None else b * out_gate


def _merge(
    weight: Tensor, a: Tensor, b: Tensor, gate: Tensor, out_gate: Tensor | None, scale: float
) -> Tensor:
    """W + dW as a temporary (out, in)."""
    if out_gate is not None and a.shape[0] > a.shape[1]:  # scaling the product moves less than scaling B
        product = (b * gate[:, None]).T @ a
        return torch.addcmul(weight, product, out_gate[:, None], value=scale, out=product)
    return torch.addmm(weight, (_up(b, out_gate) * gate[:, None]).T, a, alpha=scale)
