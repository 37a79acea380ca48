"""Delta-LoRA (Zi et al., 2023, arXiv 2309.02411): LoRA whose every step moves the base weight too.

From step K on, W <- W + lambda * s * (AB_{t+1} - AB_t) (Eq. 6, Algorithm 1); no gradient and no optimizer state of W
is needed. The steps telescope: W_t = W_0 + lambda * s * (AB_t - AB_K). So what training changes in all,

    W_T + s AB_T - W_0 = (1 + lambda) s AB_T - lambda s AB_K,

has rank 2r at most (r where AB_K = 0) and is a LoRA of rank 2r: `total_update` gives it. A and B at step K are buffers
of the layer (`start_a`, `start_b`), and so in every checkpoint and in the adapter file.
The paper's A is the random factor on the output side; here it is the one on the input side, as in our LoRA. AB is 0 at
the start either way.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from adalora_bench.errors import PromiseBroken, UserError
from adalora_bench.methods.base import (
    Facts,
    Method,
    require_at_least_one,
    require_below_one,
    require_positive,
)
from adalora_bench.schedule import Phase

if TYPE_CHECKING:
    from torch import nn

    from adalora_bench.lowrank.adapter import Factors, LowRankLinear
    from adalora_bench.methods.run import Run


@dataclass(frozen=True, kw_only=True)
class DeltaLora(Method):
    """See conf/method/delta_lora.yaml for what each setting means and where its default comes from."""

    rank: int
    alpha: float
    ratio: float  # lambda
    start: Phase  # K
    dropout: float
    allow_dropout: bool

    moves_base: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least_one("method.rank", self.rank)
        require_positive("method.alpha", self.alpha)
        if not 0 <= self.ratio < float("inf"):
            raise UserError(f"method.ratio={self.ratio} must be a number from 0 on; 0 is plain LoRA.")
        require_below_one("method.dropout", self.dropout)
        if self.dropout > 0 and not self.allow_dropout:
            raise UserError(
                f"method.dropout={self.dropout}: with dropout in its branch, the step of AB no longer stands for one "
                "of W (Eq. 7), so Delta-LoRA takes 0; method.allow_dropout=true runs the ablation."
            )

    def precheck(self, facts: Facts) -> None:
        super().precheck(facts)
        start = facts.steps("method.start", self.start)
        if start >= facts.total_steps:
            raise UserError(
                f"method.start={self.start} is step {start}, but the whole training has {facts.total_steps} steps "
                f"({facts.steps_per_epoch} an epoch): W would never move. Start earlier or train longer."
            )

    # -- building -------------------------------------------------------------------------------------------

    def adapt(self, base: nn.Module, role: str, run: Run) -> nn.Module:
        """A ~ U(-1/sqrt(in), 1/sqrt(in)) (Kaiming-uniform with a = sqrt 5, as LoRA), B = 0.

        Raises:
            UserError: the base weight is quantised or in half precision.
        """
        import torch

        from adalora_bench.lowrank.adapter import LowRankLinear, RankBlock

        stored = base.weight.dtype  # of a packed weight too, which is not unpacked to be refused
        if stored not in (torch.float32, torch.float64):
            kind = str(stored).removeprefix("torch.")
            raise UserError(
                f"Delta-LoRA adds small steps to the base weights, and {kind} would round them away; "
                "load the backbone in float32."
            )
        layer = LowRankLinear(base, scale=self.alpha / self.rank, role=role, dropout=self.dropout)
        weight = layer.weight
        a = run.uniform(self.rank, layer.in_features, bound=layer.in_features**-0.5, like=weight)
        b = weight.new_zeros(self.rank, layer.out_features)
        layer.append(RankBlock(a=a, b=b, gate=weight.new_ones(self.rank)))
        layer.register_buffer("start_a", torch.zeros_like(a))
        layer.register_buffer("start_b", torch.zeros_like(b))
        return layer

    # -- hooks ----------------------------------------------------------------------------------------------

    def setup(self, run: Run) -> None:
        run.scratch |= {"start": run.steps("method.start", self.start), "updates": 0}

    def after_backward(self, run: Run) -> None:
        """Keep A and B as they are before the optimizer moves them; at step K for good."""
        if run.step < run.scratch["start"]:
            return
        before = {}
        for name, layer in run.adapters.items():
            factors = layer.factors()
            before[name] = factors.a.detach().clone(), factors.b.detach().clone()
            if run.step == run.scratch["start"]:
                layer.get_buffer("start_a").copy_(before[name][0])
                layer.get_buffer("start_b").copy_(before[name][1])
        run.scratch["before"] = before  # taken away again in this very step: no checkpoint sees it
        if run.step == run.scratch["start"]:
            run.event("base_moves", "", 0, len(before))

    def after_step(self, run: Run) -> None:
        """W += lambda * s * (AB_{t+1} - AB_t), Eq. 6: one product of rank 2r, in place, no dense temporary."""
        import torch

        from adalora_bench.lowrank.function import accumulate, product_step

        before = run.scratch.pop("before", None)
        if before is None:
            return
        with torch.no_grad():
            for name, layer in run.adapters.items():
                (a0, b0), now = before[name], layer.factors()
                a, b = product_step(a0, b0, now.a, now.b)
                accumulate(layer.weight, b.T, a, self.ratio * layer.scale)
        run.scratch["updates"] += 1

    def check(self, run: Run) -> None:
        expected = max(0, run.total_steps - run.scratch["start"])
        if run.scratch["updates"] != expected:
            raise PromiseBroken(f"Delta-LoRA moved W in {run.scratch['updates']} steps instead of {expected}")
        if expected and not any(self._moved(layer) for layer in run.adapters.values()):
            raise PromiseBroken("no Delta-LoRA update moved W")

    # -- parts ----------------------------------------------------------------------------------------------

    def _moved(self, layer: LowRankLinear) -> bool:
        factors = layer.factors()
        return bool(
            (factors.b.T @ factors.a != layer.get_buffer("start_b").T @ layer.get_buffer("start_a")).any()
        )

    def total_update(self, layer: LowRankLinear) -> Factors:
        """W_T + s AB_T - W_0 as b^T diag(gate) a: a (2r, in), b (2r, out), scale 1. Exact at every step of training."""
        import torch

        from adalora_bench.lowrank.adapter import Factors

        now, start_a = layer.factors(), layer.get_buffer("start_a")
        # A is random: while the buffer is 0, W has not begun to move
        ratio = self.ratio if bool(start_a.any()) else 0.0
        return Factors(
            torch.cat([now.a, start_a]),
            torch.cat([now.b, layer.get_buffer("start_b")]),
            layer.scale * torch.cat([(1 + ratio) * now.gate, -ratio * now.gate]),
        )
