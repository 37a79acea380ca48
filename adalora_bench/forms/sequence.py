"""One label for a whole sequence: classification and regression through a head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from adalora_bench.data.fields import Row
from adalora_bench.forms.base import Example, Form, MicroBatch, encoded_pairs, model_inputs


class Classification(Form):
    """Cross-entropy over logits (n, classes); the prediction is the number of the likeliest class."""

    kind = "classification"
    target_type: ClassVar[torch.dtype] = torch.long

    @property
    def outputs(self) -> int:
        return len(self.task.labels)

    def encode(self, rows: Sequence[Row], *, train: bool) -> list[Example]:
        columns = [[row[name] for row in rows] for name in self.task.text]
        features = encoded_pairs(self.tokenizer, columns, self.max_length)
        return [
            feature | {"label": row[self.task.label], "length": len(feature["input_ids"])}
            for feature, row in zip(features, rows, strict=True)
        ]

    def collate(self, examples: Sequence[Example], positions: Sequence[int]) -> MicroBatch:
        chosen = [examples[i] for i in positions]
        labels = torch.tensor([e["label"] for e in chosen], dtype=self.target_type)
        return MicroBatch(model_inputs(chosen, self.pad_id), labels, list(positions))

    def losses(self, logits: Tensor, batch: MicroBatch) -> Tensor:
        return torch.nn.functional.cross_entropy(logits.float(), batch.targets, reduction="none")

    def predictions(self, logits: Tensor, batch: MicroBatch, examples: Sequence[Example]) -> list[Any]:
        return [int(value) for value in logits.argmax(-1)]


class Regression(Classification):
    """Squared error of logits (n, 1); the prediction is the value."""

    kind = "regression"
    target_type = torch.float32

    @property
    def outputs(self) -> int:
        return 1

    def losses(self, logits: Tensor, batch: MicroBatch) -> Tensor:
        return (logits.float().squeeze(-1) - batch.targets).square()

    def predictions(self, logits: Tensor, batch: MicroBatch, examples: Sequence[Example]) -> list[Any]:
        return [float(value) for value in logits.float().squeeze(-1)]
