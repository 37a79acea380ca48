"""IncreLoRA (arXiv 2308.12043): Eq. 3-8 and Algorithm 1, with numbers worked out by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_runs import Net, Small, fill, growths, in_optimizer, square
from torch import Tensor

from adalora_bench.errors import Diverged, PromiseBroken, UserError
from adalora_bench.lowrank.adapter import LowRankLinear, RankBlock
from adalora_bench.lowrank.allocate import grow_top
from adalora_bench.lowrank.scores import orthogonality, smooth, uncertainty, update_sensitivity
from adalora_bench.methods.base import Facts
from adalora_bench.methods.increlora import IncreLora

METHOD = IncreLora(
    version=1,
    targets=["all"],
    lr=0.01,
    head_lr=None,
    target_rank=2,
    ranks_per_growth=1,
    top_h=1,
    interval=2,
    growth_warmup=2,
    beta1=0.85,
    beta2=0.85,
    score_norm="avg",
    alpha=16.0,
    scale_by="active",
    init_std=0.02,
    reserve_gate=1e-5,
    orthogonality=0.1,
    orthogonality_squared=False,
    advance_learning=True,
    restart_warmup=True,
    dropout=0.0,
)


def started(
    method: IncreLora = METHOD, net: Net | None = None, *, total: int = 20, warmup: int = 3, clip: float = 1.0
) -> Small:
    net = square() if net is None else net
    return Small(method, net=net, total=total, warmup=warmup, clip=clip, schedule="linear")


def blocks(layer: LowRankLinear) -> list[RankBlock]:
    return list(layer.rank_blocks())


def scalar_modules(**changes: Any) -> Small:
    """1 x 1 matrices with dW = 1, so that a module's score is |its gradient|."""
    plain = {"scale_by": "none", "alpha": 1.0, "interval": 100, "growth_warmup": 100}
    small = started(replace(METHOD, **(plain | changes)), square(3, 1))
    for layer in small.layers:
        first, reserve = blocks(layer)
        fill(first, [[1.0]], [[1.0]], [1.0])
        reserve.a.data.zero_()
    return small


def score_with(small: Small, gradients: list[float]) -> None:
    """One step whose task gradient of dW is given."""
    for layer, g in zip(small.layers, gradients, strict=True):
        layer.delta_grad = torch.tensor([[g]], dtype=torch.float64)
    small.method.after_backward(small.run)
    small.run.advance()


# -- Eq. 3 --------------------------------------------------------------------------------------------------


def test_eq3_update_is_the_sum_of_lambda_b_a_times_the_scale() -> None:
    small = started(METHOD, square(1, 2))
    (layer,) = small.layers
    first, reserve = blocks(layer)
    fill(first, [[1.0, 2.0]], [[3.0, -1.0]], [0.5])
    fill(reserve, [[0.0, 4.0]], [[1.0, 5.0]], [1e-5])
    # 0.5 b1 a1 = [[1.5, 3], [-.5, -1]]; 1e-5 b2 a2 = [[0, 4e-5], [0, 2e-4]]; scale 16 / 1.00001, one active rank
    by_hand = torch.tensor([[24.0, 48.00064], [-8.0, -15.9968]], dtype=torch.float64) / 1.00001
    torch.testing.assert_close(layer.delta(), by_hand, rtol=0, atol=1e-12)
    x = torch.tensor([[1.0, -1.0]], dtype=torch.float64)
    torch.testing.assert_close(layer(x) - layer.base(x), x @ by_hand.T, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("scale_by", "at_rank_1", "at_rank_3"),
    [("active", 16 / 1.00001, 16 / 3.00001), ("target", 4.0, 4.0), ("none", 16.0, 16.0)],
)
def test_eq3_scale_follows_the_active_rank(scale_by: str, at_rank_1: float, at_rank_3: float) -> None:
    method = replace(METHOD, scale_by=scale_by, target_rank=4, ranks_per_growth=2, top_h=3)
    small = started(method)
    assert {layer.scale for layer in small.layers} == {at_rank_1}
    for _ in range(5):
        small.step()
    assert [layer.rank for layer in small.layers] == [3, 3, 3]
    assert [layer.scale for layer in small.layers] == pytest.approx([at_rank_3] * 3, rel=1e-15)


