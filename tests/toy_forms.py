"""Forms for tests: a task of conf/ with changes on a tiny backbone, and examples that are no more than their length."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import yaml
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from adalora_bench import forms
from adalora_bench.data.sources import Found
from adalora_bench.data.tasks import Task
from adalora_bench.forms.base import Form
from adalora_bench.models.backbone import Backbone, Loaded
from adalora_bench.models.heads import byte_tokenizer
from adalora_bench.settings.compose import conf_dir
from adalora_bench.settings.config import build

NOWHERE = Found("generated", None, {}, "generated")


def task_of(name: str, **changes: Any) -> Task:
    """The task of a YAML file with some settings changed."""
    task: Task = build(_node("task", name) | changes, "task")
    return task


def backbone_of(name: str, **config: Any) -> Backbone:
    """The backbone of a YAML file; `config` changes the arguments of its transformers configuration."""
    node = _node("backbone", name)
    backbone: Backbone = build(node | {"config": node["config"] | config}, "backbone")
    return backbone


def form_of(task: str, backbone: str = "tiny_bert", **changes: Any) -> Form:
    """The form of a task with some settings changed; the tokenizer reads bytes."""
    model = backbone_of(backbone)
    return forms.make(task_of(task, **changes), model, model.tokenizer(NOWHERE))


def loaded(form: Form, backbone: str, **config: Any) -> Loaded:
    """A tiny random model for the form."""
    return backbone_of(backbone, **config).load(NOWHERE, kind=form.kind, outputs=form.outputs, head_seed=0)


def rows_of(task: Task) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Training rows and report rows of a generated task."""
    rows = task.load(NOWHERE, "validation")
    return rows.train, rows.report[""]


@cache
def regression() -> Form:
    """For models whose output is one number; its padding is 0."""
    assert byte_tokenizer("bert").pad_token_id == 0
    return form_of("toy_regression")


def example(length: int, label: float = 0.0) -> dict[str, Any]:
    """So many tokens and a label."""
    return {"input_ids": [1] * length, "label": label, "length": length}


@cache
def _node(group: str, name: str) -> dict[str, Any]:
    node: dict[str, Any] = yaml.safe_load((conf_dir() / group / f"{name}.yaml").read_text())
    return node


def gradients(form: Form, model: nn.Module, examples: Sequence[Any], pieces: list[list[int]]) -> list[Tensor]:
    """Of all parameters after one batch that is cut into these pieces, as the loop cuts it."""
    model.zero_grad()
    items = form.items(examples, [i for piece in pieces for i in piece])
    for piece in pieces:
        batch = form.collate(examples, piece)
        (form.losses(model(**batch.inputs), batch).sum() / items).backward()
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


def word_tokenizer() -> PreTrainedTokenizerFast:
    """Words w0 to w19 are 4 to 23, [PAD] [UNK] [CLS] [SEP] are 0 to 3; pairs as BERT's."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(f"w{i}" for i in range(20))]
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="[PAD]",
        bos_token="[CLS]",
        eos_token="[SEP]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )
