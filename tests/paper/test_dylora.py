"""DyLoRA (arXiv 2210.07558, from memory of the paper) by hand; the steps are those of methods.md section 9."""

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
from adalora_bench.methods.dylora import DyLora

METHOD = DyLora(
    version=1,
    targets=["all"],
    lr=0.01,
    head_lr=None,
    rank_min=1,
    rank_max=4,
    eval_rank=None,
    alpha=8.0,
    frozen=False,
    hold_inactive=True,
    dropout=0.0,
)


def filled(small: Small) -> Small:
    """B is random instead of 0, so that every gradient flows."""
    for block in small.blocks:
        block.b.data.copy_(torch.randn(block.b.shape, generator=torch.Generator().manual_seed(2)))
    return small


def rows(small: Small) -> list[Tensor]:
    """A and B of every layer, copied."""
    return [p.detach().clone() for block in small.blocks for p in (block.a, block.b)]


def moved(before: list[Tensor], after: list[Tensor]) -> list[set[int]]:
    """Which rows (1-based ranks) differ, tensor by tensor."""
    return [
        {i + 1 for i in range(len(x)) if not torch.equal(x[i], y[i])}
        for x, y in zip(before, after, strict=True)
    ]


# -- the draw -------------------------------------------------------------------------------------------------


def test_step_1_b_is_uniform_on_its_range_and_comes_from_the_generator_of_the_run() -> None:
    method = replace(METHOD, rank_min=2, rank_max=5)
    small, twin = Small(method), Small(method)
    drawn = []
    for _ in range(2000):
        method.before_forward(small.run)
        drawn.append(small.run.scratch["active"])
    by_hand = [int(torch.randint(2, 6, (), generator=twin.run.generator)) for _ in range(2000)]
    assert drawn == by_hand
    counts = [drawn.count(b) for b in range(1, 6)]
    assert counts[0] == 0
    assert all(abs(count - 500) < 80 for count in counts[1:])  # 4 standard deviations
    assert small.run.scratch["drawn"].tolist() == counts


def test_step_1_all_layers_and_micro_batches_of_a_step_share_b() -> None:
    small = filled(Small(METHOD))
    small.backward()
    b = small.run.scratch["active"]
    for layer, block in zip(small.layers, small.blocks, strict=True):
        assert block.step_gate is not None
        assert block.step_gate.tolist() == [1.0] * b + [0.0] * (4 - b)
        assert layer.scale == 8 / b


# -- the forward pass -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("b", "expected"), [(1, 8 * 3), (2, 4 * (3 + 10)), (3, 8 / 3 * (3 + 10 + 28))])
def test_step_2_update_is_alpha_over_b_times_the_first_b_ranks(b: int, expected: float) -> None:
    small = Small(replace(METHOD, rank_max=3), (1, 1))
    (layer,), (block,) = small.layers, small.blocks
    block.a.data.copy_(torch.tensor([[1.0], [2.0], [4.0]]))
    block.b.data.copy_(torch.tensor([[3.0], [5.0], [7.0]]))
    METHOD.use_rank(layer, b)
    assert float(layer.delta().detach()) == pytest.approx(expected, rel=1e-15)
    x = torch.tensor([[2.0]], dtype=torch.float64)
    assert float((layer(x) - layer.base(x)).detach()) == pytest.approx(2 * expected, rel=1e-12)


def test_start_output_is_unchanged_at_every_rank() -> None:
    small = Small(METHOD)
    for b in range(1, 5):
        for layer in small.layers:
            METHOD.use_rank(layer, b)
        assert torch.equal(small.run.model(small.x), Net((4, 5, 3))(small.x))
    with pytest.raises(PromiseBroken, match="0 steps|in 20 steps"):
        METHOD.check(small.run)


# -- the update -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("frozen", [False, True])
def test_step_3_gradient_is_that_of_the_lora_of_rank_b_on_the_rows_that_learn(frozen: bool) -> None:
    method = replace(METHOD, frozen=frozen)
    small = filled(Small(method))
    small.backward()
    b = small.run.scratch["active"]
    assert b == 1 + int(torch.randint(0, 4, (), generator=_after_start(method)))
    slices = [p.detach()[:b].clone().requires_grad_() for block in small.blocks for p in (block.a, block.b)]
    x = small.x
    for i, layer in enumerate(small.layers):
        dense = 8 / b * slices[2 * i + 1].T @ slices[2 * i]
        x = torch.tanh(x @ (layer.base.weight + dense).T + layer.base.bias)
    ((small.run.model.head(x) - small.y).square().sum() / len(x)).backward()
    learn = [b - 1] if frozen else list(range(b))
    params = [p for block in small.blocks for p in (block.a, block.b)]
    for p, plain in zip(params, slices, strict=True):
        torch.testing.assert_close(p.grad[learn], plain.grad[learn], rtol=1e-10, atol=1e-13)
        rest = [i for i in range(4) if i not in learn]
        assert not p.grad[rest].any()


def _after_start(method: DyLora) -> torch.Generator:
    """The generator of a run right after `begin`."""
    return Small(method).run.generator