def test_eq3_growth_changes_the_output_by_the_scale_and_the_reserve_only() -> None:
    """r / (r + n) is the jump of alpha / r; a constant scale has none."""
    for scale_by, factor in (("active", 1.00001 / 2.00001), ("target", 1.0)):
        small = started(replace(METHOD, scale_by=scale_by, top_h=3, target_rank=3))
        for _ in range(4):
            small.step()
        before = [layer.delta().detach() for layer in small.layers]
        run = small.run
        small.method.before_forward(run)
        small.loss().backward()
        small.method.after_backward(run)
        assert [layer.rank for layer in small.layers] == [2, 2, 2]
        for old, layer in zip(before, small.layers, strict=True):
            assert old.abs().max() > 1e-6
            # a new reserve adds 16 * 1e-5 * .02 * .02 = 6e-8 or so
            torch.testing.assert_close(layer.delta(), old * factor, rtol=0, atol=1e-6)


# -- Eq. 4 --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("squared", "expected"), [(False, 0.1 * (math.sqrt(3) + 3) / 4), (True, 0.1 * (3 + 9) / 4)]
)
def test_eq4_penalty_over_whole_modules_with_their_reserve(squared: bool, expected: float) -> None:
    """Mean over the 2n = 4 matrices; the plain norm is the default, Eq. 4 as printed squares it."""
    small = started(replace(METHOD, orthogonality_squared=squared), square(2, 2))
    one, two = small.layers
    # A = [1 0; 1 1]: A A^T - I = [0 1; 1 1], squares sum to 3.  B rows [2 0], [0 1]: [3 0; 0 0], 9.
    fill(blocks(one)[0], [[1.0, 0.0]], [[2.0, 0.0]], [0.3])
    fill(blocks(one)[1], [[1.0, 1.0]], [[0.0, 1.0]], [1e-5])
    fill(blocks(two)[0], [[1.0, 0.0]], [[0.0, 1.0]], [0.3])
    fill(blocks(two)[1], [[0.0, 1.0]], [[1.0, 0.0]], [1e-5])
    penalty = small.method.penalty(small.run)
    assert penalty is not None
    assert float(penalty.detach()) == pytest.approx(expected, abs=1e-14)
    penalty.backward()
    for block in [*blocks(one), *blocks(two)]:
        assert torch.isfinite(block.a.grad).all()
        assert block.gate.grad is None
    assert blocks(one)[1].a.grad.any()  # the reserve learns to be orthogonal to the rank it will join


def test_eq4_one_matrix_by_hand() -> None:
    x = torch.tensor([[1.0, 2.0], [0.0, 1.0]])  # X X^T - I = [4 2; 2 0]
    assert float(orthogonality(x, squared=True)) == 24
    assert float(orthogonality(x, squared=False)) == pytest.approx(math.sqrt(24))


# -- Eq. 5 --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("norm", "expected"), [("avg", 1.125), ("sqrt", 2.25)])
def test_eq5_sensitivity(norm: str, expected: float) -> None:
    delta = torch.tensor([[1.0, -2.0], [3.0, 0.0]])
    grad = torch.tensor([[0.5, 0.5], [-1.0, 7.0]])  # |products|: 0.5, 1, 3, 0
    assert float(update_sensitivity(delta, grad, norm=norm)) == expected


def dense_gradients(small: Small) -> list[tuple[Tensor, Tensor]]:
    """(dW, dL/d(dW)) of every module by plain autograd through dense matrices, task loss of the whole batch."""
    updates = [layer.delta().detach().requires_grad_() for layer in small.layers]
    x = small.x
    for layer, update in zip(small.layers, updates, strict=True):
        x = torch.tanh(x @ (layer.base.weight + update).T + layer.base.bias)
    ((small.run.model.head(x) - small.y).square().sum() / len(x)).backward()
    return [(update.detach(), update.grad) for update in updates]


