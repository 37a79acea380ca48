"""Method: the hooks of the loop (train/loop.py places them), with defaults that make plain fine-tuning of adapters."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from adalora_bench.errors import UserError, unknown
from adalora_bench.schedule import Phase, phase_steps

if TYPE_CHECKING:
    from torch import Tensor, nn

    from adalora_bench.lowrank.adapter import Factors, LowRankLinear
    from adalora_bench.methods.run import Group, Run

ROLES = ("q", "k", "v", "o", "gate", "up", "down")


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What is known of a run before any model or data is loaded; a method checks its settings against it."""

    total_steps: int
    steps_per_epoch: int
    warmup: int  # steps
    modules: int  # adapted matrices

    def steps(self, name: str, value: Phase) -> int:
        """A phase of the method in steps."""
        return phase_steps(name, value, total_steps=self.total_steps, steps_per_epoch=self.steps_per_epoch)


@dataclass(frozen=True, kw_only=True)
class Method:
    """A policy over adapters. Subclasses add their settings as fields and override the hooks that they need.

    Args:
        version: bump it when results change without a change of settings.
        targets: roles to adapt: q k v o gate up down, or [all].
        lr: peak learning rate of what the method trains.
        head_lr: peak learning rate of the task's head; null means `lr`.
    """

    version: int
    targets: list[str]
    lr: float
    head_lr: float | None

    moves_base: ClassVar[bool] = False  # whether the method changes adapted base weights (Delta-LoRA)
    no_four_bit: ClassVar[str] = (
        ""  # why it cannot have a backbone in 4 bits, if it cannot; moves_base says it too
    )
    no_gradient_checkpointing: ClassVar[str] = ""  # why its blocks cannot be run again in backward, if so
    starts_unchanged: ClassVar[bool] = True  # whether outputs are the backbone's at the start (prompts: not)

    def __post_init__(self) -> None:
        for role in self.targets:
            if role not in ROLES and role != "all":
                raise UserError(unknown("role in method.targets", role, (*ROLES, "all")))
        if not self.targets:
            raise UserError(f"method.targets is empty; give roles of {', '.join(ROLES)}, or [all].")
        require_positive("method.lr", self.lr)
        if self.head_lr is not None:
            require_positive("method.head_lr", self.head_lr)

    def precheck(self, facts: Facts) -> None:
        """Refuse settings that can only fail late, with the numbers. Raises UserError.

        The default refuses a warm-up that is longer than the training.
        """
        if facts.warmup >= facts.total_steps:
            raise UserError(
                f"train.warmup is {facts.warmup} steps, but the whole training has {facts.total_steps} "
                f"({facts.steps_per_epoch} an epoch); shorten the warm-up or train longer."
            )

    # -- building -------------------------------------------------------------------------------------------

    def attach(self, run: Run) -> None:
        """Freeze the model but for the head, then adapt every target layer in the model's order."""
        from adalora_bench.lowrank.adapter import LowRankLinear

        run.model.requires_grad_(False)
        for name, role in run.modules.items():
            if "all" in self.targets or role in self.targets:
                parent, _, child = name.rpartition(".")
                owner = run.model.get_submodule(parent)
                adapted = self.adapt(owner.get_submodule(child), role, run)
                setattr(owner, child, adapted)
                if isinstance(adapted, LowRankLinear):
                    run.adapters[name] = adapted
        for param in run.head:
            param.requires_grad_(True)

    def adapt(self, base: nn.Module, role: str, run: Run) -> nn.Module:
        """Wrap one layer, or return it untouched."""
        return base

    def param_groups(self, run: Run) -> list[Group]:
        """All trainable parameters: the head in one group, the rest in another."""
        from adalora_bench.methods.run import Group

        head = {id(p) for p in run.head}
        rest = [p for p in run.trainable_parameters() if id(p) not in head]
        heads = [p for p in run.head if p.requires_grad]
        head_lr = self.lr if self.head_lr is None else self.head_lr
        decay, warmup = run.settings.weight_decay, run.settings.warmup
        return [
            Group(params=rest, lr=self.lr, weight_decay=decay, warmup=warmup, name="adapter"),
            Group(params=heads, lr=head_lr, weight_decay=decay, warmup=warmup, name="head"),
        ]

    # -- what the method wants to know beside the gradient ---------------------------------------------------

    def validation_batches(self) -> tuple[int, int]:
        """(batches, rows of each) that are held out of the training rows for `Run.val_loss`."""
        return 0, 0

    @property
    def architecture_share(self) -> float:
        """Share of the remaining training rows that is kept for `Run.arch_parts`."""
        return 0.0

    def rows_for_weights(self, rows: int) -> int:
        """How many of `rows` training rows are left for the weights. Raises UserError where none is."""
        batches, size = self.validation_batches()
        rest = rows - batches * size
        left = rest - int(rest * self.architecture_share)
        if left < 1 or (self.architecture_share > 0 and left == rest):
            raise UserError(
                f"the method keeps {batches} x {size} rows for its decisions and {self.architecture_share:.0%} of "
                f"the others for its gates, but there are {rows} training rows."
            )
        return left

    def milestone(self, run: Run) -> bool:
        """After a step: whether to evaluate here, on the training rows too (the end of a stage of SoRA's schedule)."""
        return False

    def notes(self, run: Run) -> list[str]:
        """After the training: sentences that a reader of the result must know; in the record and in captions."""
        return []

    def train_layer_norms(self, run: Run) -> None:
        """Let every LayerNorm of the model train too; for `attach`."""
        from torch import nn

        for module in run.model.modules():
            if isinstance(module, nn.LayerNorm):
                module.requires_grad_(True)

    # -- the hooks, in the order of the loop ----------------------------------------------------------------

    def setup(self, run: Run) -> None:
        """Once, before the first step; total_steps and steps_per_epoch are known."""

    def before_forward(self, run: Run) -> None:
        """Once per step, before the first micro-batch."""

    def penalty(self, run: Run) -> Tensor | None:
        """A term of the loss that depends on parameters only; once per step."""
        return None

    def after_backward(self, run: Run) -> None:
        """Once per step: gradients are accumulated, unscaled and unclipped."""

    def after_step(self, run: Run) -> None:
        """Once per step: parameters have moved, `.grad` is still there."""

    def finalize(self, run: Run) -> None:
        """After the last step: shrink to plain low-rank form."""

    def total_update(self, layer: LowRankLinear) -> Factors:
        """All that training changed of an adapted layer's weight, as b^T diag(gate) a with scale 1 (for the export)."""
        from adalora_bench.lowrank.plain import update_of

        return update_of(layer)

    def check(self, run: Run) -> None:
        """Did what the method promises happen? Raises PromiseBroken if not; the run is then failed."""


def require_positive(name: str, value: float) -> None:
    """Raises UserError unless 0 < value < infinity (NaN is refused too)."""
    if not 0 < value < math.inf:
        raise UserError(f"{name}={value} must be a finite number above 0.")


def require_not_negative(name: str, value: float) -> None:
    """Raises UserError unless 0 <= value < infinity (NaN is refused too)."""
    if not 0 <= value < math.inf:
        raise UserError(f"{name}={value} must be a finite number, 0 or above.")


def require_below_one(name: str, value: float) -> None:
    """Raises UserError unless 0 <= value < 1: a probability of dropout, the weight of an average's past."""
    if not 0 <= value < 1:
        raise UserError(f"{name}={value} must lie in [0, 1).")


def require_at_least_one(name: str, value: int) -> None:
    """Raises UserError for a configured count below 1 (a rank of 0 trains nothing)."""
    if value < 1:
        raise UserError(f"{name}={value} must be at least 1.")
