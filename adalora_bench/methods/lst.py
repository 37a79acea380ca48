"""Ladder side-tuning (Sung et al., 2022, arXiv 2206.06522): a small network beside the frozen backbone.

No gradient reaches the backbone. The mixing rule is the paper's. Ours: the small block is position-wise, since the
states that it reads have attended already and a generation with a cache stays exact; the ladder's output is added to
the last hidden state (its up-projection starts at 0), so that training starts from the backbone's own answer; of an
encoder-decoder only the decoder has a ladder, for a changed encoder would need gradients through the decoder.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from adalora_bench.errors import PromiseBroken, UserError
from adalora_bench.methods.base import Facts, Method, require_at_least_one, require_positive

if TYPE_CHECKING:
    from torch import Tensor

    from adalora_bench.inserts.ladder import Ladder
    from adalora_bench.methods.run import Run


@dataclass(frozen=True, kw_only=True)
class Lst(Method):
    """See conf/method/lst.yaml for what each setting means and where its default comes from."""

    reduction: int
    inner: int
    gate: float
    temperature: float
    replace: bool

    no_gradient_checkpointing: ClassVar[str] = (
        "its backbone runs without gradients, so nothing of it is kept for backward"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.targets != ["all"]:
            raise UserError(f"method.targets={self.targets}: a ladder reads whole blocks, [all].")
        require_at_least_one("method.reduction", self.reduction)
        require_at_least_one("method.inner", self.inner)
        require_positive("method.temperature", self.temperature)
        if not math.isfinite(self.gate):
            raise UserError(f"method.gate={self.gate} must be finite.")

    @property
    def starts_unchanged(self) -> bool:  # type: ignore[override]
        """Not where the ladder's output takes the place of the backbone's."""
        return not self.replace

    def precheck(self, facts: Facts) -> None:
        super().precheck(facts)
        if facts.modules == 0:
            raise UserError("the backbone names 0 layers (backbone.roles), so there is no block to read.")

    def attach(self, run: Run) -> None:
        from adalora_bench.inserts.ladder import Ladder, Rung, blocks_with_names

        super().attach(run)
        body = run.model.body
        d: int = body.config.hidden_size  # type: ignore[union-attr, assignment]
        side = d // self.reduction
        if side < 1:
            raise UserError(
                f"method.reduction={self.reduction} leaves no ladder: the backbone has width {d}."
            )
        like = next(p for p in run.model.parameters() if p.is_floating_point())
        found = [block for _, block in blocks_with_names(run.model, run.modules)]

        def drawn(rows: int, columns: int) -> Tensor:
            return run.uniform(rows, columns, bound=1 / math.sqrt(columns), like=like)

        rungs = [
            Rung(
                down=drawn(side, d),
                first=drawn(self.inner * side, side),
                second=drawn(side, self.inner * side),
                gate=self.gate,
                temperature=self.temperature,
            )
            for _ in found
        ]
        up = drawn(d, side) if self.replace else like.new_zeros(d, side)
        ladder = Ladder(entry=drawn(side, d), rungs=rungs, up=up, replace=self.replace)
        run.model.ladder = ladder
        ladder.watch(found, body.base_model)  # type: ignore[union-attr, arg-type]

    def setup(self, run: Run) -> None:
        run.scratch["start"] = float(_ladder(run).up.detach().double().square().sum())

    def notes(self, run: Run) -> list[str]:
        return ["the ladder's blocks are position-wise (ours); the paper's are small transformer blocks"]

    def check(self, run: Run) -> None:
        if float(_ladder(run).up.detach().double().square().sum()) == run.scratch["start"]:
            raise PromiseBroken("the ladder's output did not move")


def _ladder(run: Run) -> Ladder:
    ladder: Ladder = run.model.ladder  # type: ignore[assignment]
    return ladder
