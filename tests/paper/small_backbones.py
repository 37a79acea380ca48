"""The six tiny random backbones with a begun method: what prefixes, prompts and ladders stand on."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from adalora_bench.data.sources import Found
from adalora_bench.methods.base import Method
from adalora_bench.methods.run import OptimizerSettings, Run
from adalora_bench.models.backbone import Backbone
from adalora_bench.settings.compose import compose_cells
from adalora_bench.train.loop import begin

TEXT = ("tiny_gpt2", "tiny_llama", "tiny_bart")
ENCODERS = ("tiny_bert", "tiny_roberta", "tiny_deberta_v2")
ALL = (*ENCODERS, *TEXT)
END = 2  # token id


@cache
def backbone_of(name: str) -> Backbone:
    task = "toy_text" if name in TEXT else "toy"
    (cell,) = compose_cells(["method=lora", f"backbone={name}", f"task={task}", "scale=smoke"])
    made: Backbone = cell.backbone
    return made


def run_on(name: str, method: Method | None = None, *, total: int = 10) -> Run:
    """A backbone, with the method attached and set up where one is given; in evaluation mode."""
    nowhere = Found(served_by="generated", folder=None, files={}, detail="")
    kind = "text" if name in TEXT else "classification"
    loaded = backbone_of(name).load(nowhere, kind=kind, outputs=0 if name in TEXT else 2, head_seed=0)
    run = Run(
        loaded.model,
        loaded.modules,
        total_steps=total,
        steps_per_epoch=total,
        settings=OptimizerSettings(schedule="constant"),
        generator=torch.Generator().manual_seed(0),
        head=loaded.head,
    )
    if method is not None:
        begin(method, run)
    run.model.eval()
    return run


def batch_of(name: str, length: int = 7) -> dict[str, Tensor]:
    """Two rows, the second two tokens shorter."""
    draw = torch.Generator().manual_seed(5)
    ids = torch.randint(4, 260, (2, length), generator=draw)
    mask = torch.ones_like(ids)
    mask[1, -2:] = 0
    inputs = {"input_ids": ids, "attention_mask": mask}
    if name in TEXT:
        targets = ids.clone()
        targets[mask == 0] = -100
        inputs["target_ids"] = targets
    return inputs


def loss_of(run: Run, inputs: dict[str, Tensor]) -> Tensor:
    out: Tensor = run.model(**inputs)
    return (out - 1).square().mean()


def one_step(method: Method, run: Run, inputs: dict[str, Tensor]) -> None:
    """A step with every hook that the methods here use."""
    assert run.optimizer is not None
    run.model.train()
    run.optimizer.zero_grad()
    method.before_forward(run)
    loss_of(run, inputs).backward()
    method.after_backward(run)
    run.set_learning_rates()
    run.optimizer.step()
    method.after_step(run)
    run.advance()
    run.model.eval()


@torch.no_grad()
def greedy(run: Run, name: str, steps: int = 6) -> tuple[list[int], list[int]]:
    """What one row is answered, by transformers' generation with its cache, and token by token without a cache."""
    body: Any = run.model.body
    asked = batch_of(name)["input_ids"][:1]
    more = {"max_new_tokens": steps, "do_sample": False, "pad_token_id": 0, "eos_token_id": 259}
    if name == "tiny_bart":
        ids = torch.full((1, 1), END)
        cached = body.generate(input_ids=asked, decoder_start_token_id=END, **more)
        for _ in range(steps):
            logits = body(input_ids=asked, decoder_input_ids=ids, use_cache=False).logits
            ids = torch.cat([ids, logits[:, -1:].argmax(-1)], 1)
    else:
        ids = asked
        cached = body.generate(input_ids=asked, attention_mask=torch.ones_like(asked), **more)
        for _ in range(steps):
            logits = body(input_ids=ids, use_cache=False).logits
            ids = torch.cat([ids, logits[:, -1:].argmax(-1)], 1)
    written = cached[0].tolist()
    return written, ids[0].tolist()[: len(written)]
