"""What a training step may cost, where it can be counted: operations, and bytes that wait for backward.

On the two shapes of scripts/profile_step.py with their tokens, cut to one block. There the floor would look dear, since
a low-rank method needs no gradient at the very first input; so here every contender hands one down to all embeddings,
those of DeBERTa's relative positions included.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from adalora_bench.lowrank import adapter

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
SHAPES = ("bert", "deberta")
RANKS = {  # that each contender of the table holds
    "lora": 8,
    "adalora": 12,
    "increlora_scoring": 9,
    "increlora_settled": 8,
    "sora": 8,
    "aflora": 4,
    "delta_lora": 8,
    "dylora": 8,
    "salora": 8,
    "alora": 8,
}


pytestmark = pytest.mark.xdist_group("step_costs")  # the measured steps serve several tests


@pytest.fixture(scope="module")
def script() -> Iterator[Any]:
    """scripts/profile_step.py, and the folder of its two neighbours on the path while it is used."""
    path = list(sys.path)
    sys.path.insert(0, str(SCRIPTS))
    yield importlib.import_module("profile_step")
    sys.path[:] = path


@pytest.fixture(scope="module", params=SHAPES)
def costs(request: pytest.FixtureRequest, script: Any) -> dict[str, dict[str, int]]:
    """Rows of the table without seconds; "peft_lora_9" is peft's LoRA at rank 9."""
    peers = importlib.import_module("profile_peers")
    contenders = {name: script.CONTENDERS[name] for name in ("floor", *RANKS, "vera_256", "peft_vera_256")}
    for rank in sorted(set(RANKS.values())):
        contenders[f"peft_lora_{rank}"] = script.Contender(method=partial(peers.PeftLora, rank=rank))
    shape = script.SHAPES[request.param]
    small = {"layers": 1, "config.num_hidden_layers": 1, "config.vocab_size": 100}
    bench, found = script.Bench(replace(shape, settings=shape.settings | small)), {}
    for name, contender in contenders.items():  # one after the other, so that little memory is used
        entry = bench.build(contender)
        for path, module in entry.run.model.named_modules():
            if path.endswith(".rel_embeddings"):
                module.weight.requires_grad_(True)
            elif path.endswith(".embeddings"):
                module.register_forward_hook(lambda module, given, output: output.requires_grad_())
        found[name] = {"saved_bytes": script.saved_bytes(entry.forward, entry.run.model)}
        if not name.startswith("peft"):
            found[name]["flops"] = entry.count()
    return found


def test_operations_stay_near_those_of_the_frozen_model(costs: dict[str, dict[str, int]]) -> None:
    ratios = {name: costs[name]["flops"] / costs["floor"]["flops"] for name in RANKS}
    scoring = ratios.pop("increlora_scoring")
    assert scoring <= 1.50, scoring
    assert scoring > 1.25  # G was made, and was counted
    for name, ratio in ratios.items():
        assert 1 < ratio <= 1.05, f"{name}: {ratio:.3f}"


def test_no_method_keeps_more_for_backward_than_peft_lora_of_its_rank(
    costs: dict[str, dict[str, int]],
) -> None:
    for name, rank in RANKS.items():
        ours, theirs = (costs[row]["saved_bytes"] for row in (name, f"peft_lora_{rank}"))
        # gates that are no parameters, drawn for the step or joined from several blocks, are some bytes a layer
        assert costs["floor"]["saved_bytes"] < ours <= theirs * 1.00001, (
            f"{name}: {ours} bytes, peft {theirs}"
        )


def test_vera_keeps_no_more_for_backward_than_peft_vera(costs: dict[str, dict[str, int]]) -> None:
    assert costs["vera_256"]["saved_bytes"] <= costs["peft_vera_256"]["saved_bytes"]


@pytest.mark.parametrize("path", ["low", "merged"])
def test_every_product_of_the_layer_is_counted(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two products of the frozen layer; of width r: h, hB, q, qA, V, T (low), or q, V, h, T and W_e twice (merged)."""
    n, width, height, rank = 16, 12, 20, 3
    monkeypatch.setattr(adapter, "cheapest_path", lambda *_, **__: path)
    layer = adapter.LowRankLinear(nn.Linear(width, height), scale=2.0, role="q")
    layer.append(adapter.RankBlock(torch.randn(rank, width), torch.randn(rank, height), torch.ones(rank)))
    x = torch.randn(n, width, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        layer(x).sum().backward()
    merges = 0 if path == "low" else 2 * rank * width * height
    skinny = (3 if path == "low" else 2) * n * rank * (width + height)
    assert counter.get_total_flops() == 2 * (2 * n * width * height + skinny + merges)