@pytest.mark.parametrize(("norm", "divisor"), [("avg", 16.0), ("sqrt", 4.0)])
def test_eq5_score_sees_the_task_gradient_alone_unclipped_and_summed_over_micro_batches(
    norm: str, divisor: float
) -> None:
    small = started(replace(METHOD, score_norm=norm, orthogonality=50.0), clip=1e-6)
    for layer in small.layers:
        blocks(layer)[0].gate.data.fill_(0.4)
        blocks(layer)[0].b.data *= 20
    by_hand = [0.15 * float((dw * g).abs().sum()) / divisor for dw, g in dense_gradients(small)]
    small.step()
    assert min(by_hand) > 1e-6
    assert small.run.scratch["sensitivity"].tolist() == pytest.approx(by_hand, rel=1e-12)


def test_eq5_signed_sum_is_lambda_times_its_gradient() -> None:
    """sum(dW o G) = sum_i lambda_i dL/dlambda_i: holds for any low-rank form, so it checks G itself."""
    small = started()
    for i, layer in enumerate(small.layers):
        for block in blocks(layer):
            block.gate.data.fill_(0.3 + i)
            block.gate.requires_grad_(True)
        layer.want_delta_grad = True
    small.loss().backward()
    for layer in small.layers:
        signed = float((layer.delta().detach() * layer.delta_grad).sum())
        gates = sum(float((b.gate.detach() * b.gate.grad).sum()) for b in blocks(layer))
        assert abs(signed) > 1e-8
        assert signed == pytest.approx(gates, rel=1e-10)


def test_eq5_a_score_that_is_not_finite_stops_the_run() -> None:
    with pytest.raises(Diverged, match="step 0"):
        score_with(scalar_modules(), [1.0, math.nan, 1.0])


# -- Eq. 6, 7, 8 --------------------------------------------------------------------------------------------


def test_eq6_sensitivity_is_smoothed() -> None:
    assert float(smooth(torch.tensor(0.0), torch.tensor(2.0), 0.85)) == pytest.approx(0.3)
    assert float(smooth(torch.tensor(0.3), torch.tensor(4.0), 0.85)) == pytest.approx(0.855)
    small = scalar_modules()
    score_with(small, [2.0, -2.0, 0.0])
    assert small.run.scratch["sensitivity"].tolist() == pytest.approx([0.3, 0.3, 0.0], abs=1e-15)
    score_with(small, [4.0, 0.0, 1.0])
    assert small.run.scratch["sensitivity"].tolist() == pytest.approx([0.855, 0.255, 0.15], abs=1e-15)


def test_eq7_uncertainty_is_measured_against_the_updated_mean() -> None:
    """|I(t) - S(t)|, not |I(t-1) - S(t)|: the first step gives .15 * 1.7, not .15 * 2."""
    assert float(uncertainty(torch.tensor(0.0), torch.tensor(2.0), torch.tensor(0.3), 0.85)) == pytest.approx(
        0.255
    )
    small = scalar_modules()
    score_with(small, [2.0, -2.0, 0.0])
    assert small.run.scratch["uncertainty"].tolist() == pytest.approx([0.255, 0.255, 0.0], abs=1e-15)
    score_with(small, [4.0, 0.0, 1.0])
    # .85 * .255 + .15 * |4 - .855| ; .85 * .255 + .15 * .255 ; .15 * .85
    assert small.run.scratch["uncertainty"].tolist() == pytest.approx([0.6885, 0.255, 0.1275], abs=1e-15)


def test_eq8_rank_is_by_the_product_and_not_by_either_factor() -> None:
    """Module 0 has the highest I, module 1 the highest U, module 2 the highest product."""
    small = scalar_modules(interval=1, growth_warmup=0)
    run = small.run
    score_with(small, [0.0, 0.0, 0.0])  # step 0: no growth, t > 0 is strict
    seen: list[list[float]] = []
    run.reduce = lambda score: seen.append(score.tolist()) or score  # type: ignore[func-returns-value]
    run.scratch["sensitivity"] = torch.tensor([1.0, 0.1, 0.8], dtype=torch.float64)
    run.scratch["uncertainty"] = torch.tensor([0.1, 1.0, 0.8], dtype=torch.float64)
    # the next S are .1, 1, .8, so that I becomes .865, .235, .8 and U .19975, .96475, .68
    score_with(small, [0.1, 1.0, 0.8])
    assert seen == [pytest.approx([0.172783750, 0.226716250, 0.544], abs=1e-12)]
    assert growths(run) == [(1, "layers.2", 1, 2)]


