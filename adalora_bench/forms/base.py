"""What every form has in common: examples, padding, the way from logits to predictions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from adalora_bench import metrics
from adalora_bench.data.fields import Row
from adalora_bench.data.tasks import Task
from adalora_bench.errors import Diverged
from adalora_bench.forms import shortened

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Example = dict[str, Any]
"""One row, encoded; "length" is the number of tokens by which batches are sorted."""


@dataclass(frozen=True)
class MicroBatch:
    """Some examples as tensors.

    Attributes:
        inputs: what the model is called with.
        targets: what the losses compare the logits with.
        positions: of the examples, in the caller's list.
        counts: where an example is several sequences (candidates, windows), how many each has.
        answer_tokens: (real, padded) tokens of answers that stand beside the inputs (sequence-to-sequence).
    """

    inputs: dict[str, Tensor]
    targets: Tensor
    positions: list[int]
    counts: list[int] | None = None
    answer_tokens: tuple[int, int] = (0, 0)

    def to(self, device: torch.device) -> MicroBatch:
        """The same batch with its tensors on a device."""
        inputs = {name: tensor.to(device) for name, tensor in self.inputs.items()}
        return replace(self, inputs=inputs, targets=self.targets.to(device))

    @property
    def real_tokens(self) -> int:
        return int(self.inputs["attention_mask"].sum()) + self.answer_tokens[0]

    @property
    def processed_tokens(self) -> int:
        return self.inputs["attention_mask"].numel() + self.answer_tokens[1]


class Form(ABC):
    """A task on a backbone of one form.

    Attributes:
        kind: what `Backbone.load` is asked for.
        variant: "gen" or "lik" where a generative backbone decides among classes, else "".
        max_length: tokens of an input.
        report_batch: rows that are answered at once.
    """

    kind: ClassVar[str]
    report_batch = 32

    def __init__(
        self, task: Task, tokenizer: PreTrainedTokenizerBase, *, variant: str = "", cap: int | None = None
    ) -> None:
        self.task = task
        self.tokenizer = tokenizer
        self.variant = variant
        self.max_length = shortened(task.max_length, cap)
        pad = tokenizer.pad_token_id
        assert isinstance(pad, int), "Backbone.tokenizer gives every tokenizer a padding token"
        self.pad_id = pad

    @property
    def outputs(self) -> int:
        """Width of the head."""
        return 1

    # -- rows and examples ----------------------------------------------------------------------------------

    @abstractmethod
    def encode(self, rows: Sequence[Row], *, train: bool) -> list[Example]:
        """One example for each row.

        Args:
            train: rows to learn from; False: rows to answer.
        """

    @abstractmethod
    def collate(self, examples: Sequence[Example], positions: Sequence[int]) -> MicroBatch:
        """These examples as tensors, with as little padding as they need."""

    def items(self, examples: Sequence[Example], positions: Sequence[int]) -> int:
        """Over how many item losses a batch of these examples averages; here one a row."""
        return len(positions)

    @abstractmethod
    def losses(self, logits: Tensor, batch: MicroBatch) -> Tensor:
        """The loss of every item of a batch on the logits' device, (items,)."""

    # -- answers --------------------------------------------------------------------------------------------

    def answers(
        self, model: nn.Module, examples: Sequence[Example], positions: Sequence[int], device: torch.device
    ) -> list[Any]:
        """One prediction for each of these examples (encoded with train=False), in the order of `positions`.

        Raises:
            Diverged: a logit is NaN or infinite (the largest of them would still name a class).
        """
        batch = self.collate(examples, positions).to(device)
        logits = finite(model(**batch.inputs))
        return self.predictions(logits, batch, [examples[i] for i in positions])

    @abstractmethod
    def predictions(self, logits: Tensor, batch: MicroBatch, examples: Sequence[Example]) -> list[Any]:
        """One prediction for each example of the batch."""

    # -- scores ---------------------------------------------------------------------------------------------

    @property
    def main_metric(self) -> str:
        """The name of the main score."""
        return self.task.score_names(self.variant)[0]

    def score(
        self, predictions: Mapping[str, Sequence[Any]], report: Mapping[str, Sequence[Row]]
    ) -> dict[str, float]:
        """`Task.score` under the names of this form."""
        return self.task.score(predictions, report, self.variant)

    def unparsed(self, predictions: Mapping[str, Sequence[Any]]) -> dict[str, int]:
        """Score name -> how many answers could not be read. {} where a head answers: it always names something."""
        return {}

    def signatures(self) -> dict[str, str]:
        """Metric, with the variant where there is one -> what a record says of it."""
        names = [f"{name}_{self.variant}" if self.variant else name for name in self.task.metrics]
        return {name: metrics.signature(name) for name in names} | self.task.asked_apart()

    def majority(self, report: Mapping[str, Sequence[Row]]) -> dict[str, float | None]:
        """`Task.majority` under the names of this form."""
        return self.task.majority(report, self.variant)


def finite(logits: Tensor) -> Tensor:
    """The logits. Raises Diverged where one is NaN or infinite."""
    if not bool(torch.isfinite(logits).all()):
        raise Diverged("a logit of the report rows is not finite")
    return logits


def padded(rows: Sequence[Sequence[int]], fill: int, *, left: bool = False) -> Tensor:
    """Rows of different lengths as one tensor (n, longest), filled on the right, or on the left."""
    length = max(len(row) for row in rows)
    out = torch.full((len(rows), length), fill, dtype=torch.long)
    for i, row in enumerate(rows):
        out[i, slice(length - len(row), None) if left else slice(len(row))] = torch.tensor(
            row, dtype=torch.long
        )
    return out


def model_inputs(
    features: Sequence[Mapping[str, Any]], pad_id: int, *, left: bool = False
) -> dict[str, Tensor]:
    """input_ids, attention_mask and, where the tokenizer makes them, token_type_ids; (n, longest) each."""
    inputs = {
        "input_ids": padded([f["input_ids"] for f in features], pad_id, left=left),
        "attention_mask": padded([[1] * len(f["input_ids"]) for f in features], 0, left=left),
    }
    if "token_type_ids" in features[0]:
        inputs["token_type_ids"] = padded([f["token_type_ids"] for f in features], 0, left=left)
    return inputs


def encoded_pairs(
    tokenizer: PreTrainedTokenizerBase, columns: Sequence[Sequence[str]], max_length: int
) -> list[Example]:
    """Texts or pairs of texts -> input_ids and, where the tokenizer makes them, token_type_ids. No padding.

    A pair is cut from its longer side, token by token, to `max_length` tokens with the special ones.
    """
    if not columns[0]:
        return []
    batch = tokenizer(
        *columns, truncation="longest_first", max_length=max_length, return_attention_mask=False
    )
    names = [name for name in ("input_ids", "token_type_ids") if name in batch]
    return [{name: batch[name][i] for name in names} for i in range(len(columns[0]))]
