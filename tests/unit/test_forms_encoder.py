"""What an encoder is given and what it learns: classification, regression, choice, span; values by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, tensor
from toy_forms import backbone_of, form_of, gradients, loaded, rows_of, task_of, word_tokenizer

from adalora_bench import forms
from adalora_bench.data.fields import Row
from adalora_bench.errors import Diverged, UserError
from adalora_bench.forms.base import Form, MicroBatch
from adalora_bench.forms.choice import Choice
from adalora_bench.forms.sequence import Classification, Regression
from adalora_bench.forms.span import Spans, best_span
from adalora_bench.train.evaluate import is_collapsed, predict

CPU = torch.device("cpu")


def of_words(kind: type[Form], task: str, max_length: int, **changes: Any) -> Form:
    """A form whose tokens are words; see word_tokenizer for their numbers."""
    return kind(task_of(task, max_length=max_length, **changes), word_tokenizer())


# --- one label for a sequence


def test_a_pair_is_cut_from_its_longer_side() -> None:
    form = of_words(Classification, "rte", 7)
    rows: list[Row] = [
        {"sentence1": "w0 w1 w2 w3 w4 w5", "sentence2": "w6", "label": 1},
        {"sentence1": "w0", "sentence2": "w1", "label": 0},
    ]
    first, second = form.encode(rows, train=True)
    assert first == {
        "input_ids": [2, 4, 5, 6, 3, 10, 3],
        "token_type_ids": [0, 0, 0, 0, 0, 1, 1],
        "label": 1,
        "length": 7,
    }
    assert (second["input_ids"], second["length"]) == ([2, 4, 3, 5, 3], 5)
    assert form.encode([], train=True) == []
    assert form.encode(rows, train=False) == [first, second]


def test_single_texts_and_numbers() -> None:
    (one,) = of_words(Classification, "sst2", 5).encode([{"sentence": "w0 w1 w2 w3", "label": 1}], train=True)
    assert one["input_ids"] == [2, 4, 5, 6, 3]
    rows = [{"sentence1": "w0", "sentence2": "w1", "label": 2.5}]
    (one,) = of_words(Regression, "stsb", 8).encode(rows, train=True)
    assert one["label"] == 2.5


def test_a_batch_is_padded_on_the_right_to_its_longest() -> None:
    form = of_words(Classification, "rte", 9)
    rows = [{"sentence1": "w0 " * n, "sentence2": "w1", "label": n % 2} for n in (1, 5, 3)]
    batch = form.collate(form.encode(rows, train=True), [2, 0])
    assert batch.inputs["input_ids"].tolist() == [[2, 4, 4, 4, 3, 5, 3], [2, 4, 3, 5, 3, 0, 0]]
    assert batch.inputs["attention_mask"].tolist() == [[1] * 7, [1, 1, 1, 1, 1, 0, 0]]
    assert batch.inputs["token_type_ids"].tolist() == [[0, 0, 0, 0, 0, 1, 1], [0, 0, 0, 1, 1, 0, 0]]
    assert batch.targets.tolist() == [1, 1]
    assert batch.targets.dtype == torch.long
    assert (batch.positions, batch.real_tokens, batch.processed_tokens) == ([2, 0], 12, 14)


def test_a_real_token_may_look_like_padding() -> None:
    form = of_words(Regression, "stsb", 9)
    batch = form.collate([{"input_ids": [5, 0, 0], "label": 1.5, "length": 3}], [0])
    assert batch.real_tokens == 3
    assert batch.targets.dtype == torch.float32
    assert "token_type_ids" not in batch.inputs


def test_losses_and_predictions_of_classes_and_numbers() -> None:
    classes = of_words(Classification, "mnli", 9)
    batch = MicroBatch({}, tensor([2, 0]), [0, 1])
    logits = tensor([[0.0, 0.0, 0.0], [math.log(3), 0.0, 0.0]])
    assert classes.outputs == 3
    assert classes.losses(logits, batch).tolist() == pytest.approx([math.log(3), math.log(5 / 3)])
    assert classes.predictions(tensor([[0.0, 2.0, 1.0]]), batch, []) == [1]
    numbers = of_words(Regression, "stsb", 9)
    batch = MicroBatch({}, tensor([1.0, -1.0]), [0, 1])
    assert numbers.outputs == 1
    assert numbers.losses(tensor([[3.0], [-1.5]]), batch).tolist() == [4.0, 0.25]
    assert numbers.predictions(tensor([[3.0], [-1.5]]), batch, []) == [3.0, -1.5]


# --- choice


CHOICES: list[Row] = [
    {"sentence": "w0 w1", "choices": ["w2", "w3 w4"], "label": 1},
    {"sentence": "w0", "choices": ["w5", "w6", "w7"], "label": 0},
]


def test_each_candidate_is_a_pair_and_a_row_stays_together() -> None:
    form = of_words(Choice, "toy_choice", 16)
    examples = form.encode(CHOICES, train=True)
    assert [e["length"] for e in examples] == [7, 5]
    batch = form.collate(examples, [1, 0])
    assert batch.inputs["input_ids"].tolist() == [
        [2, 4, 3, 9, 3, 0, 0],
        [2, 4, 3, 10, 3, 0, 0],
        [2, 4, 3, 11, 3, 0, 0],
        [2, 4, 5, 3, 6, 3, 0],
        [2, 4, 5, 3, 7, 8, 3],
    ]
    assert (batch.counts, batch.targets.tolist()) == ([3, 2], [0, 1])
    assert form.items(examples, [1, 0]) == 2
    assert form.outputs == 1


def test_the_loss_of_a_choice_is_over_the_candidates_of_its_row() -> None:
    form = of_words(Choice, "toy_choice", 16)
    batch = MicroBatch({}, tensor([0, 1]), [0, 1], counts=[3, 2])
    logits = tensor([0.0, math.log(2), 0.0, math.log(4), 0.0]).unsqueeze(1).requires_grad_()
    losses = form.losses(logits, batch)
    assert losses.tolist() == pytest.approx([math.log(4), math.log(5)])
    losses.sum().backward()
    assert logits.grad is not None
    assert logits.grad.squeeze(1).tolist() == pytest.approx([-0.75, 0.5, 0.25, 0.8, -0.8])
    assert form.predictions(logits, batch, []) == [1, 0]


# --- span


def at(text: str, answer: str) -> dict[str, Any]:
    return {"text": [answer], "answer_start": [text.index(answer)]}


def test_a_long_context_becomes_windows_that_overlap_and_know_their_answer() -> None:
    form = of_words(Spans, "toy_span", 9, span={"stride": 1, "max_answer": 3})
    context = "w4 w5 w6 w7 w8 w9 w10"
    rows: list[Row] = [{"question": "w0 w1", "sentence": context, "label": at(context, "w7 w8")}]
    (example,) = form.encode(rows, train=True)
    windows = example["windows"]
    assert [w["input_ids"] for w in windows] == [
        [2, 4, 5, 3, 8, 9, 10, 11, 3],
        [2, 4, 5, 3, 11, 12, 13, 14, 3],
    ]
    # the first window holds half of the answer only
    assert [(w["start"], w["end"]) for w in windows] == [(0, 0), (4, 5)]
    assert windows[1]["offsets"][3:6] == [None, (9, 11), (12, 14)]
    assert (example["length"], example["context"]) == (9, context)
    batch = form.collate([example], [0])
    assert (batch.targets.tolist(), batch.counts) == ([[0, 0], [4, 5]], [2])
    assert form.items([example], [0]) == 2


def test_a_long_question_leaves_room_for_the_context() -> None:
    form = of_words(Spans, "toy_span", 9)
    rows: list[Row] = [{"question": "w0 " * 9, "sentence": "w4 w5", "label": at("w4 w5", "w5")}]
    (example,) = form.encode(rows, train=True)
    (window,) = example["windows"]
    assert window["input_ids"] == [2, 4, 4, 4, 3, 8, 9, 3]
    with pytest.raises(UserError, match="7 tokens are too few"):
        of_words(Spans, "toy_span", 7)


def test_the_loss_of_a_window_is_the_mean_of_start_and_end_and_padding_is_no_place() -> None:
    form = of_words(Spans, "toy_span", 16)
    mask = tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    batch = MicroBatch({"attention_mask": mask}, tensor([[1, 2], [0, 1]]), [0], counts=[2])
    logits = torch.zeros(2, 4, 2)
    logits[0, 1, 0] = math.log(3)  # start: 3 of 6
    assert form.losses(logits, batch).tolist() == pytest.approx(
        [(math.log(2) + math.log(4)) / 2, math.log(2)]
    )
    logits[1, 2:] = 9.0
    assert form.losses(logits, batch)[1].item() == pytest.approx(math.log(2))


def test_the_best_span_lies_in_the_context_forwards_and_is_not_too_long() -> None:
    offsets = [None, (0, 2), (3, 5), (6, 8), None]
    scores = tensor([[9.0, 9.0], [3.0, 0.0], [1.0, 2.0], [0.0, 4.0], [9.0, 9.0]])
    assert best_span(scores, offsets, 3) == (7.0, (0, 8))
    assert best_span(scores, offsets, 2) == (5.0, (0, 5))
    backwards = tensor([[0.0, 0.0], [0.0, 9.0], [0.0, 0.0], [8.0, 1.0], [0.0, 0.0]])
    assert best_span(backwards, offsets, 3) == (9.0, (0, 2))
    assert best_span(scores, [None] * 5, 3) is None


def test_the_prediction_is_the_text_of_the_best_span_of_all_windows() -> None:
    form = of_words(Spans, "toy_span", 9, span={"stride": 0, "max_answer": 3})
    context = "w4 w5 w6 w7 w8 w9"
    rows: list[Row] = [{"question": "w0 w1", "sentence": context, "label": at(context, "w4")}]
    examples = form.encode(rows, train=False)
    batch = form.collate(examples, [0])
    logits = torch.zeros(2, 9, 2)
    logits[0, 5], logits[0, 6] = tensor([4.0, 0.0]), tensor([0.0, 4.0])
    assert form.predictions(logits, batch, examples) == ["w5 w6"]
    logits[1, 4] = tensor([5.0, 5.0])
    assert form.predictions(logits, batch, examples) == ["w8"]


# --- all of them


@pytest.mark.parametrize("task", ["toy", "toy_choice", "toy_span"])
def test_gold_answers_score_the_maximum_and_shuffled_ones_do_not(task: str) -> None:
    form = form_of(task)
    _, report = rows_of(form.task)
    gold = [form.task.gold(row) for row in report]
    said = [labels[0] if isinstance(labels, list) else labels for labels in gold]
    assert form.score({"": said}, {"": report}) == dict.fromkeys(form.task.metrics, 1.0)
    turned = said[1:] + said[:1]
    assert form.score({"": turned}, {"": report})[form.main_metric] < 0.8
    assert form.unparsed({"": said}) == {}


class Oracle(torch.nn.Module):
    """Large logits where the targets of the batch are, and a body to be called with anything."""

    def __init__(self, form: Form) -> None:
        super().__init__()
        self.form = form
        self.targets = tensor([])

    def forward(self, **inputs: Tensor) -> Tensor:
        if isinstance(self.form, Spans):
            places = torch.nn.functional.one_hot(self.targets, inputs["input_ids"].shape[1])
            return 9.0 * places.transpose(1, 2).float()
        return 9.0 * torch.nn.functional.one_hot(self.targets).float().view(len(inputs["input_ids"]), -1)


@pytest.mark.parametrize("task", ["toy", "toy_choice", "toy_span"])
def test_logits_at_the_targets_are_read_as_the_right_answers(
    task: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    form = form_of(task)
    _, report = rows_of(form.task)
    oracle = Oracle(form)
    collate = form.collate

    def watched(*given: Any) -> MicroBatch:
        batch = collate(*given)
        oracle.targets = batch.targets
        return batch

    monkeypatch.setattr(form, "collate", watched)
    answers = predict(form, oracle, form.encode(report, train=False), device=CPU, precision="fp32")
    assert form.score({"": answers}, {"": report}) == dict.fromkeys(form.task.metrics, 1.0)


@pytest.mark.parametrize("task", ["toy", "toy_regression", "toy_choice", "toy_span"])
def test_four_micro_batches_give_the_gradient_of_one(task: str) -> None:
    form = form_of(task)
    examples = form.encode(rows_of(form.task)[0][:8], train=True)
    model = loaded(form, "tiny_bert").model
    whole = gradients(form, model, examples, [list(range(8))])
    cut = gradients(form, model, examples, [[3, 1], [0, 2, 4], [7], [5, 6]])
    for a, b in zip(whole, cut, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("task", ["toy", "toy_choice", "toy_span"])
def test_a_logit_that_is_not_finite_is_divergence(task: str) -> None:
    form = form_of(task)
    examples = form.encode(rows_of(form.task)[1][:3], train=False)
    model = loaded(form, "tiny_bert").model
    with torch.no_grad():
        next(iter(model.parameters())).fill_(math.nan)
    with pytest.raises(Diverged, match="not finite"):
        predict(form, model, examples, device=CPU, precision="fp32")


def test_one_answer_to_every_row_is_a_collapse_unless_all_labels_are_the_same() -> None:
    assert is_collapsed({"": ["a", "a"]}, {"": [["a"], ["b"]]})
    assert not is_collapsed({"": ["a", "a"]}, {"": [["a"], ["a"]]})
    assert not is_collapsed({"": [("a", "b"), ("a", "c")]}, {"": [["a"], ["b"]]})


@pytest.mark.parametrize(
    ("task", "backbone", "sentence"),
    [
        ("toy_text", "tiny_bert", "bert is an encoder and writes none"),
        ("toy_regression", "tiny_gpt2", "asks for a number, but gpt2 .decoder. answers with text"),
        ("stsb", "tiny_bart", "asks for a number"),
    ],
)
def test_a_pair_that_does_not_fit_is_refused(task: str, backbone: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        form_of(task, backbone)


def test_a_span_task_without_a_prompt_is_for_encoders() -> None:
    with pytest.raises(
        UserError, match=r"task.prompt is missing, and gpt2 \(decoder\) answers a task of kind span"
    ):
        forms.check_fit(task_of("toy_span", prompt=None), backbone_of("tiny_gpt2"))
