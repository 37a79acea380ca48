"""A trained model again, from its record and its adapter file: the parts of a unit, built anew and filled."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from adalora_bench.errors import UserError
from adalora_bench.forms.base import Example, Form
from adalora_bench.lowrank.plain import Pair, plain_lora
from adalora_bench.methods.run import Run
from adalora_bench.settings import prepare
from adalora_bench.settings.assemble import assemble, form_of
from adalora_bench.settings.config import Cell
from adalora_bench.settings.prepare import Assets
from adalora_bench.train import checkpoint
from adalora_bench.train.evaluate import Predictions, predict

CPU = torch.device("cpu")
TEXTS = 2
"""So many answers of a generative backbone are compared: each costs as many passes as it has tokens."""


@dataclass(frozen=True)
class Trained:
    """The model of one unit after its training, on the CPU and in evaluation mode.

    Args:
        run: holds the model and its adapters; it cannot be trained on.
        tensors: of the adapter file.
    """

    cell: Cell
    form: Form
    found: Assets
    run: Run
    tensors: dict[str, Tensor]

    def pairs(self) -> dict[str, Pair]:
        """Adapted layer -> (A', B') with dW = B' A' against the original weights. Layers of rank 0 are left out."""
        pairs = {
            name: plain_lora(self.cell.method.total_update(layer))
            for name, layer in self.run.adapters.items()
        }
        return {name: (a, b) for name, (a, b) in pairs.items() if len(a)}

    def trained_beside_adapters(self) -> list[str]:
        """Names of the parameters outside the adapted layers that the training moved: the head, and LayerNorms."""
        inside = tuple(f"{name}." for name in self.run.adapters)
        return [
            name
            for name, _ in self.run.model.named_parameters()
            if name in self.tensors and not name.startswith(inside)
        ]

    def head(self) -> dict[str, Tensor]:
        """State of the task's head, by the names that it has in the model."""
        wanted = {id(p) for p in self.run.head}
        return {name: p.detach() for name, p in self.run.model.named_parameters() if id(p) in wanted}

    def probe(self, rows: int) -> Probe:
        """The first report rows, encoded."""
        report = prepare.rows_of(self.cell, self.found.task(self.cell)).report
        suffix = next(iter(report))
        chosen = report[suffix][:rows]
        return Probe(
            suffix=suffix,
            form=self.form,
            learned=self.form.encode(chosen, train=True),
            asked=self.form.encode(chosen[:TEXTS] if self.form.kind == "text" else chosen, train=False),
        )


@dataclass(frozen=True, kw_only=True)
class Probe:
    """A few report rows; `suffix` is that of their set in predictions.jsonl.gz.

    Args:
        learned: all of the rows, encoded for training.
        asked: the same (of texts fewer), encoded for answering.
    """

    suffix: str
    form: Form
    learned: list[Example]
    asked: list[Example]

    @torch.no_grad()
    def logits(self, model: nn.Module) -> Tensor:
        """All logits of these rows, in evaluation mode."""
        batch = self.form.collate(self.learned, range(len(self.learned)))
        logits: Tensor = model.eval()(**batch.inputs)
        return logits

    def predictions(self, model: nn.Module, precision: str) -> Predictions:
        """What a training would record for these rows."""
        return predict(self.form, model, self.asked, device=CPU, precision=precision)


def rebuild(cell: Cell, record: dict[str, Any], file: Path, found: Assets) -> Trained:
    """The model as it was when its record was written.

    Args:
        cell: of the record, with the sources of this machine.
        file: its adapter.safetensors.
        found: the assets of the cell, by name.

    Raises:
        UserError: the file is damaged, or does not fit what the record's settings build.
    """
    form, method = form_of(cell, found), cell.method
    counted = record["rows"]
    run = assemble(cell, record["seed"], found, form, rows=counted.get("weights", counted["train"]))
    method.attach(run)
    frozen = checkpoint.frozen_base_names(run, moves_base=method.moves_base)
    try:
        tensors = load_file(file)
        with safe_open(file, "pt") as opened:
            scales: dict[str, float] = json.loads((opened.metadata() or {})["scales"])
        checkpoint.put_weights(run, checkpoint.structures_in(tensors, scales), tensors, frozen=frozen)
    except (OSError, KeyError, ValueError, RuntimeError, SafetensorError) as error:
        reason = str(error).splitlines()[0].rstrip(".:")
        raise UserError(
            f"{file} does not fit the model of its record ({reason}); train the unit again."
        ) from error
    run.model.eval()
    return Trained(
        cell=cell,
        form=form,
        found=found,
        run=run,
        tensors=tensors,
    )
