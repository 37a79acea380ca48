"""Houlsby, Pfeiffer, parallel adapters, AdapterDrop, BitFit and the restricted forms of full fine-tuning, by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from small_runs import Net, Small
from torch import nn

from adalora_bench.errors import PromiseBroken, UserError
from adalora_bench.inserts.bottleneck import (
    AfterLinear,
    Bottleneck,
    Parallel,
    RemembersInput,
    blocks_of,
    width_of,
)
from adalora_bench.methods.adapterdrop import AdapterDrop
from adalora_bench.methods.base import Facts, Method
from adalora_bench.methods.run import OptimizerSettings, Run
from adalora_bench.settings.compose import method_settings
from adalora_bench.settings.config import build
from adalora_bench.train.loop import begin

FACTS = Facts(total_steps=20, steps_per_epoch=20, warmup=0, modules=4)


def made(name: str, **changes: Any) -> Any:
    return build(method_settings(name, changes), "method")


class Block(nn.Module):
    """One transformer block as far as adapters see it: attention's output layer and a feed-forward network."""

    def __init__(self, width: int, inner: int, bias: bool) -> None:
        super().__init__()
        self.o = nn.Linear(width, width, bias=bias)
        self.up = nn.Linear(width, inner, bias=bias)
        self.down = nn.Linear(inner, width, bias=bias)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.o(x)
        return self.norm(x + self.down(torch.tanh(self.up(x))))


class Blocks(nn.Module):
    def __init__(self, blocks: int = 2, width: int = 3, inner: int = 5, *, bias: bool = True) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            self.words = nn.Embedding(7, width)
            self.blocks = nn.ModuleList(Block(width, inner, bias) for _ in range(blocks))
            self.head = nn.Linear(width, 1)
        self.double()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def begun(method: Method, net: nn.Module) -> Run:
    roles = {f"blocks.{i}.{role}": role for i in range(len(net.blocks)) for role in ("o", "up", "down")}
    run = Run(
        net,
        roles,
        total_steps=20,
        steps_per_epoch=20,
        settings=OptimizerSettings(schedule="constant"),
        generator=torch.Generator().manual_seed(0),
        head=list(net.head.parameters()),
    )
    begin(method, run)
    return run


def trained(method: Method, run: Run, steps: int = 3) -> Run:
    x = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert run.optimizer is not None
    for _ in range(steps):
        run.optimizer.zero_grad()
        method.before_forward(run)
        (run.model(x) - 1).square().mean().backward()
        method.after_backward(run)
        run.set_learning_rates()
        run.optimizer.step()
        method.after_step(run)
        run.advance()
    return run


def test_bottleneck_formula() -> None:
    """scale * U relu(D h + bias) + scale * bias, with numbers."""
    adapter = Bottleneck(
        activation="relu",
        scale=2.0,
        down=torch.tensor([[1.0, -1.0]]),
        up=torch.tensor([[3.0], [0.5]]),
    )
    assert adapter(torch.tensor([[4.0, 1.0], [0.0, 1.0]])).tolist() == [[18.0, 3.0], [0.0, 0.0]]
    adapter.up_bias.data.fill_(0.25)
    adapter.down_bias.data.fill_(1.0)
    assert adapter(torch.tensor([[0.0, 1.0]])).tolist() == [[0.5, 0.5]]


def test_houlsby_stands_behind_attention_and_ffn_before_the_residual_sum() -> None:
    net = Blocks()
    run = begun(made("houlsby", bottleneck=2, up_init="normal"), net)
    block = net.blocks[0]
    assert isinstance(block.o, AfterLinear)
    assert isinstance(block.down, AfterLinear)
    assert isinstance(block.up, nn.Linear)
    x = torch.ones(1, 3, dtype=torch.float64)
    h = block.o.base(x)
    torch.testing.assert_close(block.o(x), h + block.o.adapter(h))
    # 2 blocks x 2 adapters x (2 * 3 * 2 weights + 2 + 3 biases)
    assert sum(p.numel() for p in run.added()) == 4 * (12 + 5)


@pytest.mark.parametrize("name", ["houlsby", "pfeiffer", "parallel_adapter", "adapterdrop"])
def test_output_is_unchanged_at_the_start_and_only_adapters_and_head_move(name: str) -> None:
    net, bare = Blocks(), Blocks()
    method = made(name, bottleneck=2, lr=0.01)
    run = begun(method, net)
    x = torch.randn(4, 3, dtype=torch.float64)
    assert torch.equal(net(x), bare(x))
    trained(method, run)
    method.check(run)
    for key, value in bare.state_dict().items():
        after = dict(net.named_parameters())
        found = after.get(
            key, after.get(key.replace(".weight", ".base.weight").replace(".bias", ".base.bias"))
        )
        assert found is not None
        assert torch.equal(found, value) != key.startswith("head")


