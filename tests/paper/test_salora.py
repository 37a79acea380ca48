"""SaLoRA (Mathematics 2023, from memory of the paper) by hand; the steps are those of methods.md section 9."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_runs import Net, Small, merged_output
from torch import Tensor

from adalora_bench.errors import PromiseBroken, UserError
from adalora_bench.lowrank.scores import expected_open, hard_concrete_gate, hard_concrete_sample
from adalora_bench.methods.base import Facts
from adalora_bench.methods.salora import SaLora

METHOD = SaLora(
    version=1,
    targets=["all"],
    lr=0.01,
    head_lr=None,
    init_rank=4,
    target_rank=2,
    alpha=8.0,
    beta=2 / 3,
    low=-0.1,
    high=1.1,
    log_alpha=2.2,
    gate_lr=0.05,
    multiplier_lr=0.01,
    exact_budget=True,
    orthogonality=0.1,
    orthogonality_squared=False,
    dropout=0.0,
)
STRETCH = {"low": -0.1, "high": 1.1}
CONCRETE = {"beta": 2 / 3} | STRETCH


def tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def filled(small: Small, log_alpha: list[list[float]] | None = None) -> Small:
    """B is random instead of 0, so that every gradient flows; gates as given."""
    for i, block in enumerate(small.blocks):
        block.b.data.copy_(torch.randn(block.b.shape, generator=torch.Generator().manual_seed(2 + i)))
        if log_alpha is not None:
            block.gate.data.copy_(tensor(*log_alpha[i]))
    small.method.setup(small.run)
    return small


# -- the gate -------------------------------------------------------------------------------------------------


def test_gate_sample_is_a_stretched_and_clipped_draw() -> None:
    # log_alpha 0.5, u = .6: s = sigmoid((log 1.5 + .5) * 1.5) = .796; z = 1.2 s - .1
    s = sigmoid((math.log(1.5) + 0.5) * 1.5)
    z = hard_concrete_sample(tensor(0.5, 0.5, 0.5), tensor(0.6, 1e-3, 1 - 1e-3), **CONCRETE)
    assert z.tolist() == pytest.approx([1.2 * s - 0.1, 0.0, 1.0], rel=1e-14)


def test_gate_at_test_time_is_free_of_chance_and_closes_at_log_1_11() -> None:
    z = hard_concrete_gate(tensor(0.0, 1.0, 2.5, -2.5), **STRETCH)
    assert z.tolist() == pytest.approx([0.5, 1.2 * sigmoid(1.0) - 0.1, 1.0, 0.0], abs=1e-15)
    edge = math.log(0.1 / 1.1)  # sigmoid = 1/12, times 1.2 = .1
    closed, opened = hard_concrete_gate(tensor(edge - 1e-9, edge + 1e-9), **STRETCH)
    assert float(closed) == 0
    assert float(opened) > 0


def test_expected_l0_by_hand() -> None:
    # sigmoid(log_alpha - 2/3 log(1/11)) = sigmoid(log_alpha + 1.598597)
    p = expected_open(tensor(0.0, -1.0), **CONCRETE)
    assert p.tolist() == pytest.approx([sigmoid(1.5985968), sigmoid(0.5985968)], rel=1e-7)
    logits = tensor(0.3, -0.4).requires_grad_()
    expected_open(logits, **CONCRETE).sum().backward()
    by_hand = [q * (1 - q) for q in expected_open(logits.detach(), **CONCRETE).tolist()]
    assert logits.grad.tolist() == pytest.approx(by_hand, rel=1e-12)  # type: ignore[union-attr]


@settings(max_examples=200)
@given(
    log_alpha=st.floats(-6, 6),
    beta=st.floats(0.1, 2),
    low=st.floats(-0.5, -0.01),
    high=st.floats(1.01, 1.5),
    u=st.floats(0.001, 0.999),
)
def test_expected_l0_is_the_probability_of_an_open_gate(
    log_alpha: float, beta: float, low: float, high: float, u: float
) -> None:
    """z > 0 exactly for u > 1 - P(z > 0): the whole quantile, so no sampling error. And z rises with u."""
    kind = {"beta": beta, "low": low, "high": high}
    p = float(expected_open(tensor(log_alpha), **kind))
    edge = 1 - p
    if abs(u - edge) > 1e-9:
        z = float(hard_concrete_sample(tensor(log_alpha), tensor(u), **kind))
        assert 0 <= z <= 1
        assert (z > 0) == (u > edge)
        assert z <= float(hard_concrete_sample(tensor(log_alpha), tensor(min(u + 1e-4, 0.9999)), **kind))


# -- the layer ------------------------------------------------------------------------------------------------


def test_update_is_alpha_over_the_first_rank_times_the_gated_ranks() -> None:
    small = filled(Small(METHOD, (3, 2)), [[2.5, 0.0, -2.5, 1.0]])
    (layer,), (block,) = small.layers, small.blocks
    gates = [1.0, 0.5, 0.0, 1.2 * sigmoid(1.0) - 0.1]
    by_hand = sum(2.0 * z * torch.outer(block.b[i], block.a[i]) for i, z in enumerate(gates))
    torch.testing.assert_close(layer.delta(), by_hand, rtol=1e-12, atol=1e-14)


def test_start_output_is_unchanged_whatever_is_drawn() -> None:
    small = Small(METHOD)
    assert torch.equal(small.run.model(small.x), Net((4, 5, 3))(small.x))
    METHOD.before_forward(small.run)
    assert torch.equal(small.run.model(small.x), Net((4, 5, 3))(small.x))


def test_draw_comes_from_the_generator_of_the_run_once_per_step() -> None:
    small, twin = Small(METHOD), Small(METHOD)
    u = torch.rand(8, generator=twin.run.generator, dtype=torch.float64)
    small.backward()
    assert torch.equal(small.run.generator.get_state(), twin.run.generator.get_state())
    z = hard_concrete_sample(tensor(*[2.2] * 8), u, **CONCRETE)
    used = torch.cat([block.step_gate for block in small.blocks if block.step_gate is not None])
    torch.testing.assert_close(used.detach(), z, rtol=0, atol=0)


@pytest.mark.parametrize("pieces", [(slice(0, 6),), (slice(0, 2), slice(2, 6))])
def test_gradient_of_log_alpha_is_autograds_for_any_number_of_micro_batches(
    pieces: tuple[slice, ...],
) -> None:
    start = [[0.5, -0.3, 1.0, 0.1], [-0.5, 0.2, 0.0, 0.7]]
    small = filled(Small(replace(METHOD, orthogonality=0.0)), start)
    small.run.scratch["multiplier"] = tensor(0.7)[0]
    twin = filled(Small(METHOD), start)
    small.backward(pieces)
    logits = [tensor(*row).requires_grad_() for row in start]
    u = torch.rand(8, generator=twin.run.generator, dtype=torch.float64).split(4)
    x = small.x
    for i, (layer, block) in enumerate(zip(twin.layers, twin.blocks, strict=True)):
        z = hard_concrete_sample(logits[i], u[i], **CONCRETE)
        x = torch.tanh(x @ (layer.base.weight + 2.0 * (block.b.T * z) @ block.a).T + layer.base.bias)
    loss = (twin.run.model.head(x) - twin.y).square().sum() / len(x)
    expected = sum(expected_open(row, **CONCRETE).sum() for row in logits) / 2 - 2
    assert float(expected.detach()) > 0  # type: ignore[union-attr]
    (loss + 0.7 * expected).backward()
    for block, row in zip(small.blocks, logits, strict=True):
        assert block.gate.grad.any()
        torch.testing.assert_close(block.gate.grad, row.grad, rtol=1e-10, atol=1e-14)


# -- the budget -----------------------------------------------------------------------------------------------


def test_penalty_is_multiplier_times_excess_plus_orthogonality() -> None:
    small = filled(Small(replace(METHOD, init_rank=2, target_rank=1), (2, 2)), [[0.0, -1.0]])
    (block,) = small.blocks
    block.a.data.copy_(torch.tensor([[1.0, 0.0], [1.0, 1.0]]))  # A A^T - I = [0 1; 1 1]: sqrt 3
    block.b.data.copy_(torch.tensor([[2.0, 0.0], [0.0, 1.0]]))  # B B^T - I = [3 0; 0 0]: 3
    small.run.scratch["multiplier"] = tensor(0.5)[0]
    excess = sigmoid(1.5985968) + sigmoid(0.5985968) - 1
    penalty = small.method.penalty(small.run)
    assert penalty is not None
    assert float(penalty.detach()) == pytest.approx(0.5 * excess + 0.1 * (math.sqrt(3) + 3) / 2, rel=1e-7)


def test_multiplier_rises_by_its_rate_times_the_excess_and_stops_when_the_budget_holds() -> None:
    method = replace(METHOD, init_rank=2, target_rank=1, multiplier_lr=0.25)
    small = filled(Small(method, (2, 2)), [[0.0, -1.0]])
    excess = sigmoid(1.5985968) + sigmoid(0.5985968) - 1
    method.after_step(small.run)
    assert float(small.run.scratch["multiplier"]) == pytest.approx(0.25 * excess, rel=1e-7)
    method.after_step(small.run)
    assert float(small.run.scratch["multiplier"]) == pytest.approx(0.5 * excess, rel=1e-7)
    small.blocks[0].gate.data.copy_(tensor(-2.0, -3.0))  # .40 + .20 open: below 1
    before = float(small.run.scratch["multiplier"])
    method.after_step(small.run)
    assert float(small.run.scratch["multiplier"]) == before
    assert float(method.excess(small.run).detach()) == 0


def test_training_closes_gates_until_the_budget_holds_by_itself() -> None:
    method = replace(METHOD, exact_budget=False, gate_lr=0.1, multiplier_lr=0.05)
    small = Small(method, total=300)
    multipliers: list[float] = []
    small.to_the_end(lambda: multipliers.append(float(small.run.scratch["multiplier"])))
    assert multipliers == sorted(multipliers)
    assert multipliers[0] > 0
    method.check(small.run)
    assert 0 < small.run.total_rank <= 4
    assert small.run.scratch["forced"] == 0
    assert {e.kind for e in small.run.events} == {"prune"}


def test_a_budget_that_does_not_hold_is_a_broken_promise() -> None:
    small = Small(replace(METHOD, exact_budget=False), total=3).to_the_end()
    with pytest.raises(PromiseBroken, match="8 open ranks, above its budget of 4"):
        small.method.check(small.run)


# -- the end --------------------------------------------------------------------------------------------------


def test_finalize_removes_closed_gates_and_keeps_the_output() -> None:
    small = filled(Small(METHOD), [[0.5, -2.5, 1.0, -3.0], [-4.0, -2.5, -9.0, -3.0]])
    before = small.run.model(small.x).detach()
    METHOD.finalize(small.run)
    assert [layer.rank for layer in small.layers] == [2, 0]
    assert [layer.stored_rank for layer in small.layers] == [2, 0]
    assert small.run.scratch["forced"] == 0
    assert [(e.kind, e.module, e.before, e.after) for e in small.run.events] == [
        ("prune", "layers.0", 4, 2),
        ("prune", "layers.1", 4, 0),
    ]
    (block,) = small.blocks
    by_hand = [1.2 * sigmoid(0.5) - 0.1, 1.2 * sigmoid(1.0) - 0.1]
    assert block.gate.tolist() == pytest.approx(by_hand, rel=1e-14)
    assert block.step_gate is None
    torch.testing.assert_close(small.run.model(small.x).detach(), before, rtol=0, atol=1e-14)
    torch.testing.assert_close(merged_output(small), before, rtol=0, atol=1e-12)


def test_finalize_takes_the_weakest_open_gates_too_where_the_budget_is_exact() -> None:
    small = filled(Small(METHOD), [[0.5, 0.4, 1.0, 0.9], [0.8, -9.0, 0.1, 0.2]])
    METHOD.finalize(small.run)  # budget 4 of 7 open ones: 1.0, .9, .8, .5
    assert [layer.rank for layer in small.layers] == [3, 1]
    assert small.run.scratch["forced"] == 3
    assert any("3 of the 4 removed ranks were still open" in note for note in METHOD.notes(small.run))
    METHOD.check(small.run)


def test_a_budget_held_by_shrinking_all_gates_is_said() -> None:
    """The gates in evaluation are 1.2 sigmoid(log_alpha) - 0.1: 0.07 at -1.8, 0.22 at -1.0, 0.98 at 2.2."""
    shrunk = filled(Small(METHOD), [[-1.8, -1.8, -1.8, -1.0], [-9.0, -9.0, -9.0, -9.0]])
    METHOD.finalize(shrunk.run)
    assert any("shrank the update" in note for note in METHOD.notes(shrunk.run))
    chosen = filled(Small(METHOD), [[-1.8, -1.8, 2.2, 2.2], [-9.0, -9.0, -9.0, -9.0]])
    METHOD.finalize(chosen.run)
    assert len(METHOD.notes(chosen.run)) == 1  # and no rank was forced out


@settings(max_examples=200)
@given(
    init=st.integers(1, 5),
    data=st.data(),
    exact=st.booleans(),
    seed=st.integers(0, 2**40),
    total=st.integers(2, 4),
)
def test_invariants_for_any_gates(init: int, data: st.DataObject, exact: bool, seed: int, total: int) -> None:
    """Final rank = min(open, budget); the multiplier never falls; merged = adapted; nothing dead is stored."""
    target = data.draw(st.integers(1, init))
    method = replace(METHOD, init_rank=init, target_rank=target, exact_budget=exact)
    small = Small(method, (3, 2, 2), total=total, seed=seed)
    row = st.lists(st.floats(-5, 5), min_size=init, max_size=init)
    filled(small, [data.draw(row), data.draw(row)])
    while small.run.step < total:
        before = float(small.run.scratch["multiplier"])
        small.step()
        assert float(small.run.scratch["multiplier"]) >= before
    opened = sum(int((hard_concrete_gate(block.gate, **STRETCH) > 0).sum()) for block in small.blocks)
    method.finalize(small.run)
    assert small.run.total_rank == (min(opened, 2 * target) if exact else opened)
    assert all(bool((block.gate > 0).all()) for block in small.blocks)
    assert sum(block.rank for block in small.blocks) == small.run.total_rank
    assert all(
        torch.equal(x.base.weight, y.weight) for x, y in zip(small.layers, Net((3, 2, 2)).layers, strict=True)
    )
    torch.testing.assert_close(merged_output(small), small.run.model(small.x).detach(), rtol=0, atol=1e-12)


def test_gates_have_a_group_of_their_own_without_weight_decay() -> None:
    small = Small(METHOD)
    assert small.run.optimizer is not None
    groups = {g["name"]: g for g in small.run.optimizer.param_groups}
    assert {id(p) for p in groups["gate"]["params"]} == {id(block.gate) for block in small.blocks}
    assert (groups["gate"]["peak_lr"], groups["gate"]["weight_decay"]) == (0.05, 0.0)
    assert (groups["adapter"]["peak_lr"], groups["adapter"]["weight_decay"]) == (0.01, 0.01)
    assert len(groups["adapter"]["params"]) == 4


# -- refusals -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target_rank": 0}, "method.target_rank=0"),
        ({"target_rank": 5}, "method.init_rank=4 is below method.target_rank=5"),
        ({"low": 0.0}, "method.low=0.0"),
        ({"high": 1.0}, "method.high=1.0"),
        ({"beta": 0.0}, "method.beta=0.0"),
        ({"gate_lr": 0.0}, "method.gate_lr=0.0"),
        ({"multiplier_lr": math.nan}, "method.multiplier_lr=nan"),
        ({"alpha": -1.0}, "method.alpha=-1.0"),
        ({"log_alpha": math.inf}, "method.log_alpha=inf"),
        ({"orthogonality": -0.1}, "method.orthogonality=-0.1"),
        ({"dropout": 1.0}, "method.dropout=1.0"),
    ],
)
def test_settings_that_cannot_work_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        replace(METHOD, **changes)


def test_targets_that_match_nothing_are_refused() -> None:
    with pytest.raises(UserError, match="names no layer"):
        METHOD.precheck(Facts(total_steps=10, steps_per_epoch=10, warmup=0, modules=0))