# -- Algorithm 1: the start ---------------------------------------------------------------------------------


@pytest.mark.parametrize("ranks", [1, 3])
def test_algorithm1_starts_with_rank_1_and_a_reserve(ranks: int) -> None:
    small = started(replace(METHOD, ranks_per_growth=ranks, target_rank=4))
    for layer in small.layers:
        first, reserve = blocks(layer)
        assert (layer.rank, layer.stored_rank, first.reserve, reserve.reserve) == (1, 1 + ranks, False, True)
        assert first.gate.tolist() == [0.0]  # dW = 0 but for the reserve
        assert reserve.gate.tolist() == [1e-5] * ranks
        assert [p.requires_grad for p in (first.a, first.b, first.gate)] == [True] * 3
        assert [p.requires_grad for p in (reserve.a, reserve.b, reserve.gate)] == [True, True, False]
        assert float(layer.delta().detach().abs().max()) < 1e-6
    assert small.run.total_rank == 3


def test_algorithm1_factors_start_gaussian() -> None:
    (layer,) = started(replace(METHOD, ranks_per_growth=9, target_rank=12), square(1, 500)).layers
    for p in (blocks(layer)[1].a, blocks(layer)[1].b):
        values = p.detach().flatten()
        assert float(values.std()) == pytest.approx(0.02, rel=0.05)
        assert abs(float(values.mean())) < 0.001
        assert 0.045 < float(values.abs().max()) < 0.12  # 4,500 draws of a bell, not of a box


def test_algorithm1_reserve_learns_while_its_lambda_stays() -> None:
    small = started(replace(METHOD, growth_warmup=10))
    before = [blocks(layer)[1].a.detach().clone() for layer in small.layers]
    for _ in range(6):
        small.step()
    for layer, old in zip(small.layers, before, strict=True):
        reserve = blocks(layer)[1]
        assert reserve.gate.tolist() == [1e-5]
        assert float((reserve.a.detach() - old).abs().min()) > 1e-5
        assert blocks(layer)[0].gate.detach().abs().min() > 1e-5


# -- Algorithm 1: growth ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("interval", "warmup", "steps"),
    [(4, 4, [8, 12, 16]), (3, 4, [6, 9, 12]), (2, 5, [6, 8, 10]), (5, 0, [5, 10, 15]), (1, 2, [3, 4, 5])],
)
def test_algorithm1_best_h_modules_grow_every_nu_steps_after_the_warm_up(
    interval: int, warmup: int, steps: list[int]
) -> None:
    """t > warm-up is strict: with warm-up = nu = 4 the first growth is at 8. 3 modules need 6 ranks, 2 at a time."""
    method = replace(METHOD, interval=interval, growth_warmup=warmup, top_h=2, target_rank=3)
    small = started(method).to_the_end()
    assert [t for t, *_ in growths(small.run)] == [t for t in steps for _ in range(2)]
    assert small.run.total_rank == 9


def test_algorithm1_selection_is_by_score_then_by_index() -> None:
    small = scalar_modules(interval=1, growth_warmup=0, top_h=2, target_rank=3)
    run = small.run
    score_with(small, [1.0, 1.0, 1.0])
    score_with(small, [1.0, 1.0, 1.0])  # all alike: the lower indices
    assert growths(run) == [(1, "layers.0", 1, 2), (1, "layers.1", 1, 2)]
    score_with(small, [0.0, 0.0, 99.0])
    # the highest score, then the lower index of the two that are alike; events are in the order of the model
    assert growths(run)[2:] == [(2, "layers.0", 2, 3), (2, "layers.2", 1, 2)]


