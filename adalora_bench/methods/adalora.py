"""AdaLoRA (Zhang et al., 2023, arXiv 2303.10512): a budget of ranks that shrinks, and goes where it matters most.

dW = s B^T diag(E) A (Eq. 3), with the singular values E in the gate of the layer, 0 at the start, and s constant. The
optimizer moves, then every triplet (E_i, row i of A, row i of B) is scored (Eq. 7-11), and now and then the singular
values of all but the best b(t) are set to 0 (Eq. 6); they may grow again until the next time. In the final phase the
choice stands, and the ranks that lost leave the model at its end.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from adalora_bench.errors import Diverged, PromiseBroken, UserError
from adalora_bench.methods.base import (
    Facts,
    Method,
    require_at_least_one,
    require_below_one,
    require_positive,
)
from adalora_bench.schedule import Phase

if TYPE_CHECKING:
    from torch import Tensor, nn

    from adalora_bench.methods.run import Run

EPSILON = 1e-5  # of the scale alpha / (r + EPSILON), as in the authors' code


@dataclass(frozen=True, kw_only=True)
class AdaLora(Method):
    """See conf/method/adalora.yaml for what each setting means and where its default comes from."""

    init_rank: int
    target_rank: int
    initial_warmup: Phase  # t_i
    final_phase: Phase  # t_f
    interval: Phase  # delta_t
    beta1: float
    beta2: float
    alpha: float
    init_std: float
    orthogonality: float  # gamma
    orthogonality_squared: bool
    dropout: float

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least_one("method.target_rank", self.target_rank)
        if self.target_rank > self.init_rank:
            raise UserError(
                f"method.target_rank={self.target_rank} is above method.init_rank={self.init_rank}; "
                "AdaLoRA's budget only shrinks (the authors start with 1.5 times the target)."
            )
        require_positive("method.alpha", self.alpha)
        require_positive("method.init_std", self.init_std)
        for name, value in (("beta1", self.beta1), ("beta2", self.beta2), ("dropout", self.dropout)):
            require_below_one(f"method.{name}", value)
        if not self.orthogonality >= 0:
            raise UserError(f"method.orthogonality={self.orthogonality} must not be negative.")

    def precheck(self, facts: Facts) -> None:
        super().precheck(facts)
        total = facts.total_steps
        initial = facts.steps("method.initial_warmup", self.initial_warmup)
        final = facts.steps("method.final_phase", self.final_phase)
        interval = facts.steps("method.interval", self.interval)
        require_at_least_one("method.final_phase", final)  # its first step meets the target
        require_at_least_one("method.interval", interval)
        if initial + final >= total:
            raise UserError(
                f"AdaLoRA has no step left to prune in: method.initial_warmup={self.initial_warmup} ({initial} steps) "
                f"and method.final_phase={self.final_phase} ({final} steps) fill the whole training of {total} steps "
                f"({facts.steps_per_epoch} an epoch). Shorten them or train longer."
            )
        if interval >= total:
            raise UserError(
                f"method.interval={self.interval} is {interval} steps, but the whole training has {total} steps "
                f"({facts.steps_per_epoch} an epoch); mask more often or train longer."
            )

    # -- building -------------------------------------------------------------------------------------------

    def adapt(self, base: nn.Module, role: str, run: Run) -> nn.Module:
        """A, B ~ N(0, init_std), E = 0. The scale divides by the rank at the start and never follows the pruning."""
        from adalora_bench.lowrank.adapter import LowRankLinear, RankBlock

        scale = self.alpha / (self.init_rank + EPSILON)
        layer = LowRankLinear(base, scale=scale, role=role, dropout=self.dropout)
        like, r = layer.weight, self.init_rank
        a = run.normal(r, layer.in_features, std=self.init_std, like=like)
        b = run.normal(r, layer.out_features, std=self.init_std, like=like)
        layer.append(RankBlock(a=a, b=b, gate=like.new_zeros(r), train_gate=True))
        return layer

    # -- hooks ----------------------------------------------------------------------------------------------

    def setup(self, run: Run) -> None:
        import torch

        parts = self._parts(run)
        zeros = torch.zeros(sum(p.numel() for p in parts), dtype=parts[0].dtype, device=parts[0].device)
        run.scratch |= {
            "sensitivity": zeros,  # I, one per entry of the triplets, in the order of _parts
            "uncertainty": zeros.clone(),  # U
            "initial_warmup": run.steps("method.initial_warmup", self.initial_warmup),
            "pin": run.total_steps - run.steps("method.final_phase", self.final_phase),
            "interval": run.steps("method.interval", self.interval),
            "budget": run.total_rank,
        }

    def penalty(self, run: Run) -> Tensor | None:
        """gamma * mean over the 2n matrices of ||A A^T - I||_F and ||B B^T - I||_F (Eq. 4: their squares).

        All rows count, those of masked triplets too.
        """
        from adalora_bench.lowrank.scores import mean_orthogonality

        if self.orthogonality == 0:
            return None
        matrices = [x for block in run.rank_blocks() for x in (block.a, block.b)]
        return self.orthogonality * mean_orthogonality(matrices, squared=self.orthogonality_squared)

    def after_step(self, run: Run) -> None:
        """Score with the parameters that just moved and the gradient that moved them (clipped), then mask (Eq. 6).

        Masking before the step would be undone by Adam's momentum in that very step.
        """
        from adalora_bench.lowrank.allocate import cubic_budget

        state, step = run.scratch, run.step
        if step > state["pin"]:
            return
        if step < state["pin"]:
            self._score(run)
            if step <= state["initial_warmup"] or step % state["interval"]:
                return
        budget = cubic_budget(
            step,
            first=self.init_rank * len(run.adapters),
            last=self.target_rank * len(run.adapters),
            warmup=state["initial_warmup"],
            end=state["pin"],
        )
        self._mask(run, budget, pin=step == state["pin"])

    def finalize(self, run: Run) -> None:
        """Triplets that lost leave model and optimizer; the scale stays."""
        run.compact()

    def check(self, run: Run) -> None:
        wanted = self.target_rank * len(run.adapters)
        stored = sum(layer.stored_rank for layer in run.adapters.values())
        if run.total_rank != wanted or stored != wanted:
            raise PromiseBroken(
                f"AdaLoRA ended with {run.total_rank} ranks ({stored} stored) instead of {wanted}"
            )

    # -- parts ----------------------------------------------------------------------------------------------

    def _parts(self, run: Run) -> list[nn.Parameter]:
        return [p for block in run.rank_blocks() for p in (block.gate, block.a, block.b)]

    def _score(self, run: Run) -> None:
        """Eq. 8-10 for all entries of all triplets, laid end to end."""
        import torch

        from adalora_bench.lowrank.scores import sensitivity, smooth, uncertainty
        from adalora_bench.methods.run import gradient

        parts, state = self._parts(run), run.scratch
        grads = [gradient(p) for p in parts]
        with torch.no_grad():
            s = sensitivity(torch.cat([p.flatten() for p in parts]), torch.cat([g.flatten() for g in grads]))
        state["sensitivity"] = smooth(state["sensitivity"], s, self.beta1)
        state["uncertainty"] = uncertainty(state["uncertainty"], s, state["sensitivity"], self.beta2)

    def _importance(self, run: Run) -> list[float]:
        """Eq. 11 and 7: one number per triplet, module after module."""
        import torch

        from adalora_bench.lowrank.scores import triplet

        parts, state = self._parts(run), run.scratch
        entries = (state["sensitivity"] * state["uncertainty"]).split([p.numel() for p in parts])
        shaped = [entry.view_as(p) for entry, p in zip(entries, parts, strict=True)]
        scores = [triplet(*shaped[k : k + 3]) for k in range(0, len(shaped), 3)]
        s = run.reduce(torch.cat(scores).double().cpu())
        if not bool(torch.isfinite(s).all()):
            raise Diverged(f"AdaLoRA's score is not finite at step {run.step}")
        return [float(value) for value in s]

    def _mask(self, run: Run, budget: int, *, pin: bool) -> None:
        """Singular values beyond the budget become 0; with `pin` for good, and the scores are needed no more."""
        import torch

        from adalora_bench.lowrank.allocate import keep_best

        kept = torch.tensor(keep_best(self._importance(run), budget))
        masks = kept.split([layer.stored_rank for layer in run.adapters.values()])
        for (name, layer), keep in zip(run.adapters.items(), masks, strict=True):
            (block,), before = layer.rank_blocks(), layer.rank
            with torch.no_grad():
                block.gate.masked_fill_(~keep.to(block.gate.device), 0.0)
            if pin:
                block.kill(~keep)
                if layer.rank != before:
                    run.event("prune", name, before, layer.rank)
        if budget != run.scratch["budget"]:
            run.event("mask", "", run.scratch["budget"], budget)
            run.scratch["budget"] = budget
        if pin:
            del run.scratch["sensitivity"], run.scratch["uncertainty"]
