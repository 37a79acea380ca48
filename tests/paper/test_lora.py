"""LoRA (arXiv 2106.09685) by hand, and against peft's layer with the same tensors."""

from __future__ import annotations

import math

import pytest
import torch
from small_runs import Net, begun, data, only_block
from torch import nn

from adalora_bench.errors import PromiseBroken, UserError
from adalora_bench.lowrank.adapter import LowRankLinear
from adalora_bench.methods.lora import Lora
from adalora_bench.methods.run import OptimizerSettings, Run
from adalora_bench.train.loop import begin


def first_and_second(dtype: torch.dtype = torch.float64) -> Net:
    return Net((6, 10, 4), ("first", "second"), dtype=dtype)


def method(**settings: object) -> Lora:
    defaults: dict[str, object] = {"version": 1, "targets": ["all"], "lr": 0.01, "head_lr": None}
    plain = {"rank": 4, "rank_pattern": None, "alpha": 8.0, "dropout": 0.0, "rslora": False}
    return Lora(**(defaults | plain | settings))  # type: ignore[arg-type]


def started(lora: Lora, net: Net | None = None) -> Run:
    net = first_and_second() if net is None else net
    return begun(lora, net, ("up", "down"), weight_decay=0.0, train_head=False)


def test_section_4_1_update_is_zero_at_start_and_the_output_unchanged() -> None:
    x, _ = data(6, 16, seed=3)
    before = first_and_second()(x)
    run = started(method())
    assert torch.equal(run.model(x), before)
    assert all(not layer.delta().any() for layer in run.adapters.values())
    with pytest.raises(PromiseBroken, match="no LoRA update"):
        method().check(run)


def test_section_4_1_first_gradient_reaches_b_and_not_a() -> None:
    run = started(method())
    x, y = data(6, 16, seed=3)
    (run.model(x) - y).square().mean().backward()
    for layer in run.adapters.values():
        block = only_block(layer)
        assert torch.equal(block.a.grad, torch.zeros_like(block.a))
        assert block.b.grad.any()
        assert block.gate.grad is None
        assert all(p.grad is None for p in layer.base.parameters())


@pytest.mark.parametrize(("rslora", "scale"), [(False, 2.0), (True, 4.0)])
def test_section_4_1_scale_is_alpha_over_r_and_rslora_over_its_root(rslora: bool, scale: float) -> None:
    run = started(method(rslora=rslora))
    layer = run.adapters["second"]
    block = only_block(layer)
    block.a.data.zero_()
    block.b.data.zero_()
    block.a.data[1, 2] = 3.0
    block.b.data[1, 0] = 5.0
    expected = torch.zeros(4, 10, dtype=torch.float64)
    expected[0, 2] = scale * 15
    assert torch.equal(layer.delta(), expected)


def test_section_4_1_initial_a_fills_its_bound_and_follows_the_seed() -> None:
    net = nn.Sequential(nn.Linear(400, 50))
    runs = [
        Run(
            nn.Sequential(nn.Linear(400, 50)),
            {"0": "q"},
            total_steps=1,
            steps_per_epoch=1,
            settings=OptimizerSettings(),
            generator=torch.Generator().manual_seed(seed),
        )
        for seed in (0, 0, 1)
    ]
    for run in runs:
        begin(method(), run)
    first, same, other = (next(run.adapters["0"].rank_blocks()).a.detach() for run in runs)
    bound = 1 / math.sqrt(net[0].in_features)  # 0.05
    assert bound == 0.05
    assert 0.98 * bound < float(first.abs().max()) <= bound
    assert abs(float(first.mean())) < 0.003
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_only_targets_are_adapted_and_only_factors_and_head_train() -> None:
    net = first_and_second()
    run = started(method(targets=["up"]), net)
    assert list(run.adapters) == ["first"]
    assert isinstance(net.first, LowRankLinear)
    assert [name for name, p in net.named_parameters() if p.requires_grad] == [
        "first.blocks.0.a",
        "first.blocks.0.b",
    ]
    assert run.total_rank == 4
    run.adapters["first"].remove(next(run.adapters["first"].rank_blocks()))
    with pytest.raises(PromiseBroken, match="0 ranks instead of 4"):
        method().check(run)


def test_rank_pattern_gives_roles_a_rank_and_a_scale_of_their_own() -> None:
    lora = method(rank_pattern={"down": 2})
    run = started(lora)
    assert {name: (layer.rank, layer.scale) for name, layer in run.adapters.items()} == {
        "first": (4, 2.0),
        "second": (2, 4.0),
    }
    for layer in run.adapters.values():
        next(layer.rank_blocks()).b.data.fill_(1.0)
    lora.check(run)
    with pytest.raises(PromiseBroken, match="6 ranks instead of 8"):
        method().check(run)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 0}, "method.rank=0"),
        ({"rank_pattern": {"q": 0}}, "method.rank_pattern.q=0"),
        ({"rank_pattern": {"qq": 2}}, "role in method.rank_pattern"),
        ({"rank_pattern": {"q": 2}, "targets": ["v"]}, "names q, which method.targets"),
        ({"alpha": 0.0}, "method.alpha=0.0"),
        ({"lr": -1.0}, "method.lr=-1.0"),
        ({"dropout": 1.0}, "method.dropout=1.0"),
        ({"targets": ["qq"]}, "'qq'"),
        ({"targets": []}, "method.targets is empty"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        method(**settings)


def test_same_loss_trace_as_peft_with_the_same_tensors() -> None:
    from peft import LoraConfig, get_peft_model

    ours = first_and_second(torch.float32)
    run = started(method(), ours)
    theirs = get_peft_model(
        first_and_second(torch.float32),
        LoraConfig(r=4, lora_alpha=8, lora_dropout=0.0, target_modules=["first", "second"]),
    )
    for name, layer in run.adapters.items():
        block = only_block(layer)
        twin = theirs.base_model.model.get_submodule(name)
        twin.lora_A["default"].weight.data = block.a.detach().clone()
        twin.lora_B["default"].weight.data = block.b.detach().T.clone()

    optimizer = torch.optim.AdamW(
        [p for p in theirs.parameters() if p.requires_grad], lr=0.01, weight_decay=0.0
    )
    x, y = data(6, 16, seed=3, dtype=torch.float32)
    traces: tuple[list[float], list[float]] = ([], [])
    for _ in range(20):
        for model, opt, trace in ((ours, run.optimizer, traces[0]), (theirs, optimizer, traces[1])):
            opt.zero_grad()
            loss = (model(x) - y).square().mean()
            loss.backward()
            if opt is run.optimizer:
                run.set_learning_rates()
            opt.step()
            trace.append(float(loss.detach()))
        run.advance()
    assert traces[0] == pytest.approx(traces[1], abs=1e-5, rel=0)
    assert traces[0][-1] < 0.8 * traces[0][0]
    method().check(run)
