"""Decoders and sequence-to-sequence models: published shapes on the meta device, tiny ones with numbers."""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from backbone_helpers import NOWHERE, attached, backbone, method, shapes_only

from adalora_bench.data.sources import Found
from adalora_bench.errors import UserError
from adalora_bench.models import four_bit, fused
from adalora_bench.models.heads import random_model
from adalora_bench.settings import prepare
from adalora_bench.settings.compose import compose_cells

TINY = ("tiny_gpt2", "tiny_llama", "tiny_bart")
LLAMA = {"vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32}
LLAMA |= {"num_attention_heads": 32, "num_key_value_heads": 32}
LLAMA_MATRICES = dict.fromkeys("qkvo", (32, 4096, 4096)) | dict.fromkeys(("gate", "up"), (32, 11008, 4096))
LLAMA_MATRICES |= {"down": (32, 4096, 11008)}


def gpt2(width: int, blocks: int, heads: int) -> dict[str, int]:
    return {"vocab_size": 50257, "n_positions": 1024, "n_embd": width, "n_layer": blocks, "n_head": heads}


def gpt2_matrices(width: int, blocks: int) -> dict[str, tuple[int, int, int]]:
    matrices = dict.fromkeys("qkvo", (blocks, width, width))
    return matrices | {"up": (blocks, 4 * width, width), "down": (blocks, width, 4 * width)}


@dataclass(frozen=True)
class Published:
    """config.json at the pinned revision, as far as shapes depend on it, and the size that the model card gives."""

    config: dict[str, Any]
    matrices: dict[str, tuple[int, int, int]]  # role -> how many, out, in
    count: int
    parameters: int


PUBLISHED = {
    # huggingface.co/openai-community/gpt2-medium and gpt2-large; Radford et al. 2019, table 2, rows 2 and 3
    "gpt2_medium": Published(gpt2(1024, 24, 16), gpt2_matrices(1024, 24), 24 * 6, 354_823_168),
    "gpt2_large": Published(gpt2(1280, 36, 20), gpt2_matrices(1280, 36), 36 * 6, 774_030_080),
    # huggingface.co/meta-llama/Llama-2-7b-hf; Touvron et al. 2023 (LLaMA), table 2, row 1
    "llama2_7b": Published(LLAMA, LLAMA_MATRICES, 32 * 7, 6_738_415_616),
    "llama_7b": Published(LLAMA, LLAMA_MATRICES, 32 * 7, 6_738_415_616),
    # huggingface.co/facebook/bart-large; Lewis et al. 2020, section 2: 12 layers in each of encoder and decoder
    "bart_large": Published(
        {
            "vocab_size": 50265,
            "d_model": 1024,
            "encoder_layers": 12,
            "decoder_layers": 12,
            "encoder_attention_heads": 16,
            "decoder_attention_heads": 16,
            "encoder_ffn_dim": 4096,
            "decoder_ffn_dim": 4096,
            "max_position_embeddings": 1024,
        },
        dict.fromkeys("qkvo", (36, 1024, 1024)) | {"up": (24, 4096, 1024), "down": (24, 1024, 4096)},
        12 * (6 + 10),
        406_291_456,
    ),
    # the metadata of the GGUF file in the wheel: 9 heads of 64, 3 of them for k and v
    "smollm2_135m": Published(
        {
            "vocab_size": 49152,
            "hidden_size": 576,
            "intermediate_size": 1536,
            "num_hidden_layers": 30,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "tie_word_embeddings": True,
        },
        dict.fromkeys("qo", (30, 576, 576))
        | dict.fromkeys("kv", (30, 192, 576))
        | dict.fromkeys(("gate", "up"), (30, 1536, 576))
        | {"down": (30, 576, 1536)},
        30 * 7,
        134_515_008,
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_declared_roles_name_every_matrix(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    published = PUBLISHED[name]
    shapes_only(monkeypatch)
    body = dataclasses.replace(backbone(name), config=published.config)
    loaded = body.load(NOWHERE, kind="text", outputs=1, head_seed=0)
    assert sum(p.numel() for p in loaded.model.parameters()) == published.parameters
    assert loaded.head == []
    order = [name for name, _ in loaded.model.named_modules() if name in loaded.modules]
    run = attached(loaded, method("lora", targets=["all"], rank=8))

    assert len(run.adapters) == body.count_modules(["all"]) == published.count
    seen = Counter((layer.role, layer.out_features, layer.in_features) for layer in run.adapters.values())
    assert seen == {(role, out, in_): n for role, (n, out, in_) in published.matrices.items()}
    for role, (n, _, _) in published.matrices.items():
        assert body.count_modules([role]) == n
    assert list(run.adapters) == order
    trained = sum(8 * n * (out + in_) for n, out, in_ in published.matrices.values())
    assert sum(p.numel() for p in run.trainable_parameters()) == trained


def test_lora_on_llama2_7b_trains_the_20_million_of_the_papers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank 8 on the seven matrices: 32 * 8 * (4 * 8192 + 3 * 15104) = 19,988,480; without numbers, in seconds."""
    shapes_only(monkeypatch)
    body = dataclasses.replace(backbone("llama2_7b"), config=LLAMA)
    started = time.process_time()
    run = attached(
        body.load(NOWHERE, kind="text", outputs=1, head_seed=0), method("lora", targets=["all"], rank=8)
    )
    assert time.process_time() - started < 20  # 0.3 when measured; 27 GB of numbers would take minutes
    assert sum(p.numel() for p in run.trainable_parameters()) == 19_988_480


@pytest.mark.parametrize("name", TINY)
def test_tiny_backbone_reads_text_and_is_the_same_every_time(name: str) -> None:
    body = backbone(name)
    tokenizer = body.tokenizer(NOWHERE)
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)
    first, second = (body.load(NOWHERE, kind="text", outputs=1, head_seed=seed) for seed in (5, 6))
    assert first.head == []
    assert sum(p.numel() for p in first.model.parameters()) < 100_000
    assert (first.model.body.config.eos_token_id, first.model.body.config.pad_token_id) == (2, 0)
    inputs = tokenizer(["one two", "three"], padding=True, return_tensors="pt")
    targets = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    with torch.no_grad():
        logits = [
            loaded.model.eval()(inputs["input_ids"], inputs["attention_mask"], targets)
            for loaded in (first, second)
        ]
    assert logits[0].shape[-1] == 260
    assert torch.isfinite(logits[0]).all()
    assert torch.equal(logits[0], logits[1])
    for name, module in first.model.named_modules():
        if isinstance(module, torch.nn.Dropout):
            assert module.p == 0, name


@pytest.mark.parametrize("name", TINY)
def test_the_dropout_of_the_settings_is_the_dropout_of_the_model(name: str) -> None:
    body = dataclasses.replace(backbone(name), dropout=0.25)
    model = body.load(NOWHERE, kind="text", outputs=1, head_seed=0).model
    found = {module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)}
    found |= {
        getattr(module, key)
        for module in model.modules()
        for key in ("dropout", "attention_dropout", "activation_dropout")
        if isinstance(getattr(module, key, None), float)
    }
    assert found == {0.25}


@pytest.mark.parametrize(
    ("name", "tiny"),
    [("gpt2_medium", "tiny_gpt2"), ("llama2_7b", "tiny_llama"), ("bart_large", "tiny_bart")],
)
def test_a_published_folder_is_loaded_with_its_own_numbers(name: str, tiny: str, tmp_path: Path) -> None:
    """Saved as the hub has them: BART-large without a language model's output layer, LLaMA in half precision."""
    from transformers import AutoModel, AutoModelForCausalLM

    auto = AutoModel if tiny == "tiny_bart" else AutoModelForCausalLM
    saved = random_model(auto, backbone(tiny)._config(None, None), seed=7).eval()
    if tiny == "tiny_llama":
        saved = saved.half()
    saved.save_pretrained(tmp_path)
    body = dataclasses.replace(backbone(name), layers=2, dropout=0.0)
    loaded = body.load(Found("local", tmp_path, {}, "a folder"), kind="text", outputs=1, head_seed=0)
    assert loaded.head == []
    assert {p.dtype for p in loaded.model.parameters()} == {torch.float32}
    fused.fuse(loaded.model)
    restored = getattr(loaded.model.body, loaded.model.body.base_model_prefix).state_dict()
    expected = (saved if tiny == "tiny_bart" else saved.base_model).state_dict()
    assert set(restored) == set(expected)
    for key, weight in expected.items():
        assert torch.equal(restored[key], weight.float()), key


def test_llama2_says_how_to_get_through_its_gate() -> None:
    gated = backbone("llama2_7b").source.gated
    assert gated is not None
    assert "licence" in gated
    assert "HF_TOKEN" in gated


def test_gpt2_has_three_layers_in_place_of_the_fused_one() -> None:
    loaded = backbone("tiny_gpt2").load(NOWHERE, kind="text", outputs=1, head_seed=0)
    attention = "body.transformer.h.0.attn"
    assert list(loaded.modules)[:4] == [f"{attention}.c_attn.{part}" for part in "qkv"] + [
        f"{attention}.c_proj"
    ]
    assert isinstance(loaded.model.get_submodule(f"{attention}.c_attn"), fused.SplitProjection)


def test_bart_names_self_attention_and_cross_attention_of_the_decoder() -> None:
    loaded = backbone("tiny_bart").load(NOWHERE, kind="text", outputs=1, head_seed=0)
    block = [n for n in loaded.modules if n.startswith("body.model.decoder.layers.1.")]
    assert [n.split(".layers.1.")[1] for n in block] == [
        *(
            f"{part}.{p}"
            for part in ("self_attn", "encoder_attn")
            for p in ("k_proj", "v_proj", "q_proj", "out_proj")
        ),
        "fc1",
        "fc2",
    ]
    stacks = [n.split(".")[2] for n in loaded.modules]
    assert stacks == ["encoder"] * 12 + ["decoder"] * 20


# -- 4 bits ----------------------------------------------------------------------------------------------------

FITTING: dict[str, Any] = {
    "moves_base": False, "refusal": "", "architecture": "llama", "form": "decoder", "random_weights": False,
    "gpu": True,
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"moves_base": True}, "not for this method: it moves weights of the backbone, and 4 bits are too"),
        ({"refusal": "it does not"}, "not for this method: it does not; use load_in_4bit=false"),
        ({"form": "encoder"}, "llama is an encoder, whose new head would be packed"),
        ({"architecture": "gpt2"}, "gpt2 keeps q, k and v in one matrix"),
        ({"random_weights": True}, "needs published weights"),
        ({"gpu": False}, "needs a GPU"),
        ({}, "needs the package bitsandbytes: pip install 'adalora_bench\\[four_bit\\]'"),
    ],
)
def test_four_bits_are_refused_where_they_cannot_be_had(
    change: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(four_bit, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=f"backbone.load_in_4bit=true.*{message}"):
        four_bit.check(**FITTING | change)


@pytest.mark.parametrize(
    ("method", "reason"),
    [
        ("full", "it trains weights of the backbone"),
        ("full_no_embeddings", "it trains weights of the backbone"),
        ("full_two_matrices", "it trains weights of the backbone"),
        ("delta_lora", "it moves weights of the backbone"),
        ("peft_pissa", "it moves weights of the backbone"),
        ("bitfit", "it trains biases, and bitsandbytes keeps those of its layers in bfloat16"),
    ],
)
def test_what_moves_weights_of_the_backbone_is_refused_with_four_bits(method: str, reason: str) -> None:
    (cell,) = compose_cells(
        [f"method={method}", "task=e2e", "backbone=llama2_7b", "scale=paper", "backbone.load_in_4bit=true"]
    )
    with pytest.raises(UserError, match=f"load_in_4bit=true is not for this method: {reason}"):
        prepare.check_late_failures(cell, prepare.Assets())


@pytest.mark.parametrize("method", ["lora", "alora", "houlsby", "ptuning_v2"])
def test_what_leaves_them_alone_needs_a_gpu_only(method: str) -> None:
    names = [f"method={method}", "task=e2e", "backbone=llama2_7b", "scale=paper", "device=cpu"]
    (cell,) = compose_cells([*names, "backbone.load_in_4bit=true"])
    with pytest.raises(UserError, match="load_in_4bit=true needs a GPU"):
        prepare.check_late_failures(cell, prepare.Assets())


def test_four_bits_are_taken_where_everything_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(four_bit, "find_spec", lambda name: object())
    four_bit.check(**FITTING)


def test_constants_of_packed_weights_stay_out_of_state_dicts() -> None:
    """As bitsandbytes does it: entries below `weight.`, added by the layer itself."""

    class Packed(torch.nn.Linear):
        def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
            super()._save_to_state_dict(destination, prefix, keep_vars)
            destination[f"{prefix}weight.absmax"] = torch.ones(1)

    model = torch.nn.Sequential(Packed(2, 2), torch.nn.Linear(2, 2))
    model[0].weight.quant_state = object()  # type: ignore[attr-defined]
    assert "0.weight.absmax" in model.state_dict()
    four_bit.hide_constants(model)
    assert list(model.state_dict()) == ["0.weight", "0.bias", "1.weight", "1.bias"]
