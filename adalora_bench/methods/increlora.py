"""IncreLoRA (Zhang et al., 2023, arXiv 2308.12043): ranks are added while training, where they matter most.

dW = s sum_i lambda_i b_i a_i (Eq. 3), with lambda the gate of the layer. Every module starts with one rank and a
reserve (section 3.3). Each step scores the modules (Eq. 5-8); every `interval` steps the best `top_h` of them
activate their reserve and get a new one (Algorithm 1), until the total is exactly target_rank x modules.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adalora_bench.errors import Diverged, PromiseBroken, UserError
from adalora_bench.methods.base import (
    Facts,
    Method,
    require_at_least_one,
    require_below_one,
    require_not_negative,
    require_positive,
)
from adalora_bench.schedule import Phase

if TYPE_CHECKING:
    from torch import Tensor, nn

    from adalora_bench.lowrank.adapter import LowRankLinear, RankBlock
    from adalora_bench.methods.run import Run

EPSILON = 1e-5  # of the scale alpha / (r + EPSILON), as in the authors' code


@dataclass(frozen=True, kw_only=True)
class IncreLora(Method):
    """See conf/method/increlora.yaml for what each setting means and where its default comes from."""

    target_rank: int
    ranks_per_growth: int
    top_h: int | str  # modules per growth: a count, or a share such as "12%"
    interval: Phase  # nu
    growth_warmup: Phase
    beta1: float
    beta2: float
    score_norm: str
    alpha: float
    scale_by: str
    init_std: float
    reserve_gate: float
    orthogonality: float  # gamma
    orthogonality_squared: bool
    advance_learning: bool
    restart_warmup: bool
    dropout: float

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least_one("method.target_rank", self.target_rank)
        require_at_least_one("method.ranks_per_growth", self.ranks_per_growth)
        require_positive("method.alpha", self.alpha)
        require_positive("method.init_std", self.init_std)
        for name, value in (("beta1", self.beta1), ("beta2", self.beta2), ("dropout", self.dropout)):
            require_below_one(f"method.{name}", value)
        require_not_negative("method.orthogonality", self.orthogonality)
        require_not_negative("method.reserve_gate", self.reserve_gate)
        if self.score_norm not in ("avg", "sqrt"):
            raise UserError(f"method.score_norm={self.score_norm!r} must be avg or sqrt.")
        if self.scale_by not in ("active", "target", "none"):
            raise UserError(f"method.scale_by={self.scale_by!r} must be active, target or none.")

    # -- schedule -------------------------------------------------------------------------------------------

    def modules_per_growth(self, modules: int) -> int:
        """h: a count as it is, a share of the adapted modules rounded up."""
        if isinstance(self.top_h, int):
            return self.top_h
        try:
            if not self.top_h.endswith("%"):
                raise ValueError
            return math.ceil(float(self.top_h[:-1]) * modules / 100)
        except (ValueError, OverflowError):
            raise UserError(
                f"method.top_h={self.top_h!r} must be a count of modules or a share such as 12%."
            ) from None

    def precheck(self, facts: Facts) -> None:
        super().precheck(facts)
        h = self.modules_per_growth(facts.modules)
        require_at_least_one("method.top_h", h)
        if h > facts.modules:
            raise UserError(
                f"method.top_h={self.top_h} is above the number of adapted modules, {facts.modules}."
            )
        warmup = facts.steps("method.growth_warmup", self.growth_warmup)
        interval = facts.steps("method.interval", self.interval)
        require_at_least_one("method.interval", interval)
        growths = sum(1 for t in range(warmup + 1, facts.total_steps - 1) if t % interval == 0)
        missing = (self.target_rank - 1) * facts.modules
        reach = growths * h * self.ranks_per_growth
        if reach < missing:
            raise UserError(
                f"IncreLoRA cannot reach its target: {growths} growths in {facts.total_steps} steps (one every "
                f"{interval} after step {warmup}) x {h} modules x {self.ranks_per_growth} ranks add {reach} ranks, "
                f"but method.target_rank={self.target_rank} on {facts.modules} modules needs {missing} more than "
                "one each. Train longer, or raise method.top_h or method.ranks_per_growth."
            )

    # -- building -------------------------------------------------------------------------------------------

    def adapt(self, base: nn.Module, role: str, run: Run) -> nn.Module:
        from adalora_bench.lowrank.adapter import LowRankLinear

        layer = LowRankLinear(base, scale=1.0, role=role, dropout=self.dropout)
        layer.append(self._new_block(layer, run, ranks=1, reserve=False))
        layer.append(self._new_block(layer, run, ranks=self.ranks_per_growth, reserve=True))
        self._set_scale(layer)
        return layer

    def _new_block(self, layer: LowRankLinear, run: Run, *, ranks: int, reserve: bool) -> RankBlock:
        """A, B ~ N(0, init_std). The reserve has a fixed tiny gate; without advance learning it sleeps at 0."""
        from adalora_bench.lowrank.adapter import RankBlock

        like = layer.weight
        gate = self.reserve_gate if reserve and self.advance_learning else 0.0
        block = RankBlock(
            a=run.normal(ranks, layer.in_features, std=self.init_std, like=like),
            b=run.normal(ranks, layer.out_features, std=self.init_std, like=like),
            gate=like.new_full((ranks,), gate),
            train_gate=not reserve,
            reserve=reserve,
        )
        if reserve and not self.advance_learning:
            block.a.requires_grad_(False)
            block.b.requires_grad_(False)
        return block

    def _set_scale(self, layer: LowRankLinear) -> None:
        """alpha / (active rank + 1e-5) as the authors; it rescales older ranks at every growth."""
        divisor = {"active": layer.rank + EPSILON, "target": float(self.target_rank), "none": 1.0}[
            self.scale_by
        ]
        layer.scale = self.alpha / divisor

    # -- hooks ----------------------------------------------------------------------------------------------

    def setup(self, run: Run) -> None:
        import torch

        n = len(run.adapters)
        run.scratch |= {
            "sensitivity": torch.zeros(n, dtype=torch.float64),  # I, one per module
            "uncertainty": torch.zeros(n, dtype=torch.float64),  # U
            "interval": run.steps("method.interval", self.interval),
            "growth_warmup": run.steps("method.growth_warmup", self.growth_warmup),
            "top_h": self.modules_per_growth(n),
        }
        if self._remaining(run) == 0:  # target_rank 1: nothing to grow
            self._end_reserves(run)

    def before_forward(self, run: Run) -> None:
        scoring = self._remaining(run) > 0
        for layer in run.adapters.values():
            layer.want_delta_grad = scoring
            layer.delta_grad = None

    def penalty(self, run: Run) -> Tensor | None:
        """gamma * mean over the 2n matrices of ||A A^T - I||_F and ||B B^T - I||_F (Eq. 4: their squares).

        A module's matrix holds all its ranks, the reserve included: that is what makes a reserve orthogonal to the
        ranks it will join. Without advance learning a reserve sleeps, and nothing is kept orthogonal to it.
        """
        from adalora_bench.lowrank.scores import mean_orthogonality

        if self.orthogonality == 0:
            return None
        factors = [layer.factors(reserve=self.advance_learning) for layer in run.adapters.values()]
        matrices = [x for f in factors for x in (f.a, f.b)]
        return self.orthogonality * mean_orthogonality(matrices, squared=self.orthogonality_squared)

    def after_backward(self, run: Run) -> None:
        """Score (Eq. 5), smooth (Eq. 6, 7), rank (Eq. 8) and, when it is time, grow (Algorithm 1)."""
        if self._remaining(run) <= 0:
            return
        self._score(run)
        state = run.scratch
        if run.step + 1 == run.total_steps:
            return  # ranks that came now would never train
        if run.step > state["growth_warmup"] and run.step % state["interval"] == 0:
            self._grow(run, run.reduce(state["sensitivity"] * state["uncertainty"]))

    def check(self, run: Run) -> None:
        wanted = self.target_rank * len(run.adapters)
        if run.total_rank != wanted:
            raise PromiseBroken(f"IncreLoRA ended with {run.total_rank} ranks instead of {wanted}")
        if self.target_rank > 1 and not any(event.kind == "grow" for event in run.events):
            raise PromiseBroken("IncreLoRA never grew a module")

    # -- parts ----------------------------------------------------------------------------------------------

    def _remaining(self, run: Run) -> int:
        return self.target_rank * len(run.adapters) - run.total_rank

    def _score(self, run: Run) -> None:
        import torch

        from adalora_bench.lowrank.scores import smooth, uncertainty, update_sensitivity

        values = []
        with torch.no_grad():
            for layer in run.adapters.values():
                delta, grad = layer.delta(), layer.delta_grad
                grad = torch.zeros_like(delta) if grad is None else grad  # left out of the forward pass
                values.append(update_sensitivity(delta, grad, norm=self.score_norm))
                layer.delta_grad = None
        s = torch.stack(values).double().cpu()
        if not bool(torch.isfinite(s).all()):
            raise Diverged(f"IncreLoRA's score is not finite at step {run.step}")
        state = run.scratch
        state["sensitivity"] = smooth(state["sensitivity"], s, self.beta1)
        state["uncertainty"] = uncertainty(state["uncertainty"], s, state["sensitivity"], self.beta2)

    def _choose(self, scores: list[float], run: Run) -> dict[int, int]:
        """Index of a module -> ranks that it gains in this event."""
        from adalora_bench.lowrank.allocate import grow_top

        h, ranks = run.scratch["top_h"], self.ranks_per_growth
        return grow_top(scores, modules=h, ranks=ranks, remaining=self._remaining(run))

    def _reserves_stay(self) -> bool:
        """Whether reserves are kept when the target is met."""
        return False

    def _grow(self, run: Run, scores: Tensor) -> None:
        layers = list(run.adapters.items())
        gained = self._choose(scores.tolist(), run)
        last = sum(gained.values()) >= self._remaining(run)
        born: list[nn.Parameter] = []
        for k in sorted(gained):
            name, layer = layers[k]
            before = layer.rank
            born += self._activate(layer, ranks=gained[k])
            if not last or self._reserves_stay():
                fresh = layer.append(self._new_block(layer, run, ranks=self.ranks_per_growth, reserve=True))
                born += [p for p in (fresh.a, fresh.b) if p.requires_grad]
            self._set_scale(layer)
            run.event("grow", name, before, layer.rank)
        run.add_params(born, lr=self.lr, restart_warmup=self.restart_warmup, name=f"grown at step {run.step}")
        if last:
            self._end_reserves(run)

    def _activate(self, layer: LowRankLinear, *, ranks: int) -> list[nn.Parameter]:
        """The newest reserve starts to count; ranks beyond `ranks` are dead. Returns what begins to train."""
        import torch

        block = next(b for b in layer.rank_blocks() if b.reserve)
        block.reserve = False
        block.kill(torch.arange(block.rank) >= ranks)
        sleeping = [p for p in (block.a, block.b) if not p.requires_grad]
        for p in (block.gate, *sleeping):
            p.requires_grad_(True)
        return [block.gate, *sleeping]

    def _end_reserves(self, run: Run) -> None:
        """At the final total nothing is scored any more, and the reserves leave model and optimizer."""
        for layer in run.adapters.values():
            layer.want_delta_grad, layer.delta_grad = False, None
            for block in [b for b in layer.rank_blocks() if b.reserve]:
                for p in block.parameters():
                    run.forget(p)
                layer.remove(block)
        run.compact()
