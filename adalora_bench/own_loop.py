"""Any method of the benchmark in a training loop of the caller's own, on any torch module.

    run = attach(model, "increlora", modules={"layers.0": "up", "layers.1": "down"}, head=["head"],
                 total_steps=300, steps_per_epoch=100, settings={"target_rank": 4})
    for step in range(300):
        run.zero_grad()
        run.before_forward()
        loss.backward()            # as often as there are micro-batches
        run.after_backward()
        run.optimizer_step()
        run.after_step()
    run.finalize()

docs/use_in_your_own_loop.md tells the whole of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from adalora_bench.errors import UserError, unknown
from adalora_bench.methods.base import ROLES, Facts, Method
from adalora_bench.methods.run import Group, OptimizerSettings, Run, as_optimizer_group
from adalora_bench.schedule import Phase, phase_steps
from adalora_bench.settings.compose import method_settings
from adalora_bench.settings.config import build
from adalora_bench.train.loop import begin

Loss = Callable[[], Tensor]
MakeOptimizer = Callable[[list[dict[str, Any]]], torch.optim.Optimizer]


class OwnLoop(Run):
    """A `Run` whose hooks the caller calls. Ranks, gates, scratch and events are read as on any `Run`.

    Attributes:
        method: the policy that was attached.
    """

    method: Method
    _make: torch.optim.Optimizer | MakeOptimizer | None = None

    def start(self, groups: Sequence[Group]) -> None:
        """Our fused AdamW, the caller's factory, or groups in an optimizer that the caller made already."""
        if self._make is None:
            super().start(groups)
        elif isinstance(self._make, torch.optim.Optimizer):
            self.optimizer = self._make
            for group in groups:
                self._add_group(group)
        else:
            self.optimizer = self._make([as_optimizer_group(group) for group in groups])

    def set_learning_rates(self) -> None:
        """Of the groups that this run added; others of the caller's optimizer are the caller's."""
        for group in self._optimizer.param_groups:
            if "peak_lr" in group:
                group["lr"] = self.lr_of(group)

    @property
    def ranks(self) -> dict[str, int]:
        """Layer -> ranks that count."""
        return {name: layer.rank for name, layer in self.adapters.items()}

    # -- one step, in this order ----------------------------------------------------------------------------

    def zero_grad(self) -> None:
        """Gradients of the last step are gone from here on."""
        self._optimizer.zero_grad(set_to_none=True)

    def before_forward(self) -> None:
        """Before the first micro-batch."""
        if self.step >= self.total_steps:
            raise ValueError(f"all {self.total_steps} steps are made; attach with a larger total_steps")
        self.method.before_forward(self)

    def after_backward(self) -> float | None:
        """After the last micro-batch, before clipping: adds the gradient of the penalty. Returns its value, if any."""
        penalty = self.method.penalty(self)
        if penalty is not None:
            penalty.backward()
        self.method.after_backward(self)
        return None if penalty is None else float(penalty.detach())

    def optimizer_step(self, max_grad_norm: float = 0.0) -> float:
        """Clip (0 does not), set the learning rates of this step, step. Returns the gradient norm before clipping.

        Raises:
            Diverged: the norm is NaN or infinite.
        """
        norm = self.clip(max_grad_norm)
        self.set_learning_rates()
        self._optimizer.step()
        return norm

    def after_step(self) -> None:
        """After the step, while `.grad` is still there; the clock moves on."""
        self.method.after_step(self)
        self.observe()
        self.advance()

    def finalize(self) -> None:
        """After the last step: plain low-rank form, and the method's promise checked.

        Raises:
            PromiseBroken: what the method promises did not happen.
        """
        self.method.finalize(self)
        self.method.check(self)


def attach(
    model: nn.Module,
    method: str | Method,
    *,
    modules: Mapping[str, str],
    total_steps: int,
    steps_per_epoch: int,
    optimizer: torch.optim.Optimizer | MakeOptimizer | None = None,
    head: Sequence[str] = (),
    settings: Mapping[str, Any] | None = None,
    warmup: Phase = 0,
    schedule: str = "linear",
    weight_decay: float = 0.0,
    seed: int = 0,
    val_loss: Loss | Sequence[Loss] = (),
    arch_loss: Loss | None = None,
) -> OwnLoop:
    """Freeze `model`, adapt the named modules in place and return the run that the caller's loop drives.

    Args:
        model: any torch module, of any floating dtype. Move it to its device first.
        method: a name of conf/method, or an instance.
        modules: layer name -> role (q k v o gate up down), in the order in which ties are decided.
        total_steps, steps_per_epoch: optimizer steps; schedules and phases depend on them.
        optimizer: None makes a fused AdamW; a function makes one from a list of groups; an optimizer gets our groups
            added, and its own are left alone.
        head: names of modules that train beside the adapters.
        settings: values in place of those of the method's YAML ({"rank": 4}); only with a name.
        warmup, schedule, weight_decay: of the learning rates and the decay of our groups; biases and normalisation
            layers do not decay.
        seed: of every random choice of the method.
        val_loss: mean loss on held-out rows, for methods that ask for it (ALoRA): one closure, or a list of closures
            whose sum it is. Each must pass the same input tensors to the model in every call.
        arch_loss: mean loss on the rows for architecture parameters (alora_dnas); it draws its own batch.

    Raises:
        UserError: an unknown name, role, setting or module, or settings that do not fit the length of training.
    """
    for name, role in modules.items():
        if role not in ROLES:
            raise UserError(unknown(f"role of {name!r} in modules", role, ROLES))
        _named(model, name, "modules")
    heads = [p for name in head for p in _named(model, name, "head").parameters()]
    warmup_steps = phase_steps("warmup", warmup, total_steps=total_steps, steps_per_epoch=steps_per_epoch)
    if isinstance(method, str):
        method = build(method_settings(method, settings or {}, warmup=warmup), "method")
    elif settings:
        raise UserError("settings go with the name of a method; an instance has its own.")
    assert isinstance(method, Method)
    adapted = [role for role in modules.values() if "all" in method.targets or role in method.targets]
    method.precheck(
        Facts(
            total_steps=total_steps,
            steps_per_epoch=steps_per_epoch,
            warmup=warmup_steps,
            modules=len(adapted),
        )
    )
    run = OwnLoop(
        model,
        dict(modules),
        total_steps=total_steps,
        steps_per_epoch=steps_per_epoch,
        settings=OptimizerSettings(weight_decay=weight_decay, warmup=warmup_steps, schedule=schedule),
        generator=torch.Generator().manual_seed(seed),
        head=heads,
    )
    run.method, run._make = method, optimizer
    _decision_losses(run, val_loss, arch_loss)
    begin(method, run)
    return run


def _decision_losses(run: OwnLoop, val_loss: Loss | Sequence[Loss], arch_loss: Loss | None) -> None:
    parts = [val_loss] if callable(val_loss) else list(val_loss)
    batches, _ = run.method.validation_batches()
    if batches and not parts:
        raise UserError("this method scores ranks on held-out rows; give val_loss.")
    run.validation = [parts] * batches
    if run.method.architecture_share:
        if arch_loss is None:
            raise UserError("this method trains its gates on rows of their own; give arch_loss.")
        run.arch_parts = lambda: [arch_loss]


def _named(model: nn.Module, name: str, argument: str) -> nn.Module:
    found = dict(model.named_modules())
    if name not in found:
        raise UserError(unknown(f"module in {argument}", name, [known for known in found if known]))
    return found[name]
