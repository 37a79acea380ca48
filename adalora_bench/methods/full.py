"""Full fine-tuning, the yardstick of all tables, and its two restricted forms of Delta-LoRA's tables."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from adalora_bench.methods.base import Method
from adalora_bench.models.four_bit import TOO_COARSE

if TYPE_CHECKING:
    from torch import nn

    from adalora_bench.methods.run import Run


@dataclass(frozen=True, kw_only=True)
class Full(Method):
    """Train everything, or with roles in `targets` the weights and biases of those layers alone.

    Args:
        embeddings: false leaves every embedding table as it is (and what is tied to it, such as an LM head).
    """

    embeddings: bool

    no_four_bit: ClassVar[str] = f"it trains weights of the backbone, and {TOO_COARSE}"

    def attach(self, run: Run) -> None:
        from torch import nn

        whole = "all" in self.targets
        if not whole:
            super().attach(run)
            return
        run.model.requires_grad_(True)
        for module in run.model.modules():
            if isinstance(module, nn.Embedding) and not self.embeddings:
                module.requires_grad_(False)

    def adapt(self, base: nn.Module, role: str, run: Run) -> nn.Module:
        return base.requires_grad_(True)
