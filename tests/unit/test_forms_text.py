"""Text for text: which tokens are learnt, what is cut, how classes are answered; values by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn, tensor
from toy_forms import form_of, gradients, loaded, rows_of, task_of, word_tokenizer

from adalora_bench.data.fields import Row
from adalora_bench.errors import UserError
from adalora_bench.forms import text
from adalora_bench.forms.base import Form, MicroBatch
from adalora_bench.forms.text import Decoder, Seq2Seq
from adalora_bench.models.heads import IGNORE
from adalora_bench.train.evaluate import predict

CPU = torch.device("cpu")
GENERATIVE = ("tiny_gpt2", "tiny_llama", "tiny_bart")
_ = IGNORE


def of_words(
    kind: type[Decoder] = Decoder, task: str = "toy_text", variant: str = "", **changes: Any
) -> Decoder:
    """A form whose tokens are words; see word_tokenizer for their numbers. [CLS] 2 begins a text, [SEP] 3 ends it."""
    plain = {"prompt": "{sentence}", "answer": " {answer}"} if task == "toy_text" else {}
    return kind(task_of(task, **(plain | changes)), word_tokenizer(), variant=variant)


def row(sentence: str, label: str) -> Row:
    return {"sentence": sentence, "label": label}


# --- which tokens are learnt


def test_a_decoder_learns_the_answer_and_the_end_and_nothing_of_the_prompt() -> None:
    form = of_words()
    examples = form.encode([row("w0 w1", "w2 w3"), row("w4", "w5")], train=True)
    assert examples[0] == {
        "input_ids": [2, 4, 5, 6, 7, 3],
        "target_ids": [_, _, _, 6, 7, 3],
        "targets": 3,
        "length": 6,
    }
    batch = form.collate(examples, [1, 0])
    assert batch.inputs["input_ids"].tolist() == [[2, 8, 9, 3, 0, 0], [2, 4, 5, 6, 7, 3]]
    assert batch.inputs["attention_mask"].tolist() == [[1, 1, 1, 1, 0, 0], [1] * 6]
    assert batch.inputs["target_ids"].tolist() == [[_, _, 9, 3, _, _], [_, _, _, 6, 7, 3]]
    assert batch.targets.tolist() == [9, 3, 6, 7, 3]
    assert form.items(examples, [0, 1]) == 5
    assert (batch.real_tokens, batch.processed_tokens) == (10, 12)
    assert form.encode([], train=True) == []


def test_a_decoder_may_learn_the_prompt_too() -> None:
    (example,) = of_words(loss_on_prompt=True).encode([row("w0 w1", "w2")], train=True)
    assert example["target_ids"] == [_, 4, 5, 6, 3]  # nothing stands before the first token


def test_a_sequence_to_sequence_model_reads_the_prompt_and_writes_the_answer() -> None:
    form = of_words(Seq2Seq)
    examples = form.encode([row("w0 w1", "w2 w3"), row("w4", "w5")], train=True)
    assert examples[0] == {"input_ids": [2, 4, 5, 3], "target_ids": [2, 6, 7, 3], "targets": 4, "length": 8}
    batch = form.collate(examples, [0, 1])
    assert batch.inputs["target_ids"].tolist() == [[2, 6, 7, 3], [2, 9, 3, _]]
    assert batch.targets.tolist() == [2, 6, 7, 3, 2, 9, 3]
    assert (batch.real_tokens, batch.processed_tokens) == (7 + 7, 8 + 8)


def test_report_rows_end_with_the_prompt() -> None:
    for kind, ids in ((Decoder, [2, 4, 5]), (Seq2Seq, [2, 4, 5, 3])):
        (example,) = of_words(kind).encode([row("w0 w1", "w2")], train=False)
        assert (example["input_ids"], example["length"]) == (ids, len(ids))
        assert "target_ids" not in example


def test_an_answer_is_tokenized_behind_its_prompt_as_it_will_be_generated() -> None:
    class Merging:
        """Tokens are letters, but "ab" is one token, and a text's first letter is written in capitals."""

        pad_token_id, eos_token_id, model_max_length = 0, 1, 999

        def __call__(self, texts: Any, **more: Any) -> dict[str, Any]:
            rows = [texts] if isinstance(texts, str) else texts
            ids = [[ord(c) for c in (t[:1].upper() + t[1:]).replace("ab", "*")] for t in rows]
            return {"input_ids": ids[0] if isinstance(texts, str) else ids}

    tokenizer: Any = Merging()
    form = Decoder(task_of("toy_text", prompt="{sentence}", answer="{answer}"), tokenizer)
    apart, melting = form.encode([row("xy", "zz"), row("xa", "bz")], train=True)
    assert apart["input_ids"] == [ord("X"), ord("y"), ord("z"), ord("z"), 1]
    assert melting["input_ids"] == [ord("X"), ord("a"), ord("B"), ord("z"), 1]


