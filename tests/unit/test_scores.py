"""Scores and allocation as pure functions: numbers by hand, edge cases, closed-form gradients."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adalora_bench.lowrank.allocate import grow_top
from adalora_bench.lowrank.budget import Budget, RankEvent
from adalora_bench.lowrank.scores import orthogonality, smooth, uncertainty, update_sensitivity


def test_smooth_and_uncertainty_take_any_shape() -> None:
    value = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    mean = smooth(torch.zeros(2, 2), value, 0.75)
    assert torch.equal(mean, torch.tensor([[0.25, 0.5], [0.75, 1.0]]))
    assert torch.equal(
        uncertainty(torch.ones(2, 2), value, mean, 0.5), torch.tensor([[0.875, 1.25], [1.625, 2.0]])
    )


def test_sensitivity_of_a_large_matrix_is_favoured_by_sqrt_only() -> None:
    small, large = torch.ones(2, 2), torch.ones(8, 8)
    assert update_sensitivity(small, small) == update_sensitivity(large, large) == 1
    assert update_sensitivity(large, large, norm="sqrt") == 4 * update_sensitivity(small, small, norm="sqrt")


def test_sensitivity_of_unused_modules_is_zero() -> None:
    assert update_sensitivity(torch.zeros(3, 2), torch.ones(3, 2)) == 0


@pytest.mark.parametrize("squared", [False, True])
def test_orthogonality_gradient_is_the_closed_form(squared: bool) -> None:
    x = torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    value = orthogonality(x, squared=squared)
    value.backward()
    gap = (x @ x.T - torch.eye(3)).detach()
    closed = 4 * gap @ x.detach() if squared else 2 * gap @ x.detach() / gap.norm()
    torch.testing.assert_close(x.grad, closed, rtol=0, atol=1e-12)
    assert float(value.detach()) == pytest.approx(float(gap.norm()) ** (2 if squared else 1), abs=1e-12)


@pytest.mark.parametrize("squared", [False, True])
def test_orthogonality_of_orthonormal_rows_is_zero_with_gradient_zero(squared: bool) -> None:
    x = torch.eye(2, 4, dtype=torch.float64).requires_grad_()
    value = orthogonality(x, squared=squared)
    value.backward()
    assert value == 0
    assert torch.equal(x.grad, torch.zeros(2, 4))  # not NaN


@pytest.mark.parametrize("squared", [False, True])
def test_orthogonality_of_no_rows_is_zero(squared: bool) -> None:
    x = torch.zeros(0, 4, requires_grad=True)
    value = orthogonality(x, squared=squared)
    value.backward()
    assert value == 0
    assert x.grad.shape == (0, 4)


def test_grow_top_breaks_ties_by_index_and_names_the_best_first() -> None:
    assert list(grow_top([1.0, 3.0, 3.0, 2.0], modules=3, ranks=2, remaining=9).items()) == [
        (1, 2),
        (2, 2),
        (3, 2),
    ]


def test_grow_top_gives_the_last_module_the_remainder() -> None:
    assert grow_top([5.0, 4.0, 3.0], modules=3, ranks=4, remaining=6) == {0: 4, 1: 2}
    assert grow_top([5.0, 4.0], modules=2, ranks=4, remaining=0) == {}
    assert grow_top([5.0, 4.0], modules=9, ranks=1, remaining=9) == {0: 1, 1: 1}


@settings(max_examples=300, deadline=None)
@given(
    scores=st.lists(st.floats(0, 1e6), min_size=1, max_size=12),
    modules=st.integers(1, 12),
    ranks=st.integers(1, 4),
    remaining=st.integers(0, 30),
)
def test_grow_top_never_overshoots(scores: list[float], modules: int, ranks: int, remaining: int) -> None:
    gained = grow_top(scores, modules=modules, ranks=ranks, remaining=remaining)
    assert sum(gained.values()) == min(remaining, ranks * min(modules, len(scores)))
    assert len(gained) <= modules
    *full, _last = [*gained.values(), 0]
    assert all(g == ranks for g in full[:-1])
    assert all(1 <= g <= ranks for g in full)
    assert (
        min((scores[k] for k in gained), default=0)
        >= max((scores[k] for k in range(len(scores)) if k not in gained), default=0)
        or len(gained) == 0
    )


def test_budget_traces_changes_and_averages_over_steps() -> None:
    budget = Budget()
    assert budget.average_trainable == 0
    for step, (ranks, parameters) in enumerate([(2, 10), (2, 10), (4, 40), (4, 20)]):
        budget.observe(step, ranks, parameters)
    assert budget.trace == [[0, 2], [2, 4]]
    assert budget.trainable_trace == [[0, 10], [2, 40], [3, 20]]
    assert budget.average_trainable == 20


def test_events_become_plain_dictionaries() -> None:
    assert RankEvent(3, "grow", "layer.0", 1, 2).as_dict() == {
        "step": 3,
        "kind": "grow",
        "module": "layer.0",
        "before": 1,
        "after": 2,
    }
