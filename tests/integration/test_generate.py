"""Decoding: left padding, batches that do not matter, stops, n-grams, and that nothing of a checkpoint slips in."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch
from toy_forms import NOWHERE, backbone_of
from transformers import GenerationConfig

from adalora_bench.data.fields import Generation
from adalora_bench.forms.base import model_inputs
from adalora_bench.forms.generate import NoRepeatInAnswer, StopAt, answer_ids, as_text
from adalora_bench.models.heads import TextModel, byte_tokenizer

CPU = torch.device("cpu")
GENERATIVE = ("tiny_gpt2", "tiny_llama", "tiny_bart")
TOKENIZER = byte_tokenizer("gpt2")
TEXTS = (
    "the sun",
    "a",
    "two boats on the river",
    "ice",
    "one lamp and a door",
    "x y z",
    "fire",
    "what is it",
)


def model_of(backbone: str) -> TextModel:
    """A random model whose answers are not all alike."""
    wide = {"init_std": 0.4} if backbone == "tiny_bart" else {"initializer_range": 0.4}
    model = backbone_of(backbone, **wide).load(NOWHERE, kind="text", outputs=0, head_seed=0).model.eval()
    assert isinstance(model, TextModel)
    return model


def asked(texts: Sequence[str] = TEXTS) -> list[list[int]]:
    return [[1, *TOKENIZER(text, add_special_tokens=False)["input_ids"]] for text in texts]


def answers(model: TextModel, prompts: list[list[int]], **settings: Any) -> list[list[int]]:
    given = {"max_new_tokens": 12} | settings
    with torch.inference_mode():
        return answer_ids(model, TOKENIZER, prompts, Generation(**given), CPU)


def test_prompts_are_padded_on_the_left() -> None:
    inputs = model_inputs([{"input_ids": [5, 6, 7]}, {"input_ids": [8]}], 0, left=True)
    assert inputs["input_ids"].tolist() == [[5, 6, 7], [0, 0, 8]]
    assert inputs["attention_mask"].tolist() == [[1, 1, 1], [0, 0, 1]]


@pytest.mark.parametrize("beams", [1, 5])
@pytest.mark.parametrize("backbone", GENERATIVE)
def test_a_batch_of_eight_answers_as_eight_batches_of_one(backbone: str, beams: int) -> None:
    model = model_of(backbone)
    settings = {"beams": beams, "length_penalty": 0.8 if beams > 1 else 1.0, "no_repeat_ngram": 3}
    together = answers(model, asked(), **settings)
    assert together == [answers(model, [ids], **settings)[0] for ids in asked()]
    assert len({tuple(ids) for ids in together}) > 3  # else it would show little
    assert max(map(len, together)) == 12


@pytest.mark.parametrize("backbone", GENERATIVE)
def test_greedy_answers_are_the_likeliest_tokens_one_by_one(backbone: str) -> None:
    model = model_of(backbone)
    for prompt, found in zip(asked(), answers(model, asked()), strict=True):
        written: list[int] = []
        while len(written) < 12:
            hidden = [] if model.seq2seq else [-100] * len(prompt)
            targets = torch.tensor([[*hidden, *written, 0]])
            ids = torch.tensor([prompt if model.seq2seq else [*prompt, *written, 0]])
            with torch.inference_mode():
                token = int(model(ids, torch.ones_like(ids), targets)[-1].argmax())
            if token == TOKENIZER.eos_token_id:
                break
            written.append(token)
        assert found == written


def test_more_beams_find_likelier_answers() -> None:
    model = model_of("tiny_gpt2")

    def likelihood(prompt: list[int], answer: list[int]) -> float:
        ids = torch.tensor([prompt + answer])
        targets = torch.tensor([[-100] * len(prompt) + answer])
        with torch.inference_mode():
            scores = model(ids, torch.ones_like(ids), targets).log_softmax(-1)
        return float(scores[range(len(answer)), answer].sum())

    one, five = (answers(model, asked(), beams=n, max_new_tokens=6) for n in (1, 5))
    gains = [
        likelihood(prompt, b) - likelihood(prompt, a)
        for prompt, a, b in zip(asked(), one, five, strict=True)
        if len(a) == len(b) == 6
    ]
    assert min(gains) > -1e-4
    assert max(gains) > 0.01


@pytest.mark.parametrize("backbone", GENERATIVE)
def test_an_answer_ends_at_a_stop_string(backbone: str) -> None:
    model = model_of(backbone)
    stopped = 0
    for prompt, free in zip(asked(), answers(model, asked()), strict=True):
        text = as_text(TOKENIZER, free, Generation())
        letters = [letter for letter in text[1:-2] if letter.isascii() and letter not in text[0]]
        if not letters:
            continue
        (cut,) = answers(model, [prompt], stop=["#!", letters[0]])
        assert cut == free[: len(cut)]
        assert len(cut) < len(free)
        assert as_text(TOKENIZER, cut, Generation(stop=[letters[0]])) == text.split(letters[0])[0]
        stopped += 1
    assert stopped > 1


@pytest.mark.parametrize("backbone", GENERATIVE)
def test_a_beam_is_finished_at_a_stop_string(backbone: str) -> None:
    model = model_of(backbone)
    stops = [chr(i) for i in range(128)]
    found = answers(model, asked(), beams=5, stop=stops)
    assert min(map(len, found)) < 12
    for ids in found:  # the stop string is the last token or there is none
        assert as_text(TOKENIZER, ids, Generation(stop=stops)) == as_text(
            TOKENIZER, ids[:-1], Generation()
        ) or (len(ids) == 12)


def test_the_first_stop_string_cuts_and_the_end_token_too() -> None:
    ids = TOKENIZER("one\ntwo##three", add_special_tokens=False)["input_ids"]
    assert as_text(TOKENIZER, ids, Generation(stop=["##", "\n"])) == "one"
    assert as_text(TOKENIZER, ids, Generation(stop=["##"])) == "one\ntwo"
    assert as_text(TOKENIZER, [*ids[:3], 2, 0], Generation()) == "one"


def test_a_stop_string_of_the_prompt_does_not_count() -> None:
    ids = torch.tensor([TOKENIZER("a##b", add_special_tokens=False)["input_ids"]])
    scores = torch.zeros(1, 260)
    assert StopAt(TOKENIZER, ["##"], 0)(ids[:, :3], scores).tolist() == [True]
    assert StopAt(TOKENIZER, ["##"], 0)(ids, scores).tolist() == [False]  # only what was just completed
    assert StopAt(TOKENIZER, ["##"], 2)(ids[:, :3], scores).tolist() == [False]
    assert StopAt(TOKENIZER, ["x", "#b"], 2)(ids, scores).tolist() == [True]


def test_an_answer_may_copy_the_prompt_but_not_itself() -> None:
    ids = torch.tensor([[5, 6, 7, 5, 6]])
    scores = torch.zeros(1, 9)
    assert NoRepeatInAnswer(3, 0)(ids, scores)[0, 7] == -torch.inf
    assert NoRepeatInAnswer(3, 3)(ids, scores)[0, 7] == 0
    for found in answers(model_of("tiny_llama"), asked(), no_repeat_ngram=2):
        pairs = list(pairwise(found))
        assert len(pairs) == len(set(pairs))


@pytest.mark.parametrize("backbone", GENERATIVE)
def test_nothing_that_a_checkpoint_says_of_decoding_slips_in(backbone: str) -> None:
    model = model_of(backbone)
    plain = answers(model, asked())
    body = model_of(backbone).body
    said = body.generation_config.to_dict() | {"decoder_start_token_id": 2 if model.seq2seq else None}
    body.generation_config = GenerationConfig(
        **said | {"num_beams": 4, "no_repeat_ngram_size": 2, "forced_bos_token_id": 9, "max_length": 5}
    )
    assert answers(TextModel(body), asked()) == plain


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("backbone", GENERATIVE)
def test_decoding_is_silent(backbone: str, beams: int, capfd: pytest.CaptureFixture[str]) -> None:
    answers(model_of(backbone), asked(), beams=beams, stop=["zz"], no_repeat_ngram=2)
    assert capfd.readouterr() == ("", "")
