"""What the authors' code of IncreLoRA does otherwise than the paper, option by option, worked out by hand."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_runs import Small, growths, in_optimizer, merged_output

from adalora_bench.errors import PromiseBroken, UserError
from adalora_bench.lowrank.adapter import RankBlock
from adalora_bench.lowrank.scores import mean_orthogonality
from adalora_bench.methods.increlora import IncreLora
from adalora_bench.methods.increlora_authors import IncreLoraAuthors, grow_as_authors

METHOD = IncreLoraAuthors(
    version=1,
    targets=["all"],
    lr=0.01,
    head_lr=None,
    target_rank=2,
    ranks_per_growth=1,
    top_h=3,
    interval=4,
    growth_warmup=3,
    beta1=0.85,
    beta2=0.85,
    score_norm="sqrt",
    alpha=16.0,
    scale_by="active",
    init_std=0.02,
    reserve_gate=1e-5,
    orthogonality=0.1,
    orthogonality_squared=False,
    advance_learning=True,
    restart_warmup=True,
    dropout=0.0,
    selection="threshold",
    overshoot=True,
    keep_reserves=True,
)
OFF = {"selection": "top", "overshoot": False, "keep_reserves": False}
WIDTHS = (4, 4, 4, 4)  # three modules


def reserves(small: Small) -> list[RankBlock]:
    return [block for block in small.blocks if block.reserve]


def chosen(scores: list[float], **changes: Any) -> dict[int, int]:
    usual: dict[str, Any] = {"modules": 2, "ranks": 1, "remaining": 9, "ties": True, "overshoot": True}
    return grow_as_authors(scores, **(usual | changes))


# -- selection ----------------------------------------------------------------------------------------------


def test_selection_threshold_takes_every_tie_of_the_second_best() -> None:
    """The 2nd largest of 3, 1, 2, 2 is 2, and three scores are not below it."""
    assert chosen([3.0, 1.0, 2.0, 2.0]) == {0: 1, 2: 1, 3: 1}
    assert chosen([3.0, 1.0, 2.0, 2.0], ties=False) == {0: 1, 2: 1}
    assert chosen([0.0, 0.0, 0.0]) == {0: 1, 1: 1, 2: 1}


def test_selection_counts_ranks_as_modules_when_few_are_left() -> None:
    """k = min(h, target - total) = min(3, 2): two modules, though one alone with its 4 ranks would meet the target."""
    assert chosen([1.0, 2.0, 3.0], modules=3, remaining=2, ranks=4) == {2: 4, 1: 4}
    assert chosen([1.0, 2.0, 3.0], modules=3, remaining=2, ranks=4, overshoot=False) == {2: 2}


def test_selection_in_a_run_ties_grow_together() -> None:
    """Modules with equal scores: the threshold takes all three where h = 1 asks for one."""
    for selection, grown in (("threshold", 3), ("top", 1)):
        small = Small(replace(METHOD, selection=selection, top_h=1, interval=1, growth_warmup=0), WIDTHS)
        small.step()
        for layer in small.layers:
            layer.delta_grad = torch.zeros(4, 4, dtype=torch.float64)  # scores of exactly 0
        small.run.scratch["sensitivity"].zero_()
        small.method.after_backward(small.run)
        assert len(growths(small.run)) == grown


# -- overshoot ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "top_h", "ranks", "events", "total"),
    [
        ("mrpc", 10, 4, 13, 592),  # 72 + 12 x 40 = 552; 24 are missing, 10 modules gain 4 each
        ("stsb", 4, 4, 32, 584),  # 72 + 31 x 16 = 568
        ("qnli", 22, 4, 6, 600),  # 72 + 5 x 88 = 512
        ("rte", 9, 4, 14, 576),
        ("cola", 3, 4, 42, 576),
        ("mnli", 18, 1, 28, 576),
    ],
)
def test_overshoot_of_the_released_rank_8_settings(
    task: str, top_h: int, ranks: int, events: int, total: int
) -> None:
    """72 modules, target 576. Scores are all different."""
    scores = [float(k) for k in range(72)]
    reached = exact = 72
    for _ in range(events):
        gained = grow_as_authors(
            scores, modules=top_h, ranks=ranks, remaining=576 - reached, ties=True, overshoot=True
        )
        reached += sum(gained.values())
        exact += sum(
            grow_as_authors(
                scores, modules=top_h, ranks=ranks, remaining=576 - exact, ties=True, overshoot=False
            ).values()
        )
    assert (reached, exact) == (total, 576), task


@given(
    scores=st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0]), min_size=1, max_size=8),
    modules=st.integers(1, 8),
    ranks=st.integers(1, 5),
    missing=st.integers(1, 40),
    ties=st.booleans(),
)
def test_without_overshoot_the_total_is_exact_whatever_the_ties(
    scores: list[float], modules: int, ranks: int, missing: int, ties: bool
) -> None:
    left = missing
    while left > 0:
        gained = grow_as_authors(
            scores, modules=modules, ranks=ranks, remaining=left, ties=ties, overshoot=False
        )
        assert gained
        assert all(0 < gain <= ranks for gain in gained.values())
        left -= sum(gained.values())
    assert left == 0


def test_overshoot_in_a_run_ends_growth_and_leaves_the_lambdas() -> None:
    """3 modules at rank 1, target 6: 2 modules gain 2 each, 7 ranks. `total == target` is never true."""
    small = Small(replace(METHOD, ranks_per_growth=2, top_h=2, selection="top"), WIDTHS).to_the_end()
    assert [(step, after) for step, _, _, after in growths(small.run)] == [(4, 3), (4, 3)]
    assert small.run.total_rank == 7
    small.method.check(small.run)
    course = Small(replace(METHOD, ranks_per_growth=2, top_h=2, selection="top"), WIDTHS)
    while course.run.step < course.run.total_steps:
        course.step()
    assert {float(g) for block in reserves(course) for g in block.effective_gate()} == {1e-5}


def test_overshoot_off_ends_exactly() -> None:
    small = Small(replace(METHOD, ranks_per_growth=2, top_h=2, overshoot=False), WIDTHS).to_the_end()
    assert sorted(after for _, _, _, after in growths(small.run)) == [2, 3]
    assert small.run.total_rank == 6
    small.method.check(small.run)


# -- reserves -----------------------------------------------------------------------------------------------


def test_keep_reserves_at_the_target_lambda_is_0_and_the_regulariser_sees_them() -> None:
    small = Small(METHOD, WIDTHS)
    for _ in range(5):  # the growth of step 4 takes all three modules: 6 ranks, the target
        small.step()
    kept = reserves(small)
    assert small.run.total_rank == 6
    assert len(kept) == 3
    assert {float(block.effective_gate().detach()) for block in kept} == {0.0}
    held = in_optimizer(small.run)
    assert all({id(block.a), id(block.b)} <= held for block in kept)
    factors = [layer.factors() for layer in small.layers]
    assert {f.a.shape[0] for f in factors} == {3}
    penalty = small.method.penalty(small.run)
    assert penalty is not None
    by_hand = 0.1 * mean_orthogonality([x for f in factors for x in (f.a, f.b)], squared=False)
    assert float(penalty.detach()) == pytest.approx(float(by_hand.detach()), abs=1e-15)
    before = [block.a.detach().clone() for block in kept]
    small.step()  # a new group's first step has learning rate 0
    small.step()
    assert all(bool((block.a != old).any()) for block, old in zip(kept, before, strict=True))


def test_keep_reserves_the_end_of_the_training_drops_them_without_a_change() -> None:
    small = Small(METHOD, WIDTHS)
    while small.run.step < small.run.total_steps:
        small.step()
    assert reserves(small)
    before = small.run.model(small.x).detach()
    small.method.finalize(small.run)
    assert not reserves(small)
    assert [layer.stored_rank for layer in small.layers] == [2, 2, 2]
    assert torch.equal(small.run.model(small.x).detach(), before)
    torch.testing.assert_close(merged_output(small), before, rtol=0, atol=1e-12)
    small.method.check(small.run)


def test_keep_reserves_off_drops_them_at_the_target() -> None:
    small = Small(replace(METHOD, keep_reserves=False), WIDTHS)
    for _ in range(5):
        small.step()
    assert (small.run.total_rank, reserves(small)) == (6, [])


# -- the whole ----------------------------------------------------------------------------------------------


def test_with_every_option_off_it_is_the_papers_method() -> None:
    settings = {field.name: getattr(METHOD, field.name) for field in fields(IncreLora)}
    ours = Small(IncreLora(**(settings | {"top_h": 2})), WIDTHS).to_the_end()
    theirs = Small(replace(METHOD, top_h=2, **OFF), WIDTHS).to_the_end()
    assert growths(ours.run) == growths(theirs.run)
    for one, other in zip(ours.layers, theirs.layers, strict=True):
        assert torch.equal(one.delta(), other.delta())


def test_check_notices_a_growth_beyond_the_target() -> None:
    small = Small(METHOD, WIDTHS)
    with pytest.raises(PromiseBroken, match="ended with 3 ranks, 0 of them from the last growth"):
        small.method.check(small.run)
    small.to_the_end()
    small.run.event("grow", "layers.0", 2, 2)  # one more event, though the target was met
    with pytest.raises(PromiseBroken, match="ended with 6 ranks"):
        small.method.check(small.run)


def test_a_selection_that_is_none_is_refused() -> None:
    with pytest.raises(UserError, match="'best'"):
        replace(METHOD, selection="best")
