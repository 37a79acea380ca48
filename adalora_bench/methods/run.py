"""Run: all that a method may see and do. It holds the model, the adapters, the optimizer and the step counter."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from adalora_bench.errors import Diverged
from adalora_bench.lowrank.adapter import LowRankLinear, RankBlock
from adalora_bench.lowrank.budget import Budget, RankEvent, total_rank, trainable
from adalora_bench.schedule import Phase, lr_factor, phase_steps


@dataclass(kw_only=True)
class Group:
    """Parameters that share a peak learning rate, a weight decay and a date of birth.

    Args:
        params: the parameters.
        lr: peak learning rate.
        weight_decay: decoupled (AdamW).
        born: the first step in which the group has a gradient; its warm-up starts there.
        warmup: steps of its warm-up.
        name: for the log ("adapter", "head", "grown at 200", ...).
    """

    params: list[nn.Parameter]
    lr: float
    weight_decay: float
    born: int = 0
    warmup: int = 0
    name: str = "adapter"


@dataclass(frozen=True, kw_only=True)
class OptimizerSettings:
    """AdamW and the shape of the schedule, alike for every method."""

    weight_decay: float = 0.0
    decay_biases: bool = False  # biases and normalisation layers too
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    warmup: int = 0  # steps
    schedule: str = "linear"


def gradient(param: nn.Parameter) -> Tensor:
    """Of one step: zeros where the forward pass left the layer out, as a layer behind a condition may be."""
    return torch.zeros_like(param) if param.grad is None else param.grad


class Run:
    """One training in progress.

    Args:
        model: the model that trains; the method wraps its layers in `attach`.
        modules: layer name -> role, for every layer that the method may adapt, in the model's order.
        total_steps, steps_per_epoch: known before the method is attached, read-only afterwards.
        settings: optimizer and schedule.
        generator: every random choice of the method comes from it.
        head: parameters of the task's head (trained by every method, counted apart).
        reduce: the mean of a score over the processes that train this cell together, so that all take the same
            decision; without it there is one process.

    Attributes:
        validation: the batches that `Method.validation_batches` asked for, each as a list of parts: closures whose sum
            is the mean loss on the batch (train/parts.py).
        arch_parts: the current step's batch of the rows for architecture parameters, as a list of parts.
    """

    def __init__(
        self,
        model: nn.Module,
        modules: dict[str, str],
        *,
        total_steps: int,
        steps_per_epoch: int,
        settings: OptimizerSettings,
        generator: torch.Generator,
        head: Sequence[nn.Parameter] = (),
        reduce: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.model = model
        self._base = {id(p): p for p in model.parameters()}
        self.modules = modules
        self.settings = settings
        self.generator = generator
        self.head = list(head)
        self.reduce = reduce or _as_it_is
        self.validation: list[list[Callable[[], Tensor]]] = []
        self.arch_parts: Callable[[], list[Callable[[], Tensor]]] = _no_architecture_rows
        self.adapters: dict[str, LowRankLinear] = {}
        self.scratch: dict[str, Any] = {}
        self.events: list[RankEvent] = []
        self.budget = Budget()
        self.optimizer: torch.optim.Optimizer | None = None
        self._total_steps = total_steps
        self._steps_per_epoch = steps_per_epoch
        self._step = 0

    # -- read-only clock ------------------------------------------------------------------------------------

    @property
    def step(self) -> int:
        """Completed optimizer steps; while a step is made, its 0-based index."""
        return self._step

    @property
    def epoch(self) -> float:
        return self._step / self._steps_per_epoch

    @property
    def total_steps(self) -> int:
        return self._total_steps

    @property
    def steps_per_epoch(self) -> int:
        return self._steps_per_epoch

    @property
    def total_rank(self) -> int:
        return total_rank(self.adapters)

    def rank_blocks(self) -> list[RankBlock]:
        """All blocks of all adapters, in the model's order."""
        return [block for layer in self.adapters.values() for block in layer.rank_blocks()]

    # -- what a method does ---------------------------------------------------------------------------------

    def steps(self, name: str, value: Phase) -> int:
        """A phase of the method (steps, share or epochs) in steps; `name` is for the error message."""
        return phase_steps(name, value, total_steps=self.total_steps, steps_per_epoch=self.steps_per_epoch)

    @torch.no_grad()
    def val_loss(self, batch: int = 0) -> float:
        """Mean loss on a held-out batch, without dropout; the mode is put back."""
        mode = self.model.training
        self.model.eval()
        loss = float(torch.stack([part() for part in self.validation[batch]]).sum())
        self.model.train(mode)
        return loss

    def normal(self, *shape: int, std: float, like: Tensor) -> Tensor:
        """N(0, std) from the run's generator, on the device and in the dtype of `like`."""
        draw = torch.randn(*shape, generator=self.generator, dtype=torch.float32)
        return (draw * std).to(device=like.device, dtype=like.dtype)

    def uniform(self, *shape: int, bound: float, like: Tensor) -> Tensor:
        """U(-bound, bound) from the run's generator."""
        draw = torch.rand(*shape, generator=self.generator, dtype=torch.float32) * 2 - 1
        return (draw * bound).to(device=like.device, dtype=like.dtype)

    def add_params(
        self, params: Iterable[nn.Parameter], *, restart_warmup: bool = True, **group: Any
    ) -> None:
        """Put new parameters into a group of their own.

        They get their first gradient in the next step, so the group is stamped `born = step + 1`: there its
        learning rate is f(0) = 0. With `restart_warmup=False` it follows the curve of the start of training.
        `group` takes the fields of `Group` (lr, weight_decay, name).
        """
        born = self.step + 1 if restart_warmup else 0
        fields = {"weight_decay": self.settings.weight_decay, "warmup": self.settings.warmup} | group
        self._add_group(Group(params=list(params), born=born, **fields))

    def freeze(self, param: nn.Parameter) -> None:
        """Stop a parameter in this very step: no gradient, no optimizer state, no place in a group."""
        param.requires_grad_(False)
        self.forget(param)

    def forget(self, param: nn.Parameter) -> None:
        """Take a parameter out of the optimizer, state included."""
        param.grad = None
        for group in self._optimizer.param_groups:
            group["params"] = [kept for kept in group["params"] if kept is not param]
        self._optimizer.state.pop(param, None)

    def compact(self) -> None:
        """Remove dead ranks from every adapter; the optimizer state of the survivors moves with them."""
        moved: dict[nn.Parameter, tuple[nn.Parameter, Tensor]] = {}
        for adapter in self.adapters.values():
            moved |= adapter.compact()
        if self.optimizer is None:
            return
        for group in self.optimizer.param_groups:
            group["params"] = [moved[p][0] if p in moved else p for p in group["params"]]
            group["params"] = [p for p in group["params"] if p.numel()]
        for old, (new, keep) in moved.items():
            state = self.optimizer.state.pop(old, None)
            if state is not None and new.numel():
                self.optimizer.state[new] = {
                    k: v[keep].clone() if isinstance(v, Tensor) and v.shape == old.shape else v
                    for k, v in state.items()
                }

    def event(self, kind: str, module: str, before: int, after: int) -> None:
        """Write down a change of structure, at the current step."""
        self.events.append(RankEvent(self.step, kind, module, before, after))

    def lr_of(self, group: dict[str, Any]) -> float:
        """Learning rate of an optimizer group at the current step.

        Its curve ends with the training; a method that trains in stages stamps an earlier `end` on its groups (in
        `before_forward`, at every step: a checkpoint does not keep it).
        """
        born, warmup = int(group["born"]), int(group["warmup"])
        end = int(group.get("end", self.total_steps))
        factor = lr_factor(self.step - born, end - born, warmup, self.settings.schedule)
        return float(group["peak_lr"]) * factor

    # -- what the loop does ---------------------------------------------------------------------------------

    def start(self, groups: Sequence[Group]) -> None:
        """Make the optimizer. Called once, after `attach` and before `setup`."""
        self.optimizer = torch.optim.AdamW(
            [as_optimizer_group(group) for group in groups],
            lr=0.0,
            betas=self.settings.betas,
            eps=self.settings.eps,
            fused=True,
        )

    def added(self) -> list[nn.Parameter]:
        """Every parameter that the method brought into the model, trained or not."""
        return [p for p in self.model.parameters() if id(p) not in self._base]

    def trainable_parameters(self) -> list[nn.Parameter]:
        return [p for p in self.model.parameters() if p.requires_grad]

    def set_learning_rates(self) -> None:
        for group in self._optimizer.param_groups:
            group["lr"] = self.lr_of(group)

    def clip(self, max_norm: float) -> float:
        """Clip the gradient norm over all trainable parameters (0 does not clip); returns the norm before.

        Raises:
            Diverged: the norm is NaN or infinite.
        """
        grads = [p.grad for p in self.trainable_parameters() if p.grad is not None]
        norm = float(torch.nn.utils.get_total_norm(grads)) if grads else 0.0
        if not math.isfinite(norm):
            raise Diverged(f"gradient norm is {norm} at step {self.step}")
        if 0 < max_norm < norm:
            torch._foreach_mul_(grads, max_norm / (norm + 1e-6))
        return norm

    def observe(self) -> None:
        """Count this step in the budget. Head parameters are not part of it."""
        adapter_now = trainable(self.trainable_parameters()) - trainable(self.head)
        self.budget.observe(self.step, self.total_rank, adapter_now)

    def advance(self) -> None:
        self._step += 1

    def seek(self, step: int) -> None:
        """Set the clock; only a checkpoint does that."""
        self._step = step

    @property
    def _optimizer(self) -> torch.optim.Optimizer:
        assert self.optimizer is not None, "Run.start was not called"
        return self.optimizer

    def _add_group(self, group: Group) -> None:
        if group.params:
            self._optimizer.add_param_group(as_optimizer_group(group))


def _as_it_is(score: Tensor) -> Tensor:
    return score


def _no_architecture_rows() -> list[Callable[[], Tensor]]:
    raise ValueError("the method asks for architecture batches, but its architecture_share is 0")


def as_optimizer_group(group: Group) -> dict[str, Any]:
    """A group as torch takes it; its learning rate is set at every step from `peak_lr`."""
    return {
        "params": group.params,
        "peak_lr": group.lr,
        "weight_decay": group.weight_decay,
        "born": group.born,
        "warmup": group.warmup,
        "name": group.name,
    }


def adapter_parameters(run: Run) -> int:
    """Trainable numbers without the head."""
    return trainable(run.trainable_parameters()) - trainable(run.head)
