"""Weight decay: what it reaches and what it leaves alone, against transformers' Trainer and by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from small_backbones import ALL, batch_of, loss_of, run_on
from torch import nn

from adalora_bench.methods.run import Group, OptimizerSettings
from adalora_bench.settings.compose import compose_cells, method_settings
from adalora_bench.settings.config import build
from adalora_bench.settings.key import settings_of
from adalora_bench.train.decay import apart, spared
from adalora_bench.train.loop import begin


@pytest.mark.parametrize("name", ALL)
def test_what_is_spared_is_what_the_trainer_of_transformers_spares(name: str) -> None:
    from transformers import Trainer

    model = run_on(name).model
    named = dict(model.named_parameters(remove_duplicate=False))  # tied weights have several names
    theirs = {id(named[key]) for key in Trainer.get_decay_parameter_names(None, model)}
    assert {id(p) for p in named.values()} - spared(model) == theirs
    assert spared(model)


def test_groups_come_apart_and_lose_nothing() -> None:
    first, norm, last = nn.Linear(2, 3), nn.LayerNorm(3), nn.Linear(3, 1)
    net = nn.Sequential(first, norm, last)
    decays = Group(params=list(net.parameters()), lr=0.1, weight_decay=0.5, warmup=4, name="adapter")
    biases = Group(params=[last.bias], lr=0.2, weight_decay=0.5, name="head")
    still = replace(decays, weight_decay=0.0)
    alone = spared(net)
    one, two = apart([decays], alone)
    assert [id(p) for p in one.params] == [id(first.weight), id(last.weight)]
    assert [id(p) for p in two.params] == [id(first.bias), id(norm.weight), id(norm.bias), id(last.bias)]
    assert (one.weight_decay, two.weight_decay, two.lr, two.warmup) == (0.5, 0.0, 0.1, 4)
    (only,) = apart([biases], alone)  # no empty group is left
    assert (only.params, only.weight_decay, only.lr) == ([last.bias], 0.0, 0.2)
    assert apart([still], alone) == [still]
    assert apart([one, two], alone) == [one, two]  # as a checkpoint gives them back


@pytest.mark.parametrize("everything", [False, True])
def test_one_step_without_a_gradient_shrinks_what_decays(everything: bool) -> None:
    """AdamW with gradient 0: w <- (1 - lr * decay) w."""
    run = run_on("tiny_bert")
    run.settings = OptimizerSettings(weight_decay=0.5, schedule="constant", decay_biases=everything)
    method: Any = build(method_settings("full", {"lr": 0.1}), "method")
    begin(method, run)
    with torch.no_grad():
        for p in run.trainable_parameters():
            p.fill_(2.0)
    (0.0 * loss_of(run, batch_of("tiny_bert"))).backward()
    run.set_learning_rates()
    assert run.optimizer is not None
    run.optimizer.step()
    alone = spared(run.model)
    moved = [p for p in run.trainable_parameters() if p.grad is not None]
    for p in moved:
        wanted = 2.0 if id(p) in alone and not everything else 2.0 * (1 - 0.1 * 0.5)
        torch.testing.assert_close(p, torch.full_like(p, wanted))
    assert any(id(p) in alone for p in moved)
    assert any(id(p) not in alone for p in moved)


def test_what_decay_reaches_is_part_of_the_key_only_where_there_is_any() -> None:
    def train_settings(*more: str) -> dict[str, Any]:
        (cell,) = compose_cells(["method=lora", "task=toy", "backbone=tiny_bert", "scale=smoke", *more])
        found: dict[str, Any] = settings_of(cell.config)["train"]
        return found

    assert "decay_biases" not in train_settings()
    assert "decay_biases" not in train_settings("train.decay_biases=true")
    assert train_settings("train.weight_decay=0.1")["decay_biases"] is False
    assert train_settings("train.weight_decay=0.1", "train.decay_biases=true")["decay_biases"] is True
