"""SoRA (Ding et al., 2023, arXiv 2311.11696): a gate per rank, pushed to exact zeros by a proximal step.

dW = (alpha / r_max) W_u diag(g) W_d (Eq. 9). After every optimizer step each gate is shrunk by the soft threshold
T_xi (Eq. 10, 11) with xi = lr_t * lambda; a zero gate may come back while training lasts. After the last step the ranks
whose gate is 0 are removed (Eq. 12). Algorithm 1, the sparsifying schedule, trains again with larger and larger lambda.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from adalora_bench.errors import PromiseBroken, UserError, unknown
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

GATES = "gate"  # name of the gates' optimizer group
TRACED = 200  # so often, and at the end of each stage, a training counts the gates that are not 0


@dataclass(frozen=True, kw_only=True)
class Sora(Method):
    """See conf/method/sora.yaml for what each setting means and where its default comes from."""

    rank: int  # r_max
    alpha: float
    dropout: float
    lam: float
    xi: float | None
    stages: list[float]
    gate_lr: float | None
    gate_optimizer: str
    gate_eps: float | None
    gate_init: str
    threshold: str
    l1_mean: float
    layer_norms: bool

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least_one("method.rank", self.rank)
        require_positive("method.alpha", self.alpha)
        for name in ("gate_lr", "gate_eps"):
            if getattr(self, name) is not None:
                require_positive(f"method.{name}", getattr(self, name))
        require_below_one("method.dropout", self.dropout)
        for name, value in (("lam", self.lam), ("xi", self.xi), ("l1_mean", self.l1_mean)):
            if value is not None and not 0 <= value < math.inf:
                raise UserError(f"method.{name}={value} must be a finite number, not negative.")
        for name, valid in (
            ("gate_optimizer", ("adamw", "sgd")),
            ("gate_init", ("normal", "ones")),
            ("threshold", ("soft", "authors")),
        ):
            if getattr(self, name) not in valid:
                raise UserError(unknown(f"value of method.{name}", getattr(self, name), valid))
        for before, after in pairwise(self.strengths):
            if not before < after < math.inf:
                raise UserError(
                    f"method.stages={self.stages} must rise from stage to stage, above the first stage's "
                    f"{'lam' if self.xi is None else 'xi'}={self.strengths[0]}; {after} comes after {before}."
                )

    # -- schedule -------------------------------------------------------------------------------------------

    @property
    def strengths(self) -> list[float]:
        """Of each stage: lambda, or xi itself where it is given."""
        return [self.lam if self.xi is None else self.xi, *self.stages]

    def stage(self, step: int, total_steps: int) -> tuple[int, int, int]:
        """(number, first step, end) of the stage that a step belongs to: equal parts of the training."""
        count = len(self.strengths)
        ends = [k * total_steps // count for k in range(1, count + 1)]
        number = next(k for k, end in enumerate(ends) if step < end)
        return number, ends[number - 1] if number else 0, ends[number]

    def precheck(self, facts: Facts) -> None:
        super().precheck(facts)
        shortest = facts.total_steps // len(self.strengths)
        warmup = _share(facts.warmup, shortest, facts.total_steps)
        if warmup >= shortest:
            raise UserError(
                f"SoRA's {len(self.strengths)} stages have {shortest} of {facts.total_steps} steps each, which does "
                f"not hold a warm-up of {warmup}; give fewer method.stages or train longer."
            )

    # -- building -------------------------------------------------------------------------------------------

    def attach(self, run: Run) -> None:
        super().attach(run)
        if self.layer_norms:
            self.train_layer_norms(run)

    def adapt(self, base: nn.Module, role: str, run: Run) -> nn.Module:
        from adalora_bench.lowrank.adapter import LowRankLinear, RankBlock

        # alpha / r_max for good: dividing by the ranks that are left would change the output when they go
        layer = LowRankLinear(base, scale=self.alpha / self.rank, role=role, dropout=self.dropout)
        like, r = layer.weight, self.rank
        layer.append(
            RankBlock(
                a=run.uniform(r, layer.in_features, bound=1 / math.sqrt(layer.in_features), like=like),
                b=like.new_zeros(r, layer.out_features),
                gate=run.normal(r, std=1.0, like=like) if self.gate_init == "normal" else like.new_ones(r),
                train_gate=True,
            )
        )
        return layer

    def param_groups(self, run: Run) -> list[Group]:
        """The gates in a group of their own, without weight decay."""
        from adalora_bench.methods.run import Group

        adapter, head = super().param_groups(run)
        gates = _gates(run)
        mine = {id(gate) for gate in gates}
        adapter.params = [p for p in adapter.params if id(p) not in mine]
        lr = self.lr if self.gate_lr is None else self.gate_lr
        return [
            adapter,
            Group(params=gates, lr=lr, warmup=run.settings.warmup, name=GATES, weight_decay=0.0),
            head,
        ]

    # -- hooks ----------------------------------------------------------------------------------------------

    def setup(self, run: Run) -> None:
        run.scratch["thresholds"] = 0  # how often the threshold was applied: the promise of `check`

    def before_forward(self, run: Run) -> None:
        """Stamp what depends on the step alone, so that a resumed run has it too."""
        assert run.optimizer is not None
        if self.gate_eps is not None:
            _gate_group(run)["eps"] = self.gate_eps
        if self.stages:
            _, start, end = self.stage(run.step, run.total_steps)
            warmup = _share(run.settings.warmup, end - start, run.total_steps)
            for group in run.optimizer.param_groups:
                group |= {"born": start, "end": end, "warmup": warmup}

    def penalty(self, run: Run) -> Tensor | None:
        """c * mean |g| over all gates of the model: in the authors' loss, not in the paper."""
        import torch

        return self.l1_mean * torch.cat(tuple(_gates(run))).abs().mean() if self.l1_mean else None

    def after_backward(self, run: Run) -> None:
        import torch

        if self.gate_optimizer == "sgd":
            run.scratch["gates"] = torch.cat(tuple(_gates(run))).detach()

    def after_step(self, run: Run) -> None:
        """Eq. 10: the gates have made their gradient step; now T_xi, whatever the learning rate was."""
        import torch

        from adalora_bench.lowrank.scores import soft_threshold, soft_threshold_authors

        number, _, end = self.stage(run.step, run.total_steps)
        gates, lr, strength = _gates(run), run.lr_of(_gate_group(run)), self.strengths[number]
        xi = strength if self.xi is not None else lr * strength
        shrink = soft_threshold if self.threshold == "soft" else soft_threshold_authors
        with torch.no_grad():
            if (
                self.gate_optimizer == "sgd"
            ):  # the literal g - lr * gradient, in place of the Adam step just made
                starts = run.scratch.pop("gates").split([gate.numel() for gate in gates])
                for gate, start in zip(gates, starts, strict=True):
                    gate.copy_(start if gate.grad is None else start - lr * gate.grad)
            for gate in gates:
                gate.copy_(shrink(gate, xi))
        run.scratch["thresholds"] += 1
        if run.step + 1 == end or run.step % max(1, run.total_steps // TRACED) == 0:
            run.budget.observe_gates(run.step, run.adapters)
        if self.stages and run.step + 1 == end:  # Algorithm 1 counts the non-zeros of every stage
            left = sum(int(gate.count_nonzero()) for gate in gates)
            run.event("stage", f"{'lam' if self.xi is None else 'xi'}={strength:g}", run.total_rank, left)

    def milestone(self, run: Run) -> bool:
        """Algorithm 1 scores training and report rows at the end of every stage."""
        return bool(self.stages) and run.step == self.stage(run.step - 1, run.total_steps)[2]

    def finalize(self, run: Run) -> None:
        """Eq. 12: ranks with a gate of exactly 0 leave A, B and g. No tolerance: the threshold gives exact zeros."""
        for name, layer in run.adapters.items():
            before = layer.rank
            for block in layer.rank_blocks():
                block.kill(block.gate.detach() == 0)
            if layer.rank < before:
                run.event("prune", name, before, layer.rank)
        run.compact()

    def check(self, run: Run) -> None:
        if run.scratch["thresholds"] != run.total_steps:
            raise PromiseBroken(
                f"SoRA applied its threshold in {run.scratch['thresholds']} of {run.total_steps} steps"
            )
        zeros = sum(int((gate == 0).sum()) for gate in _gates(run))
        if zeros:
            raise PromiseBroken(f"SoRA kept {zeros} ranks whose gate is 0")


def _gates(run: Run) -> list[nn.Parameter]:
    return [block.gate for block in run.rank_blocks()]


def _gate_group(run: Run) -> dict[str, Any]:
    assert run.optimizer is not None
    return next(group for group in run.optimizer.param_groups if group.get("name") == GATES)


def _share(warmup: int, steps: int, total_steps: int) -> int:
    """The warm-up of a stage: the same share of it as of the whole training, rounded up."""
    return -(-warmup * steps // total_steps)
