"""SaLoRA, Structure-aware LoRA (Hu et al., Mathematics 2023): a stochastic gate per rank learns which ranks to keep.

From memory of the paper; no source was at hand. dW = (alpha / r) sum_i z_i b_i a_i with z_i hard-concrete: a draw
from (0, 1) stretched to (low, high) and cut to [0, 1], so that it is exactly 0 with positive probability. The expected
number of open gates, E[L0], is differentiable; a Lagrange multiplier on what it has above the budget rises until the
budget holds. A and B are kept near orthogonal as in AdaLoRA. The gate of the layer holds log_alpha, the location of
z_i; what the layer multiplies with is drawn once per step, and free of chance in evaluation.
(Not the safety-alignment method of the same name.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adalora_bench.errors import PromiseBroken, UserError
from adalora_bench.methods.base import (
    Facts,
    Method,
    require_at_least_one,
    require_below_one,
    require_positive,
)

if TYPE_CHECKING:
    from torch import Tensor, nn

    from adalora_bench.methods.run import Group, Run

MARGIN = 1e-6  # draws stay this far from 0 and 1, where logit is infinite
HALF = 0.5  # a gate below is more closed than open


@dataclass(frozen=True, kw_only=True)
class SaLora(Method):
    """See conf/method/salora.yaml for what each setting means and where its default comes from."""

    init_rank: int
    target_rank: int
    alpha: float
    beta: float
    low: float
    high: float
    log_alpha: float
    gate_lr: float
    multiplier_lr: float
    exact_budget: bool
    orthogonality: float  # gamma
    orthogonality_squared: bool
    dropout: float

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least_one("method.target_rank", self.target_rank)
        for name in ("alpha", "beta", "gate_lr", "multiplier_lr"):
            require_positive(f"method.{name}", getattr(self, name))
        if self.init_rank < self.target_rank:
            raise UserError(
                f"method.init_rank={self.init_rank} is below method.target_rank={self.target_rank}, "
                "but SaLoRA removes ranks."
            )
        if not (-math.inf < self.low < 0 and 1 < self.high < math.inf):
            raise UserError(
                f"method.low={self.low} and method.high={self.high} must lie below 0 and above 1: the stretch is "
                "what closes and opens a gate for good."
            )
        if not math.isfinite(self.log_alpha):
            raise UserError(f"method.log_alpha={self.log_alpha} must be finite.")
        if not self.orthogonality >= 0:
            raise UserError(f"method.orthogonality={self.orthogonality} must not be negative.")
        require_below_one("method.dropout", self.dropout)

    def precheck(self, facts: Facts) -> None:
        super().precheck(facts)
        if facts.modules == 0:
            raise UserError(
                f"method.targets={self.targets} names no layer of this backbone, so there is no gate to learn."
            )

    # -- building -------------------------------------------------------------------------------------------

    def adapt(self, base: nn.Module, role: str, run: Run) -> nn.Module:
        from adalora_bench.lowrank.adapter import LowRankLinear, RankBlock

        layer = LowRankLinear(base, scale=self.alpha / self.init_rank, role=role, dropout=self.dropout)
        like, r = layer.weight, self.init_rank
        layer.append(
            RankBlock(
                a=run.uniform(r, layer.in_features, bound=1 / math.sqrt(layer.in_features), like=like),
                b=like.new_zeros(r, layer.out_features),
                gate=like.new_full((r,), self.log_alpha),
                train_gate=True,
            )
        )
        return layer

    def param_groups(self, run: Run) -> list[Group]:
        """The gates in a group of their own, without weight decay."""
        from adalora_bench.methods.run import Group

        adapter, head = super().param_groups(run)
        gates = [block.gate for block in run.rank_blocks()]
        mine = {id(gate) for gate in gates}
        adapter.params = [p for p in adapter.params if id(p) not in mine]
        warmup = run.settings.warmup
        return [
            adapter,
            Group(params=gates, lr=self.gate_lr, warmup=warmup, weight_decay=0.0, name="gate"),
            head,
        ]

    # -- hooks ----------------------------------------------------------------------------------------------

    def setup(self, run: Run) -> None:
        run.scratch["forced"] = 0  # ranks that were open at the end and went for the budget
        run.scratch["multiplier"] = run.rank_blocks()[0].gate.detach().new_zeros(())
        self._without_chance(run)

    def before_forward(self, run: Run) -> None:
        """Draw the gates of this step. The layers get leaves, so that any number of micro-batches may go back."""
        import torch

        from adalora_bench.lowrank.scores import hard_concrete_sample

        blocks = run.rank_blocks()
        draws = torch.rand(sum(block.rank for block in blocks), generator=run.generator, dtype=torch.float64)
        pieces = draws.clamp(MARGIN, 1 - MARGIN).split([block.rank for block in blocks])
        samples = []
        for block, u in zip(blocks, pieces, strict=True):
            z = hard_concrete_sample(
                block.gate, u.to(block.gate), beta=self.beta, low=self.low, high=self.high
            )
            block.step_gate = z.detach().requires_grad_()
            samples.append(z)
        run.scratch["samples"] = samples

    def penalty(self, run: Run) -> Tensor | None:
        """multiplier * excess + gamma * the mean over the 2n matrices of ||A A^T - I||_F and ||B B^T - I||_F."""
        from adalora_bench.lowrank.scores import mean_orthogonality

        total: Tensor = run.scratch["multiplier"] * self.excess(run)
        if self.orthogonality > 0:
            matrices = [x for block in run.rank_blocks() for x in (block.a, block.b)]
            total = total + self.orthogonality * mean_orthogonality(
                matrices, squared=self.orthogonality_squared
            )
        return total

    def after_backward(self, run: Run) -> None:
        """Carry the gradient of the gates, summed over the micro-batches, on to log_alpha."""
        import torch

        gates = [block.step_gate for block in run.rank_blocks()]
        samples = run.scratch.pop("samples")
        pairs = [
            (z, g.grad) for z, g in zip(samples, gates, strict=True) if g is not None and g.grad is not None
        ]
        torch.autograd.backward([z for z, _ in pairs], [grad for _, grad in pairs])

    def after_step(self, run: Run) -> None:
        """Ascent on the multiplier, and the gates of evaluation."""
        import torch

        with torch.no_grad():
            run.scratch["multiplier"] = run.scratch["multiplier"] + self.multiplier_lr * self.excess(run)
        self._without_chance(run)

    def finalize(self, run: Run) -> None:
        """log_alpha becomes the gate itself; ranks with gate 0 leave, with `exact_budget` the weakest surplus too."""
        import torch

        from adalora_bench.lowrank.allocate import keep_best

        self._without_chance(run)
        values = torch.cat([block.effective_gate() for block in run.rank_blocks()])
        scores = run.reduce(values.double().cpu())
        kept = scores > 0
        if self.exact_budget:
            best = torch.tensor(
                keep_best(scores.tolist(), self.target_rank * len(run.adapters)), dtype=torch.bool
            )
            run.scratch["forced"] = int((kept & ~best).sum())
            kept &= best
        pieces = iter(kept.split([block.rank for block in run.rank_blocks()]))
        for name, layer in run.adapters.items():
            before = layer.rank
            for block in layer.rank_blocks():
                assert block.step_gate is not None
                block.gate.data.copy_(block.step_gate)
                block.step_gate = None
                block.kill(~next(pieces))
            if layer.rank < before:
                run.event("prune", name, before, layer.rank)
        run.compact()

    def notes(self, run: Run) -> list[str]:
        """Where the budget came about by shrinking every update, or by the cut at the end, that is said."""
        import torch

        found = ["built from memory of its paper; no source was at hand"]
        if forced := run.scratch["forced"]:
            removed = self.init_rank * len(run.adapters) - run.total_rank
            found.append(
                f"{forced} of the {removed} removed ranks were still open at the end: the cut to the budget chose "
                "them, not the training"
            )
        gates = torch.cat([block.gate.detach() for block in run.rank_blocks()])
        if gates.numel() and float(gates.float().quantile(0.75)) < HALF:
            found.append(
                "the gates shrank the update more than they chose ranks (three of four that were kept are below 0.5); "
                "a smaller method.multiplier_lr closes fewer at once"
            )
        return found

    def check(self, run: Run) -> None:
        budget = self.target_rank * len(run.adapters)
        if run.total_rank > budget:
            raise PromiseBroken(
                f"SaLoRA ended with {run.total_rank} open ranks, above its budget of {budget}; raise "
                "method.multiplier_lr or method.gate_lr, train longer, or set method.exact_budget=true"
            )
        if not any(bool(layer.delta().any()) for layer in run.adapters.values()):
            raise PromiseBroken("no SaLoRA update moved away from 0")

    # -- parts ----------------------------------------------------------------------------------------------

    def excess(self, run: Run) -> Tensor:
        """max(0, E[L0] / modules - target_rank): how many ranks an average module expects to have too many."""
        import torch

        from adalora_bench.lowrank.scores import expected_open

        logits = torch.cat([block.gate for block in run.rank_blocks()])
        expected = expected_open(logits, beta=self.beta, low=self.low, high=self.high).sum()
        return (expected / len(run.adapters) - self.target_rank).clamp(min=0)

    def _without_chance(self, run: Run) -> None:
        from adalora_bench.lowrank.scores import hard_concrete_gate

        for block in run.rank_blocks():
            block.step_gate = hard_concrete_gate(block.gate.detach(), low=self.low, high=self.high)
