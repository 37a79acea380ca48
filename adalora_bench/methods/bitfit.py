"""BitFit (Ben Zaken et al., 2022, arXiv 2106.10199): only the biases train, and the head.

Every bias of the backbone, those of LayerNorms included. A target layer without one (LLaMA has none) gets zeros.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from adalora_bench.errors import PromiseBroken
from adalora_bench.methods.base import Method

if TYPE_CHECKING:
    from torch import nn

    from adalora_bench.methods.run import Run


@dataclass(frozen=True, kw_only=True)
class BitFit(Method):
    """`targets` names the layers that get a bias where they have none; biases that exist train everywhere."""

    no_four_bit: ClassVar[str] = "it trains biases, and bitsandbytes keeps those of its layers in bfloat16"

    def attach(self, run: Run) -> None:
        super().attach(run)
        for bias in biases(run):
            bias.requires_grad_(True)

    def adapt(self, base: nn.Module, role: str, run: Run) -> nn.Module:
        from torch import nn

        from adalora_bench.inserts.bottleneck import example_of, width_of

        if getattr(base, "bias", None) is None:
            base.bias = nn.Parameter(example_of(base).new_zeros(width_of(base, out=True)))
        return base

    def setup(self, run: Run) -> None:
        run.scratch["start"] = _sum(run)

    def check(self, run: Run) -> None:
        if run.scratch["start"] == _sum(run):
            raise PromiseBroken("no bias moved")


def biases(run: Run) -> list[nn.Parameter]:
    """The `bias` of every module of the model that has one."""
    from torch import nn

    found = (getattr(module, "bias", None) for module in run.model.modules())
    return [bias for bias in found if isinstance(bias, nn.Parameter)]


def _sum(run: Run) -> float:
    return sum(float(bias.detach().double().square().sum()) for bias in biases(run))
