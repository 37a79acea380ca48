"""Text for text: a generative backbone learns the answer's tokens behind the prompt, and answers with text.

A class or a choice is answered in one of two ways: by generation (the text must name it) or by likelihood (the
candidate whose tokens are likeliest, the end included).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from adalora_bench.data import prompts
from adalora_bench.data.fields import Row
from adalora_bench.data.tasks import Task
from adalora_bench.errors import UserError
from adalora_bench.forms import shortened
from adalora_bench.forms.base import Example, Form, MicroBatch, finite, model_inputs, padded
from adalora_bench.forms.generate import answer_ids, as_text
from adalora_bench.models.heads import IGNORE, TextModel

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Ids = list[int]


class Decoder(Form):
    """Prompt, answer and end in one sequence; the answer and the end are predicted, one item a token.

    A prompt that is too long is cut: `task.cut` names the column that loses its end, else the prompt loses its
    beginning. An answer is cut at `task.max_answer` only.
    """

    kind = "text"

    def __init__(
        self, task: Task, tokenizer: PreTrainedTokenizerBase, *, variant: str = "", cap: int | None = None
    ) -> None:
        super().__init__(task, tokenizer, variant=variant, cap=cap)
        self.generation = replace(
            task.generation, max_new_tokens=shortened(task.generation.max_new_tokens, cap)
        )
        self.max_answer = cap if task.max_answer is None else shortened(task.max_answer, cap)
        self.prefix, self.suffix = frame(tokenizer)
        end = tokenizer.eos_token_id
        assert isinstance(end, int), "a generative backbone's tokenizer has an end-of-sequence token"
        self.end_id = end
        self.room = self.max_length - len(self.prefix) - len(self._behind())
        self._check_length()

    @property
    def outputs(self) -> int:
        """No head is made: the language model's own output layer answers."""
        return 0

    def _check_length(self) -> None:
        if self.room < 1:
            raise UserError(f"{self.max_length} tokens leave no room for a prompt between the special ones.")
        self._check_positions(max(self.max_answer or 0, self.generation.max_new_tokens))

    def _check_positions(self, answer: int) -> None:
        most = self.tokenizer.model_max_length
        if self.max_length + answer > most:
            raise UserError(
                f"task.max_length={self.max_length} and an answer of {answer} tokens make "
                f"{self.max_length + answer}, but the backbone reads at most {most}."
            )

    # -- rows to tokens -------------------------------------------------------------------------------------

    def encode(self, rows: Sequence[Row], *, train: bool) -> list[Example]:
        if not rows:
            return []
        texts = [prompts.prompt_of(self.task, row) for row in rows]
        whole = self._ids(texts)
        asked = [self._fitted(row, ids) for row, ids in zip(rows, whole, strict=True)]
        if train:
            answers = [prompts.answer_of(self.task, row) for row in rows]
            targets = self._targets(texts, whole, answers)
            return [self.joined(ids, target) for ids, target in zip(asked, targets, strict=True)]
        examples: list[Example] = []
        for row, text, ids, own in zip(rows, texts, asked, whole, strict=True):
            example: Example = {"row": row, "input_ids": ids, "length": len(ids)}
            if self.variant == "lik":
                words = prompts.candidates(self.task, row)
                targets = self._targets([text] * len(words), [own] * len(words), words)
                example["candidates"] = [self.joined(ids, target) for target in targets]
                example["length"] = max(candidate["length"] for candidate in example["candidates"])
            examples.append(example)
        return examples

    def joined(self, asked: Ids, target: Ids) -> Example:
        """Prompt and answer as one example."""
        hidden = [IGNORE, *asked[1:]] if self.task.loss_on_prompt else [IGNORE] * len(asked)
        return _example(asked + target, hidden + target, len(asked) + len(target))

    def _fitted(self, row: Row, ids: Ids) -> Ids:
        """The tokens of a row's prompt with the special ones, cut where there are too many."""
        if len(ids) > self.room and self.task.cut is not None:
            ids = self._without_end_of(self.task.cut, row, ids)
        return self._framed(ids)

    def _framed(self, ids: Ids) -> Ids:
        """The last tokens of a prompt, as many as may be, with the special ones."""
        # without a prompt there would be nothing that the first token of the answer could be predicted from
        return [*self.prefix, *ids[-self.room :], *self._behind()] or [self.end_id]

    def _without_end_of(self, column: str, row: Row, ids: Ids) -> Ids:
        """The prompt's tokens with this column's text cut, token by token, until they fit or nothing of it is left."""
        offsets = self.tokenizer(
            row[column], add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )["offset_mapping"]
        kept = len(offsets)
        while kept and len(ids) > self.room:
            kept = max(0, kept - (len(ids) - self.room))
            short = row[column][: offsets[kept - 1][1]] if kept else ""
            ids = self._ids([prompts.prompt_of(self.task, row | {column: short})])[0]
        return ids

    def _targets(self, texts: Sequence[str], asked: Sequence[Ids], answers: Sequence[str]) -> list[Ids]:
        """The tokens of these answers and the end.

        An answer is tokenized behind its prompt, as it will be generated; on its own only where its first letters
        melt into the prompt's last token.
        """
        rendered = [prompts.rendered(self.task, answer) for answer in answers]
        behind = self._ids([text + answer for text, answer in zip(texts, rendered, strict=True)])
        targets = []
        for prompt, answer, both in zip(asked, rendered, behind, strict=True):
            ids = both[len(prompt) :] if both[: len(prompt)] == prompt else self._ids([answer])[0]
            targets.append([*self._shortened(ids, 1), self.end_id])
        return targets

    def _shortened(self, ids: Ids, special: int) -> Ids:
        return ids if self.max_answer is None else ids[: self.max_answer - special]

    def _behind(self) -> Ids:
        return []  # an end token behind the prompt would end the text before the answer

    def _ids(self, texts: Sequence[str]) -> list[Ids]:
        ids: list[Ids] = self.tokenizer(
            list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False
        )["input_ids"]
        return ids

    # -- tokens to losses -----------------------------------------------------------------------------------

    def collate(self, examples: Sequence[Example], positions: Sequence[int]) -> MicroBatch:
        chosen = [sequence for i in positions for sequence in examples[i].get("candidates", [examples[i]])]
        inputs = model_inputs(chosen, self.pad_id)
        inputs["target_ids"] = padded([e["target_ids"] for e in chosen], IGNORE)
        targets = inputs["target_ids"]
        return MicroBatch(
            inputs,
            targets[targets != IGNORE],
            list(positions),
            counts=[e["targets"] for e in chosen],
            answer_tokens=self._beside(targets),
        )

    def _beside(self, targets: Tensor) -> tuple[int, int]:
        return 0, 0  # the answers are part of the inputs

    def items(self, examples: Sequence[Example], positions: Sequence[int]) -> int:
        return sum(examples[i]["targets"] for i in positions)

    def losses(self, logits: Tensor, batch: MicroBatch) -> Tensor:
        """Logits (targets, vocabulary) -> (targets,)."""
        return torch.nn.functional.cross_entropy(
            logits.float(), batch.targets, reduction="none", label_smoothing=self.task.label_smoothing
        )

    # -- answers --------------------------------------------------------------------------------------------

    @property
    def report_batch(self) -> int:  # type: ignore[override]
        """Rows that are answered at once: fewer where each is followed along several beams."""
        return max(1, 32 // self.generation.beams)

    def answers(
        self, model: nn.Module, examples: Sequence[Example], positions: Sequence[int], device: torch.device
    ) -> list[Any]:
        if self.variant == "lik":
            return super().answers(model, examples, positions, device)
        rows = [examples[i]["row"] for i in positions]
        said = [
            [text] for text in self._written(model, [examples[i]["input_ids"] for i in positions], device)
        ]
        while asked := self._next(rows, said):
            answers = self._written(model, list(asked.values()), device)
            for i, text in zip(asked, answers, strict=True):
                said[i].append(text)
        if self.variant == "gen":
            words = [prompts.candidates(self.task, row) for row in rows]
            return [prompts.parsed(own, texts[0]) for own, texts in zip(words, said, strict=True)]
        return [texts[0] if len(texts) == 1 else tuple(texts) for texts in said]

    def _written(self, model: nn.Module, asked: Sequence[Ids], device: torch.device) -> list[str]:
        assert isinstance(model, TextModel)
        written = answer_ids(model, self.tokenizer, asked, self.generation, device)
        return [prompts.bare(self.task, as_text(self.tokenizer, ids, self.generation)) for ids in written]

    def _next(self, rows: Sequence[Row], said: Sequence[Sequence[str]]) -> dict[int, Ids]:
        """Number of a row -> the prompt of its next turn."""
        texts = {
            i: self.task.next_prompt(row, own) for i, (row, own) in enumerate(zip(rows, said, strict=True))
        }
        return {i: self._framed(self._ids([text])[0]) for i, text in texts.items() if text is not None}

    def unparsed(self, predictions: Mapping[str, Sequence[Any]]) -> dict[str, int]:
        return self.task.unparsed(predictions, self.variant)

    def predictions(self, logits: Tensor, batch: MicroBatch, examples: Sequence[Example]) -> list[Any]:
        """The candidate with the largest log-likelihood, summed over its tokens and the end."""
        assert batch.counts is not None
        losses = torch.nn.functional.cross_entropy(finite(logits.float()), batch.targets, reduction="none")
        sums = [-float(own.sum()) for own in losses.split(batch.counts)]
        best = []
        for example in examples:
            count = len(example["candidates"])
            own, sums = sums[:count], sums[count:]
            best.append(own.index(max(own)))
        return best


class Seq2Seq(Decoder):
    """The prompt goes to the encoder, the answer to the decoder; both with the tokenizer's special tokens."""

    def _check_positions(self, answer: int) -> None:
        for name, length in (("task.max_length", self.max_length), ("the length of an answer", answer)):
            if length > self.tokenizer.model_max_length:
                raise UserError(
                    f"{name} is {length} tokens, but the backbone reads at most {self.tokenizer.model_max_length}."
                )

    def joined(self, asked: Ids, target: Ids) -> Example:
        return _example(asked, target, len(asked) + len(target))

    def _behind(self) -> Ids:
        return self.suffix

    def _targets(self, texts: Sequence[str], asked: Sequence[Ids], answers: Sequence[str]) -> list[Ids]:
        special = [*self.prefix, *(self.suffix or [self.end_id])]
        rendered = [prompts.rendered(self.task, answer) for answer in answers]
        return [
            [*self.prefix, *self._shortened(ids, len(special)), *special[len(self.prefix) :]]
            for ids in self._ids(rendered)
        ]

    def _beside(self, targets: Tensor) -> tuple[int, int]:
        return int((targets != IGNORE).sum()), targets.numel()


def _example(input_ids: Ids, target_ids: Ids, length: int) -> Example:
    count = sum(token != IGNORE for token in target_ids)
    return {"input_ids": input_ids, "target_ids": target_ids, "targets": count, "length": length}


def frame(tokenizer: PreTrainedTokenizerBase) -> tuple[Ids, Ids]:
    """The special tokens that the tokenizer itself puts before and behind a text."""
    inner = tokenizer("x", add_special_tokens=False)["input_ids"]
    whole = tokenizer("x")["input_ids"]
    start = next(i for i in range(len(whole)) if whole[i : i + len(inner)] == inner)
    return whole[:start], whole[start + len(inner) :]
