"""The loss without one rank and with it alone, for many ranks: by plain passes, by replay, or to first order.

Every function runs the model in eval mode and puts mode and gates back. A batch is a list of parts: closures without
arguments that give scalars, whose sum is the loss (train/parts.py). A rank is (index of the layer, index on its rank
axis). The result is a tensor (ranks, 2) of losses in float64: without the rank, and with it alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from adalora_bench.lowrank.adapter import LowRankLinear, RankBlock
from adalora_bench.lowrank.replay import Replay

Parts = Sequence[Callable[[], Tensor]]
Ranks = Sequence[tuple[int, int]]


def plain_losses(model: nn.Module, layers: Sequence[LowRankLinear], parts: Parts, ranks: Ranks) -> Tensor:
    """Two plain passes per rank, with the gates set: what the others are measured by."""
    starts = [layer.factors().gate.detach() for layer in layers]
    zeros = [torch.zeros_like(gate) for gate in starts]
    losses = torch.zeros(len(ranks), 2, dtype=torch.float64)
    with evaluating(model), torch.no_grad():
        for row, (k, rank) in enumerate(ranks):
            for column, base in enumerate((starts, zeros)):
                changed = base[k].clone()
                changed[rank] = starts[k][rank] if column else 0
                with gates_of(layers, [*base[:k], changed, *base[k + 1 :]]):
                    losses[row, column] = sum(float(part()) for part in parts)
    return losses


def replayed_losses(model: nn.Module, layers: Sequence[LowRankLinear], parts: Parts, ranks: Ranks) -> Tensor:
    """The same losses up to rounding, about 1e-7 in float32, by prefix replay (replay.py).

    Raises:
        UserError: the model keeps state between calls; one variant of the first part finds that out.
    """
    losses = torch.zeros(len(ranks), 2, dtype=torch.float64)
    with evaluating(model), torch.no_grad(), Replay(model, layers) as replay:
        for number, part in enumerate(parts):
            for column, only in enumerate((False, True)):
                replay.reference(part, only=only)
                used = next((rank for rank in reversed(ranks) if replay.uses(rank[0])), None)
                if number == 0 and used is not None:
                    replay.verify(part, *used)
                found = [replay.variant(part, *rank) for rank in ranks]
                losses[:, column] += torch.tensor(found, dtype=torch.float64)
    return losses


def first_order_losses(
    model: nn.Module, layers: Sequence[LowRankLinear], parts: Parts, ranks: Ranks
) -> Tensor:
    """Estimates from two backward passes: L(all) - g dL/dg with all gates as they are, L(none) + g dL/dg with all at 0.

    What is behind a rank is taken as linear, so this is no exact score. Gradients of parameters stay as they are.
    """
    blocks = [list(layer.rank_blocks()) for layer in layers]
    flat = [block for row in blocks for block in row]
    starts = [block.effective_gate().detach() for block in flat]
    columns = []
    for sign, gates in ((-1, starts), (1, [torch.zeros_like(gate) for gate in starts])):
        leaves = [gate.clone().requires_grad_() for gate in gates]
        slopes = [torch.zeros_like(gate, dtype=torch.float64) for gate in gates]
        total = 0.0
        with evaluating(model), torch.enable_grad(), standing_in(flat, leaves):
            for part in parts:
                loss = part()
                total += float(loss.detach())
                for slope, grad in zip(slopes, gradients(loss, leaves), strict=True):
                    slope += grad
        effects = [total + sign * gate * slope for gate, slope in zip(starts, slopes, strict=True)]
        pieces = iter(effects)
        rows = [torch.cat([next(pieces) for _ in row]) if row else torch.zeros(0) for row in blocks]
        columns.append([rows[k][rank] for k, rank in ranks])
    return torch.tensor(columns, dtype=torch.float64).T.reshape(len(ranks), 2)


def gradients(loss: Tensor, leaves: Sequence[Tensor]) -> list[Tensor]:
    """Of a scalar by each leaf; zeros where the forward pass left its layer out."""
    found = torch.autograd.grad(loss, leaves, allow_unused=True)
    return [torch.zeros_like(leaf) if one is None else one for leaf, one in zip(leaves, found, strict=True)]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode for a while; every module gets back the mode that it had."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def gates_of(layers: Sequence[LowRankLinear], gates: Sequence[Tensor]) -> Iterator[None]:
    """These gates, one vector (r,) per layer, in place of those of the layers for a while."""
    blocks = [list(layer.rank_blocks()) for layer in layers]
    split = [gate.split([b.rank for b in row]) for gate, row in zip(gates, blocks, strict=True) if row]
    with standing_in([b for row in blocks for b in row], [piece for row in split for piece in row]):
        yield


@contextmanager
def standing_in(blocks: Sequence[RankBlock], gates: Sequence[Tensor]) -> Iterator[None]:
    """These gates, one vector per block, for a while."""
    before = [(block, block.step_gate) for block in blocks]
    for block, gate in zip(blocks, gates, strict=True):
        block.step_gate = gate
    try:
        yield
    finally:
        for block, own in before:
            block.step_gate = own