@pytest.mark.parametrize("frozen", [False, True])
def test_step_3_only_the_active_rows_move_even_under_momentum_and_weight_decay(frozen: bool) -> None:
    small = filled(Small(replace(METHOD, frozen=frozen), weight_decay=0.1))
    seen = set()
    for _ in range(20):
        before = rows(small)
        small.step()
        b = small.run.scratch["active"]
        seen.add(b)
        expected = {b} if frozen else set(range(1, b + 1))
        assert moved(before, rows(small)) == [expected] * 4
    assert seen == {1, 2, 3, 4}


def test_step_3_option_adam_moves_inactive_rows_on() -> None:
    small = filled(Small(replace(METHOD, hold_inactive=False)))
    drifted = False
    for _ in range(20):
        before = rows(small)
        small.step()
        drifted |= len(moved(before, rows(small))[0]) > small.run.scratch["active"]
    assert drifted


# -- evaluation and export --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("eval_rank", "used"), [(None, 4), (4, 4), (2, 2)])
def test_step_4_evaluation_is_at_rank_max_or_eval_rank(eval_rank: int | None, used: int) -> None:
    small = Small(replace(METHOD, eval_rank=eval_rank))

    def at_rank() -> None:
        for layer, block in zip(small.layers, small.blocks, strict=True):
            expected = 8 / used * block.b[:used].T @ block.a[:used]
            torch.testing.assert_close(layer.delta(), expected, rtol=1e-12, atol=1e-14)

    at_rank()
    small.to_the_end(at_rank)
    at_rank()
    small.method.check(small.run)
    assert small.run.total_rank == 2 * used
    assert [block.step_gate for block in small.blocks] == [None, None]
    events = [(e.kind, e.step, e.before, e.after) for e in small.run.events]
    assert events == ([] if used == 4 else [("prune", 20, 4, used)] * 2)
    torch.testing.assert_close(merged_output(small), small.run.model(small.x).detach(), rtol=0, atol=1e-12)


def test_step_5_every_rank_can_be_cut_out_of_the_final_tensors() -> None:
    small = Small(replace(METHOD, eval_rank=2)).to_the_end()
    state = small.run.model.state_dict()
    assert state["layers.0.blocks.0.a"].shape == (4, 4)
    fresh = Small(METHOD)
    fresh.run.model.load_state_dict(state)
    for block in fresh.blocks:
        block.alive.fill_(True)
        block.recount()
    for b in range(1, 5):
        METHOD.use_rank(fresh.layers[0], b)
        expected = 8 / b * state["layers.0.blocks.0.b"][:b].T @ state["layers.0.blocks.0.a"][:b]
        torch.testing.assert_close(fresh.layers[0].delta(), expected, rtol=1e-12, atol=1e-14)


@settings(max_examples=200)
@given(
    data=st.data(),
    rank_max=st.integers(1, 6),
    frozen=st.booleans(),
    alpha=st.floats(0.5, 32),
    seed=st.integers(0, 2**40),
)
def test_invariants_for_any_settings(
    data: st.DataObject, rank_max: int, frozen: bool, alpha: float, seed: int
) -> None:
    """b stays in its range, rows that no step touched are those of the start, merged = adapted, base unmoved."""
    rank_min = data.draw(st.integers(1, rank_max))
    eval_rank = data.draw(st.none() | st.integers(rank_min, rank_max))
    method = replace(
        METHOD, rank_min=rank_min, rank_max=rank_max, eval_rank=eval_rank, frozen=frozen, alpha=alpha
    )
    small = filled(Small(method, (3, 2), total=4, seed=seed))
    before = rows(small)
    active: list[int] = []
    small.to_the_end(lambda: active.append(small.run.scratch["active"]))
    assert all(rank_min <= b <= rank_max for b in active)
    touched = set(active) if frozen else set(range(1, max(active) + 1))
    assert all(changed <= touched for changed in moved(before, rows(small)))
    assert torch.equal(small.layers[0].base.weight, Net((3, 2)).layers[0].weight)
    assert small.run.total_rank == (rank_max if eval_rank is None else eval_rank)
    torch.testing.assert_close(merged_output(small), small.run.model(small.x).detach(), rtol=0, atol=1e-12)
    method.check(small.run)


# -- refusals -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rank_min": 0}, "method.rank_min=0"),
        ({"rank_max": 2, "rank_min": 3}, "method.rank_max=2 is below method.rank_min=3"),
        ({"eval_rank": 5}, r"method.eval_rank=5 must lie in \[1, 4\]"),
        ({"eval_rank": 1, "rank_min": 2}, r"method.eval_rank=1 must lie in \[2, 4\]"),
        ({"alpha": 0.0}, "method.alpha=0.0"),
        ({"alpha": math.nan}, "method.alpha=nan"),
        ({"dropout": -0.1}, "method.dropout=-0.1"),
    ],
)
def test_settings_that_cannot_work_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        replace(METHOD, **changes)


def test_promise_counts_the_draws() -> None:
    small = Small(replace(METHOD, rank_min=2)).to_the_end()
    small.method.check(small.run)
    small.run.scratch["drawn"][0] += 1
    small.run.scratch["drawn"][1] -= 1
    with pytest.raises(PromiseBroken, match="drew its ranks"):
        small.method.check(small.run)
