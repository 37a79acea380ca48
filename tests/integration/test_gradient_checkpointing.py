"""backbone.gradient_checkpointing: the same numbers, with fewer bytes that wait for backward."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from backbone_helpers import NOWHERE, backbone
from tiny_runs import METHODS, begin, dropout
from torch import Tensor

from adalora_bench.train import loop
from adalora_bench.train.meter import count_flops

ON = "backbone.gradient_checkpointing=true"
BACKBONES = ("tiny_bert", "tiny_gpt2", "tiny_bart", "tiny_deberta_v2")
SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


@pytest.fixture
def saved_bytes(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """That of scripts/profile_step.py."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    path = list(sys.path)
    found: Callable[..., int] = importlib.import_module("profile_step").saved_bytes
    sys.path[:] = path
    return found


def course(method: str, name: str, folder: Path, *more: str, steps: int) -> tuple[list[Any], int]:
    """Losses, gradient norms and the sum of all weights of a short training with dropout; operations of a step."""
    training = begin(method, name, folder, *dropout(name), *more).training
    run, rows = training.run, []
    run.model.train()
    for step in range(steps):
        arguments = training.method, run, training.data, 0, training.loop_settings, training.meter
        if step == 0:
            with count_flops(training.meter):
                row = loop.training_step(*arguments)
        else:
            row = loop.training_step(*arguments)
        rows.append((row["loss"], row["grad_norm"]))
    weights = repr(sum(float(p.detach().double().abs().sum()) for p in run.model.parameters()))
    return [*rows, run.total_rank, weights], training.meter.flops["first_step"]


@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize("method", ["lora", "increlora", "adalora"])
def test_the_numbers_do_not_change(tmp_path: Path, method: str, name: str) -> None:
    plain, work = course(method, name, tmp_path / "plain", steps=4)
    again, more_work = course(method, name, tmp_path / "again", ON, steps=4)
    assert again == plain
    assert more_work > work  # the blocks did run twice


@pytest.mark.slow
@pytest.mark.parametrize("method", [m for m in METHODS if m != "lst"])
def test_of_no_method(tmp_path: Path, method: str) -> None:
    plain, _ = course(method, "tiny_bert", tmp_path / "plain", steps=14)
    again, _ = course(method, "tiny_bert", tmp_path / "again", ON, steps=14)
    assert again == plain


@pytest.mark.parametrize("name", BACKBONES)
def test_fewer_bytes_wait_for_backward(tmp_path: Path, name: str, saved_bytes: Callable[..., int]) -> None:
    kept = {}
    for more in ((), (ON,)):
        training = begin("lora", name, tmp_path, *dropout(name), *more).training
        model = training.run.model.train()
        batch = training.form.collate(training.data.train, range(8))
        kept[more] = saved_bytes(lambda model=model, batch=batch: model(**batch.inputs), model)
        model.eval()  # where nothing is run again
        kept["eval", *more] = saved_bytes(lambda model=model, batch=batch: model(**batch.inputs), model)
    assert kept[ON,] < 0.5 * kept[()]
    assert kept["eval", ON] == kept["eval",]


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("classification", {}),  # the native head
        ("classification", {"pooling": "mean", "head_modules": []}),
        ("span", {}),
        ("choice", {}),
    ],
)
def test_any_head_of_deberta(kind: str, settings: dict[str, Any], saved_bytes: Callable[..., int]) -> None:
    ids = torch.randint(5, 260, (4, 12), generator=torch.Generator().manual_seed(0))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    seen: list[tuple[Tensor, list[Tensor | None], int]] = []
    for on in (False, True):
        chosen = backbone("tiny_deberta_v2", dropout=0.1, gradient_checkpointing=on, **settings)
        model = chosen.load(NOWHERE, kind=kind, outputs=2, head_seed=0).model.train()
        embeddings: Any = model.body.get_input_embeddings()  # type: ignore[operator, union-attr]
        assert not embeddings._forward_hooks
        size = saved_bytes(lambda model=model: model(**inputs), model)
        torch.manual_seed(0)
        logits: Tensor = model(**inputs)
        logits.square().sum().backward()
        seen.append((logits.detach(), [p.grad for p in model.parameters()], size))
    (plain, grads, size), (again, grads_again, less) = seen
    assert torch.equal(plain, again)
    for one, other in zip(grads, grads_again, strict=True):
        assert (one is None) == (other is None)
        assert one is None or other is None or torch.equal(one, other)
    assert less < size
