"""AFLoRA (Liu et al., 2024, arXiv 2403.13269): projection matrices are frozen one by one, vectors train to the end.

dW = diag(L_b) B diag(L_d) A (Eq. 1), with L_d the gate of the layer and L_b its out_gate. Each step scores every
projection matrix that still trains (Eq. 2-4); a cubic schedule says how many are to be frozen (Eq. 5), and those with
the lowest scores are, before the optimizer step: a frozen matrix does not move in that step any more.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

from adalora_bench.errors import Diverged, PromiseBroken, UserError, unknown
from adalora_bench.methods.base import ROLES, Facts, Method, require_at_least_one, require_below_one
from adalora_bench.schedule import Phase

if TYPE_CHECKING:
    from torch import Tensor, nn

    from adalora_bench.methods.run import Run

SCORES = ("grad", "weight_times_grad", "grad_over_weight")


@dataclass(frozen=True, kw_only=True)
class AfLora(Method):
    """See conf/method/aflora.yaml for what each setting means and where its default comes from."""

    rank: int
    dropout: float
    d_init: float  # L_d at the start
    train_matrices: list[str]
    initial_warmup: Phase  # t_i
    final_phase: Phase  # t_f
    score: str
    beta1: float
    beta2: float
    deviation_from: str
    window: int
    freeze: bool

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least_one("method.rank", self.rank)
        require_at_least_one("method.window", self.window)
        for name, value in (("beta1", self.beta1), ("beta2", self.beta2), ("dropout", self.dropout)):
            require_below_one(f"method.{name}", value)
        if not 0 < abs(self.d_init) < math.inf:
            raise UserError(f"method.d_init={self.d_init} must be a finite number other than 0.")
        for name, valid in (("score", SCORES), ("deviation_from", ("previous", "updated"))):
            if getattr(self, name) not in valid:
                raise UserError(unknown(f"value of method.{name}", getattr(self, name), valid))
        for role in self.train_matrices:
            if role not in (*ROLES, "all"):
                raise UserError(unknown("role in method.train_matrices", role, (*ROLES, "all")))
        if self.train_matrices and not any(self._trains_matrices(role) for role in self._adapted()):
            raise UserError(
                f"method.train_matrices={self.train_matrices} names no role of method.targets={self.targets}; "
                "give [] to freeze all projection matrices from the start."
            )

    def _adapted(self) -> tuple[str, ...]:
        return ROLES if "all" in self.targets else tuple(self.targets)

    def _trains_matrices(self, role: str) -> bool:
        return role in self.train_matrices or "all" in self.train_matrices

    def precheck(self, facts: Facts) -> None:
        super().precheck(facts)
        start = facts.steps("method.initial_warmup", self.initial_warmup)
        tail = facts.steps("method.final_phase", self.final_phase)
        if not self.train_matrices or not self.freeze:
            return
        if start + tail >= facts.total_steps:
            raise UserError(
                f"AFLoRA has no step to freeze in: method.initial_warmup={self.initial_warmup} is {start} steps "
                f"and method.final_phase={self.final_phase} is {tail}, which leaves none of {facts.total_steps}. "
                "Train longer, or shorten one of them."
            )
        if self.window > max(1, start):
            raise UserError(
                f"method.window={self.window} steps are not over when freezing begins at step {start} "
                f"(method.initial_warmup={self.initial_warmup}): there would be no score; "
                "shorten the window or raise initial_warmup."
            )

    # -- building -------------------------------------------------------------------------------------------

    def adapt(self, base: nn.Module, role: str, run: Run) -> nn.Module:
        """A and B Kaiming-uniform (a = 0, bound sqrt(6 / fan_in)), L_d small, L_b zero; no alpha / r."""
        from torch import nn

        from adalora_bench.lowrank.adapter import LowRankLinear, RankBlock

        layer = LowRankLinear(base, scale=1.0, role=role, dropout=self.dropout)
        like, r = layer.weight, self.rank
        block = RankBlock(
            a=run.uniform(r, layer.in_features, bound=math.sqrt(6 / layer.in_features), like=like),
            b=run.uniform(r, layer.out_features, bound=math.sqrt(6 / r), like=like),
            gate=like.new_full((r,), self.d_init),
            train_gate=True,
        )
        layer.append(block)
        layer.out_gate = nn.Parameter(like.new_zeros(layer.out_features))
        for matrix in (block.a, block.b):
            matrix.requires_grad_(self._trains_matrices(role))
        return layer

    # -- hooks ----------------------------------------------------------------------------------------------

    def setup(self, run: Run) -> None:
        run.scratch |= {
            "start": run.steps("method.initial_warmup", self.initial_warmup),
            "tail": run.steps("method.final_phase", self.final_phase),
        }

    def after_backward(self, run: Run) -> None:
        """Score (Eq. 2, 3), and freeze the lowest (Eq. 4) until floor(r(t) * n) are frozen (Eq. 5)."""
        from adalora_bench.lowrank.allocate import freeze_lowest

        matrices = self.matrices(run)
        frozen = {k for k, (_, p) in enumerate(matrices) if not p.requires_grad}
        if len(frozen) == len(matrices) or not self.freeze:
            return
        for k, (_, p) in enumerate(matrices):
            if k not in frozen:
                self._smooth(run, k, p)
        wanted = self._wanted(run.step, run, len(matrices))
        if wanted <= len(frozen):
            return
        for k in freeze_lowest(self._scores(run, len(matrices), frozen), frozen=frozen, count=wanted):
            name, p = matrices[k]
            run.freeze(p)
            for part in ("mean", "deviation", "window"):
                run.scratch.pop(f"{part}.{k}", None)
            left = len(matrices) - len(frozen)
            frozen.add(k)
            run.event("freeze", name, left, left - 1)

    def check(self, run: Run) -> None:
        n = len(self.matrices(run))
        done = 0
        for step, group in groupby(
            (e for e in run.events if e.kind == "freeze"), key=lambda event: event.step
        ):
            done += len(list(group))
            if done != self._wanted(step, run, n):
                raise PromiseBroken(
                    f"AFLoRA had {done} matrices frozen at step {step} instead of {self._wanted(step, run, n)}"
                )
        frozen = sum(not p.requires_grad for _, p in self.matrices(run))
        wanted = self._wanted(run.total_steps - 1, run, n)
        if not done == frozen == wanted:
            raise PromiseBroken(f"AFLoRA ended with {frozen} of {n} matrices frozen instead of {wanted}")
        if not any(bool(layer.delta().any()) for layer in run.adapters.values()):
            raise PromiseBroken("no AFLoRA update moved away from 0")

    # -- parts ----------------------------------------------------------------------------------------------

    def matrices(self, run: Run) -> list[tuple[str, nn.Parameter]]:
        """(name, tensor) of every projection matrix that trains at the start, frozen by now or not."""
        return [
            (f"{name}.{letter}", p)
            for name, layer in run.adapters.items()
            if self._trains_matrices(layer.role)
            for block in layer.rank_blocks()
            for letter, p in (("A", block.a), ("B", block.b))
        ]

    def _wanted(self, step: int, run: Run, n: int) -> int:
        """floor(r(t) * n): all of them once the tail begins; none with freeze: false."""
        from adalora_bench.lowrank.allocate import freezing_fraction

        if not self.freeze:
            return 0

        state = run.scratch
        return math.floor(
            n * freezing_fraction(step, total=run.total_steps, start=state["start"], tail=state["tail"])
        )

    def _smooth(self, run: Run, k: int, p: nn.Parameter) -> None:
        """I and U of one matrix; with a window, once per window with the mean of its steps."""
        import torch

        from adalora_bench.lowrank.scores import freezing_signal, smooth, uncertainty
        from adalora_bench.methods.run import gradient

        state = run.scratch
        with torch.no_grad():
            signal = freezing_signal(p, gradient(p), kind=self.score)
            if self.window > 1:
                signal = state.pop(f"window.{k}", 0) + signal / self.window
                if (run.step + 1) % self.window:
                    state[f"window.{k}"] = signal
                    return
            old = state.get(f"mean.{k}", torch.zeros_like(signal))
            new = smooth(old, signal, self.beta1)
            deviation = state.get(f"deviation.{k}", torch.zeros_like(signal))
            reference = old if self.deviation_from == "previous" else new
            state[f"mean.{k}"] = new
            state[f"deviation.{k}"] = uncertainty(deviation, signal, reference, self.beta2)

    def _scores(self, run: Run, n: int, frozen: set[int]) -> list[float]:
        """Eq. 4 for every matrix that trains; infinity for the others.

        Raises:
            Diverged: a score is not finite.
        """
        import torch

        from adalora_bench.lowrank.scores import freezing_score

        state = run.scratch
        live = [k for k in range(n) if k not in frozen]
        scores: Tensor = torch.stack(
            [freezing_score(state[f"mean.{k}"], state[f"deviation.{k}"]) for k in live]
        )
        values: list[float] = run.reduce(scores.double().cpu()).tolist()
        if not all(map(math.isfinite, values)):
            raise Diverged(f"AFLoRA's score is not finite at step {run.step}")
        by_matrix = dict(zip(live, values, strict=True))
        return [by_matrix.get(k, math.inf) for k in range(n)]
