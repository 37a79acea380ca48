"""The contenders of profile_step.py that are no methods of ours: the floor, peft and loralib, driven by the same loop.

They are unmodified; each is a Method whose `attach` puts the peer's layers into the model.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from adalora_bench.methods.base import Method
from adalora_bench.methods.run import Run


@dataclass(frozen=True, kw_only=True)
class Peer(Method, ABC):
    """Settings that every peer shares."""

    version: int = 1
    targets: list[str] = field(default_factory=lambda: ["all"])
    lr: float = 1e-3
    head_lr: float | None = None
    rank: int = 8
    alpha: int = 16

    def attach(self, run: Run) -> None:
        run.model.requires_grad_(False)
        self.insert(run)
        for param in run.head:
            param.requires_grad_(True)

    @abstractmethod
    def insert(self, run: Run) -> None:
        """Put the peer's layers into run.model."""


@dataclass(frozen=True, kw_only=True)
class Floor(Peer):
    """Nothing but one vector on the embeddings trains: every layer still hands a gradient down to its input."""

    def insert(self, run: Run) -> None:
        name = next(name for name, _ in run.model.named_modules() if name.endswith(".embeddings"))
        shift = nn.Parameter(torch.zeros(run.model.get_submodule(f"{name}.LayerNorm").weight.shape))
        run.model.register_parameter("shift", shift)
        run.model.get_submodule(name).register_forward_hook(lambda module, given, output: output + shift)


@dataclass(frozen=True, kw_only=True)
class PeftLora(Peer):
    """peft's LoRA."""

    def insert(self, run: Run) -> None:
        from peft import LoraConfig, LoraModel

        config = LoraConfig(
            r=self.rank, lora_alpha=self.alpha, lora_dropout=0.0, target_modules=list(run.modules)
        )
        run.model = LoraModel(run.model, config, "default")


@dataclass(frozen=True, kw_only=True)
class PeftVera(Peer):
    """peft's VeRA."""

    def insert(self, run: Run) -> None:
        from peft import VeraConfig, VeraModel

        config = VeraConfig(r=self.rank, vera_dropout=0.0, target_modules=list(run.modules))
        run.model = VeraModel(run.model, config, "default")


class _WithLoss(nn.Module):
    """An output with a loss of 0, so that peft's AdaLoRA has something to add its regulariser to."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, **inputs: Tensor) -> Any:
        return SimpleNamespace(logits=self.model(**inputs), loss=torch.zeros(()))


class _LogitsOnly(nn.Module):
    """Hands the logits on and keeps the loss, which is the regulariser."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.peer = model
        self.loss: Tensor | None = None

    def forward(self, **inputs: Tensor) -> Tensor:
        output = self.peer(**inputs)
        self.loss = output.loss
        logits: Tensor = output.logits
        return logits


@dataclass(frozen=True, kw_only=True)
class PeftAdaLora(Peer):
    """peft's AdaLoRA with its regulariser, its scores and a mask in every step."""

    def insert(self, run: Run) -> None:
        from peft import AdaLoraConfig
        from peft.tuners import AdaLoraModel

        names = [f"model.{name}" for name in run.modules]
        config = AdaLoraConfig(
            init_r=self.rank,
            target_r=8,
            tinit=1,
            tfinal=1,
            deltaT=1,
            total_step=run.total_steps,
            lora_alpha=self.alpha,
            lora_dropout=0.0,
            orth_reg_weight=0.1,
            target_modules=names,
        )
        run.model = _LogitsOnly(AdaLoraModel(_WithLoss(run.model), config, "default"))

    def penalty(self, run: Run) -> Tensor | None:
        loss: Tensor = run.model.loss  # type: ignore[assignment]
        return loss

    def after_step(self, run: Run) -> None:
        run.model.peer.update_and_allocate(run.step)  # type: ignore[operator, union-attr]


@dataclass(frozen=True, kw_only=True)
class Loralib(Peer):
    """loralib's layer in place of every target layer."""

    def insert(self, run: Run) -> None:
        import loralib

        for name in run.modules:
            parent, _, child = name.rpartition(".")
            old = run.model.get_submodule(name)
            new = loralib.Linear(
                old.in_features, old.out_features, r=self.rank, lora_alpha=self.alpha, merge_weights=False
            )
            new.weight, new.bias = old.weight, old.bias
            setattr(run.model.get_submodule(parent), child, new)
        loralib.mark_only_lora_as_trainable(run.model)
