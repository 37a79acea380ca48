"""Several processes that train one cell together: data parallel, with the batch of one process.

Every process holds the whole model and takes its share of the micro-batches of the same global batch. What they
learned is added up once per step, before any hook of the method sees it: loss, gradients and dense gradients of dW.
From there on all processes hold the same numbers, draw from the same generators, and so score, grow, prune and freeze
alike; parameters that are born in training are born alike. With one process nothing here does anything.

Sums are made in the precision of the parameters (float32), also where autocast calculates in bf16: gradients of
parameters have it, and dense gradients are turned into it before they are added.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

if TYPE_CHECKING:
    from adalora_bench.methods.run import Run

Piece = TypeVar("Piece")


@dataclass(frozen=True)
class Team:
    """The processes of one cell; `rank` is this one, and 0 is the one that writes."""

    rank: int = 0
    size: int = 1

    def share(self, pieces: Sequence[Piece]) -> Sequence[Piece]:
        """This process's part of the micro-batches of a step; none where there are fewer than processes."""
        return pieces[self.rank :: self.size]

    def add_up(self, run: Run, losses: Sequence[Tensor]) -> float:
        """The loss of the whole batch; afterwards every gradient is that of the whole batch as well.

        A part's loss is divided by the items of the whole batch, so that parts are added and not averaged.

        Args:
            losses: of this process's micro-batches.

        Raises:
            RuntimeError: the processes have come to hold different parameters.
        """
        if self.size == 1:
            return float(torch.stack(list(losses)).sum())
        loss = torch.stack(list(losses)).sum() if losses else torch.zeros(())  # moved beside the norms
        leaves: list[Tensor] = [*run.trainable_parameters()]
        leaves += [
            b.step_gate for b in run.rank_blocks() if b.step_gate is not None and b.step_gate.requires_grad
        ]
        layers = [layer for layer in run.adapters.values() if layer.want_delta_grad]
        grads = [leaf.grad for leaf in leaves] + [layer.delta_grad for layer in layers]
        like = [*leaves, *(layer.weight for layer in layers)]
        here = torch.stack(torch._foreach_norm([leaf.detach() for leaf in leaves])).sum()
        (added, weights), summed = self._added([loss, here], grads, like)
        # a loss that is not finite is the loop's to judge: the training has diverged, the processes have not drifted
        if torch.isfinite(added) and not torch.isclose(weights, here * self.size, rtol=1e-5):
            raise RuntimeError(f"the {self.size} processes drifted apart at step {run.step}")
        for leaf, grad in zip(leaves, summed, strict=False):
            leaf.grad = grad
        for layer, grad in zip(layers, summed[len(leaves) :], strict=True):
            layer.delta_grad = grad
        return float(added)

    def _added(
        self, numbers: Sequence[Tensor], grads: Sequence[Tensor | None], like: Sequence[Tensor]
    ) -> tuple[Tensor, list[Tensor | None]]:
        """Sums over the processes in one message: of some numbers, and of gradients (None where nobody has one)."""
        import torch.distributed as dist

        device = numbers[-1].device
        parts = [
            torch.zeros_like(one) if grad is None else grad for grad, one in zip(grads, like, strict=True)
        ]
        there = torch.tensor([float(grad is not None) for grad in grads], device=device)
        sizes = [len(numbers), len(grads), *(part.numel() for part in parts)]
        heads = torch.stack([number.detach().to(device) for number in numbers])
        flat = torch.cat([heads, there, *(part.reshape(-1) for part in parts)])
        dist.all_reduce(flat)
        summed = flat.split(sizes)
        back = [
            piece.view_as(one).to(one.dtype) if seen > 0 else None
            for piece, one, seen in zip(summed[2:], like, summed[1].tolist(), strict=True)
        ]
        return summed[0], back

    def mean(self, score: Tensor) -> Tensor:
        """The mean over the processes, on the device of `score`: for `Run.reduce`."""
        if self.size == 1:
            return score
        import torch.distributed as dist

        total = score.clone()
        dist.all_reduce(total)
        return total / self.size


ALONE = Team()