def test_parallel_adapter_reads_the_input_of_the_ffn() -> None:
    net = Blocks(1)
    begun(made("parallel_adapter", bottleneck=2, up_init="normal", scale=4.0), net)
    block = net.blocks[0]
    assert isinstance(block.up, RemembersInput)
    assert isinstance(block.down, Parallel)
    x = torch.ones(1, 3, dtype=torch.float64)
    inner = torch.tanh(block.up(x))
    torch.testing.assert_close(block.down(inner), block.down.base(inner) + block.down.adapter(x))
    assert block.up.seen is None  # nothing is kept alive after the pass
    assert sorted(name for name, _ in net.named_parameters() if "adapter" in name) == [
        f"blocks.0.down.adapter.{part}" for part in ("down", "down_bias", "up", "up_bias")
    ]


def test_adapterdrop_specialised_leaves_the_first_blocks_alone() -> None:
    net = Blocks(3)
    method = made("adapterdrop", bottleneck=2, drop_blocks=2)
    run = begun(method, net)
    assert [isinstance(block.o, AfterLinear) for block in net.blocks] == [False, False, True]
    assert len(run.added()) == 2 * 4


def test_adapterdrop_robust_draws_anew_and_evaluates_with_all() -> None:
    net = Blocks(3)
    method: AdapterDrop = made("adapterdrop", bottleneck=2, drop_blocks=2, mode="robust")
    run = begun(method, net)
    seen = set()
    for _ in range(20):
        method.before_forward(run)
        seen.add(tuple(block.o.enabled for block in net.blocks))
        method.after_step(run)
        assert all(block.down.enabled for block in net.blocks)
    assert seen == {(True, True, True), (False, True, True), (False, False, True)}


def test_bitfit_trains_biases_alone_and_makes_those_that_are_missing() -> None:
    net = Blocks(1, bias=False)
    method = made("bitfit", lr=0.01)
    run = begun(method, net)
    assert net.blocks[0].up.bias.tolist() == [0.0] * 5
    assert sum(p.numel() for p in run.added()) == 3 + 5 + 3
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    trained(method, run)
    method.check(run)
    moved = {name for name, p in net.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {f"blocks.0.{n}.bias" for n in ("o", "up", "down", "norm")} | {"head.weight", "head.bias"}


def test_full_and_its_two_restricted_forms() -> None:
    def trains(name: str, **changes: Any) -> set[str]:
        net = Blocks(1)
        begun(made(name, **changes), net)
        return {key for key, p in net.named_parameters() if p.requires_grad}

    everything = {key for key, _ in Blocks(1).named_parameters()}
    assert trains("full") == everything
    assert trains("full_no_embeddings") == everything - {"words.weight"}
    chosen = {"blocks.0.o.weight", "blocks.0.o.bias", "head.weight", "head.bias"}
    assert trains("full_two_matrices", targets=["o"]) == chosen


def test_a_pass_whose_adapters_never_moved_is_no_result() -> None:
    net = Blocks()
    method = made("houlsby")
    run = begun(method, net)
    with pytest.raises(PromiseBroken, match="moved away"):
        method.check(run)
    method = made("bitfit")
    small = Small(method, net=Net((4, 5, 3)))
    with pytest.raises(PromiseBroken, match="no bias moved"):
        method.check(small.run)


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("houlsby", {"targets": ["q"]}, "behind o"),
        ("houlsby", {"targets": ["all"]}, "not all"),
        ("houlsby", {"bottleneck": 0}, "method.bottleneck=0"),
        ("houlsby", {"activation": "relo"}, "relu"),
        ("parallel_adapter", {"targets": ["o"]}, "down"),
        ("adapterdrop", {"drop_blocks": -1}, "drop_blocks=-1"),
        ("adapterdrop", {"mode": "robus"}, "robust"),
    ],
)
def test_refusals(name: str, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        made(name, **changes)


def test_adapterdrop_without_any_adapter_is_refused_with_the_numbers() -> None:
    with pytest.raises(UserError, match="drop_blocks=2 leaves no adapter: the backbone has 2 blocks"):
        replace(made("adapterdrop"), drop_blocks=2).precheck(FACTS)


def test_blocks_and_widths() -> None:
    roles = {"a": "q", "b": "down", "c": "o", "d": "down", "e": "q"}
    assert blocks_of(roles) == {"a": 0, "b": 0, "c": 1, "d": 1, "e": 2}
    layer = nn.Linear(3, 5)
    assert (width_of(layer, out=True), width_of(layer, out=False)) == (5, 3)
