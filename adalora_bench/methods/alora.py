"""ALoRA (Liu et al., 2024, arXiv 2403.16187): ranks that the model can do without move to where ranks are needed.

dW = (alpha / r_init) B^T diag(gate) A with hard gates (Eq. 3). After K1 epochs, and then every K2 epochs, every rank is
scored by what the loss on a held-out batch says without it and with it alone (AB-LoRA, Eq. 6). The n_A lowest are
pruned, and the matrices that lost nothing share n_A new ranks (footnote 3); if every matrix lost one, nothing is added
and the total shrinks (footnote 4). Pruned ranks leave model and optimizer at once; the others keep their state and the
learning rate its one curve. Two variants of the paper's ablation score otherwise: alora_variants.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from adalora_bench.errors import Diverged, PromiseBroken, UserError, unknown
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

Rows = list[list[float]]  # of each adapted matrix, a number per active rank
SCREEN = 2  # `screened` scores this many times n_A ranks exactly


@dataclass(frozen=True, kw_only=True)
class Alora(Method):
    """See conf/method/alora.yaml for what each setting means and where its default comes from."""

    rank: int  # r_init
    alpha: float
    dropout: float
    first_round: Phase  # K1
    interval: Phase  # K2
    rounds: int  # N_A
    n_prune: int | None  # n_A
    validation_rows: int  # of B_val
    redraw: bool
    scorer: str
    score_grid: float
    grow_out: str
    leftover: str
    revive_empty: bool
    scale_by: str

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least_one("method.rank", self.rank)
        require_at_least_one("method.rounds", self.rounds)
        require_at_least_one("method.validation_rows", self.validation_rows)
        if self.n_prune is not None:
            require_at_least_one("method.n_prune", self.n_prune)
        require_positive("method.alpha", self.alpha)
        require_not_negative("method.score_grid", self.score_grid)
        require_below_one("method.dropout", self.dropout)
        for name, valid in (
            ("scorer", ("exact", "screened", "brute")),
            ("grow_out", ("zero", "random")),
            ("leftover", ("drop", "carry")),
            ("scale_by", ("start", "active")),
        ):
            if getattr(self, name) not in valid:
                raise UserError(unknown(f"value of method.{name}", getattr(self, name), valid))

    def precheck(self, facts: Facts) -> None:
        super().precheck(facts)
        for name in ("first_round", "interval"):  # an untrained rank has no score
            require_at_least_one(f"method.{name}", facts.steps(f"method.{name}", getattr(self, name)))
        exist = self.rank * facts.modules
        count = self._usual(facts.modules, exist)
        if not 0 < count < exist:
            raise UserError(
                f"ALoRA prunes {count} ranks a round (method.n_prune; null: one per adapted matrix), but "
                f"{facts.modules} matrices of rank {self.rank} have {exist} in all; raise method.rank or prune fewer."
            )
        plan = self.plan(facts.steps, self.rounds + 1)
        # two lengths that are both rounded up may be one step too long together
        end = facts.total_steps + (isinstance(self.first_round, str) and isinstance(self.interval, str))
        fit = sum(start < facts.total_steps and stop <= end for start, stop in pairwise(plan))
        if fit < self.rounds:
            raise UserError(
                f"method.first_round={self.first_round} ({plan[0]} steps) and method.rounds={self.rounds} times "
                f"method.interval={self.interval} take {plan[-1]} steps, but the training has {facts.total_steps} "
                f"({facts.steps_per_epoch} an epoch): {fit} rounds fit. Shorten them or train longer."
            )

    def plan(self, steps: Callable[[str, Phase], int], rounds: int) -> list[int]:
        """The steps before which rounds are made: K1 + n K2, never two at once. `steps` turns a length into steps."""
        first = steps("method.first_round", self.first_round)
        return [first + max(n, steps("method.interval", times(self.interval, n))) for n in range(rounds)]

    def validation_batches(self) -> tuple[int, int]:
        return self.rounds if self.redraw else 1, self.validation_rows

    # -- building -------------------------------------------------------------------------------------------

    def adapt(self, base: nn.Module, role: str, run: Run) -> nn.Module:
        """A ~ U(-1/sqrt(in), 1/sqrt(in)) as our LoRA, B = 0, gates 1."""
        from adalora_bench.lowrank.adapter import LowRankLinear

        layer = LowRankLinear(base, scale=self.alpha / self.rank, role=role, dropout=self.dropout)
        layer.append(self._block(layer, self.rank, run, out="zero"))
        return layer

    def _block(self, layer: LowRankLinear, ranks: int, run: Run, *, out: str) -> RankBlock:
        from adalora_bench.lowrank.adapter import RankBlock

        like = layer.weight
        a = run.uniform(ranks, layer.in_features, bound=1 / math.sqrt(layer.in_features), like=like)
        if out == "zero":
            b = like.new_zeros(ranks, layer.out_features)
        else:
            b = run.uniform(ranks, layer.out_features, bound=1 / math.sqrt(layer.out_features), like=like)
        return RankBlock(a=a, b=b, gate=like.new_ones(ranks))

    # -- hooks ----------------------------------------------------------------------------------------------

    def setup(self, run: Run) -> None:
        run.scratch |= {
            "plan": self.plan(run.steps, self.rounds),
            "n_prune": self._usual(len(run.adapters), run.total_rank),
            "initial_total": run.total_rank,
            "done": 0,  # rounds
            "stopped": False,  # one rank was left, so that a round would have nothing to choose from
            "pruned": 0,  # ranks, in all rounds
            "carried": 0,  # ranks that found no place (leftover: carry)
            "agreed": 0,  # of the ranks that `screened` pruned, how many first order alone would have
        }

    def _usual(self, modules: int, exist: int) -> int:
        """n_A: as set; else the number of matrices, but at most half of all ranks, so that some matrix can gain."""
        return self.n_prune or min(modules, exist // 2)

    def before_forward(self, run: Run) -> None:
        if self.searching(run) and run.step == run.scratch["plan"][run.scratch["done"]]:
            self._round(run)

    def searching(self, run: Run) -> bool:
        """Whether another round is to come."""
        return run.scratch["done"] < self.rounds and not run.scratch["stopped"]

    def check(self, run: Run) -> None:
        state = run.scratch
        if self.searching(run):
            raise PromiseBroken(f"ALoRA scored {state['done']} rounds instead of {self.rounds}")
        if run.total_rank < 1:
            raise PromiseBroken("ALoRA pruned its last rank, so that nothing is adapted")
        if run.total_rank > state["initial_total"]:
            raise PromiseBroken(
                f"ALoRA ended with {run.total_rank} ranks, more than the {state['initial_total']} it began with"
            )

    def notes(self, run: Run) -> list[str]:
        """What `screened` did: it is no exact score."""
        state = run.scratch
        pruned = state["pruned"]
        if self.scorer != "screened" or not pruned:
            return []
        return [
            f"ranks screened to first order, the lowest {SCREEN} x {state['n_prune']} of a round scored exactly; "
            f"{state['agreed'] / pruned:.0%} of the {pruned} pruned ranks are also the lowest to first order"
        ]

    # -- one round ------------------------------------------------------------------------------------------

    def importance(self, run: Run) -> tuple[Rows, Rows]:
        """Scores of all active ranks, and the same with infinity for those that this round does not prune."""
        from adalora_bench.lowrank.ablation import plain_losses, replayed_losses

        if self.scorer == "screened":
            return self._screened(run)
        losses = plain_losses if self.scorer == "brute" else replayed_losses
        layers = list(run.adapters.values())
        ranks = [(m, r) for m, layer in enumerate(layers) for r in range(layer.rank)]
        rows = self.rows(run, self._ordered(run, losses(run.model, layers, self._batch(run), ranks)))
        return rows, rows

    def _screened(self, run: Run) -> tuple[Rows, Rows]:
        """First order for all, then exact for the lowest; only these may go, for only these are sure."""
        from adalora_bench.lowrank.ablation import first_order_losses, replayed_losses
        from adalora_bench.lowrank.allocate import prune_lowest

        layers, batch, count = list(run.adapters.values()), self._batch(run), run.scratch["n_prune"]
        ranks = [(m, r) for m, layer in enumerate(layers) for r in range(layer.rank)]
        rows = self.rows(run, self._ordered(run, first_order_losses(run.model, layers, batch, ranks)))
        rough = prune_lowest(rows, count, grid=self.score_grid)
        pool = prune_lowest(rows, SCREEN * count, grid=self.score_grid)
        chosen = [(m, r) for m, row in enumerate(pool) for r in row]
        exact = self._ordered(run, replayed_losses(run.model, layers, batch, chosen))
        prunable = [[math.inf] * len(row) for row in rows]
        for (m, r), score in zip(chosen, exact.tolist(), strict=True):
            rows[m][r] = prunable[m][r] = score
        sure = prune_lowest(prunable, count, grid=self.score_grid)
        run.scratch["agreed"] += sum(len(set(a) & set(b)) for a, b in zip(rough, sure, strict=True))
        return rows, prunable

    def _batch(self, run: Run) -> Sequence[Callable[[], Tensor]]:
        return run.validation[run.scratch["done"] if self.redraw else 0]

    def _ordered(self, run: Run, losses: Tensor) -> Tensor:
        """CS of each rank from the losses without it and with it alone."""
        from adalora_bench.lowrank.scores import ablation_order

        return run.reduce(ablation_order(losses[:, 0], losses[:, 1]))

    def rows(self, run: Run, scores: Tensor) -> Rows:
        """Scores of all ranks, laid end to end, by matrix. Raises Diverged if one is not finite."""
        import torch

        if not bool(torch.isfinite(scores).all()):
            raise Diverged(f"ALoRA's score is not finite at step {run.step}")
        return [row.tolist() for row in scores.split([layer.rank for layer in run.adapters.values()])]

    def _round(self, run: Run) -> None:
        """Score, prune, grow; the total never rises."""
        from adalora_bench.lowrank.allocate import prune_lowest, share_evenly

        state, before = run.scratch, run.total_rank
        count = state["n_prune"] = min(state["n_prune"], before - 1)  # the last rank stays
        if count < 1:
            state["stopped"] = True
            run.event("stop", "", before, before)
            return
        scores, prunable = self.importance(run)
        pruned = prune_lowest(prunable, count, grid=self.score_grid)
        means = {m: sum(row) / len(row) for m, row in enumerate(scores) if row and not pruned[m]}
        if self.revive_empty:
            means |= {m: -math.inf for m, row in enumerate(scores) if not row}
        gained = share_evenly(count + state["carried"], means, grid=self.score_grid)
        if self.leftover == "carry":
            state["carried"] = 0 if gained else count + state["carried"]
        state["done"] += 1
        state["pruned"] += count
        self._prune(run, pruned)
        self._grow(run, gained)
        self.follow(run, pruned, gained)
        if run.total_rank < before:
            run.event("shrink", "", before, run.total_rank)

    def _prune(self, run: Run, pruned: Sequence[Sequence[int]]) -> None:
        """Gate 0, and out of model and optimizer: the output is that of the gates."""
        import torch

        for (name, layer), gone in zip(run.adapters.items(), pruned, strict=True):
            if not gone:
                continue
            before, dead = layer.rank, torch.zeros(layer.rank, dtype=torch.bool)
            dead[list(gone)] = True
            blocks = list(layer.rank_blocks())
            for block, part in zip(blocks, dead.split([block.rank for block in blocks]), strict=True):
                block.kill(part)
            self._set_scale(layer)
            run.event("prune", name, before, layer.rank)
        run.compact()

    def _grow(self, run: Run, gained: Mapping[int, int]) -> None:
        layers, born = list(run.adapters.items()), []
        for m, ranks in gained.items():
            name, layer = layers[m]
            before = layer.rank
            block = layer.append(self._block(layer, ranks, run, out=self.grow_out))
            born += [block.a, block.b]
            self._set_scale(layer)
            run.event("grow", name, before, layer.rank)
        run.add_params(born, lr=self.lr, restart_warmup=False, name=f"grown at step {run.step}")

    def _set_scale(self, layer: LowRankLinear) -> None:
        if self.scale_by == "active":
            layer.scale = self.alpha / max(1, layer.rank)

    def follow(self, run: Run, pruned: Sequence[Sequence[int]], gained: Mapping[int, int]) -> None:
        """For variants that keep numbers of each rank: the ranks that `pruned` names are gone, `gained` are new."""


def times(length: Phase, n: int) -> Phase:
    """n times a length, before it is rounded up to steps."""
    if isinstance(length, int):
        return n * length
    unit = "%" if length.strip().endswith("%") else "ep"
    return f"{n * float(length.strip().removesuffix(unit))}{unit}"