# --- what is cut


def test_a_long_prompt_loses_its_beginning_and_the_answer_stays_whole() -> None:
    (example,) = of_words(max_length=4).encode([row("w0 w1 w2 w3 w4", "w5 w6 w7 w8 w9")], train=True)
    assert example["input_ids"] == [2, 6, 7, 8, 9, 10, 11, 12, 13, 3]
    (example,) = of_words(Seq2Seq, max_length=4).encode([row("w0 w1 w2 w3", "w5 w6 w7")], train=True)
    assert example["input_ids"] == [2, 6, 7, 3]
    assert example["target_ids"] == [2, 9, 10, 11, 3]


@pytest.mark.parametrize(
    ("length", "prompt"),
    [
        (99, [10, 4, 5, 6, 7, 11, 12]),
        (6, [10, 4, 5, 11, 12]),
        (4, [10, 11, 12]),  # nothing is left of the column
        (3 + 1, [10, 11, 12]),
    ],
)
def test_the_named_column_loses_its_end(length: int, prompt: list[int]) -> None:
    form = of_words(prompt="w6 {sentence} w7 w8", cut="sentence", max_length=length)
    (example,) = form.encode([row("w0 w1 w2 w3", "w9")], train=False)
    assert example["input_ids"] == [2, *prompt]


def test_a_training_answer_is_cut_where_the_task_says_so_and_still_ends() -> None:
    (example,) = of_words(max_answer=3).encode([row("w0", "w1 w2 w3")], train=True)
    assert example["target_ids"] == [_, _, 5, 6, 3]
    (example,) = of_words(Seq2Seq, max_answer=4).encode([row("w0", "w1 w2 w3")], train=True)
    assert example["target_ids"] == [2, 5, 6, 3]


def test_a_cap_shortens_prompt_and_answer() -> None:
    form = Decoder(task_of("toy_text", prompt="{sentence}"), word_tokenizer(), cap=3)
    (example,) = form.encode([row("w0 w1 w2 w3", "w4 w5 w6")], train=True)
    assert example["input_ids"] == [2, 6, 7, 8, 9, 3]
    assert form.generation.max_new_tokens == 3
    with pytest.raises(UserError, match="1 tokens leave no room"):
        Decoder(task_of("toy_text"), word_tokenizer(), cap=1)


def test_prompt_and_answer_must_fit_the_backbone() -> None:
    tokenizer = word_tokenizer()
    tokenizer.model_max_length = 100
    task = task_of("toy_text", max_length=80, max_answer=None)  # and 16 new tokens
    Decoder(task, tokenizer)
    tokenizer.model_max_length = 95
    with pytest.raises(UserError, match="make 96, but the backbone reads at most 95"):
        Decoder(task, tokenizer)
    Seq2Seq(task, tokenizer)
    tokenizer.model_max_length = 79
    with pytest.raises(UserError, match="task.max_length is 80 tokens"):
        Seq2Seq(task, tokenizer)


# --- losses


@pytest.mark.parametrize("backbone", GENERATIVE)
@torch.no_grad()
def test_logits_are_those_of_the_whole_model_at_the_targets(backbone: str) -> None:
    form = form_of("toy_text", backbone)
    examples = form.encode(rows_of(form.task)[0][:5], train=True)
    batch = form.collate(examples, range(5))
    model = loaded(form, backbone).model.eval()
    logits = model(**batch.inputs)
    assert logits.shape == (len(batch.targets), 260)
    inputs = dict(batch.inputs)
    theirs = model.body(labels=inputs.pop("target_ids"), **inputs)
    assert float(form.losses(logits, batch).mean()) == pytest.approx(float(theirs.loss), abs=1e-5)
    if backbone != "tiny_bart":
        at = batch.inputs["target_ids"][:, 1:] != IGNORE
        torch.testing.assert_close(logits, theirs.logits[:, :-1][at], rtol=1e-5, atol=1e-5)


