"""SSP (ours): a search for the matrices that deserve a LoRA module, under a budget of parameters.

ALoRA names the method; its source was not at hand, and this is our reading. Every target matrix has a LoRA module with
one gate, 2 sigmoid(a). After the search phase the modules with the largest gates stay while their parameters
fit the budget, a share of those of all candidates; the others leave. A kept gate stays as it was, a constant.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adalora_bench.errors import PromiseBroken, UserError
from adalora_bench.methods.base import Facts, require_at_least_one, require_below_one, require_positive
from adalora_bench.methods.searched import KEPT, Searched

if TYPE_CHECKING:
    from torch import Tensor, nn

    from adalora_bench.lowrank.adapter import LowRankLinear, RankBlock
    from adalora_bench.methods.run import Run


@dataclass(frozen=True, kw_only=True)
class Ssp(Searched):
    """See conf/method/ssp.yaml for what each setting means and where its default comes from."""

    rank: int
    alpha: float
    budget: float
    dropout: float

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least_one("method.rank", self.rank)
        require_positive("method.alpha", self.alpha)
        if not 0 < self.budget <= 1:
            raise UserError(
                f"method.budget={self.budget} must be a share of the candidates' parameters, in (0, 1]."
            )
        require_below_one("method.dropout", self.dropout)

    def precheck(self, facts: Facts) -> None:
        super().precheck(facts)
        if self.budget * facts.modules < 1:
            raise UserError(
                f"method.budget={self.budget} of {facts.modules} candidates is less than one module of average size."
            )

    def adapt(self, base: nn.Module, role: str, run: Run) -> nn.Module:
        from adalora_bench.lowrank.adapter import LowRankLinear, RankBlock

        layer = LowRankLinear(base, scale=self.alpha / self.rank, role=role, dropout=self.dropout)
        like, r = layer.weight, self.rank
        layer.append(
            RankBlock(
                a=run.uniform(r, layer.in_features, bound=1 / math.sqrt(layer.in_features), like=like),
                b=like.new_zeros(r, layer.out_features),
                gate=like.new_zeros(r),  # a, the same number for every rank, until the search is over
                train_gate=True,
            )
        )
        return layer

    def names(self, run: Run) -> list[str]:
        return list(run.adapters)

    def choices(self, run: Run) -> list[nn.Parameter]:
        return [block.gate for block in run.rank_blocks()]

    # -- the search -----------------------------------------------------------------------------------------

    def setup(self, run: Run) -> None:
        self._open_gates(run, learn=False)

    def before_forward(self, run: Run) -> None:
        super().before_forward(run)
        if KEPT not in run.scratch:
            self._open_gates(run, learn=True)

    def after_backward(self, run: Run) -> None:
        """d loss / d a = 2 sigmoid'(a) * the sum over the ranks, for they share the gate."""
        from adalora_bench.lowrank.scores import relaxed_gate

        if KEPT in run.scratch:
            return
        for block in run.rank_blocks():
            assert block.step_gate is not None
            if block.step_gate.grad is not None:
                gate = relaxed_gate(block.gate.detach())
                block.gate.grad = block.step_gate.grad.sum() * gate * (1 - gate / 2)

    def after_step(self, run: Run) -> None:
        if KEPT not in run.scratch:
            self._open_gates(run, learn=False)  # of an evaluation
        super().after_step(run)

    def best(self, run: Run) -> list[int]:
        import torch

        gates = run.reduce(torch.stack([_gate_of(block) for block in run.rank_blocks()])).tolist()
        return fitting(gates, [_cost(layer) for layer in run.adapters.values()], self.budget)

    def harden(self, run: Run, kept: Sequence[int]) -> None:
        import torch

        for i, (block, (name, layer)) in enumerate(zip(run.rank_blocks(), run.adapters.items(), strict=True)):
            assert block.step_gate is not None
            block.gate.data.copy_(block.step_gate)
            block.step_gate = None
            if i not in kept:
                run.event("prune", name, layer.rank, 0)
                block.kill(torch.ones_like(block.alive))
            run.freeze(block.gate)
        run.compact()

    def check(self, run: Run) -> None:
        super().check(run)
        layers = list(run.adapters.values())
        left = [i for i, layer in enumerate(layers) if layer.rank]
        if left != run.scratch[KEPT]:
            raise PromiseBroken(f"modules {left} are left instead of {run.scratch[KEPT]}")
        costs = [_cost(layer) for layer in layers]
        if sum(costs[i] for i in left) > max(self.budget * sum(costs), costs[left[0]]):
            raise PromiseBroken(f"SSP kept more than method.budget={self.budget} of the parameters")
        if not any(bool(layer.delta().any()) for layer in layers):
            raise PromiseBroken("no SSP update moved away from 0")

    # -- parts ----------------------------------------------------------------------------------------------

    def _open_gates(self, run: Run, *, learn: bool) -> None:
        from adalora_bench.lowrank.scores import relaxed_gate

        for block in run.rank_blocks():
            # ranks share a gate; their numbers may differ in the last bit, after the optimizer's vector instructions
            gate = relaxed_gate(_gate_of(block)).expand(block.rank).clone()
            block.step_gate = gate.requires_grad_(learn)


def fitting(scores: Sequence[float], costs: Sequence[int], budget: float) -> list[int]:
    """Best score first (a tie: the lower index), every module that still fits `budget` * the sum of costs; ascending.

    Where not even the best fits, it is kept alone.
    """
    room = budget * sum(costs)
    kept: list[int] = []
    for i in sorted(range(len(scores)), key=lambda i: (-scores[i], i)):
        if costs[i] <= room or not kept:
            kept.append(i)
            room -= costs[i]
    return sorted(kept)


def _gate_of(block: RankBlock) -> Tensor:
    """a of a module, a scalar."""
    return block.gate.detach()[0]


def _cost(layer: LowRankLinear) -> int:
    """Parameters of a rank."""
    return layer.in_features + layer.out_features
