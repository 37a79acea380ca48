"""One of several candidates: each is scored as a pair with the question, and the best score wins (COPA)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from adalora_bench.data.fields import CHOICES, Row
from adalora_bench.forms.base import Example, Form, MicroBatch, encoded_pairs, model_inputs


class Choice(Form):
    """A head of width 1; cross-entropy over the scores of a row's candidates, as many as it has.

    The candidates of a row stay in one micro-batch.
    """

    kind = "choice"

    def encode(self, rows: Sequence[Row], *, train: bool) -> list[Example]:
        questions = [" ".join(row[name] for name in self.task.text) for row in rows for _ in row[CHOICES]]
        candidates = [text for row in rows for text in row[CHOICES]]
        features = iter(encoded_pairs(self.tokenizer, [questions, candidates], self.max_length))
        examples = []
        for row in rows:
            own = [next(features) for _ in row[CHOICES]]
            length = max(len(feature["input_ids"]) for feature in own)
            examples.append({"candidates": own, "label": row[self.task.label], "length": length})
        return examples

    def collate(self, examples: Sequence[Example], positions: Sequence[int]) -> MicroBatch:
        chosen = [examples[i] for i in positions]
        features = [feature for e in chosen for feature in e["candidates"]]
        labels = torch.tensor([e["label"] for e in chosen])
        counts = [len(e["candidates"]) for e in chosen]
        return MicroBatch(model_inputs(features, self.pad_id), labels, list(positions), counts)

    def losses(self, logits: Tensor, batch: MicroBatch) -> Tensor:
        return torch.nn.functional.cross_entropy(_by_row(logits, batch), batch.targets, reduction="none")

    def predictions(self, logits: Tensor, batch: MicroBatch, examples: Sequence[Example]) -> list[Any]:
        return [int(value) for value in _by_row(logits, batch).argmax(-1)]


def _by_row(logits: Tensor, batch: MicroBatch) -> Tensor:
    """(candidates of all rows, 1) -> (rows, most candidates); minus infinity where a row has fewer."""
    assert batch.counts is not None
    scores = logits.float().squeeze(-1).split(batch.counts)
    return torch.nn.utils.rnn.pad_sequence(list(scores), batch_first=True, padding_value=-torch.inf)
