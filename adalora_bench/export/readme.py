"""README.md of an exported folder: where the model comes from, and the lines that give its logits. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from adalora_bench.data.tasks import Task

AUTO = {
    "FEATURE_EXTRACTION": "AutoModel",
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
}
GENERATIVE = ("CAUSAL_LM", "SEQ_2_SEQ_LM")


@dataclass(frozen=True, kw_only=True)
class Written:
    """What lies in an exported folder.

    Args:
        said: one line for people.
        adapter: a PEFT adapter, or else a whole checkpoint.
        task_type: peft's word for the class of the transformers model.
        arguments: more arguments of its `from_pretrained`, each with a comma in front.
        per_token: whether our own head gives logits for every token.
        labels: names of the classes, [] where there are none.
    """

    said: str
    adapter: bool
    task_type: str
    arguments: str
    per_token: bool
    labels: list[str]


def readme(record: dict[str, Any], written: Written, *, task: Task, max_length: int) -> str:
    """The whole file; `max_length` is that of an input, in tokens."""
    names, final = record["names"], record["final"]["scores"]
    scores = ", ".join(f"{name} {value:.4g}" for name, value in final.items() if value is not None)
    lines = [
        f"# {names['method']} on {names['task']}",
        "",
        f"Backbone {names['backbone']} ({record['sources']['backbone']['detail']}), scale {names['scale']}, "
        f"seed {record['seed']}, {record['steps']} steps; {scores} on the {record['split']} rows. "
        f"Key of the record: {record['key']}, finished {record['finished']}.",
        "",
    ]
    if written.labels:
        lines += ["Classes in the order of the logits: " + ", ".join(written.labels) + ".", ""]
    if written.task_type in GENERATIVE:
        lines += [
            "Template of the prompt:",
            "",
            *(f"    {line}" for line in str(task.prompt).splitlines()),
            "",
        ]
        code = [*_loading(written), *_answer(task.generation.max_new_tokens)]
    else:
        code = [*_loading(written), *_logits(written, task.text, max_length)]
    return "\n".join([*lines, "```python", *code, "```", ""])


def _loading(written: Written) -> list[str]:
    auto, own_head = AUTO[written.task_type], written.task_type == "FEATURE_EXTRACTION"
    lines = ["import torch"]
    if written.adapter:
        lines.append("from peft import PeftModel")
    if own_head:
        lines.append("from safetensors.torch import load_file")
    lines += [f"from transformers import {auto}, AutoTokenizer", "", 'HERE = "this folder"']
    start = "HERE"
    if written.adapter:
        lines.append('BASE = "the backbone: its folder, or its name on the hub"')
        start = "BASE"
    model = f"{auto}.from_pretrained({start}{written.arguments})"
    lines.append(
        f"model = {f'PeftModel.from_pretrained({model}, HERE)' if written.adapter else model}.eval()"
    )
    if own_head:
        lines.append('head = load_file(f"{HERE}/head.safetensors")')
    return [*lines, f"tokenizer = AutoTokenizer.from_pretrained({start})"]


def _logits(written: Written, columns: list[str], max_length: int) -> list[str]:
    texts = ", ".join(f'["{name}"]' for name in columns)
    cut = f'truncation="longest_first", max_length={max_length}'
    lines = [
        f'batch = tokenizer({texts}, {cut}, padding=True, return_tensors="pt")',
        "with torch.no_grad():",
    ]
    if written.task_type != "FEATURE_EXTRACTION":
        return [*lines, "    logits = model(**batch).logits"]
    lines.append("    hidden = model(**batch).last_hidden_state")
    if not written.per_token:
        lines += [
            '    weight = batch["attention_mask"].unsqueeze(-1).float()',
            "    hidden = (hidden * weight).sum(1) / weight.sum(1)  # the mean of the token vectors",
        ]
    return [*lines, '    logits = hidden @ head["weight"].T + head["bias"]']


def _answer(max_new_tokens: int) -> list[str]:
    return [
        'batch = tokenizer(["prompt"], return_tensors="pt")',
        'asked = {name: batch[name] for name in ("input_ids", "attention_mask")}',
        f"ids = model.generate(**asked, max_new_tokens={max_new_tokens})",
        "answers = tokenizer.batch_decode(ids, skip_special_tokens=True)  # a decoder repeats the prompt",
    ]
