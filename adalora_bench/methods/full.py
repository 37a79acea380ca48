"""Full fine-tuning: every parameter of the backbone moves. The yardstick of all tables."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from adalora_bench.methods.base import Method

if TYPE_CHECKING:
    from adalora_bench.train.state import Run


@dataclass(frozen=True, kw_only=True)
class Full(Method):
    """Train everything. `targets` is not used: no layer is wrapped."""

    def attach(self, run: Run) -> None:
        run.model.requires_grad_(True)
