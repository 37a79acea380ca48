"""A backbone with packed weights, as bitsandbytes keeps them: only the layer itself reads its weight.

A stand-in takes the place of bitsandbytes, which needs a GPU: whole numbers in a flat uint8 weight.
"""

from __future__ import annotations

import copy
import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from backbone_helpers import NOWHERE, backbone
from torch import Tensor, nn

import adalora_bench
from adalora_bench.lowrank.adapter import LowRankLinear, RankBlock
from adalora_bench.lowrank.ending import cosines
from adalora_bench.lowrank.plain import update_of


class Packed(nn.Linear):
    """The weights of a linear layer rounded to 255 steps; counts how often others unpack them."""

    unpacked = 0

    def __init__(self, dense: nn.Linear) -> None:
        super().__init__(dense.in_features, dense.out_features, bias=False, device="meta")
        step = float(dense.weight.detach().abs().max()) / 127
        numbers = (dense.weight.detach() / step).round().add(127).to(torch.uint8)
        self.weight = nn.Parameter(numbers.reshape(-1, 1), requires_grad=False)
        self.weight.quant_state = (tuple(numbers.shape), step)  # type: ignore[attr-defined]
        self.bias = dense.bias

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, _unpacked(self.weight, self.weight.quant_state), self.bias)  # type: ignore[attr-defined]


def _unpacked(weight: Tensor, state: Any) -> Tensor:
    shape, step = state
    return (weight.reshape(shape).float() - 127) * step


def _dequantize(weight: Tensor, state: Any) -> Tensor:
    Packed.unpacked += 1
    return _unpacked(weight, state)


@pytest.fixture(autouse=True)
def bitsandbytes(monkeypatch: pytest.MonkeyPatch) -> None:
    functional = ModuleType("bitsandbytes.functional")
    functional.dequantize_4bit = _dequantize  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "bitsandbytes", ModuleType("bitsandbytes"))
    monkeypatch.setitem(sys.modules, "bitsandbytes.functional", functional)


@pytest.fixture
def layer() -> LowRankLinear:
    torch.manual_seed(0)
    adapter = LowRankLinear(Packed(nn.Linear(6, 4)), scale=0.5, role="q")
    adapter.append(RankBlock(torch.randn(2, 6), torch.randn(2, 4), torch.ones(2)))
    return adapter


def test_a_packed_weight_is_read_by_its_own_layer_alone(layer: LowRankLinear) -> None:
    assert (layer.out_features, layer.in_features) == (4, 6)
    x = torch.randn(200, 6, requires_grad=True)  # so many rows that a dense layer would be merged
    Packed.unpacked = 0
    y = layer(x)
    y.square().sum().backward()
    assert Packed.unpacked == 0
    dense = layer.weight + layer.delta()
    torch.testing.assert_close(y, nn.functional.linear(x, dense, layer.base.bias))
    torch.testing.assert_close(x.grad, 2 * y @ dense)
    assert layer.blocks[0].a.grad is not None


def test_merging_makes_a_dense_layer(layer: LowRankLinear) -> None:
    x = torch.randn(3, 6)
    merged = layer.merge()
    assert type(merged) is nn.Linear
    torch.testing.assert_close(merged(x), layer(x))
    assert not merged.weight.requires_grad


def test_a_record_compares_no_packed_weight_with_the_pretrained_one(layer: LowRankLinear) -> None:
    assert cosines(
        {"packed": layer, "dense": LowRankLinear(nn.Linear(2, 2), scale=1.0, role="q")}, update_of
    ) == {"dense": 1.0}


def test_without_ranks_it_is_the_layer(layer: LowRankLinear) -> None:
    x = torch.randn(3, 6)
    layer.remove(next(layer.rank_blocks()))
    assert torch.equal(layer(x), layer.base(x))


GROWING = {"target_rank": 2, "top_h": 4, "interval": 2, "growth_warmup": 1}


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("lora", {"dropout": 0.0}),
        ("increlora", GROWING),  # reads dL/dW
        ("alora", {"rank": 2, "first_round": 4, "interval": 2, "rounds": 2}),  # replays the model in part
        ("sora", {}),
        ("aflora", {}),
        ("vera", {"rank": 4}),
        ("houlsby", {}),
        ("parallel_adapter", {}),
        ("learned_adapter", {}),
        ("ptuning_v2", {}),
        ("spt", {}),
        ("lst", {}),
    ],
)
def test_a_packed_backbone_trains_as_a_dense_one_of_the_same_numbers(
    method: str, settings: dict[str, Any]
) -> None:
    loaded = backbone("tiny_llama").load(NOWHERE, kind="text", outputs=0, head_seed=0)
    packed, dense = loaded.model, copy.deepcopy(loaded.model)
    for name in loaded.modules:
        parent, _, child = name.rpartition(".")
        layer = Packed(packed.get_submodule(name))  # type: ignore[arg-type]
        with torch.no_grad():
            dense.get_submodule(name).weight.copy_(_unpacked(layer.weight, layer.weight.quant_state))  # type: ignore[operator,union-attr,attr-defined]
        setattr(packed.get_submodule(parent), child, layer)
    expected = losses(dense, loaded.modules, method, settings)
    torch.testing.assert_close(losses(packed, loaded.modules, method, settings), expected, rtol=1e-4, atol=0)
    assert expected[-1] < expected[0]


def losses(model: nn.Module, modules: dict[str, str], method: str, settings: dict[str, Any]) -> list[float]:
    """Of twelve steps on four made-up rows."""
    ids = torch.randint(4, 260, (4, 9), generator=torch.Generator().manual_seed(3))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "target_ids": ids}

    def loss_now() -> Tensor:
        return nn.functional.cross_entropy(model(**inputs), ids[:, 1:].reshape(-1))

    run = adalora_bench.attach(
        model,
        method,
        modules=modules,
        total_steps=12,
        steps_per_epoch=6,
        settings=settings,
        warmup=1,
        val_loss=loss_now,
    )
    torch.manual_seed(0)
    found = []
    for _ in range(12):
        run.zero_grad()
        run.before_forward()
        loss = loss_now()
        loss.backward()
        run.after_backward()
        run.optimizer_step(max_grad_norm=1.0)
        run.after_step()
        found.append(float(loss.detach()))
    run.finalize()
    return found


def test_no_cosine_is_recorded_of_packed_weights(layer: LowRankLinear) -> None:
    dense = LowRankLinear(nn.Linear(6, 4), scale=0.5, role="q")
    Packed.unpacked = 0
    assert list(cosines({"packed": layer, "dense": dense}, update_of)) == ["dense"]
    assert Packed.unpacked == 0
