"""Backbones: declared roles name real layers of the right shapes; the head depends on its seed alone."""

from __future__ import annotations

import dataclasses
from collections import Counter

import pytest
import torch
from backbone_helpers import NOWHERE, attached, backbone, method, shapes_only

from adalora_bench.errors import UserError
from adalora_bench.models import heads

TINY = ("tiny_bert", "tiny_deberta_v2", "tiny_roberta")

# The published configurations, as far as shapes depend on them.
BERT = {"vocab_size": 64, "max_position_embeddings": 514}
DEBERTA_V3 = {
    "vocab_size": 128100,
    "max_position_embeddings": 512,
    "type_vocab_size": 0,
    "relative_attention": True,
    "position_buckets": 256,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "pos_att_type": ["p2c", "c2p"],
    "position_biased_input": False,
    "pooler_hidden_size": 768,
    "pooler_dropout": 0.0,
    "pooler_hidden_act": "gelu",
}
SHAPES = {  # name: (configuration, blocks, width, heads, inner width)
    "deberta_v3_base": (DEBERTA_V3, 12, 768, 12, 3072),
    "roberta_base": (BERT, 12, 768, 12, 3072),
    "roberta_large": (BERT, 24, 1024, 16, 4096),
    "minilm_l6": (BERT, 6, 384, 12, 1536),
}