def test_label_smoothing_spreads_its_share_over_the_vocabulary() -> None:
    batch = MicroBatch({}, tensor([0]), [0])
    logits = tensor([[math.log(2), 0.0, 0.0]])
    plain = math.log(2)
    spread = (math.log(2) + math.log(4) + math.log(4)) / 3
    assert of_words().losses(logits, batch).item() == pytest.approx(plain)
    smoothed = of_words(label_smoothing=0.1).losses(logits, batch)
    assert smoothed.item() == pytest.approx(0.9 * plain + 0.1 * spread)


@pytest.mark.parametrize("backbone", GENERATIVE)
def test_four_micro_batches_give_the_gradient_of_one(backbone: str) -> None:
    form = form_of("toy_text", backbone)
    examples = form.encode(rows_of(form.task)[0][:8], train=True)
    assert len({e["targets"] for e in examples}) > 2  # else rows and tokens would weigh alike
    model = loaded(form, backbone).model
    whole = gradients(form, model, examples, [list(range(8))])
    cut = gradients(form, model, examples, [[3, 1], [0, 2, 4], [7], [5, 6]])
    for a, b in zip(whole, cut, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


# --- classes and choices


CASES = ("toy", "toy_choice", "toy_span", "toy_text")


def test_the_way_of_answering_stands_in_the_names() -> None:
    form = form_of("mnli", "tiny_gpt2")
    assert form.task.score_names("gen") == ["acc_gen_matched", "acc_gen_mismatched"]
    assert form.main_metric == "acc_gen_matched"
    assert form.majority({"matched": [{"label": 1}, {"label": 1}]}) == {"acc_gen_matched": 1.0}
    assert "answer by generation" in form.signatures()["acc_gen"]
    assert form_of("mnli", "tiny_bart", answer_by="likelihood").main_metric == "acc_lik_matched"
    assert form_of("mnli").main_metric == "acc_matched"
    assert form_of("toy_span", "tiny_gpt2").main_metric == "squad_f1"  # texts here and there


def test_an_answer_that_is_no_word_is_wrong_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    form = form_of("toy", "tiny_gpt2")
    rows: list[Row] = [{"sentence1": "a", "sentence2": "b", "label": label} for label in (0, 1, 1, 0)]
    said = iter([" cold", "Warm ", " warmer", ""])
    monkeypatch.setattr(text, "answer_ids", lambda model, tokenizer, asked, *rest: [[0]] * len(asked))
    monkeypatch.setattr(text, "as_text", lambda *given: next(said))
    model = loaded(form, "tiny_gpt2").model
    answers = predict(form, model, form.encode(rows, train=False), device=CPU, precision="fp32")
    assert answers == [0, 1, -1, -1]
    assert form.score({"": answers}, {"": rows}) == {"acc_gen": 0.5}
    assert form.unparsed({"": answers}) == {"acc_gen": 2}


class Fixed(nn.Module):
    """The same logits (vocabulary) at every target."""

    def __init__(self, logits: list[float]) -> None:
        super().__init__()
        self.logits = tensor(logits)

    def forward(self, target_ids: torch.Tensor, **inputs: torch.Tensor) -> torch.Tensor:
        return self.logits.expand(int((target_ids != IGNORE).sum()), -1)


@pytest.mark.parametrize("kind", [Decoder, Seq2Seq])
def test_the_likeliest_answer_wins_summed_over_its_tokens_and_the_end(kind: type[Decoder]) -> None:
    form = of_words(kind, "toy_choice", "lik", prompt="{sentence}", answer_words={})
    rows: list[Row] = [
        {"sentence": "w0", "choices": ["w1", "w2", "w3 w3"], "label": 0},
        {"sentence": "w0 w0 w0", "choices": ["w3 w3 w3", "w1 w1"], "label": 0},
    ]
    examples = form.encode(rows, train=False)
    begin = [2] if kind is Seq2Seq else [_, _]
    assert [c["target_ids"] for c in examples[0]["candidates"]] == [
        [*begin, 5, 3],
        [*begin, 6, 3],
        [*begin, 7, 7, 3],
    ]
    logits = [0.0] * 24
    logits[6] = 1.0  # w2 is e times as likely as w1
    assert predict(form, Fixed(logits), examples, device=CPU, precision="fp32") == [1, 1]
    logits[7] = 9.0  # two of w3 are likelier than one of any other
    assert predict(form, Fixed(logits), examples, device=CPU, precision="fp32") == [2, 0]


@torch.no_grad()
def test_likelihood_of_a_real_model_is_that_of_its_own_loss() -> None:
    form = form_of("toy", "tiny_llama", answer_by="likelihood")
    rows = rows_of(form.task)[1][:6]
    model = loaded(form, "tiny_llama", initializer_range=0.5).model.eval()
    by_hand = []
    for one in rows:
        sums = []
        for label in (0, 1):
            batch = form.collate(form.encode([one | {"label": label}], train=True), [0])
            sums.append(float(form.losses(model(**batch.inputs), batch).sum()))
        by_hand.append(sums.index(min(sums)))
    assert predict(form, model, form.encode(rows, train=False), device=CPU, precision="fp32") == by_hand


@pytest.mark.parametrize("backbone", ["tiny_gpt2", "tiny_bart"])
@pytest.mark.parametrize("task", CASES)
def test_learnt_tokens_are_read_as_the_right_answers(
    task: str, backbone: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    form = form_of(task, backbone, **({"max_answer": None} if task == "toy_text" else {}))
    report = rows_of(form.task)[1]
    learnt = {
        tuple(asked["input_ids"]): [token for token in taught["target_ids"] if token > 2]
        for asked, taught in zip(
            form.encode(report, train=False), form.encode(report, train=True), strict=True
        )
    }

    def gold(model: nn.Module, tokenizer: Any, asked: list[list[int]], *rest: Any) -> list[list[int]]:
        return [learnt[tuple(ids)] for ids in asked]

    monkeypatch.setattr(text, "answer_ids", gold)
    model = loaded(form, backbone).model
    answers = predict(form, model, form.encode(report, train=False), device=CPU, precision="fp32")
    assert form.score({"": answers}, {"": report}) == dict.fromkeys(form.task.score_names(form.variant), 1.0)
    assert set(form.unparsed({"": answers}).values()) == {0}
    turned = answers[1:] + answers[:1]
    assert form.score({"": turned}, {"": report})[form.main_metric] < 0.8


def test_a_conversation_goes_on_until_the_task_has_no_next_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    form = of_words()
    asked: list[list[list[int]]] = []

    def next_prompt(self: Any, row: Row, answers: list[str]) -> str | None:
        return f"{row['sentence']} {answers[-1]} w9" if len(answers) < row["turns"] else None

    def echo(model: nn.Module, tokenizer: Any, prompts: list[list[int]], *rest: Any) -> list[list[int]]:
        asked.append(prompts)
        return [[ids[1]] for ids in prompts]

    monkeypatch.setattr(type(form.task), "next_prompt", next_prompt)
    monkeypatch.setattr(text, "answer_ids", echo)
    rows: list[Row] = [row("w3", "x") | {"turns": 1}, row("w4", "x") | {"turns": 2}]
    model = loaded(form_of("toy_text", "tiny_gpt2"), "tiny_gpt2").model
    answers = predict(form, model, form.encode(rows, train=False), device=CPU, precision="fp32")
    assert answers == ["w3", ("w4", "w4")]
    assert asked == [[[2, 7], [2, 8]], [[2, 8, 8, 13]]]


def test_every_kind_of_task_has_the_form_text_on_a_generative_backbone() -> None:
    made: list[Form] = [form_of(task, backbone) for task in CASES for backbone in GENERATIVE]
    assert {type(form) for form in made} == {Decoder, Seq2Seq}
    assert {(form.kind, form.outputs) for form in made} == {("text", 0)}
