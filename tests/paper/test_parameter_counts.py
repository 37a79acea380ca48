"""Counts of trained parameters against those that the papers print. Real shapes on the meta device: no number is kept.

The architectures are the published ones, with their configurations typed here; attaching and counting are the
product's own. Heads are left out, as in the papers' tables, but for full fine-tuning.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from typing import Any, NamedTuple

import pytest
import torch

from adalora_bench.data.sources import Found
from adalora_bench.lowrank.budget import trainable
from adalora_bench.methods.aflora import AfLora
from adalora_bench.methods.base import Method
from adalora_bench.methods.increlora import IncreLora
from adalora_bench.methods.run import OptimizerSettings, Run, adapter_parameters
from adalora_bench.methods.searched import share_of
from adalora_bench.methods.spt import Spt
from adalora_bench.methods.ssp import Ssp, fitting
from adalora_bench.models import heads
from adalora_bench.models.backbone import Backbone, Loaded
from adalora_bench.settings.compose import compose_cells

# config.json of microsoft/deberta-v3-base, FacebookAI/roberta-base and -large, openai-community/gpt2-medium and
# meta-llama/Llama-2-7b-hf: what the shapes follow from.
CONFIGS: dict[str, dict[str, Any]] = {
    "deberta_v3_base": {
        "vocab_size": 128100,
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
        "max_position_embeddings": 512,
        "relative_attention": True,
        "position_buckets": 256,
        "max_relative_positions": -1,
        "norm_rel_ebd": "layer_norm",
        "share_att_key": True,
        "pos_att_type": ["p2c", "c2p"],
        "position_biased_input": False,
        "type_vocab_size": 0,
        "pooler_hidden_size": 768,
        "pooler_hidden_act": "gelu",
    },
    "roberta_base": {
        "vocab_size": 50265,
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
        "max_position_embeddings": 514,
        "type_vocab_size": 1,
    },
    "roberta_large": {
        "vocab_size": 50265,
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
        "max_position_embeddings": 514,
        "type_vocab_size": 1,
    },
    "gpt2_medium": {"n_embd": 1024, "n_layer": 24, "n_head": 16, "n_positions": 1024, "vocab_size": 50257},
    "llama2_7b": {
        "vocab_size": 32000,
        "hidden_size": 4096,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "intermediate_size": 11008,
    },
}
TASK = {"gpt2_medium": "text", "llama2_7b": "text"}  # kind of task; the others classify


class Exact(NamedTuple):
    """A count that the settings determine."""

    backbone: str
    method: str
    settings: tuple[str, ...]
    count: int
    published: str
    source: str


EXACT = [
    Exact("deberta_v3_base", "full", (), 183_831_552 + 592_130, "184M", "AdaLoRA Table 1"),
    Exact("deberta_v3_base", "lora", ("method.rank=8",), 1_327_104, "1.33M", "AdaLoRA Table 1"),
    Exact("deberta_v3_base", "lora", ("method.rank=2",), 331_776, "0.33M", "AdaLoRA Table 1"),
    Exact("deberta_v3_base", "elora", (), 72 * 1024 + 82_944, "0.16M", "AFLoRA Table 1"),
    Exact("deberta_v3_base", "bitfit", (), 102_912, "0.1M", "AdaLoRA Table 1"),
    # a bottleneck of m: D and U with their biases, 2 * 768 * m + m + 768, twice or once in each of 12 blocks
    Exact("deberta_v3_base", "houlsby", ("method.bottleneck=16",), 24 * 25_360, "0.61M", "AdaLoRA Table 1"),
    Exact("deberta_v3_base", "houlsby", ("method.bottleneck=8",), 24 * 13_064, "0.31M", "AdaLoRA Table 1"),
    Exact("deberta_v3_base", "pfeiffer", ("method.bottleneck=32",), 12 * 49_952, "0.60M", "AdaLoRA Table 1"),
    Exact("deberta_v3_base", "pfeiffer", ("method.bottleneck=16",), 12 * 25_360, "0.30M", "AdaLoRA Table 1"),
    Exact("roberta_base", "full", (), 124_055_040 + 592_130, "125M", "LoRA README"),
    Exact(
        "roberta_base",
        "lora",
        ("method.rank=8", "method.targets=[q,v]"),
        294_912,
        "0.3M",
        "LoRA examples/NLU README",
    ),
    Exact("roberta_large", "lora", ("method.rank=8",), 3_538_944, "3.54M", "ALoRA Table 7"),
    Exact("roberta_large", "sora", ("method.rank=16",), 7_077_888 + 144 * 16, "7.08M", "ALoRA Table 7"),
    Exact("llama2_7b", "lora", ("method.rank=8",), 19_988_480, "20.0M", "ALoRA Table 1"),
    Exact("llama2_7b", "sora", ("method.rank=16",), 39_976_960 + 224 * 16, "40.0M", "ALoRA Table 1"),
    # while a search lasts its gates train too; Learned-Adapter with the positions of Houlsby's adapters
    Exact("llama2_7b", "ssp", (), 39_976_960 + 224 * 16, "40.0M", "ALoRA Table 1, initial"),
    Exact(
        "llama2_7b",
        "learned_adapter",
        ("method.targets=[o,down]",),
        64 * (2 * 40 * 4096 + 40 + 4096) + 64 * 5,
        "21.2M",
        "ALoRA Table 1",
    ),
]
# Where arithmetic and paper disagree (docs/log.md): what the shapes give, and what is printed.
DISAGREE = [
    Exact(
        "gpt2_medium",
        "lora",
        ("method.rank=4", "method.targets=[q,v]"),
        393_216,
        "0.35M",
        "LoRA Table 3: GPT-2 medium on E2E",
    ),
    # 1.22M is twice 0.61M; 1.18M is 1.1896M cut off, or what it has without the biases
    Exact("deberta_v3_base", "houlsby", ("method.bottleneck=32",), 24 * 49_952, "1.22M", "AdaLoRA Table 1"),
    Exact("deberta_v3_base", "pfeiffer", ("method.bottleneck=64",), 12 * 99_136, "1.18M", "AdaLoRA Table 1"),
    # twice the printed number: 160 vectors of a block are 20.97M, and a prefix has keys and values
    Exact("llama2_7b", "ptuning_v2", ("method.tokens=160",), 2 * 160 * 4096 * 32, "20.9M", "ALoRA Table 1"),
    # 21.0M is what it has without the biases
    Exact(
        "llama2_7b",
        "houlsby",
        ("method.bottleneck=40",),
        64 * (2 * 40 * 4096 + 40 + 4096),
        "21.0M",
        "ALoRA Table 1",
    ),
    Exact(
        "llama2_7b",
        "parallel_adapter",
        ("method.bottleneck=80",),
        32 * (2 * 80 * 4096 + 80 + 4096),
        "21.0M",
        "ALoRA Table 1",
    ),
    # as if nothing were dropped: without the first of 32 blocks
    Exact(
        "llama2_7b",
        "adapterdrop",
        ("method.bottleneck=40",),
        62 * (2 * 40 * 4096 + 40 + 4096),
        "21.0M",
        "ALoRA Table 1",
    ),
    # an entry, 32 rungs and the way up; k = 32 would give 22.0M
    Exact(
        "llama2_7b",
        "lst",
        ("method.reduction=8",),
        2 * 512 * 4096 + 32 * (512 * 4096 + 1 + 2 * 512 + 8 * 512 * 512) + 2 * 512,
        "21.1M",
        "ALoRA Table 1",
    ),
]


class Bracket(NamedTuple):
    """A count that training decides: total rank, and how few and how many ranks a module can end with."""

    name: str
    total: int
    least: int
    most: int
    published: str
    source: str


DEBERTA_MODULES = 72
BRACKETS = [
    Bracket("AdaLoRA 12 -> 8", 576, 0, 12, "1.27M", "AdaLoRA Table 1"),
    Bracket("AdaLoRA 4 -> 2", 144, 0, 4, "0.32M", "AdaLoRA Table 1"),
    Bracket("IncreLoRA 1 -> 8", 576, 1, 505, "1.2M", "IncreLoRA Table 1, budget"),
    Bracket("IncreLoRA 1 -> 2", 144, 1, 73, "0.3M", "IncreLoRA Table 1, budget"),
]


@pytest.fixture(autouse=True, scope="module")
def weightless() -> Iterator[None]:
    """Random backbones are built on the meta device: shapes without numbers."""

    def on_meta(auto: Any, config: Any, seed: int = 0) -> Any:
        with torch.device("meta"):
            return auto.from_config(config)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(heads, "random_model", on_meta)
        yield


@cache
def method_of(backbone: str, method: str, *settings: str) -> tuple[Backbone, Method]:
    names = [f"method={method}", f"backbone={backbone}", "task=rte", "scale=paper"]
    (cell,) = compose_cells([*names, *settings])
    made: Backbone = cell.backbone
    return replace(made, config=CONFIGS[backbone]), cell.method


def attached(backbone: Backbone, method: Method, kind: str = "classification") -> Run:
    """The method on the backbone's shapes, before the first step."""
    nowhere = Found(served_by="generated", folder=None, files={}, detail="")
    loaded: Loaded = backbone.load(nowhere, kind=kind, outputs=2, head_seed=0)
    run = Run(
        loaded.model,
        loaded.modules,
        total_steps=100,
        steps_per_epoch=10,
        settings=OptimizerSettings(),
        generator=torch.Generator().manual_seed(0),
        head=loaded.head,
    )
    method.attach(run)
    assert all(p.device.type == "meta" for p in run.model.parameters())
    return run


