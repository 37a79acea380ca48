"""Backbone: a pretrained (or tiny random) model, its head, and which of its layers play which role.

Roles are declared in conf/backbone/*.yaml, never guessed from parameter names. Imports torch inside functions only.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adalora_bench.data.sources import Found, Source
from adalora_bench.errors import UserError, unknown
from adalora_bench.models import four_bit, gguf_weights, gradient_checkpointing, weights

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

POOLINGS = {"encoder": ("mean", "native"), "decoder": ("none",), "seq2seq": ("none",)}
"""form -> the heads that it can have; a generative backbone has none but its own output layer."""
NOT_INSIDE = ("classifier", "cls", "summary", "pooler", "qa", "classif", "layerdrop", "head")
"""In the name of a configuration's dropout: it belongs to a head, or drops whole layers."""


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """One backbone of conf/backbone.

    Args:
        version: bump it when results change without a change of settings.
        description: one line for people.
        caveat: what a reader of a table must know of these weights; printed in every caption. May be empty.
        architecture: transformers' `model_type` ("bert", "deberta-v2", "roberta", "gpt2", "llama", "bart").
        form: "encoder" (a head on top), "decoder" or "seq2seq" (they answer with text).
        source: where the weights come from.
        layers: transformer blocks (of each stack, where encoder and decoder are two); with `roles` it gives the number
            of adapted matrices without loading a model.
        roles: role -> module name below the body, with `{i}` for the block ("encoder.layer.{i}.output.dense"), or a
            list of names where several matrices of a block play the role (BART). A name below a fused layer takes
            it apart ("h.{i}.attn.c_attn.q", see fused.py).
        pooling: of an encoder, "native" is the classification head of transformers for this architecture; "mean"
            averages the token vectors and puts one linear layer on top. "none" for the others.
        head_modules: with "native", the modules of the classification model that are newly made for the task.
        head_dropout: dropout in front of the last linear layer; null keeps the architecture's own.
        dropout: hidden and attention dropout inside the backbone; null keeps the published configuration.
        load_in_4bit: keep the frozen weights of the linear layers in 4 bits (four_bit.py, whose `check` comes first).
        gradient_checkpointing: run every block again in backward instead of keeping what it made
            (gradient_checkpointing.py, whose `check` comes first).
        config: for random backbones, the arguments of the transformers configuration.
    """

    version: int
    description: str
    caveat: str
    architecture: str
    form: str
    source: Source
    layers: int
    roles: dict[str, Any]
    pooling: str
    head_modules: list[str]
    head_dropout: float | None
    dropout: float | None
    load_in_4bit: bool
    gradient_checkpointing: bool
    config: dict[str, Any] | None

    def __post_init__(self) -> None:
        if self.layers < 1:
            raise UserError(f"backbone.layers={self.layers} must be at least 1.")
        if self.form not in POOLINGS:
            raise UserError(unknown("value of backbone.form", self.form, POOLINGS))
        if self.pooling not in POOLINGS[self.form]:
            raise UserError(unknown("value of backbone.pooling", self.pooling, POOLINGS[self.form]))
        for role, names in self.roles.items():
            patterns = names if isinstance(names, list) else [names]
            if not patterns or not all(isinstance(p, str) and "{i}" in p for p in patterns):
                raise UserError(
                    f"backbone.roles.{role}={names!r} must be a module name with {{i}}, or a list of them."
                )
        if self.form != "encoder" and self.head_dropout is not None:
            raise UserError(
                f"backbone.head_dropout={self.head_dropout} has no head to act on: {self.architecture} answers with "
                "text; use null."
            )
        for name, value in (("head_dropout", self.head_dropout), ("dropout", self.dropout)):
            if value is not None and not 0 <= value < 1:
                raise UserError(f"backbone.{name}={value} must lie in [0, 1).")

    def module_roles(self) -> dict[str, str]:
        """Module name (below the body) -> role."""
        patterns = [
            (pattern, role)
            for role, names in self.roles.items()
            for pattern in (names if isinstance(names, list) else [names])
        ]
        return {pattern.format(i=i): role for i in range(self.layers) for pattern, role in patterns}

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
        """The tokenizer of the weights; random backbones read bytes. It always has a padding token.

        GPT-2 and LLaMA were trained without padding: their end token stands in, and the mask hides it. LLaMA's
        files do not say how many positions there are: the model's configuration does.
        """
        folder = _folder(found)
        tokenizer: PreTrainedTokenizerBase
        if folder is None:
            from adalora_bench.models.heads import byte_tokenizer

            tokenizer = byte_tokenizer(self.architecture)
        else:
            from transformers import AutoTokenizer

            weights.check_architecture(folder, self.architecture)
            tokenizer = weights.open_files(
                "tokenizer", folder, lambda: AutoTokenizer.from_pretrained(folder, local_files_only=True)
            )
            if self.architecture == "deberta-v2" and not (folder / "tokenizer.json").is_file():
                _read_like_sentencepiece(tokenizer, folder / "spm.model")
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        if self.form != "encoder":
            positions = self._config(folder, None).max_position_embeddings
            tokenizer.model_max_length = min(tokenizer.model_max_length, positions)
        return tokenizer

    def load(self, found: Found, *, kind: str = "classification", outputs: int, head_seed: int) -> Loaded:
        """A fresh model with a fresh head.

        Args:
            found: where the weights are (`folder` None: random weights from `config`).
            kind: of the task, a head's by default. "text" takes the language model as it is: nothing is newly made,
                and its output layer stays frozen.
            outputs: width of the head: classes, 1 for a regression or a choice, 2 for a span.
            head_seed: the head depends on it alone, so that every method starts from the same head.
        """
        import torch

        from adalora_bench.models import fused, heads

        if (kind == "text") == (self.form == "encoder"):
            raise ValueError(f"kind {kind} on a backbone of form {self.form}; forms.check_fit comes first")
        body = self._body(found, kind, outputs)
        if self.gradient_checkpointing:
            gradient_checkpointing.enable(body)
        stack = f"body.{body.base_model_prefix}."
        newly_made = ["head"]
        if kind == "text":
            model: nn.Module = heads.TextModel(body)
            newly_made = []
        elif kind == "span":
            model, stack = heads.TokenLogits(body, outputs=outputs, dropout=self.head_dropout or 0.0), "body."
        elif self.pooling == "mean":
            model, stack = heads.MeanPooled(body, outputs=outputs, dropout=self.head_dropout or 0.0), "body."
        else:
            model = heads.LogitsOnly(body)
            newly_made = [f"body.{name}" for name in self.head_modules]
        head = [p for name in newly_made for p in model.get_submodule(name).parameters()]
        draw = torch.Generator().manual_seed(head_seed)
        with torch.no_grad():
            for p in head:
                p.copy_(
                    torch.randn(p.shape, generator=draw, dtype=torch.float32) * 0.02
                    if p.dim() > 1
                    else torch.zeros_like(p)
                )
        roles = {f"{stack}{name}": role for name, role in self.module_roles().items()}
        fused.split(model, list(roles))
        for name, role in roles.items():
            try:
                model.get_submodule(name)
            except AttributeError:
                raise UserError(
                    f"backbone.roles.{role} names {name.removeprefix(stack)}, which {self.architecture} has not; a "
                    "role is the name of a matrix below the body, with {i} for the block."
                ) from None
        if self.dropout is not None:
            self._check_dropouts(body)
        # in the model's own order
        modules = {name: roles[name] for name, _ in model.named_modules() if name in roles}
        return Loaded(model=model, modules=modules, head=head)

    def _body(self, found: Found, kind: str, outputs: int) -> Any:
        import transformers

        from adalora_bench.models.heads import random_model

        folder = _folder(found)
        config = self._config(folder, None if kind == "text" else outputs)
        if kind == "text":
            seq2seq = self.form == "seq2seq"
            auto = transformers.AutoModelForSeq2SeqLM if seq2seq else transformers.AutoModelForCausalLM
        elif kind == "span" or self.pooling == "mean":
            auto = transformers.AutoModel
        else:
            auto = transformers.AutoModelForSequenceClassification
        if folder is None:
            return random_model(auto, config)
        more = four_bit.loading() if self.load_in_4bit else {}
        newly_made = (
            ["pooler"] if auto is transformers.AutoModel else self.head_modules
        )  # our heads use no pooler
        body = weights.load_model(auto, folder, newly_made=newly_made, config=config, dtype="float32", **more)
        if self.load_in_4bit:
            four_bit.hide_constants(body)
        return body

    def _check_dropouts(self, body: Any) -> None:
        """UserError: a dropout of the body is another than `backbone.dropout`, which a record would misstate."""
        within = body.base_model if hasattr(body, "base_model") else body
        for name, module in within.named_modules():
            held = [("p", getattr(module, "p", None)), ("drop_prob", getattr(module, "drop_prob", None))]
            held = held if "dropout" in type(module).__name__.lower() else []
            held += [(key, value) for key, value in vars(module).items() if "dropout" in key]
            for key, value in held:
                if isinstance(value, float) and value != self.dropout and "pooler" not in name:
                    raise UserError(
                        f"backbone.dropout={self.dropout} does not reach {name}.{key} of {self.architecture}, which is "
                        f"{value}; set backbone.dropout=null to keep the dropouts of the weights."
                    )

    def _config(self, folder: Path | None, outputs: int | None) -> Any:
        from transformers import AutoConfig

        if folder is None:
            config = AutoConfig.for_model(self.architecture, **(self.config or {}))
        else:
            weights.check_architecture(folder, self.architecture)
            config = weights.open_files(
                "configuration", folder, lambda: AutoConfig.from_pretrained(folder, local_files_only=True)
            )
        if outputs is not None:
            config.num_labels = outputs
        if self.dropout is not None:
            for name in _dropouts(config):
                setattr(config, name, self.dropout)
        if self.head_dropout is not None:
            config.classifier_dropout = config.cls_dropout = self.head_dropout
        return config


