"""A span of a context: logits for its first and its last token, over windows of the context (SQuAD)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from adalora_bench.data.fields import Row
from adalora_bench.data.tasks import Task
from adalora_bench.errors import UserError
from adalora_bench.forms.base import Example, Form, MicroBatch, model_inputs

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NOWHERE = (0, 0)
"""Target of a window without the whole answer: the first token, as BERT's authors do."""


class Spans(Form):
    """Loss: the mean of the cross-entropies of start and end, one item a window.

    Prediction: the text of the valid span with the largest sum of both logits over all windows of a row. Valid: inside
    the context, not backwards, at most `task.span.max_answer` tokens. All of them are compared, so there is no list
    of the n best starts and ends; "" where a row has none.
    """

    kind = "span"

    def __init__(
        self, task: Task, tokenizer: PreTrainedTokenizerBase, *, variant: str = "", cap: int | None = None
    ) -> None:
        super().__init__(task, tokenizer, variant=variant, cap=cap)
        self.most_asked = self.max_length // 3
        # tokens of the context that every window holds at least
        self.room = self.max_length - self.most_asked - tokenizer.num_special_tokens_to_add(pair=True)
        if self.room < 3:
            raise UserError(
                f"{self.max_length} tokens are too few for a window with a question and a context."
            )

    @property
    def outputs(self) -> int:
        return 2

    def encode(self, rows: Sequence[Row], *, train: bool) -> list[Example]:
        if not rows:
            return []
        question, context = self.task.text
        questions = self._cut_questions([row[question] for row in rows])
        batch = self.tokenizer(
            questions,
            [row[context] for row in rows],
            truncation="only_second",
            max_length=self.max_length,
            stride=min(self.task.span.stride, self.room // 2),
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
            return_attention_mask=False,
        )
        names = [name for name in ("input_ids", "token_type_ids") if name in batch]
        windows: list[list[Example]] = [[] for _ in rows]
        for i, row in enumerate(batch["overflow_to_sample_mapping"]):
            offsets = [
                pair if sequence == 1 else None
                for pair, sequence in zip(batch["offset_mapping"][i], batch.sequence_ids(i), strict=True)
            ]
            start, end = _target(offsets, rows[row][self.task.label])
            window = {"offsets": offsets, "start": start, "end": end}
            windows[row].append({name: batch[name][i] for name in names} | window)
        return [
            {"windows": own, "context": row[context], "length": max(len(w["input_ids"]) for w in own)}
            for own, row in zip(windows, rows, strict=True)
        ]

    def _cut_questions(self, questions: list[str]) -> list[str]:
        """Questions of at most a third of the length, so that every window holds some context."""
        offsets = self.tokenizer(
            questions, add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )["offset_mapping"]
        most = self.most_asked
        return [
            text if len(own) <= most else text[: own[most - 1][1]]
            for text, own in zip(questions, offsets, strict=True)
        ]

    def collate(self, examples: Sequence[Example], positions: Sequence[int]) -> MicroBatch:
        chosen = [examples[i] for i in positions]
        windows = [window for e in chosen for window in e["windows"]]
        targets = torch.tensor([[w["start"], w["end"]] for w in windows])
        counts = [len(e["windows"]) for e in chosen]
        return MicroBatch(model_inputs(windows, self.pad_id), targets, list(positions), counts)

    def items(self, examples: Sequence[Example], positions: Sequence[int]) -> int:
        return sum(len(examples[i]["windows"]) for i in positions)

    def losses(self, logits: Tensor, batch: MicroBatch) -> Tensor:
        """logits (windows, length, 2), targets (windows, 2) -> (windows,)."""
        # padding is no place where a span could start
        hidden = batch.inputs["attention_mask"].unsqueeze(-1) == 0
        places = logits.float().masked_fill(hidden, -torch.inf).transpose(1, 2)
        return torch.nn.functional.cross_entropy(
            places.flatten(0, 1), batch.targets.flatten(), reduction="none"
        ).view(-1, 2).mean(1)  # fmt: skip

    def predictions(self, logits: Tensor, batch: MicroBatch, examples: Sequence[Example]) -> list[Any]:
        assert batch.counts is not None
        texts = []
        for own, example in zip(logits.float().cpu().split(batch.counts), examples, strict=True):
            best, text = -torch.inf, ""
            for window, scores in zip(example["windows"], own, strict=True):
                found = best_span(scores, window["offsets"], self.task.span.max_answer)
                if found is not None and found[0] > best:
                    best, (start, end) = found[0], found[1]
                    text = example["context"][start:end].strip()
            texts.append(text)
        return texts


def best_span(
    scores: Tensor, offsets: Sequence[tuple[int, int] | None], most: int
) -> tuple[float, tuple[int, int]] | None:
    """(score, (first character, character behind the last)) of the best valid span of one window.

    Args:
        scores: logits of start and end, (length or more, 2).
        offsets: of each token its characters in the context; None where it is not of the context.
        most: tokens of the longest span.

    Returns:
        None where no token is of the context.
    """
    inside = [i for i, pair in enumerate(offsets) if pair is not None]
    if not inside:
        return None
    first, last = inside[0], inside[-1] + 1
    starts, ends = scores[first:last].unbind(1)
    sums = starts.unsqueeze(1) + ends.unsqueeze(0)
    valid = torch.ones_like(sums, dtype=torch.bool).triu().tril(most - 1)
    best = int(sums.masked_fill(~valid, -torch.inf).argmax())
    start, end = divmod(best, last - first)
    begin, stop = offsets[first + start], offsets[first + end]
    assert begin is not None
    assert stop is not None
    return float(sums[start, end]), (begin[0], stop[1])


def _target(offsets: Sequence[tuple[int, int] | None], answers: dict[str, list[Any]]) -> tuple[int, int]:
    """First and last token of the row's first answer; NOWHERE where the window does not hold all of it."""
    begin = answers["answer_start"][0]
    stop = begin + len(answers["text"][0])
    touched = [i for i, pair in enumerate(offsets) if pair is not None and pair[0] < stop and pair[1] > begin]
    if not touched:
        return NOWHERE
    first, last = offsets[touched[0]], offsets[touched[-1]]
    assert first is not None
    assert last is not None
    whole = first[0] <= begin and last[1] >= stop
    return (touched[0], touched[-1]) if whole else NOWHERE