def test_algorithm1_growth_activates_the_reserve_and_adds_a_new_one() -> None:
    small = started(replace(METHOD, top_h=1, target_rank=3))
    for _ in range(4):
        small.step()
    reserves = {name: blocks(layer)[1] for name, layer in small.run.adapters.items()}
    small.step()
    ((t, name, before, after),) = growths(small.run)
    assert (t, before, after) == (4, 1, 2)
    grown = small.run.adapters[name]
    first, second, fresh = blocks(grown)
    assert second is reserves[name]
    assert [b.reserve for b in (first, second, fresh)] == [False, False, True]
    assert second.gate.requires_grad
    assert second.gate.tolist() == [1e-5]  # it starts to move from there
    assert fresh.gate.tolist() == [1e-5]
    assert not fresh.gate.requires_grad
    for other, layer in small.run.adapters.items():
        if other != name:
            assert blocks(layer)[1:] == [reserves[other]]
    group = small.group("grown at step 4")
    assert {id(p) for p in group["params"]} == {id(p) for p in (second.gate, fresh.a, fresh.b)}
    assert (group["born"], group["warmup"], group["weight_decay"], group["peak_lr"]) == (5, 3, 0.01, 0.01)


def test_algorithm1_a_new_group_restarts_its_own_warm_up() -> None:
    """T = 20, warm-up 3, growths at 4, 6, 8: the groups are born at 5, 7, 9 and all end at 0."""
    small = started()
    names = [f"grown at step {t}" for t in (4, 6)]  # at 8 the last rank is given; its group follows below
    fresh: dict[str, list[Tensor]] = {}
    for t in range(20):
        if t in (5, 7):
            fresh = {n: [p.detach().clone() for p in small.group(n)["params"]] for n in names[: t // 2 - 1]}
        small.step()
        if t in (5, 7):  # the first step with a gradient has lr 0: nothing moves
            latest = names[t // 2 - 2]
            group = small.group(latest)
            assert all(p.grad is not None for p in group["params"])
            assert all(torch.equal(p, q) for p, q in zip(group["params"], fresh[latest], strict=True))
    assert [t for t, *_ in growths(small.run)] == [4, 6, 8]
    for name, born in (("adapter", 0), ("head", 0), (names[0], 5), (names[1], 7), ("grown at step 8", 9)):
        life = 20 - born
        warm = [0.0, 0.01 / 3, 0.02 / 3]
        down = [0.01 * (life - age) / (life - 3) for age in range(3, life)]
        got = [rates[name] for rates in small.rates if name in rates]
        assert got[-life:] == pytest.approx(warm + down, abs=1e-15)
        assert got[:-life] == [0.0] * (len(got) - life)
        small.run.seek(20)
        assert small.run.lr_of(small.group(name)) == 0.0


# -- Algorithm 1: the exact final total ---------------------------------------------------------------------


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_algorithm1_reaches_exactly_the_final_total(ranks: int) -> None:
    """3 modules at target 5 need 12 ranks: with 4 per growth and h = 2 the authors' rule would add 16."""
    method = replace(METHOD, target_rank=5, ranks_per_growth=ranks, top_h=2, interval=1)
    small = started(method, total=14).to_the_end()
    trace = [total for _, total in small.run.budget.trace]
    assert trace == sorted(trace)
    assert trace[-1] == small.run.total_rank == 15
    method.check(small.run)


def test_algorithm1_partial_last_growth_is_compacted_in_model_and_optimizer() -> None:
    method = replace(METHOD, target_rank=2, ranks_per_growth=2, top_h=1, interval=2)
    small = started(method, total=12).to_the_end()  # 3 ranks are missing: 2, then 1 of 2
    assert [after - before for *_, before, after in growths(small.run)] == [2, 1]
    assert sorted(layer.rank for layer in small.layers) in ([1, 2, 3], [1, 1, 4])
    for layer in small.layers:
        assert layer.stored_rank == layer.rank
    method.check(small.run)


@settings(max_examples=300)
@given(
    scores=st.lists(st.floats(0, 1, allow_nan=False), min_size=1, max_size=8),
    h=st.integers(1, 8),
    ranks=st.integers(1, 4),
    target=st.integers(1, 8),
)
def test_algorithm1_allocation_ends_exactly_at_the_target(
    scores: list[float], h: int, ranks: int, target: int
) -> None:
    """Repeating `grow_top` never overshoots, never stalls, and gives whole growths but to the very last module."""
    n = len(scores)
    total = n
    while total < target * n:
        gained = grow_top(scores, modules=h, ranks=ranks, remaining=target * n - total)
        assert 1 <= len(gained) <= h
        assert sum(g < ranks for g in gained.values()) <= 1
        total += sum(gained.values())
        if any(g < ranks for g in gained.values()):
            assert total == target * n
    assert total == target * n


@settings(max_examples=200)
@given(
    modules=st.integers(1, 3),
    target=st.integers(1, 4),
    ranks=st.integers(1, 4),
    top_h=st.integers(1, 3),
    interval=st.integers(1, 3),
    growth_warmup=st.integers(0, 3),
    total=st.integers(4, 10),
    advance=st.booleans(),
)
def test_algorithm1_whole_growth_for_random_settings(
    modules: int,
    target: int,
    ranks: int,
    top_h: int,
    interval: int,
    growth_warmup: int,
    total: int,
    advance: bool,
) -> None:
    """`precheck` accepts exactly the settings that end at the target; the total never passes it on the way."""
    method = replace(
        METHOD,
        target_rank=target,
        ranks_per_growth=ranks,
        top_h=min(top_h, modules),
        interval=interval,
        growth_warmup=growth_warmup,
        advance_learning=advance,
    )
    facts = Facts(total_steps=total, steps_per_epoch=total, warmup=1, modules=modules)
    try:
        method.precheck(facts)
        accepted = True
    except UserError:
        accepted = False
    small = started(method, square(modules, 2), total=total, warmup=1).to_the_end()
    run = small.run
    totals = [rank for _, rank in run.budget.trace]
    assert totals == sorted(totals)
    assert totals[-1] <= target * modules
    assert (run.total_rank == target * modules) is accepted
    per_event: dict[int, int] = {}
    for t, _, before, after in growths(run):
        per_event[t] = per_event.get(t, 0) + after - before
    assert all(gain <= method.top_h * ranks for gain in per_event.values())
    assert sum(per_event.values()) + modules == run.total_rank
    if not accepted:
        with pytest.raises(PromiseBroken, match=f"instead of {target * modules}"):
            method.check(run)
        return
    method.check(run)
    assert run.optimizer is not None
    kept = [p for group in run.optimizer.param_groups for p in group["params"]]
    assert len({id(p) for p in kept}) == len(kept)
    assert {id(p) for p in kept} == {id(p) for p in run.trainable_parameters()}
    assert {id(p) for p in run.optimizer.state} <= {id(p) for p in kept}
    for layer in small.layers:
        assert not any(b.reserve for b in blocks(layer))
        assert layer.stored_rank == layer.rank


# -- Algorithm 1: the end -----------------------------------------------------------------------------------


def test_algorithm1_at_the_end_reserves_leave_model_and_optimizer_and_scoring_stops() -> None:
    small = started()
    run = small.run
    assert run.optimizer is not None
    while run.total_rank < 6:
        small.step()
        assert all(layer.want_delta_grad for layer in small.layers) or run.total_rank == 6
    assert run.step == 9
    stored = {id(p) for layer in small.layers for p in layer.blocks.parameters()}
    kept = in_optimizer(run)
    head = {id(p) for p in run.head}
    assert kept == stored | head
    assert set(map(id, run.optimizer.state)) <= kept
    smoothed = run.scratch["sensitivity"].clone()
    small.step()
    for layer in small.layers:
        assert not any(b.reserve for b in blocks(layer))
        assert all(b.gate.requires_grad for b in blocks(layer))
        assert (layer.want_delta_grad, layer.delta_grad) == (False, None)
    assert torch.equal(run.scratch["sensitivity"], smoothed)
    small.to_the_end()
    small.method.check(run)


def test_algorithm1_every_growth_is_an_event() -> None:
    small = started(replace(METHOD, top_h=2, target_rank=3)).to_the_end()
    events = growths(small.run)
    assert len(events) == len(small.run.events) == 6
    ranks = dict.fromkeys(small.run.adapters, 1)
    for _, module, before, after in events:
        assert (ranks[module], after) == (before, before + 1)
        ranks[module] = after
    assert ranks == {name: layer.rank for name, layer in small.run.adapters.items()}
    assert small.run.budget.trace == [[0, 3], [4, 5], [6, 7], [8, 9]]


def test_algorithm1_target_rank_1_has_nothing_to_grow() -> None:
    method = replace(METHOD, target_rank=1)
    method.precheck(Facts(total_steps=20, steps_per_epoch=20, warmup=3, modules=3))
    small = started(method)
    assert [layer.stored_rank for layer in small.layers] == [1, 1, 1]
    start = float(small.loss().detach())
    small.to_the_end()
    assert small.run.events == []
    assert all(layer.delta_grad is None for layer in small.layers)
    assert float(small.loss().detach()) < start
    method.check(small.run)


# -- the ablations of section 4.4 ---------------------------------------------------------------------------


def snapshot(small: Small) -> dict[str, Any]:
    """All that a switch could change before the first step, and the first task gradient."""
    run = small.run
    small.method.before_forward(run)
    small.loss().backward()
    penalty = small.method.penalty(run)
    assert run.optimizer is not None
    names = {id(p): name for name, p in run.model.named_parameters()}
    return {
        "values": {
            n: p.detach().tolist() for n, p in run.model.named_parameters() if "blocks.1.gate" not in n
        },
        "reserve gates": [blocks(layer)[1].gate.tolist() for layer in small.layers],
        "trainable": {n for n, p in run.model.named_parameters() if p.requires_grad},
        "groups": [
            (g["name"], g["born"], g["warmup"], g["peak_lr"], [names[id(p)] for p in g["params"]])
            for g in run.optimizer.param_groups
        ],
        "scales": [layer.scale for layer in small.layers],
        "penalty": None if penalty is None else float(penalty.detach()),
        "scored": [layer.want_delta_grad for layer in small.layers],
    }


def ablated(**changes: Any) -> tuple[dict[str, Any], dict[str, Any], Small]:
    """Snapshots of the full method and of the ablation, and a fresh run of the ablation."""
    full, part = (started(replace(METHOD, **c)) for c in ({}, changes))
    return snapshot(full), snapshot(part), started(replace(METHOD, **changes))


RESERVES = {f"layers.{i}.blocks.1.{name}" for i in range(3) for name in "ab"}


def test_ablation_advance_learning_off_lets_the_reserve_sleep() -> None:
    full, part, small = ablated(advance_learning=False)
    # the penalty too: nothing is kept orthogonal to a reserve that sleeps
    assert {k for k in full if full[k] != part[k]} == {"reserve gates", "trainable", "groups", "penalty"}
    counted = [layer.factors(reserve=False) for layer in small.layers]
    gaps = [
        float(torch.linalg.matrix_norm(x @ x.T - torch.eye(len(x))).detach())
        for f in counted
        for x in (f.a, f.b)
    ]
    assert part["penalty"] == pytest.approx(METHOD.orthogonality * sum(gaps) / len(gaps))
    assert part["reserve gates"] == [[0.0]] * 3
    assert full["trainable"] - part["trainable"] == RESERVES
    ours, theirs = ({n: set(p) for n, *_, p in s["groups"]} for s in (part, full))
    assert theirs["adapter"] - ours["adapter"] == RESERVES
    assert ours["head"] == theirs["head"]

    assert all(not layer.delta().any() for layer in small.layers)
    sleeping = [blocks(layer)[1] for layer in small.layers]
    asleep = [b.a.detach().clone() for b in sleeping]
    for _ in range(5):
        small.step()
    ((t, name, *_),) = growths(small.run)
    assert t == 4
    grown = list(small.run.adapters).index(name)
    group = small.group("grown at step 4")
    woken = sleeping[grown]
    assert {id(p) for p in group["params"]} == {id(p) for p in (woken.gate, woken.a, woken.b)}
    assert group["born"] == 5
    assert woken.gate.tolist() == [0.0]
    assert all(torch.equal(b.a, old) for b, old in zip(sleeping, asleep, strict=True))
    small.to_the_end()
    assert woken.gate.detach().abs().min() > 0
    assert not torch.equal(woken.a, asleep[grown])
    small.method.check(small.run)


def test_ablation_orthogonality_0_has_no_penalty() -> None:
    full, part, small = ablated(orthogonality=0.0)
    assert {k for k in full if full[k] != part[k]} == {"penalty"}
    assert part["penalty"] is None
    small.to_the_end()
    assert [t for t, *_ in growths(small.run)] == [4, 6, 8]
    small.method.check(small.run)


def test_ablation_restart_warmup_off_follows_the_first_curve() -> None:
    full, part, small = ablated(restart_warmup=False)
    assert full == part
    small.to_the_end()
    with_restart = started().to_the_end()
    # same growths: nothing differs until the first group is born; then the same members at another rate
    assert [t for t, *_ in growths(small.run)] == [4, 6, 8]
    assert growths(small.run)[0] == growths(with_restart.run)[0]
    assert small.rates[:4] == with_restart.rates[:4]
    for t, rates in enumerate(small.rates):
        assert len(set(rates.values())) == 1, f"all groups share one curve (step {t})"
    assert len(small.rates[-1]) == 5
    assert {g["born"] for g in small.run.optimizer.param_groups} == {0}  # type: ignore[union-attr]
    assert {g["born"] for g in with_restart.run.optimizer.param_groups} == {0, 5, 7, 9}  # type: ignore[union-attr]
    small.method.check(small.run)


def test_ablation_all_off_is_raw_incremental_allocation() -> None:
    full, part, small = ablated(advance_learning=False, orthogonality=0.0, restart_warmup=False)
    assert {k for k in full if full[k] != part[k]} == {"reserve gates", "trainable", "groups", "penalty"}
    assert part["penalty"] is None
    small.to_the_end()
    assert [t for t, *_ in growths(small.run)] == [4, 6, 8]
    assert {len(set(rates.values())) for rates in small.rates} == {1}
    small.method.check(small.run)


# -- refusals -----------------------------------------------------------------------------------------------

FACTS = Facts(total_steps=20, steps_per_epoch=10, warmup=5, modules=3)


def test_precheck_refuses_a_target_out_of_reach_with_the_numbers() -> None:
    """Steps 10 and 15 grow (5 is not after the warm-up): 2 x 1 x 2 = 4 ranks, 6 are missing."""
    method = replace(METHOD, interval=5, growth_warmup="25%", target_rank=3, ranks_per_growth=2)
    with pytest.raises(UserError) as caught:
        method.precheck(FACTS)
    text = str(caught.value)
    for part in (
        "2 growths in 20 steps",
        "one every 5 after step 5",
        "1 modules x 2 ranks add 4 ranks",
        "needs 6",
    ):
        assert part in text
    replace(method, ranks_per_growth=3).precheck(FACTS)  # 2 x 1 x 3 = 6 is enough
    replace(method, interval="0.5ep", top_h="67%").precheck(FACTS)  # ceil(2.01) = 3 modules


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"top_h": 4}, "method.top_h=4 is above the number of adapted modules, 3"),
        ({"top_h": 0}, "method.top_h=0"),
        ({"top_h": "many"}, "'many'"),
        ({"top_h": "inf%"}, "'inf%'"),
        ({"top_h": "nan%"}, "'nan%'"),
        ({"interval": 0}, "method.interval=0"),
        ({"interval": "often"}, "method.interval='often'"),
    ],
)
def test_precheck_refuses_what_cannot_work(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        replace(METHOD, **changes).precheck(FACTS)


def test_precheck_refuses_a_warm_up_longer_than_the_training() -> None:
    with pytest.raises(UserError, match="train.warmup is 20 steps, but the whole training has 20"):
        METHOD.precheck(replace(FACTS, warmup=20))


@pytest.mark.parametrize(
    "changes",
    [
        {"target_rank": 0},
        {"ranks_per_growth": 0},
        {"alpha": 0.0},
        {"beta1": 1.0},
        {"beta2": -0.1},
        {"dropout": 1.0},
        {"init_std": 0.0},
        {"orthogonality": -1.0},
        {"orthogonality": math.nan},
        {"score_norm": "max"},
        {"scale_by": "rank"},
    ],
)
def test_settings_that_cannot_work_are_refused(changes: dict[str, Any]) -> None:
    ((name, value),) = changes.items()
    with pytest.raises(UserError, match=f"method.{name}='?{value}"):
        replace(METHOD, **changes)


def test_check_notices_a_broken_promise() -> None:
    small = started()
    with pytest.raises(PromiseBroken, match="3 ranks instead of 6"):
        METHOD.check(small.run)
    small.to_the_end()
    small.run.events.clear()
    with pytest.raises(PromiseBroken, match="never grew"):
        METHOD.check(small.run)
