"""Parallel adapter (He et al., 2022, arXiv 2110.04366): a scaled bottleneck beside the feed-forward network.

y = FFN(x) + s * U relu(D x), with U = 0 at the start.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from adalora_bench.errors import UserError
from adalora_bench.methods.houlsby import Houlsby

if TYPE_CHECKING:
    from torch import nn

    from adalora_bench.methods.run import Run


@dataclass(frozen=True, kw_only=True)
class ParallelAdapter(Houlsby):
    """See conf/method/parallel_adapter.yaml."""

    def _check_targets(self) -> None:
        if self.targets != ["down"]:
            raise UserError(
                f"method.targets={self.targets}: a parallel adapter adds to the FFN's last layer, [down]."
            )

    def attach(self, run: Run) -> None:
        """Remember the input of every FFN's first layer, and add the adapter where its last layer ends."""
        from adalora_bench.inserts.bottleneck import Parallel, RemembersInput, replace_module, width_of

        super().attach(run)
        first: RemembersInput | None = None
        for name, role in run.modules.items():
            layer = run.model.get_submodule(name)
            if role == "up":
                first = RemembersInput(layer)
                replace_module(run.model, name, first)
            elif role == "down":
                assert first is not None, "a backbone declares `up` before `down`"
                adapter = self.make(layer, width_of(layer, out=True), run)
                replace_module(run.model, name, Parallel(layer, adapter, first))

    def adapt(self, base: nn.Module, role: str, run: Run) -> nn.Module:
        """Left as it is: `attach` wraps pairs of layers."""
        return base
