"""Full fine-tuning: every parameter of the backbone moves. The yardstick of all tables."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from adalora_bench.errors import UserError
from adalora_bench.methods.base import Method

if TYPE_CHECKING:
    from adalora_bench.train.state import Run


@dataclass(frozen=True, kw_only=True)
class Full(Method):
    """Train everything: no layer is wrapped, so `targets` can only be [all]."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.targets != ["all"]:
            raise UserError(
                f"method.targets={self.targets}: full fine-tuning trains everything; leave it [all]."
            )

    def attach(self, run: Run) -> None:
        run.model.requires_grad_(True)
