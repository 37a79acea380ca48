"""AdapterDrop (Rueckle et al., 2021, arXiv 2010.11918): Houlsby adapters without those of the first blocks.

`specialised` never has them. `robust` has them all and leaves out those of the first n blocks in a step, n drawn anew
from 0..drop_blocks; evaluation uses all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from adalora_bench.errors import PromiseBroken, UserError, unknown
from adalora_bench.methods.base import Facts
from adalora_bench.methods.houlsby import Houlsby

if TYPE_CHECKING:
    from adalora_bench.inserts.bottleneck import AfterLinear
    from adalora_bench.methods.run import Run

MODES = ("specialised", "robust")


@dataclass(frozen=True, kw_only=True)
class AdapterDrop(Houlsby):
    """See conf/method/adapterdrop.yaml for what each setting means and where its default comes from."""

    drop_blocks: int
    mode: str

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.drop_blocks < 0:
            raise UserError(f"method.drop_blocks={self.drop_blocks} must be 0 or more.")
        if self.mode not in MODES:
            raise UserError(unknown("value of method.mode", self.mode, MODES))

    def precheck(self, facts: Facts) -> None:
        super().precheck(facts)
        blocks = facts.modules // len(self.targets)
        if self.drop_blocks >= blocks:
            raise UserError(
                f"method.drop_blocks={self.drop_blocks} leaves no adapter: the backbone has {blocks} blocks."
            )

    def attach(self, run: Run) -> None:
        super().attach(run)
        if self.mode == "specialised":
            from adalora_bench.inserts.bottleneck import replace_module

            for name, layer, block in _wrapped(run):
                if block < self.drop_blocks:
                    replace_module(run.model, name, layer.base)

    def before_forward(self, run: Run) -> None:
        import torch

        if self.mode == "robust":
            n = int(torch.randint(self.drop_blocks + 1, (), generator=run.generator))
            run.scratch["dropped"] = run.scratch.get("dropped", 0) + (n > 0)
            for _, layer, block in _wrapped(run):
                layer.enabled = block >= n

    def after_step(self, run: Run) -> None:
        for _, layer, _ in _wrapped(run):
            layer.enabled = True

    def check(self, run: Run) -> None:
        super().check(run)
        if self.mode == "robust" and self.drop_blocks and not run.scratch["dropped"]:
            raise PromiseBroken("no step left an adapter out")


def _wrapped(run: Run) -> list[tuple[str, AfterLinear, int]]:
    """(name, layer, block) of every layer that carries an adapter."""
    from adalora_bench.inserts.bottleneck import AfterLinear, blocks_of

    found = ((name, run.model.get_submodule(name), block) for name, block in blocks_of(run.modules).items())
    return [(name, layer, block) for name, layer, block in found if isinstance(layer, AfterLinear)]
