"""SoRA (arXiv 2311.11696): Eq. 9-14 and Algorithm 1, with numbers worked out by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_runs import WHOLE, Net, Small, only_block
from torch import Tensor, nn

from adalora_bench.errors import PromiseBroken, UserError
from adalora_bench.lowrank.adapter import LowRankLinear
from adalora_bench.lowrank.scores import soft_threshold, soft_threshold_authors
from adalora_bench.methods.base import Facts
from adalora_bench.methods.sora import Sora
from adalora_bench.train import checkpoint

METHOD = Sora(
    version=1,
    targets=["all"],
    lr=0.05,
    head_lr=None,
    rank=4,
    alpha=8.0,
    dropout=0.0,
    lam=0.5,
    xi=None,
    stages=[],
    gate_lr=None,
    gate_optimizer="adamw",
    gate_eps=None,
    gate_init="normal",
    threshold="soft",
    l1_mean=0.0,
    layer_norms=False,
)


def first_and_second() -> Net:
    return Net((4, 6, 5), ("first", "second"))


class Normed(Net):
    """With a LayerNorm behind the first layer."""

    def __init__(self) -> None:
        super().__init__((4, 6, 5), ("first", "second"))
        self.norm = nn.LayerNorm(6).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.second(self.norm(torch.tanh(self.first(x))))))


def started(
    method: Sora = METHOD, *, net: Net | None = None, total: int = 12, warmup: int = 2, clip: float = 0.0
) -> Small:
    net = first_and_second() if net is None else net
    how = {"total": total, "warmup": warmup, "weight_decay": 0.1, "schedule": "linear"}
    return Small(method, net=net, roles=("up", "down"), clip=clip, pieces=WHOLE, **how)


def gates(small: Small) -> Tensor:
    return torch.cat([block.gate.detach() for block in small.blocks])


def fill_gates(layer: LowRankLinear, gate: list[float]) -> None:
    """Gates as given and an up side away from 0, so that every rank has a say."""
    only_block(layer).gate.data = torch.tensor(gate, dtype=torch.float64)
    only_block(layer).b.data.normal_(generator=torch.Generator().manual_seed(5))


# -- Eq. 6-9: the layer -------------------------------------------------------------------------------------


def test_eq9_update_is_up_times_gate_times_down_with_a_scale_that_stays() -> None:
    small = started(replace(METHOD, rank=2))
    layer = small.layers[0]
    b = only_block(layer)
    b.a.data = torch.tensor([[1.0, 2.0, 0.0, 0.0], [0.0, 0.0, 1.0, -1.0]], dtype=torch.float64)
    b.b.data = torch.tensor([[1.0, 0, 0, 0, 0, 2.0], [0, 3.0, 0, 0, 0, 0]], dtype=torch.float64)
    b.gate.data = torch.tensor([0.5, -1.0], dtype=torch.float64)
    # x = (1, 1, 1, 0): down (3, 1), gated (1.5, -1), up (1.5, -3, 0, 0, 0, 3), times alpha / r_max = 8 / 2
    x = torch.tensor([[1.0, 1.0, 1.0, 0.0]], dtype=torch.float64)
    by_hand = torch.tensor([[6.0, -12.0, 0.0, 0.0, 0.0, 12.0]], dtype=torch.float64)
    torch.testing.assert_close(layer(x) - layer.base(x), by_hand, rtol=0, atol=1e-13)
    b.gate.data[1] = 0.0
    METHOD.finalize(small.run)
    assert (layer.rank, layer.scale) == (1, 4.0)


def test_eq9_output_is_unchanged_at_the_start_and_the_first_gradient_of_a_gate_is_zero() -> None:
    small = started()
    assert torch.equal(small.run.model(small.x), first_and_second()(small.x))
    small.loss().backward()
    for layer in small.layers:
        assert not only_block(layer).gate.grad.any()
        assert not only_block(layer).a.grad.any()
        assert only_block(layer).b.grad.any()


def test_gates_start_normal_or_at_one_and_down_side_kaiming() -> None:
    values = gates(started(replace(METHOD, rank=3000), net=Net((40, 3, 2), ("first", "second"))))
    assert abs(float(values.mean())) < 0.05
    assert float(values.std()) == pytest.approx(1.0, abs=0.05)
    small = started(replace(METHOD, rank=3000, gate_init="ones"))
    assert (gates(small) == 1).all()
    a = only_block(small.layers[0]).a.detach()
    assert 0.49 < float(a.abs().max()) <= 0.5  # 1 / sqrt(4)


def test_gates_have_a_group_of_their_own_without_decay() -> None:
    small = started(replace(METHOD, gate_lr=0.2, head_lr=0.01, gate_eps=1e-6))
    mine = small.group("gate")
    assert [id(p) for p in mine["params"]] == [id(only_block(layer).gate) for layer in small.layers]
    assert (mine["peak_lr"], mine["weight_decay"]) == (0.2, 0.0)
    assert (small.group("adapter")["peak_lr"], small.group("adapter")["weight_decay"]) == (0.05, 0.1)
    assert small.group("head")["peak_lr"] == 0.01
    assert len(small.group("adapter")["params"]) == 4
    small.step()
    assert [g["eps"] for g in small.run.optimizer.param_groups] == [1e-8, 1e-6, 1e-8]


# -- Eq. 10 -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("clip", [0.0, 1e-3])
def test_eq10_with_sgd_to_the_letter(clip: float) -> None:
    """g <- T(g - lr * gradient), with the (clipped) gradient and xi = lr_t * lambda."""
    method = replace(METHOD, gate_optimizer="sgd", gate_lr=0.3, lam=0.7)
    small = started(method, total=10, clip=clip)
    for layer in small.layers:
        fill_gates(layer, [0.9, -0.4, 0.05, 1e-3])
    expected: list[Tensor] = []

    def look() -> None:
        lr = 0.3 * [0, 0.5, 1, 7 / 8, 6 / 8][small.run.step]
        grads = torch.cat([only_block(layer).gate.grad for layer in small.layers])
        expected.append(soft_threshold(gates(small) - lr * grads, 0.7 * lr))

    for _ in range(5):
        small.step(before_update=look)
        torch.testing.assert_close(gates(small), expected[-1], rtol=0, atol=1e-15)
    assert "gates" not in small.run.scratch  # nothing of it is left for a checkpoint


def test_eq10_with_adam_the_threshold_follows_the_move() -> None:
    """The same step without a threshold, then xi = lr_t * lambda taken off by hand: warm-up 2 of 10 steps."""
    for t, lr in enumerate([0, 0.05, 0.1, 0.0875, 0.075]):
        method = replace(METHOD, gate_lr=0.1)
        plain, thresholded = started(replace(method, lam=0.0), total=10), started(method, total=10)
        for small in (plain, thresholded):
            for layer in small.layers:
                fill_gates(layer, [0.9, -0.4, 0.02, -0.001])
            small.run.seek(t)
        plain.step()
        thresholded.step()
        xi = lr * 0.5
        by_hand = [math.copysign(max(abs(v) - xi, 0.0), v) for v in gates(plain).tolist()]
        assert gates(thresholded).tolist() == pytest.approx(by_hand, abs=1e-15)
        assert thresholded.group("gate")["lr"] == pytest.approx(lr, abs=1e-15)


def test_eq10_constant_xi_of_the_authors_ignores_the_learning_rate() -> None:
    method = replace(METHOD, xi=0.01, gate_init="ones")
    small = started(method, total=10)
    small.step()  # lr is 0 here
    assert gates(small).tolist() == pytest.approx([0.99] * 8, abs=1e-15)


def test_eq10_a_zero_gate_may_come_back() -> None:
    method = replace(METHOD, lam=0.01, gate_lr=0.1)
    small = started(method, total=10)
    for layer in small.layers:
        fill_gates(layer, [0.0, 0.0, 1.0, 1.0])
    for _ in range(3):
        small.step()
    assert gates(small).all()


@settings(max_examples=200)
@given(
    grad=st.floats(-2, 2),
    lam=st.floats(0, 2),
    lr=st.floats(1e-4, 1),
)
def test_eq10_zero_gate_with_a_small_gradient_stays_zero(grad: float, lam: float, lr: float) -> None:
    moved = soft_threshold(torch.tensor([-lr * grad], dtype=torch.float64), lr * lam)
    if abs(grad) < lam * (1 - 1e-12):
        assert float(moved) == 0
    elif abs(grad) > lam * (1 + 1e-9):
        assert float(moved) == pytest.approx(-lr * math.copysign(abs(grad) - lam, grad), abs=1e-12)


def test_lambda_0_is_plain_training() -> None:
    """Against AdamW on the same parameters without any hook of the method."""
    method = replace(METHOD, lam=0.0)
    small, plain = started(method), started(method)
    for _ in range(12):
        small.step()
        plain.run.optimizer.zero_grad()
        plain.loss().backward()
        plain.run.set_learning_rates()
        plain.run.optimizer.step()
        plain.run.advance()
    for p, q in zip(small.run.model.parameters(), plain.run.model.parameters(), strict=True):
        assert torch.equal(p, q)


# -- Eq. 11 and 13 ------------------------------------------------------------------------------------------


def test_eq11_by_hand_with_its_borders() -> None:
    x = torch.tensor([0.5, 0.3, 0.2, 0.1, 0.0, -0.1, -0.2, -0.3, -0.5], dtype=torch.float64)
    by_hand = torch.tensor([0.3, 0.1, 0, 0, 0, 0, 0, -0.1, -0.3], dtype=torch.float64)
    torch.testing.assert_close(soft_threshold(x, 0.2), by_hand, rtol=0, atol=1e-16)
    assert (soft_threshold(x, 0.2)[2:7] == 0).all()  # exactly


def test_eq11_differs_from_the_authors_operator_between_one_and_two_xi_only() -> None:
    x = torch.tensor([0.5, 0.41, 0.39, 0.3, 0.21, 0.1, 0.0, -0.1, -0.3, -0.41, -0.5], dtype=torch.float64)
    theirs = torch.tensor([0.3, 0.21, 0, 0, 0, 0, 0, 0, 0, -0.21, -0.3], dtype=torch.float64)
    torch.testing.assert_close(soft_threshold_authors(x, 0.2), theirs, rtol=0, atol=1e-15)
    different = (soft_threshold(x, 0.2) - soft_threshold_authors(x, 0.2)).abs() > 1e-12
    assert torch.equal(different, (x.abs() > 0.2) & (x.abs() < 0.4))


NUMBER, XI = st.floats(-10, 10), st.floats(0, 5)


def t(x: float, xi: float) -> float:
    return float(soft_threshold(torch.tensor(x, dtype=torch.float64), xi))


@settings(max_examples=300)
@given(x=NUMBER, y=NUMBER, a=XI, b=XI)
def test_eq11_is_odd_non_expansive_and_adds_up(x: float, y: float, a: float, b: float) -> None:
    assert t(-x, a) == -t(x, a)
    assert abs(t(x, a) - t(y, a)) <= abs(x - y) + 1e-12
    assert t(t(x, b), a) == pytest.approx(t(x, a + b), abs=1e-12)
    assert t(x, 0.0) == x


@settings(max_examples=200)
@given(x=NUMBER, xi=XI)
def test_eq13_the_threshold_minimises_the_proximal_problem(x: float, xi: float) -> None:
    def value(u: Tensor) -> Tensor:
        return xi * u.abs() + (u - x).square() / 2

    u = torch.tensor(t(x, xi), dtype=torch.float64)
    grid = torch.cat(
        [torch.linspace(-11, 11, 2001, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)]
    )
    assert float(value(u)) <= float(value(grid).min()) + 1e-12


def test_eq14_fixed_point_of_the_update_minimises_loss_plus_l1() -> None:
    """L0 = (g - a)^2 / 2, lambda 0.3: the minimum of L0 + lambda |g| lies 0.3 nearer to 0 than a, or at 0."""
    target = torch.tensor([1.0, -1.0, 0.2, -0.25], dtype=torch.float64)
    g = torch.zeros(4, dtype=torch.float64)
    for _ in range(400):
        g = soft_threshold(g - 0.1 * (g - target), 0.1 * 0.3)
    torch.testing.assert_close(g, torch.tensor([0.7, -0.7, 0, 0], dtype=torch.float64), rtol=0, atol=1e-12)


def test_l1_of_the_authors_is_the_mean_over_all_gates() -> None:
    small = started(replace(METHOD, rank=2))
    method = replace(METHOD, rank=2, l1_mean=10.0)
    assert METHOD.penalty(small.run) is None
    fill_gates(small.layers[0], [0.5, -1.0])
    fill_gates(small.layers[1], [0.0, 2.5])
    penalty = method.penalty(small.run)
    assert penalty is not None
    assert float(penalty.detach()) == pytest.approx(10 * 4.0 / 4)
    penalty.backward()
    assert only_block(small.layers[0]).gate.grad.tolist() == [2.5, -2.5]
    assert only_block(small.layers[1]).gate.grad.tolist() == [0.0, 2.5]


# -- Eq. 12: post-pruning -----------------------------------------------------------------------------------


def test_eq12_zero_gates_leave_and_the_output_stays() -> None:
    small = started()
    first, second = small.layers
    fill_gates(first, [0.5, 0.0, -0.3, 0.0])
    fill_gates(second, [1e-30, 0.2, 0.1, 0.4])  # tiny is not zero
    small.run.seek(12)
    kept = only_block(first).a.detach()[[0, 2]].clone(), only_block(first).b.detach()[[0, 2]].clone()
    before = small.run.model(small.x).detach()
    METHOD.finalize(small.run)
    assert [layer.rank for layer in small.layers] == [2, 4]
    assert only_block(first).gate.tolist() == [0.5, -0.3]
    assert torch.equal(only_block(first).a, kept[0])
    assert torch.equal(only_block(first).b, kept[1])
    assert [(e.step, e.kind, e.module, e.before, e.after) for e in small.run.events] == [
        (12, "prune", "first", 4, 2)
    ]
    torch.testing.assert_close(small.run.model(small.x).detach(), before, rtol=0, atol=1e-14)
    merged = first.merge()
    torch.testing.assert_close(merged(small.x), first(small.x).detach(), rtol=0, atol=1e-13)


def test_eq12_a_module_may_lose_all_its_ranks() -> None:
    method = replace(METHOD, xi=2.0, gate_init="ones")
    small = started(method, total=3).to_the_end()
    assert small.run.total_rank == 0
    assert all(not list(layer.rank_blocks()) for layer in small.layers)
    assert not small.run.model(small.x).isnan().any()
    method.check(small.run)


@settings(max_examples=200)
@given(
    rank=st.integers(1, 5),
    lam=st.floats(0, 3),
    xi=st.one_of(st.none(), st.floats(0, 0.5)),
    threshold=st.sampled_from(["soft", "authors"]),
    optimizer=st.sampled_from(["adamw", "sgd"]),
    total=st.integers(4, 8),
)
def test_eq12_ranks_left_are_the_gates_that_are_not_zero(
    rank: int, lam: float, xi: float | None, threshold: str, optimizer: str, total: int
) -> None:
    method = replace(METHOD, rank=rank, lam=lam, xi=xi, threshold=threshold, gate_optimizer=optimizer, lr=0.2)
    small = started(method, total=total)
    base = [layer.base.weight.detach().clone() for layer in small.layers]
    while small.run.step < total:
        small.step()
        assert small.run.total_rank == 2 * rank  # a zero gate counts until the end: it may come back
    non_zero = [int((only_block(layer).gate != 0).sum()) for layer in small.layers]
    before = small.run.model(small.x).detach()
    method.finalize(small.run)
    assert [layer.rank for layer in small.layers] == non_zero == [layer.stored_rank for layer in small.layers]
    torch.testing.assert_close(small.run.model(small.x).detach(), before, rtol=0, atol=1e-12)
    assert all(torch.equal(layer.base.weight, w) for layer, w in zip(small.layers, base, strict=True))
    assert sum(e.before - e.after for e in small.run.events) == 2 * rank - sum(non_zero)
    method.check(small.run)


# -- Algorithm 1: the sparsifying schedule ------------------------------------------------------------------


def test_algorithm1_stages_are_equal_parts_with_curves_of_their_own() -> None:
    method = replace(METHOD, lam=0.1, stages=[0.2, 0.4], gate_lr=0.5)
    small = started(method, total=12, warmup=6)  # half of the training, so half of each stage: 2 of 4 steps
    seen: list[tuple[float, float]] = []

    def look() -> None:
        seen.append((small.group("gate")["lr"], small.group("adapter")["lr"]))

    while small.run.step < 12:
        small.step(before_update=look)
    curve = [0.0, 0.5, 1.0, 0.5]
    assert [gate for gate, _ in seen] == pytest.approx([0.5 * f for f in curve * 3], abs=1e-15)
    assert [rest for _, rest in seen] == pytest.approx([0.05 * f for f in curve * 3], abs=1e-15)


def test_algorithm1_each_stage_has_its_lambda_and_goes_on_from_the_last() -> None:
    """Without gradients (B = 0, its lr negligible) only the threshold moves the gates: 1 - sum of lr_t * lambda_k."""
    method = replace(
        METHOD, lr=1e-12, lam=0.1, stages=[0.2, 0.4], gate_lr=0.5, gate_init="ones", gate_optimizer="sgd"
    )
    small = started(method, total=6, warmup=0)
    by_hand, left = [], 1.0
    for t in range(6):  # two steps a stage: lr 0.5 and 0.25
        left -= (0.5, 0.25)[t % 2] * (0.1, 0.2, 0.4)[t // 2]
        by_hand.append(left)
        small.step()
        assert gates(small).tolist() == pytest.approx([left] * 8, abs=1e-9)
    assert by_hand[-1] == pytest.approx(1 - 0.75 * 0.7)


def test_algorithm1_records_the_non_zeros_of_every_stage() -> None:
    method = replace(METHOD, xi=0.01, stages=[0.1, 0.3], gate_lr=1e-9)
    small = started(method, total=9, warmup=1)
    for layer in small.layers:
        fill_gates(layer, [0.02, 0.2, 0.8, 5.0])
    counts = []
    while small.run.step < 9:
        small.step()
        if small.run.step % 3 == 0:
            counts.append(int(gates(small).count_nonzero()))
    assert counts == [6, 4, 2]  # 0.03, 0.33 and 1.23 are off after the stages
    assert [(e.step, e.kind, e.module, e.before, e.after) for e in small.run.events] == [
        (2, "stage", "xi=0.01", 8, 6),
        (5, "stage", "xi=0.1", 8, 4),
        (8, "stage", "xi=0.3", 8, 2),
    ]
    # Figure 2 is drawn over parameters: a rank whose gate is 0 holds none
    held = sum(
        layer.in_features + layer.out_features + 1 for layer in small.layers
    )  # by one rank in every layer
    ends = [point for point in small.run.budget.nonzero if point[0] in (2, 5, 8)]
    assert ends == [[2, 6, 3 * held], [5, 4, 2 * held], [8, 2, held]]
    method.finalize(small.run)
    assert sum(p.numel() for block in small.run.rank_blocks() for p in block.parameters()) == held


@settings(max_examples=200)
@given(total=st.integers(1, 500), more=st.integers(0, 8))
def test_algorithm1_stages_cover_the_training(total: int, more: int) -> None:
    method = replace(METHOD, lam=0.0, stages=[float(k + 1) for k in range(more)])
    if total < more + 1:
        return
    parts = [method.stage(t, total) for t in range(total)]
    assert [number for number, _, _ in parts] == sorted(number for number, _, _ in parts)
    assert {number for number, _, _ in parts} == set(range(more + 1))
    assert all(start <= t < end for t, (_, start, end) in enumerate(parts))
    lengths = {end - start for _, start, end in parts}
    assert max(lengths) - min(lengths) <= 1


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_resumed_run_equals_an_uninterrupted_one_within_a_stage(optimizer: str, tmp_path: Path) -> None:
    """What the groups are stamped with (end of the stage, eps) is not in the checkpoint: the step says it again."""
    method = replace(METHOD, lam=0.5, stages=[1.0, 2.0], gate_eps=1e-3, gate_optimizer=optimizer)
    whole, first = started(method), started(method)
    names = checkpoint.frozen_base_names(first.run, moves_base=False)
    for _ in range(6):
        first.step()
    checkpoint.save(tmp_path, first.run, names, {})
    newest = checkpoint.newest(tmp_path)
    assert newest is not None
    second = started(method)
    checkpoint.restore(second.run, *newest)
    for small in (whole, second):
        small.to_the_end()
        method.check(small.run)
    for p, q in zip(whole.run.model.parameters(), second.run.model.parameters(), strict=True):
        assert torch.equal(p, q)
    assert whole.run.events == second.run.events
    assert [e.kind for e in whole.run.events].count("stage") == 3


# -- the promise, options and refusals ----------------------------------------------------------------------


def test_check_wants_the_threshold_at_every_step() -> None:
    small = started().to_the_end()
    METHOD.check(small.run)
    small.run.scratch["thresholds"] -= 1
    with pytest.raises(PromiseBroken, match="in 11 of 12 steps"):
        METHOD.check(small.run)


def test_check_wants_no_zero_gate_left() -> None:
    small = started().to_the_end()
    only_block(small.layers[0]).gate.data[0] = 0.0
    with pytest.raises(PromiseBroken, match="kept 1 ranks"):
        METHOD.check(small.run)


def test_layer_norms_train_only_where_asked_for() -> None:
    for asked in (False, True):
        method = replace(METHOD, layer_norms=asked)
        small = started(method, net=Normed())
        before = small.run.model.norm.weight.detach().clone()
        for _ in range(3):
            small.step()
        assert torch.equal(small.run.model.norm.weight, before) is not asked


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rank": 0}, "method.rank=0"),
        ({"alpha": 0.0}, "method.alpha=0.0"),
        ({"dropout": 1.0}, "method.dropout=1.0"),
        ({"lam": -0.1}, "method.lam=-0.1"),
        ({"lam": math.nan}, "method.lam=nan"),
        ({"xi": -1e-4}, "method.xi=-0.0001"),
        ({"l1_mean": -1.0}, "method.l1_mean=-1.0"),
        ({"gate_lr": 0.0}, "method.gate_lr=0.0"),
        ({"gate_eps": 0.0}, "method.gate_eps=0.0"),
        ({"gate_optimizer": "adam"}, "adamw"),
        ({"gate_init": "one"}, "ones"),
        ({"threshold": "sof"}, "soft"),
        ({"stages": [0.7, 0.6]}, "0.6 comes after 0.7"),
        ({"stages": [0.5]}, "lam=0.5; 0.5 comes after 0.5"),
        ({"xi": 3e-4, "stages": [1e-4]}, "xi=0.0003; 0.0001 comes after 0.0003"),
        ({"stages": [math.nan]}, "must rise"),
    ],
)
def test_wrong_settings_are_refused_with_the_value(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as caught:
        replace(METHOD, **changes)
    assert words in str(caught.value)


def test_stages_that_do_not_fit_are_refused_with_the_numbers() -> None:
    method = replace(METHOD, stages=[0.6, 0.7, 0.8])
    method.precheck(Facts(total_steps=8, steps_per_epoch=4, warmup=4, modules=2))
    with pytest.raises(UserError, match="4 stages have 2 of 8 steps each, .* a warm-up of 2"):
        method.precheck(Facts(total_steps=8, steps_per_epoch=4, warmup=5, modules=2))
    with pytest.raises(UserError, match="4 stages have 0 of 3 steps each"):
        method.precheck(Facts(total_steps=3, steps_per_epoch=3, warmup=0, modules=2))
