"""The parts of one unit, put together from its cell: how the task is put, the model, and the run that trains it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from adalora_bench import forms
from adalora_bench.forms.base import Form
from adalora_bench.methods.run import OptimizerSettings, Run
from adalora_bench.models.backbone import Loaded
from adalora_bench.seeds import derive, generator
from adalora_bench.settings.config import Cell
from adalora_bench.settings.prepare import Assets


def form_of(cell: Cell, found: Assets) -> Form:
    """How the cell puts its task before its backbone, with the tokenizer of the assets found."""
    tokenizer = cell.backbone.tokenizer(found.backbone(cell))
    return forms.make(cell.task, cell.backbone, tokenizer, cap=cell.scale.max_length)


def load_backbone(cell: Cell, seed: int, found: Assets, form: Form) -> Loaded:
    """The model of a unit before its method is attached, on the CPU."""
    here = found.backbone(cell)
    return cell.backbone.load(here, kind=form.kind, outputs=form.outputs, head_seed=derive(seed, "head"))


def assemble(
    cell: Cell,
    seed: int,
    found: Assets,
    form: Form,
    *,
    rows: int,
    device: torch.device | str = "cpu",
    reduce: Callable[[Tensor], Tensor] | None = None,
) -> Run:
    """The run of a unit, with its model on the device; the method is not attached yet.

    Args:
        found: the assets of the cell, by name.
        form: of `form_of`.
        rows: training rows for the weights.
        reduce: of `Run`.
    """
    loaded, train = load_backbone(cell, seed, found, form), cell.train
    loaded.model.to(device)
    total, per_epoch = train.step_counts(rows, cell.scale.max_steps)
    return Run(
        loaded.model,
        loaded.modules,
        total_steps=total,
        steps_per_epoch=per_epoch,
        settings=OptimizerSettings(
            weight_decay=train.weight_decay,
            decay_biases=train.decay_biases,
            betas=(train.beta1, train.beta2),
            eps=train.eps,
            warmup=train.steps("warmup", total, per_epoch),
            schedule=train.schedule,
        ),
        generator=generator(seed, "method"),
        head=loaded.head,
        reduce=reduce,
    )