def count(backbone: str, method: str, *settings: str) -> int:
    run = attached(*method_of(backbone, method, *settings), TASK.get(backbone, "classification"))
    return adapter_parameters(run) + (trainable(run.head) if method == "full" else 0)


def printed(published: str) -> tuple[float, float]:
    """The interval of counts that are printed so: 1.33M is [1.325, 1.335] million."""
    value, _, digits = published.rstrip("M").partition(".")
    half = 0.5 * 10 ** -len(digits)
    return 1e6 * (float(f"{value}.{digits or 0}") - half), 1e6 * (float(f"{value}.{digits or 0}") + half)


@pytest.mark.parametrize("row", EXACT, ids=lambda row: f"{row.method}-{row.backbone}-{row.published}")
def test_a_determined_count_is_the_published_one(row: Exact) -> None:
    assert count(row.backbone, row.method, *row.settings) == row.count
    least, most = printed(row.published)
    assert least <= row.count <= most, row.source


@pytest.mark.parametrize("row", DISAGREE, ids=lambda row: f"{row.method}-{row.backbone}-{row.published}")
def test_where_arithmetic_and_paper_disagree_the_arithmetic_is_ours(row: Exact) -> None:
    assert count(row.backbone, row.method, *row.settings) == row.count
    least, most = printed(row.published)
    assert not least <= row.count <= most, f"{row.source} agrees after all: move the row"