@pytest.mark.parametrize("name", SHAPES)
def test_declared_roles_name_every_matrix(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the meta device: shapes without weights. DeBERTaV3-base has 72 adapted matrices."""
    config, blocks, width, attention_heads, inner = SHAPES[name]
    sizes = {"hidden_size": width, "num_hidden_layers": blocks, "num_attention_heads": attention_heads}
    shapes_only(monkeypatch)
    body = dataclasses.replace(backbone(name), config=config | sizes | {"intermediate_size": inner})
    loaded = body.load(NOWHERE, outputs=2, head_seed=0)
    run = attached(loaded, method("lora", targets=["all"], rank=1))

    assert len(run.adapters) == body.count_modules(["all"]) == 6 * blocks
    assert body.count_modules(["q", "v"]) == 2 * blocks
    expected = dict.fromkeys("qkvo", (width, width)) | {"up": (inner, width), "down": (width, inner)}
    seen = Counter((layer.role, layer.out_features, layer.in_features) for layer in run.adapters.values())
    assert seen == {(role, *shape): blocks for role, shape in expected.items()}
    assert [layer.role for layer in run.adapters.values()] == ["q", "k", "v", "o", "up", "down"] * blocks
    ranked = sum(p.numel() for p in run.trainable_parameters()) - sum(p.numel() for p in run.head)
    assert ranked == blocks * (4 * 2 * width + 2 * (width + inner))
    if body.pooling == "native":  # the declared head is all that transformers adds to the body
        base = loaded.model.body.base_model_prefix
        added = [p for n, p in loaded.model.body.named_parameters() if not n.startswith(f"{base}.")]
        assert {id(p) for p in added} == {id(p) for p in loaded.head}


def test_adapted_matrices_are_the_ones_of_the_issue() -> None:
    counts = {name: backbone(name).count_modules(["all"]) for name in SHAPES}
    assert counts == {"deberta_v3_base": 72, "roberta_base": 72, "roberta_large": 144, "minilm_l6": 36}


@pytest.mark.parametrize("name", TINY)
def test_tiny_backbone_reads_text_and_is_the_same_every_time(name: str) -> None:
    body = backbone(name)
    tokenizer = body.tokenizer(NOWHERE)
    first, second, other = (body.load(NOWHERE, outputs=3, head_seed=seed) for seed in (5, 5, 6))
    inputs = tokenizer(["one two", "three"], ["four", ""], padding=True, return_tensors="pt")
    assert ("token_type_ids" in inputs) == (name != "tiny_roberta")
    with torch.no_grad():
        logits = [loaded.model.eval()(**inputs) for loaded in (first, second, other)]
    assert logits[0].shape == (2, 3)
    assert torch.isfinite(logits[0]).all()
    assert torch.equal(logits[0], logits[1])
    assert not torch.equal(logits[0], logits[2])
    head = {id(p) for p in other.head}
    assert head
    for a, b in zip(first.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(a, b) or id(b) in head


@pytest.mark.parametrize("name", TINY)
def test_every_method_starts_from_the_same_head_and_the_same_answers(name: str) -> None:
    body = backbone(name)
    inputs = body.tokenizer(NOWHERE)(["some text"], return_tensors="pt")
    answers, parameters = [], []
    for policy in ("full", "lora", "increlora"):
        run = attached(body.load(NOWHERE, outputs=2, head_seed=9), method(policy))
        assert all(p.requires_grad for p in run.head)
        parameters.append([p.detach().clone() for p in run.head])
        with torch.no_grad():
            answers.append(run.model.eval()(**inputs))
    for other, answer in zip(parameters[1:], answers[1:], strict=True):
        assert all(torch.equal(p, q) for p, q in zip(parameters[0], other, strict=True))
        torch.testing.assert_close(answer, answers[0], rtol=0, atol=1e-6)  # a reserve moves it by 1e-5 * 4e-4


@pytest.mark.parametrize("name", TINY)
def test_heads_for_spans_and_choices(name: str) -> None:
    """A span has two logits for every token, a choice one for every candidate; both heads are newly made."""
    body = backbone(name)
    inputs = body.tokenizer(NOWHERE)(["one two", "three"], ["four", ""], padding=True, return_tensors="pt")
    tokens = tuple(inputs["input_ids"].shape)
    for kind, outputs, shape in (("span", 2, (*tokens, 2)), ("choice", 1, (2, 1))):
        loaded = body.load(NOWHERE, kind=kind, outputs=outputs, head_seed=0)
        logits = loaded.model.eval()(**inputs)
        assert logits.shape == shape
        assert len(loaded.modules) == 12
        grads = torch.autograd.grad(logits.square().sum(), loaded.head)
        assert all(bool(g.any()) for g in grads)


def test_a_text_task_on_an_encoder_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(ValueError, match="kind text on a backbone of form encoder"):
        backbone("tiny_bert").load(NOWHERE, kind="text", outputs=1, head_seed=0)
    with pytest.raises(ValueError, match="kind classification on a backbone of form decoder"):
        backbone("tiny_gpt2").load(NOWHERE, kind="classification", outputs=2, head_seed=0)


def test_random_weights_leave_the_global_generator_alone() -> None:
    from transformers import AutoConfig, AutoModel

    config = AutoConfig.for_model("bert", **(backbone("tiny_bert").config or {}))
    state = torch.get_rng_state()
    heads.random_model(AutoModel, config)
    assert torch.equal(torch.get_rng_state(), state)


def test_mean_pooling_ignores_padding() -> None:
    body = backbone("tiny_bert")
    tokenizer = body.tokenizer(NOWHERE)
    model = body.load(NOWHERE, outputs=2, head_seed=0).model.eval()
    with torch.no_grad():
        alone = model(**tokenizer(["short"], return_tensors="pt"))
        padded = model(**tokenizer(["short", "a much longer text"], padding=True, return_tensors="pt"))
    torch.testing.assert_close(padded[:1], alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("architecture", ["bert", "roberta"])
@pytest.mark.parametrize(
    "text", ["", "plain", "  two  spaces ", "new\nline\ttab", "na\u00efve \u4f60\u597d \U0001f600"]
)
def test_byte_tokenizer_round_trip(architecture: str, text: str) -> None:
    tokenizer = heads.byte_tokenizer(architecture)
    ids = tokenizer(text)["input_ids"]
    assert len(ids) == 2 + len(text.encode())
    assert max(ids) < len(tokenizer) == 260
    assert tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False) == text
    assert [ids[0], ids[-1]] == [tokenizer.cls_token_id, tokenizer.sep_token_id]
    assert tokenizer.pad_token_id == 0


def test_byte_tokenizer_marks_the_second_text() -> None:
    pair = heads.byte_tokenizer("bert")("ab", "c")
    assert pair["token_type_ids"] == [0, 0, 0, 0, 1, 1]
    assert list(heads.byte_tokenizer("roberta")("ab", "c")) == ["input_ids", "attention_mask"]


def test_a_role_that_the_backbone_lacks_is_refused() -> None:
    with pytest.raises(UserError, match="'gate'"):
        backbone("tiny_bert").check_targets(["q", "gate"])
    backbone("tiny_bert").check_targets(["all", "q"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"form": "causal"}, "backbone.form"),
        ({"pooling": "none"}, "backbone.pooling"),
        ({"roles": {"q": "encoder.layer.0.q"}}, "backbone.roles.q='encoder.layer.0.q'"),
        ({"roles": {"q": []}}, "backbone.roles.q=\\[\\]"),
        ({"layers": 0}, "backbone.layers=0"),
        ({"dropout": 1.0}, "backbone.dropout=1.0"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        dataclasses.replace(backbone("tiny_bert"), **changes)  # type: ignore[arg-type]


def test_a_head_dropout_without_a_head_is_refused() -> None:
    with pytest.raises(UserError, match="backbone.head_dropout=0.1 has no head to act on"):
        dataclasses.replace(backbone("tiny_gpt2"), head_dropout=0.1)
