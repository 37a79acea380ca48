"""Backbone: a pretrained (or tiny random) model, its head, and which of its layers play which role.

Roles are declared in conf/backbone/*.yaml, never guessed from parameter names. Imports torch inside functions only.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adalora_bench.data.sources import Found, Source
from adalora_bench.errors import UserError, unknown

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

POOLINGS = ("mean", "native")


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """One backbone of conf/backbone.

    Args:
        version: bump it when results change without a change of settings.
        description: one line for people.
        caveat: what a reader of a table must know of these weights; printed in every caption. May be empty.
        architecture: transformers' `model_type` ("bert", "deberta-v2", "roberta").
        source: where the weights come from.
        layers: transformer blocks; with `roles` it gives the number of adapted matrices without loading a model.
        roles: role -> module name inside one block, with `{i}` for the block ("encoder.layer.{i}.output.dense").
        pooling: "native" is the classification head of transformers for this architecture; "mean" averages the
            token vectors and puts one linear layer on top.
        head_modules: with "native", the modules of the classification model that are newly made for the task.
        head_dropout: dropout in front of the last linear layer; null keeps the architecture's own.
        dropout: hidden and attention dropout inside the backbone; null keeps the published configuration.
        config: for random backbones, the arguments of the transformers configuration.
    """

    version: int
    description: str
    caveat: str
    architecture: str
    source: Source
    layers: int
    roles: dict[str, str]
    pooling: str
    head_modules: list[str]
    head_dropout: float | None
    dropout: float | None
    config: dict[str, Any] | None

    def __post_init__(self) -> None:
        if self.layers < 1:
            raise UserError(f"backbone.layers={self.layers} must be at least 1.")
        if self.pooling not in POOLINGS:
            raise UserError(unknown("value of backbone.pooling", self.pooling, POOLINGS))
        for name, value in (("head_dropout", self.head_dropout), ("dropout", self.dropout)):
            if value is not None and not 0 <= value < 1:
                raise UserError(f"backbone.{name}={value} must lie in [0, 1).")

    def module_roles(self) -> dict[str, str]:
        """Module name (below the body) -> role, in the order of the model's blocks."""
        return {pattern.format(i=i): role for i in range(self.layers) for role, pattern in self.roles.items()}

    def count_modules(self, targets: list[str]) -> int:
        """How many matrices these target roles name."""
        return sum("all" in targets or role in targets for role in self.module_roles().values())

    def check_targets(self, targets: list[str]) -> None:
        """Raises UserError for a role that this architecture does not have."""
        for role in targets:
            if role != "all" and role not in self.roles:
                valid = ", ".join([*self.roles, "all"])
                raise UserError(f"{self.architecture} has no role {role!r} (method.targets). Valid: {valid}.")

    # -- loading --------------------------------------------------------------------------------------------

    def tokenizer(self, found: Found) -> PreTrainedTokenizerBase:
        """The tokenizer of the weights; random backbones read bytes."""
        if found.folder is None:
            from adalora_bench.heads import byte_tokenizer

            return byte_tokenizer(self.architecture)
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(found.folder, local_files_only=True)

    def load(self, found: Found, *, outputs: int, head_seed: int) -> Loaded:
        """A fresh model with a fresh head.

        Args:
            found: where the weights are (`folder` None: random weights from `config`).
            outputs: logits of the head (classes, or 1 for regression).
            head_seed: the head depends on it alone, so that every method starts from the same head.
        """
        import torch

        from adalora_bench.heads import LogitsOnly, MeanPooled

        body = self._body(found, outputs)
        if self.pooling == "mean":
            model: nn.Module = MeanPooled(body, outputs=outputs, dropout=self.head_dropout or 0.0)
            prefix, heads = "body.", ["head"]
        else:
            model = LogitsOnly(body)
            prefix, heads = f"body.{body.base_model_prefix}.", [f"body.{name}" for name in self.head_modules]
        head = [p for name in heads for p in model.get_submodule(name).parameters()]
        draw = torch.Generator().manual_seed(head_seed)
        with torch.no_grad():
            for p in head:
                p.copy_(torch.randn(p.shape, generator=draw) * 0.02 if p.dim() > 1 else torch.zeros_like(p))
        modules = {f"{prefix}{name}": role for name, role in self.module_roles().items()}
        for name in modules:
            model.get_submodule(name)  # a wrong role pattern is a bug in the YAML: fail loudly, here
        return Loaded(model=model, modules=modules, head=head)

    def _body(self, found: Found, outputs: int) -> Any:
        from transformers import AutoModel, AutoModelForSequenceClassification

        from adalora_bench.heads import random_model

        config = self._config(found.folder, outputs)
        auto = AutoModel if self.pooling == "mean" else AutoModelForSequenceClassification
        if found.folder is None:
            return random_model(auto, config)
        return auto.from_pretrained(found.folder, config=config, local_files_only=True, dtype="float32")

    def _config(self, folder: Path | None, outputs: int) -> Any:
        from transformers import AutoConfig

        if folder is None:
            config = AutoConfig.for_model(self.architecture, **(self.config or {}))
        else:
            config = AutoConfig.from_pretrained(folder, local_files_only=True)
            if config.model_type != self.architecture:
                raise UserError(
                    f"the weights in {folder.name} are of architecture {config.model_type!r}, "
                    f"but backbone.architecture is {self.architecture!r}."
                )
        config.num_labels = outputs
        if self.dropout is not None:
            config.hidden_dropout_prob = config.attention_probs_dropout_prob = self.dropout
        if self.head_dropout is not None:
            config.classifier_dropout = config.cls_dropout = self.head_dropout
        return config


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A model ready for a method: modules maps layer name -> role, head lists the newly made parameters."""

    model: nn.Module
    modules: dict[str, str]
    head: list[nn.Parameter]
