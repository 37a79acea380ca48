"""Training from scratch with ranks that are given, in the SVD-like form: IncreLoRA's paper, section 4.5 and Table 3.

There the ranks that IncreLoRA and AdaLoRA ended with are given to a new model, which keeps what the two methods share:
dW = s sum_i lambda_i b_i a_i with lambda from 0 on, and the orthogonality term of the loss. Nothing is allocated.
Where the ranks come from is settled before the training (pattern.py): a method knows no files.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from adalora_bench.errors import PromiseBroken, UserError
from adalora_bench.methods.base import (
    Facts,
    Method,
    require_at_least_one,
    require_below_one,
    require_not_negative,
    require_positive,
)

if TYPE_CHECKING:
    from torch import Tensor, nn

    from adalora_bench.methods.run import Run

EPSILON = 1e-5  # of the scale alpha / (r + EPSILON), as in both authors' codes


NO_PATTERN = (
    "this method trains with the ranks that another record ended with: give method.pattern_from=RECORD (or "
    "method.rank=2 for the same rank everywhere, a control)."
)


@dataclass(frozen=True, kw_only=True)
class SvdPattern(Method):
    """See conf/method/increlora_retrain.yaml for what each setting means and where its default comes from.

    Args:
        rank: of every module, where `ranks` is null; null where a pattern is wanted.
        ranks: module -> rank, 0 and above; a name may leave out its beginning ("encoder.layer.0.output.dense").
        pattern_from: the record that `ranks` came from, for people.
    """

    rank: int | None
    ranks: dict[str, int] | None
    pattern_from: str | None
    alpha: float
    scale_by: str
    init_std: float
    orthogonality: float  # gamma
    orthogonality_squared: bool
    dropout: float

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rank is not None:
            require_at_least_one("method.rank", self.rank)
        require_positive("method.alpha", self.alpha)
        require_positive("method.init_std", self.init_std)
        require_not_negative("method.orthogonality", self.orthogonality)
        require_below_one("method.dropout", self.dropout)
        if self.scale_by not in ("active", "target", "none"):
            raise UserError(f"method.scale_by={self.scale_by!r} must be active, target or none.")
        if self.ranks is not None:
            for name, rank in self.ranks.items():
                if rank < 0:
                    raise UserError(f"method.ranks gives {name} the rank {rank}; it must be 0 or above.")
            if not any(self.ranks.values()):
                raise UserError("method.ranks gives no module a rank above 0; nothing would train.")

    def precheck(self, facts: Facts) -> None:
        super().precheck(facts)
        if self.ranks is None and self.rank is None:
            raise UserError(NO_PATTERN)

    # -- building -------------------------------------------------------------------------------------------

    def attach(self, run: Run) -> None:
        """Wrap the layers, then give each the rank that is its own."""
        super().attach(run)
        ranks = self.ranks_of(list(run.adapters))
        average = sum(ranks.values()) / max(1, len(ranks))
        for name, layer in run.adapters.items():
            divisor = {"active": ranks[name] + EPSILON, "target": average, "none": 1.0}[self.scale_by]
            layer.scale = self.alpha / divisor
            if ranks[name]:
                self._fill(layer, ranks[name], run)

    def adapt(self, base: nn.Module, role: str, run: Run) -> nn.Module:
        from adalora_bench.lowrank.adapter import LowRankLinear

        return LowRankLinear(base, scale=1.0, role=role, dropout=self.dropout)

    def _fill(self, layer: nn.Module, rank: int, run: Run) -> None:
        """A, B ~ N(0, init_std), lambda = 0: how both methods begin."""
        from adalora_bench.lowrank.adapter import LowRankLinear, RankBlock

        assert isinstance(layer, LowRankLinear)
        like = layer.weight
        a = run.normal(rank, layer.in_features, std=self.init_std, like=like)
        b = run.normal(rank, layer.out_features, std=self.init_std, like=like)
        layer.append(RankBlock(a=a, b=b, gate=like.new_zeros(rank), train_gate=True))

    def ranks_of(self, modules: list[str]) -> dict[str, int]:
        """Module -> rank for these modules, every one of them and no other.

        Raises:
            UserError: `ranks` lacks a module, or names one that is not adapted.
        """
        if self.ranks is None:
            if self.rank is None:
                raise UserError(NO_PATTERN)
            return dict.fromkeys(modules, self.rank)
        given = dict(self.ranks)
        found = {}
        for module in modules:
            name = next((n for n in _endings(module) if n in given), None)
            if name is None:
                raise UserError(f"method.ranks has no rank for {module}.")
            found[module] = given.pop(name)
        if given:
            raise UserError(
                f"method.ranks names {next(iter(given))}, which method.targets={self.targets} lacks."
            )
        return found

    # -- hooks ----------------------------------------------------------------------------------------------

    def penalty(self, run: Run) -> Tensor | None:
        """gamma * mean over A and B of every module with ranks of ||A A^T - I||_F (Eq. 4: its square)."""
        from adalora_bench.lowrank.scores import mean_orthogonality

        if self.orthogonality == 0:
            return None
        blocks = run.rank_blocks()
        matrices = [x for block in blocks for x in (block.a, block.b)]
        return self.orthogonality * mean_orthogonality(matrices, squared=self.orthogonality_squared)

    def check(self, run: Run) -> None:
        expected = self.ranks_of(list(run.adapters))
        got = {name: layer.rank for name, layer in run.adapters.items()}
        if got != expected:
            wrong = next(name for name in expected if got[name] != expected[name])
            raise PromiseBroken(f"{wrong} ended with rank {got[wrong]} instead of {expected[wrong]}")
        if not any(bool(layer.delta().any()) for layer in run.adapters.values()):
            raise PromiseBroken("no update moved away from 0")


def _endings(name: str) -> list[str]:
    """a.b.c -> a.b.c, b.c, c."""
    parts = name.split(".")
    return [".".join(parts[k:]) for k in range(len(parts))]
