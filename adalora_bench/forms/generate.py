"""Decoding: from prompts to answers. What a row answers does not depend on the rows beside it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, NoRepeatNGramLogitsProcessor, StoppingCriteria

from adalora_bench.data.fields import Generation
from adalora_bench.forms.base import finite, model_inputs
from adalora_bench.models.heads import TextModel

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def answer_ids(
    model: TextModel,
    tokenizer: PreTrainedTokenizerBase,
    asked: Sequence[Sequence[int]],
    settings: Generation,
    device: torch.device,
) -> list[list[int]]:
    """The tokens that the model writes behind each prompt, up to the end token.

    Args:
        asked: token ids of the prompts (of the encoder's text), special ones included.

    Raises:
        Diverged: a logit is NaN or infinite.
    """
    pad, end = tokenizer.pad_token_id, tokenizer.eos_token_id
    assert isinstance(pad, int)
    # an answer follows its prompt at once; an encoder's text is not followed by anything, and has its places counted
    # from the left
    features = [{"input_ids": ids} for ids in asked]
    inputs = {k: v.to(device) for k, v in model_inputs(features, pad, left=not model.seq2seq).items()}
    # a decoder's ids begin with the prompt, a sequence-to-sequence model's with its start token
    begin = 1 if model.seq2seq else inputs["input_ids"].shape[1]
    more: dict[str, Any] = {}
    if settings.stop:
        more["stopping_criteria"] = [StopAt(tokenizer, settings.stop, begin)]
    more["logits_processor"] = [MustBeFinite()]
    if settings.no_repeat_ngram:
        more["logits_processor"].append(NoRepeatInAnswer(settings.no_repeat_ngram, begin))
    search = (
        {"length_penalty": settings.length_penalty, "early_stopping": False} if settings.beams > 1 else {}
    )
    config = GenerationConfig(
        max_new_tokens=settings.max_new_tokens,
        num_beams=settings.beams,
        do_sample=False,
        pad_token_id=pad,
        eos_token_id=end,
        **search,
    )
    ids = model.generate(settings=config, **inputs, **more)
    return [_until(end, own) for own in ids[:, begin:].tolist()]


def as_text(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], settings: Generation) -> str:
    """The text of these tokens up to the first stop string."""
    text = _decoded(tokenizer, ids)
    for stop in settings.stop:
        text = text.split(stop, 1)[0]
    return text


class StopAt(StoppingCriteria):
    """A sequence is finished once its answer holds one of the strings.

    Args:
        begin: where the answers begin; what stands before does not count.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, strings: Sequence[str], begin: int) -> None:
        self.tokenizer = tokenizer
        self.strings = strings
        self.begin = begin
        # a token has one byte or more: a string that has just been completed lies in so many tokens
        self.tail = max(len(text.encode()) for text in strings)

    def __call__(self, input_ids: Tensor, scores: Tensor, **more: Any) -> Tensor:
        recent = input_ids[:, max(self.begin, input_ids.shape[1] - self.tail) :].tolist()
        texts = [_decoded(self.tokenizer, ids) for ids in recent]
        done = [any(stop in text for stop in self.strings) for text in texts]
        return torch.tensor(done, dtype=torch.bool, device=input_ids.device)


class MustBeFinite(LogitsProcessor):
    """Raises Diverged where a logit is NaN or infinite: the search would go on and write one token for ever."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return finite(scores)


class NoRepeatInAnswer(LogitsProcessor):
    """No n-gram twice in an answer. The prompt does not count: what stands there may be copied."""

    def __init__(self, size: int, begin: int) -> None:
        self.inner = NoRepeatNGramLogitsProcessor(size)
        self.begin = begin

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        out: Tensor = self.inner(input_ids[:, self.begin :], scores)
        return out


def _until(end: int, ids: list[int]) -> list[int]:
    return ids[: ids.index(end)] if end in ids else ids


def _decoded(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    text: str = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return text