def _dropouts(config: Any) -> list[str]:
    """What the configuration calls the dropouts inside the body: hidden_dropout_prob, attn_pdrop, dropout_rate, ..."""
    return [
        name
        for name, value in config.to_dict().items()
        if "drop" in name and isinstance(value, (int, float)) and not any(part in name for part in NOT_INSIDE)
    ]


def _folder(found: Found) -> Path | None:
    """The folder that transformers opens; None for random weights."""
    if found.folder is None or not gguf_weights.holds_gguf(found.folder):
        return found.folder
    return gguf_weights.restored(found.folder)


def _read_like_sentencepiece(tokenizer: Any, model: Path) -> None:
    """Letters are made alike as the tokenizer's model says: full width, ligatures, blanks of other kinds.

    transformers 5 reads the pieces from this file and leaves the table of letters out.
    """
    from sentencepiece import sentencepiece_model_pb2
    from tokenizers import normalizers

    proto: Any = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
    proto.ParseFromString(model.read_bytes())
    table = proto.normalizer_spec.precompiled_charsmap
    if table:
        backend = tokenizer.backend_tokenizer
        backend.normalizer = normalizers.Sequence([normalizers.Precompiled(table), backend.normalizer])


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A model ready for a method.

    Attributes:
        model: takes a batch of its kind of task and gives logits.
        modules: layer name -> role, in the model's order.
        head: the newly made parameters; none for text.
    """

    model: nn.Module
    modules: dict[str, str]
    head: list[nn.Parameter]