def test_a_search_ends_with_the_published_count() -> None:
    """ALoRA Table 1: SPT 16.8M, 8 prompts of 32; SSP 20.0M, half of the candidates. All 32 blocks are alike."""
    backbone, method = method_of("llama2_7b", "spt")
    assert isinstance(method, Spt)
    run = attached(backbone, method, "text")
    blocks = len(method.names(run))
    kept = share_of("method.prompt_layers", method.prompt_layers, blocks)
    each = (adapter_parameters(run) - trainable(method.choices(run))) / blocks
    assert (blocks, kept, kept * each) == (32, 8, 8 * (2 * 256 * 4096 + 256 + 4096))
    least, most = printed("16.8M")
    assert least <= kept * each <= most

    backbone, method = method_of("llama2_7b", "ssp")
    assert isinstance(method, Ssp)
    layers = list(attached(backbone, method, "text").adapters.values())
    prices = [layer.in_features + layer.out_features for layer in layers]
    for scores in (range(224), range(224, 0, -1)):  # whichever are the best, the budget is filled
        left = method.rank * sum(prices[i] for i in fitting(list(scores), prices, method.budget))
        least, most = printed("20.0M")
        assert least <= left <= most


@cache
def costs() -> dict[str, int]:
    """in + out of every matrix of DeBERTaV3-base, below the body."""
    backbone, method = method_of("deberta_v3_base", "lora", "method.rank=1")
    run = attached(backbone, method)
    return {
        name.removeprefix("body.deberta."): layer.in_features + layer.out_features
        for name, layer in run.adapters.items()
    }


