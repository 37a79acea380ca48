"""GPT-2's fused projection taken apart and put together: the same numbers, no draw from the global generator."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from adalora_bench.lowrank.adapter import LowRankLinear, RankBlock
from adalora_bench.models import fused
from adalora_bench.models.heads import random_model

NAMES = [f"transformer.h.{i}.attn.c_attn.{part}" for i in range(2) for part in "qkv"]


@pytest.fixture
def gpt2() -> Any:
    config = AutoConfig.for_model("gpt2", vocab_size=50, n_embd=12, n_layer=2, n_head=3, n_positions=16)
    model = random_model(AutoModelForCausalLM, config).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith("bias"):  # they start at 0, which would hide a wrong slice
                p.copy_(torch.linspace(-1, 1, p.numel()))
    return model


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        out: torch.Tensor = model(torch.arange(20).view(2, 10)).logits
    return out


def test_the_layers_are_the_columns_in_their_order() -> None:
    layer = Conv1D(6, 3)
    nn.init.normal_(layer.bias)
    apart = fused.SplitProjection(layer, ["q", "k", "v"])
    for i, name in enumerate("qkv"):
        part = apart.get_submodule(name)
        assert isinstance(part, Conv1D)
        assert torch.equal(part.weight, layer.weight[:, 2 * i : 2 * i + 2])
        assert torch.equal(part.bias, layer.bias[2 * i : 2 * i + 2])
        assert part.weight.is_contiguous()
    x = torch.randn(4, 5, 3)
    torch.testing.assert_close(apart(x), layer(x), rtol=0, atol=1e-6)


def test_the_split_model_gives_the_same_logits_and_fuses_back_bit_by_bit(gpt2: Any) -> None:
    whole, before = logits(gpt2), copy.deepcopy(gpt2.state_dict())
    state = torch.get_rng_state()
    fused.split(gpt2, NAMES)
    assert [n for n, m in gpt2.named_modules() if isinstance(m, fused.SplitProjection)] == [
        f"transformer.h.{i}.attn.c_attn" for i in range(2)
    ]
    torch.testing.assert_close(logits(gpt2), whole, rtol=0, atol=1e-6)
    fused.fuse(gpt2)
    assert torch.equal(torch.get_rng_state(), state)
    after = gpt2.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_updates_merged_into_the_layers_are_in_the_fused_one(gpt2: Any) -> None:
    fused.split(gpt2, NAMES)
    for name in NAMES:
        parent, _, child = name.rpartition(".")
        owner = gpt2.get_submodule(parent)
        layer = LowRankLinear(owner.get_submodule(child), scale=2.0, role=child)
        layer.append(RankBlock(torch.randn(2, 12), torch.randn(2, 12), torch.ones(2)))
        setattr(owner, child, layer)
    adapted = logits(gpt2)
    with pytest.raises(ValueError, match="q is a LowRankLinear; merge it"):
        fused.fuse(gpt2)
    for name in NAMES:
        parent, _, child = name.rpartition(".")
        owner = gpt2.get_submodule(parent)
        setattr(owner, child, owner.get_submodule(child).merge())
    fused.fuse(gpt2)
    torch.testing.assert_close(logits(gpt2), adapted, rtol=1e-5, atol=1e-5)
    assert isinstance(gpt2.get_submodule("transformer.h.0.attn.c_attn"), Conv1D)


def test_only_what_is_named_is_taken_apart(gpt2: Any) -> None:
    fused.split(gpt2, [*NAMES[:3], "transformer.h.1.attn.c_proj", "transformer.h.1.mlp.c_fc"])
    kinds = [type(gpt2.get_submodule(f"transformer.h.{i}.attn.c_attn")).__name__ for i in range(2)]
    assert kinds == ["SplitProjection", "Conv1D"]


def test_columns_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match="7 columns do not split into 3 layers"):
        fused.SplitProjection(Conv1D(7, 3), ["q", "k", "v"])