def allocation(row: Bracket, cheap_first: bool) -> dict[str, int]:
    """The cheapest or the dearest way to spend a total rank."""
    ranks = dict.fromkeys(costs(), row.least)
    left = row.total - sum(ranks.values())
    order = sorted(ranks, key=lambda name: costs()[name], reverse=not cheap_first)
    for name in order:
        gain = min(left, row.most - ranks[name])
        ranks[name] += gain
        left -= gain
    assert left == 0
    return ranks


@pytest.mark.parametrize("row", BRACKETS, ids=lambda row: row.name)
def test_a_learned_count_lies_between_the_extreme_allocations(row: Bracket) -> None:
    """Both extremes are counted by the product: ranks given module by module."""
    backbone, method = method_of("deberta_v3_base", "increlora_retrain")
    assert len(costs()) == DEBERTA_MODULES
    low, high = (
        adapter_parameters(attached(backbone, replace(method, ranks=allocation(row, cheap))))
        for cheap in (True, False)
    )
    least, most = printed(row.published)
    assert low <= most, row.source
    assert least <= high, row.source
    assert low < high


def test_the_extremes_of_increlora_by_hand() -> None:
    """r 2: 72 ranks are given, 72 are free. A square matrix costs 768 + 768, one of the FFN 768 + 3072."""
    base = 48 * 1536 + 24 * 3840
    backbone, method = method_of("deberta_v3_base", "increlora_retrain")
    row = next(row for row in BRACKETS if row.name == "IncreLoRA 1 -> 2")
    for cheap, cost in ((True, 1536), (False, 3840)):
        got = adapter_parameters(attached(backbone, replace(method, ranks=allocation(row, cheap))))
        assert got == base + 72 * cost + 144  # and a lambda per rank


def test_increlora_starts_with_one_rank_and_a_reserve() -> None:
    """The reserve's lambda does not train."""
    backbone, method = method_of("deberta_v3_base", "increlora")
    assert isinstance(method, IncreLora)
    one = 48 * 1536 + 24 * 3840
    assert adapter_parameters(attached(backbone, method)) == 2 * one + 72


@pytest.mark.parametrize(("rank", "published"), [(8, "0.91M"), (4, "0.47M")])
def test_sora_is_published_below_its_start(rank: int, published: str) -> None:
    """SoRA Table 1 (0.91M: its seed's 31.5 % below LoRA's 1.33M) and Table 2. Any rank may vanish."""
    start = count("deberta_v3_base", "sora", f"method.rank={rank}")
    assert start == rank * (165_888 + 72)
    least, most = printed(published)
    assert 0.4 * start < least < most < start


def averages(spend: Callable[[int, list[int]], int]) -> float:
    """AFLoRA's average over training, 20 epochs for four tasks and 10 for four, t_i 1 epoch, t_f 14 and 7 epochs."""
    backbone, method = method_of("deberta_v3_base", "aflora", "method.rank=4")
    assert isinstance(method, AfLora)
    run = attached(backbone, method)
    sizes = sorted(p.numel() for _, p in method.matrices(run))
    vectors = adapter_parameters(run) - sum(sizes)
    assert (vectors, sum(sizes), len(sizes)) == (83_232, 368_640, 48)
    found = []
    for epochs, tail in ((20, 14), (10, 7)):
        run = Run(
            run.model,
            run.modules,
            total_steps=epochs * 100,
            steps_per_epoch=100,
            settings=OptimizerSettings(),
            generator=torch.Generator(),
        )
        replace(method, initial_warmup="1ep", final_phase=f"{tail}ep").setup(run)
        left = [spend(len(sizes) - method._wanted(t, run, len(sizes)), sizes) for t in range(run.total_steps)]
        found.append(vectors + sum(left) / len(left))
    return sum(found) / len(found)


def test_aflora_average_lies_between_the_extreme_orders_of_freezing() -> None:
    """AFLoRA Table 1: 0.14M, the average over training and data sets. Large matrices first, or last."""
    low = averages(lambda kept, sizes: sum(heapq.nsmallest(kept, sizes)))
    high = averages(lambda kept, sizes: sum(heapq.nlargest(kept, sizes)))
    assert (round(low), round(high)) == (124_659, 140_812)
    least, most = printed("0.14M")
    assert low <= most
    assert least <= high
