"""ALoRA (arXiv 2403.16187): Eq. 3-6, footnotes 2-4 and the steps of its algorithm, with numbers worked out by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_runs import Net, Small, in_optimizer, merged_output
from torch import Tensor, nn

from adalora_bench.errors import Diverged, PromiseBroken, UserError
from adalora_bench.lowrank.ablation import plain_losses
from adalora_bench.lowrank.allocate import prune_lowest, share_evenly
from adalora_bench.lowrank.scores import ablation_importance, ablation_order, relaxed_gate
from adalora_bench.methods.alora import Alora, Rows
from adalora_bench.methods.alora_variants import AloraDnas, AloraSensi, adamw_rows, carry_rows
from adalora_bench.methods.base import Facts
from adalora_bench.train import checkpoint

GRID = 1e-6
WIDTHS = (4, 5, 5, 3)
COMMON: dict[str, Any] = {
    "version": 1,
    "targets": ["all"],
    "lr": 0.05,
    "head_lr": None,
    "rank": 3,
    "alpha": 6.0,
    "dropout": 0.0,
    "first_round": 4,
    "interval": 3,
    "rounds": 3,
    "n_prune": None,
    "validation_rows": 5,
    "redraw": False,
    "scorer": "exact",
    "score_grid": GRID,
    "grow_out": "zero",
    "leftover": "drop",
    "revive_empty": False,
    "scale_by": "start",
}
METHOD = Alora(**COMMON)
DNAS = AloraDnas(
    **COMMON | {"score_grid": 0.0},
    arch_lr=0.1,
    arch_weight_decay=0.01,
    arch_beta1=0.5,
    arch_beta2=0.999,
    arch_share=0.5,
    gates_after="keep",
)
SENSI = AloraSensi(**COMMON | {"score_grid": 0.0}, beta1=0.85, beta2=0.85)
VARIANTS = [METHOD, DNAS, SENSI]


def start(method: Alora = METHOD, *, total: int = 14, batches: int = 3, **more: Any) -> Small:
    """A begun run with held-out batches of five rows, in two parts each, and rows for the gates."""
    small = Small(method, WIDTHS, total=total, **more)
    draw = torch.Generator().manual_seed(11)

    def parts() -> list[Callable[[], Tensor]]:
        x = torch.randn(5, WIDTHS[0], generator=draw, dtype=torch.float64)
        y = x.sum(1, keepdim=True).sin()
        pieces = slice(0, 2), slice(2, 5)
        model = small.run.model
        return [lambda x=x[rows], y=y[rows]: (model(x) - y).square().sum() / 5 for rows in pieces]

    small.run.validation = [parts() for _ in range(batches)]
    architecture = parts()
    small.run.arch_parts = lambda: architecture
    return small


def steps(small: Small, count: int) -> Small:
    for _ in range(count):
        small.step()
    return small


def ranks(small: Small) -> list[int]:
    return [layer.rank for layer in small.layers]


def scored(scores: Rows, method: Alora = METHOD) -> Small:
    """A run at its first round, where the ranks score what the caller says."""
    small = steps(start(replace(method), total=40), 4)
    object.__setattr__(small.method, "importance", lambda run: (scores, scores))
    return small


def method_with(**changes: Any) -> Alora:
    """A copy of its own, so that a test may put a stub on it."""
    return replace(METHOD, **changes)


# -- Eq. 3: the layer ---------------------------------------------------------------------------------------


def test_eq_3_hard_gates_of_one_and_the_output_unchanged_at_the_start() -> None:
    small = start()
    torch.testing.assert_close(small.run.model(small.x), Net(WIDTHS)(small.x), rtol=0, atol=0)
    for layer in small.layers:
        (block,) = layer.rank_blocks()
        assert layer.scale == 2.0  # alpha / r_init
        assert torch.equal(block.gate, torch.ones(3, dtype=torch.float64))
        assert not block.gate.requires_grad
        assert not block.b.any()
        bound = 1 / math.sqrt(layer.in_features)
        assert 0 < float(block.a.detach().abs().max()) <= bound


# -- Eq. 6: the score ---------------------------------------------------------------------------------------


def test_eq_6_importance_by_hand_on_a_net_of_two_modules() -> None:
    small = steps(Small(METHOD, (4, 5, 3)), 3)
    x, y = small.x, small.y
    first, second = (layer.factors() for layer in small.layers)
    net = small.run.model

    def loss(gates: list[list[float]]) -> Tensor:
        h = x
        for layer, f, gate in zip(net.layers, (first, second), gates, strict=True):
            update = 2.0 * sum(g * torch.outer(f.b[i], f.a[i]) for i, g in enumerate(gate))
            h = torch.tanh(h @ (layer.base.weight + update).T + layer.base.bias)
        return (net.head(h) - y).square().mean()

    with torch.no_grad():
        full = loss([[1, 1, 1], [1, 1, 1]])
        without = loss([[1, 1, 1], [1, 0, 1]])
        only = loss([[0, 0, 0], [0, 1, 0]])
    expected = (-full) - (-without) + (-only)
    found = plain_losses(net, small.layers, [lambda: (net(x) - y).square().mean()], [(1, 1)])
    score = ablation_importance(full, found[0, 0], found[0, 1])
    assert float(score) == pytest.approx(float(expected), abs=1e-12)


def test_eq_6_cs_is_is_less_a_constant_and_gives_the_same_order() -> None:
    without = torch.tensor([0.9, 0.7, 0.8])
    only = torch.tensor([1.0, 1.1, 0.6])
    torch.testing.assert_close(
        ablation_importance(torch.tensor(0.5), without, only), torch.tensor([-0.6, -0.9, -0.3])
    )
    torch.testing.assert_close(ablation_order(without, only), torch.tensor([-0.1, -0.4, 0.2]))
    for full in (0.0, 0.5, 3.0):
        order = ablation_importance(torch.tensor(full), without, only).argsort()
        assert torch.equal(order, ablation_order(without, only).argsort())


def test_eq_6_ranks_that_do_nothing_score_alike() -> None:
    """An out-side of 0 leaves S(M without r) = S(M), and S(M with only r) = S of the bare model."""
    small = steps(start(), 3)
    with torch.no_grad():
        for block in small.blocks:
            block.b[1] = 0
    scores, _ = METHOD.importance(small.run)
    assert len({round(row[1], 12) for row in scores}) == 1
    assert len({round(score, 12) for row in scores for score in row}) > 3


@pytest.mark.parametrize("scorer", ["exact", "brute"])
def test_scorers_agree_and_prune_the_same_ranks(scorer: str) -> None:
    reference = start(method_with(scorer="brute")).to_the_end()
    small = start(method_with(scorer=scorer)).to_the_end()
    assert small.run.events == reference.run.events
    assert small.method.notes(small.run) == []


def test_the_score_sees_the_held_out_batch_and_nothing_else() -> None:
    small = steps(start(), 4)
    before, _ = METHOD.importance(small.run)
    small.x, small.y = small.x * 0, small.y + 9
    assert METHOD.importance(small.run)[0] == before
    small.run.validation[0], small.run.validation[1] = small.run.validation[1], small.run.validation[0]
    assert METHOD.importance(small.run)[0] != before


def test_redraw_takes_another_batch_in_every_round() -> None:
    method = method_with(redraw=True)
    assert method.validation_batches() == (3, 5)
    assert METHOD.validation_batches() == (1, 5)
    small = start(method)
    used: list[int] = []
    for number, batch in enumerate(small.run.validation):
        small.run.validation[number] = [
            lambda part=part, number=number: used.append(number) or part()  # type: ignore[func-returns-value]
            for part in batch
        ]
    small.to_the_end()
    assert list(dict.fromkeys(used)) == [0, 1, 2]


def test_variants_say_nothing_of_a_scorer_that_they_do_not_use() -> None:
    said = []
    for variant in (DNAS, SENSI):
        small = start(replace(variant, scorer="screened")).to_the_end()
        assert small.run.scratch["done"] > 0
        said.append(small.method.notes(small.run))
    cost = "50% of the training rows train the gates, so the weights see fewer rows in fewer steps"
    assert said == [[cost], []]


def test_screened_scores_the_lowest_exactly_and_says_how_well_first_order_did() -> None:
    method = method_with(scorer="screened", n_prune=2, rounds=1)
    small = steps(start(method), 4)
    exact, _ = replace(method, scorer="exact").importance(small.run)
    rows, prunable = method.importance(small.run)
    sure = [(m, r) for m, row in enumerate(prunable) for r, score in enumerate(row) if score < math.inf]
    assert len(sure) == 4  # twice n_A
    assert all(rows[m][r] == prunable[m][r] == pytest.approx(exact[m][r], abs=1e-12) for m, r in sure)
    others = [(m, r) for m, row in enumerate(rows) for r in range(len(row)) if (m, r) not in sure]
    assert all(rows[m][r] != exact[m][r] for m, r in others)  # to first order
    assert [pytest.approx(rows[m][r], abs=0.05) for m, r in others] == [exact[m][r] for m, r in others]
    small.run.scratch["agreed"] = 0
    small.to_the_end()
    note = f"{small.run.scratch['agreed'] / 2:.0%} of the 2 pruned ranks are also the lowest to first order"
    assert small.method.notes(small.run) == [
        f"ranks screened to first order, the lowest 2 x 2 of a round scored exactly; {note}"
    ]


def test_screened_prunes_only_what_was_scored_exactly() -> None:
    """First order may underrate a rank that was not scored exactly; it stays all the same."""
    small = scored([[5.0, 1.0, 1.0], [5.0, 5.0, 5.0], [5.0, 5.0, 5.0]], method_with(n_prune=1))
    rows = [[5.0, 1.0, 1.0], [5.0, 5.0, 5.0], [5.0, 5.0, 5.0]]
    prunable = [[math.inf, math.inf, 2.0], [math.inf] * 3, [math.inf] * 3]
    object.__setattr__(small.method, "importance", lambda run: (rows, prunable))
    kept = small.blocks[0].a[:2].detach().clone()
    small.method.before_forward(small.run)
    assert torch.equal(small.blocks[0].a, kept)


# -- steps 3 to 5: prune and grow ---------------------------------------------------------------------------


def test_step_4_the_lowest_of_all_matrices_go() -> None:
    scores = [[0.3, -0.2, 0.5], [0.1], [], [-0.1, 0.2]]
    assert prune_lowest(scores, 3, grid=GRID) == [[1], [0], [], [0]]
    assert prune_lowest(scores, 0, grid=GRID) == [[], [], [], []]
    assert prune_lowest(scores, 9, grid=GRID) == [[0, 1, 2], [0], [], [0, 1]]


def test_ties_within_a_millionth_go_by_matrix_and_rank() -> None:
    scores = [[0.5, 2.1e-6], [1.9e-6, 2.4e-6], [2.0e-6]]  # all but the first round to 2e-6
    assert prune_lowest(scores, 1, grid=GRID) == [[1], [], []]
    assert prune_lowest(scores, 3, grid=GRID) == [[1], [0, 1], []]
    assert prune_lowest(scores, 1, grid=0) == [[], [0], []]  # without the grid the lowest is the lowest
    assert prune_lowest([[1e-6, 0.0], [-1e-6]], 2, grid=GRID) == [[1], [0]]  # one grid step apart is no tie


def test_footnote_3_eight_over_three_are_three_three_two() -> None:
    assert share_evenly(8, {0: 0.1, 4: 0.3, 7: 0.2}, grid=GRID) == {0: 2, 4: 3, 7: 3}
    assert share_evenly(9, {0: 0.1, 4: 0.3, 7: 0.2}, grid=GRID) == {0: 3, 4: 3, 7: 3}
    assert share_evenly(2, {0: 0.1, 4: 0.3, 7: 0.2}, grid=GRID) == {4: 1, 7: 1}
    assert share_evenly(8, {3: 0.1}, grid=GRID) == {3: 8}


def test_footnote_3_a_tie_of_means_goes_to_the_earlier_matrix() -> None:
    assert share_evenly(4, {0: 0.2, 1: 0.2 + 1e-8, 2: 0.2 - 1e-8}, grid=GRID) == {0: 2, 1: 1, 2: 1}


def test_footnote_4_no_matrix_to_grow() -> None:
    assert share_evenly(8, {}, grid=GRID) == {}


def test_a_round_prunes_shares_by_the_mean_before_pruning_and_keeps_the_total() -> None:
    small = scored([[1.0, 2.0, 3.0], [0.5, 0.4, 9.0], [3.0, 3.0, 3.0]], method_with(n_prune=3))
    run = small.run
    small.method.before_forward(run)
    # 0.4, 0.5 of matrix 1 and 1.0 of matrix 0 go; only matrix 2 lost nothing
    assert ranks(small) == [2, 1, 6]
    assert [(e.step, e.kind, e.module, e.before, e.after) for e in run.events] == [
        (4, "prune", "layers.0", 3, 2),
        (4, "prune", "layers.1", 3, 1),
        (4, "grow", "layers.2", 3, 6),
    ]
    # two matrices share three: the higher mean takes the odd one
    small = scored([[0.1, 0.2, 0.3], [3.0, 4.0, 9.0], [6.0, 6.0, 6.0]], method_with(n_prune=3))
    small.method.before_forward(small.run)
    assert ranks(small) == [0, 4, 5]  # means 5.33 and 6


def test_footnote_4_every_matrix_lost_a_rank_and_the_total_shrinks() -> None:
    small = scored([[0.0, 1.0, 1.0]] * 3)
    small.method.before_forward(small.run)
    assert ranks(small) == [2, 2, 2]
    assert [(e.kind, e.before, e.after) for e in small.run.events] == [("prune", 3, 2)] * 3 + [
        ("shrink", 9, 6)
    ]
    assert small.run.scratch["carried"] == 0


def test_option_leftover_carry_gives_the_ranks_in_a_later_round() -> None:
    small = scored([[0.0, 1.0, 1.0]] * 3, method_with(leftover="carry"))
    small.method.before_forward(small.run)
    assert (small.run.total_rank, small.run.scratch["carried"]) == (6, 3)
    object.__setattr__(small.method, "importance", lambda run: ([[0.0, 0.0], [0.0, 9.0], [9.0, 9.0]],) * 2)
    while small.run.step < 7:
        small.step()
    small.method.before_forward(small.run)
    assert ranks(small) == [0, 1, 8]  # three of this round and three of the one before
    assert small.run.scratch["carried"] == 0


@pytest.mark.parametrize(("revive", "expected"), [(False, [0, 3, 6]), (True, [1, 3, 5])])
def test_a_matrix_without_ranks_grows_only_where_it_may(revive: bool, expected: list[int]) -> None:
    small = scored(
        [[0.0, 0.0, 0.0], [5.0, 5.0, 5.0], [4.0, 4.0, 4.0]], method_with(revive_empty=revive, n_prune=3)
    )
    small.method.before_forward(small.run)
    assert ranks(small) == [0, 5, 4]
    object.__setattr__(small.method, "importance", lambda run: ([[], [0.0] * 2 + [5.0] * 3, [4.0] * 4],) * 2)
    object.__setattr__(small.method, "n_prune", 2)
    small.run.scratch["n_prune"] = 2
    while small.run.step < 7:
        small.step()
    small.method.before_forward(small.run)
    assert ranks(small) == expected


def test_a_matrix_without_ranks_is_passed_over_by_the_scorers() -> None:
    for scorer in ("exact", "brute", "screened"):
        small = scored(
            [[0.0, 0.0, 0.0], [5.0, 5.0, 5.0], [4.0, 4.0, 4.0]], method_with(n_prune=3, scorer=scorer)
        )
        small.method.before_forward(small.run)
        del small.method.__dict__["importance"]
        steps(small, 8)
        assert small.run.scratch["done"] == 3
        assert small.layers[0].rank == 0


def test_footnote_2_growth_and_removal_leave_the_output_as_the_gates_made_it() -> None:
    small = steps(start(), 4)
    run = small.run
    scores, _ = METHOD.importance(run)
    pruned = prune_lowest(scores, 3, grid=GRID)
    for block, gone in zip(small.blocks, pruned, strict=True):
        block.gate.data[gone] = 0
    gated = run.model(small.x).detach()
    for block in small.blocks:
        block.gate.data.fill_(1)
    METHOD.before_forward(run)
    assert run.events
    torch.testing.assert_close(run.model(small.x), gated, rtol=0, atol=1e-13)
    torch.testing.assert_close(run.model(small.x), merged_output(small), rtol=0, atol=1e-13)


def grown(small: Small) -> list[Any]:
    return [list(layer.rank_blocks())[1] for layer in small.layers if len(layer.blocks) > 1]


def test_footnote_2_a_new_rank_is_random_inside_and_zero_outside() -> None:
    small = scored([[0.0, 0.0, 0.0], [5.0, 5.0, 5.0], [4.0, 4.0, 4.0]])
    small.method.before_forward(small.run)
    first, second = grown(small)
    assert (first.rank, second.rank) == (2, 1)
    for block, layer in ((first, small.layers[1]), (second, small.layers[2])):
        assert torch.equal(block.gate, torch.ones(block.rank, dtype=torch.float64))
        assert not block.b.any()
        assert 0 < float(block.a.detach().abs().max()) <= 1 / math.sqrt(layer.in_features)
        assert layer.scale == 2.0
    assert not torch.equal(first.a[0], first.a[1])
    small.step()
    assert first.b.any()


def test_option_grow_out_random_jumps() -> None:
    small = scored([[0.0, 0.0, 0.0], [5.0, 5.0, 5.0], [4.0, 4.0, 4.0]], method_with(grow_out="random"))
    small.method.before_forward(small.run)
    for block, layer in zip(grown(small), small.layers[1:], strict=True):
        assert 0 < float(block.b.detach().abs().max()) <= 1 / math.sqrt(layer.out_features)


def test_option_scale_by_active_follows_the_ranks() -> None:
    small = scored([[0.0, 0.0, 1.0], [0.0, 5.0, 5.0], [4.0, 4.0, 4.0]], method_with(scale_by="active"))
    assert [layer.scale for layer in small.layers] == [2.0, 2.0, 2.0]
    small.method.before_forward(small.run)
    assert ranks(small) == [1, 2, 6]
    assert [layer.scale for layer in small.layers] == [6.0, 3.0, 1.0]


def test_survivors_keep_their_optimizer_state_and_new_ranks_begin_without_one() -> None:
    small = scored([[9.0, 0.0, 9.0], [0.0, 0.0, 9.0], [4.0, 4.0, 4.0]])
    run = small.run
    assert run.optimizer is not None
    first, second, third = small.blocks
    before = [
        {
            part: {k: v.clone() for k, v in run.optimizer.state[getattr(block, part)].items()}
            for part in ("a", "b")
        }
        for block in (first, second, third)
    ]
    values = [(block.a.detach().clone(), block.b.detach().clone()) for block in (first, second, third)]
    small.method.before_forward(run)
    for block, old, (a, b), kept in zip(
        (first, second, third), before, values, ([0, 2], [2], [0, 1, 2]), strict=True
    ):
        assert torch.equal(block.a, a[kept])
        assert torch.equal(block.b, b[kept])
        for part in ("a", "b"):
            now = run.optimizer.state[getattr(block, part)]
            for slot in ("exp_avg", "exp_avg_sq"):
                assert torch.equal(now[slot], old[part][slot][kept])
            assert torch.equal(now["step"], old[part]["step"])
    (new,) = grown(small)
    assert new.a not in run.optimizer.state
    assert in_optimizer(run) == {id(p) for p in run.trainable_parameters()}


def test_the_learning_rate_of_new_ranks_follows_the_one_curve() -> None:
    small = scored([[0.0, 0.0, 0.0], [5.0, 5.0, 5.0], [4.0, 4.0, 4.0]])
    run = small.run
    run.settings = replace(run.settings, schedule="linear", warmup=2)
    small.method.before_forward(run)
    assert run.optimizer is not None
    old, _, new = run.optimizer.param_groups
    assert (new["name"], new["born"]) == ("grown at step 4", 0)
    old["warmup"] = new["warmup"] = 2
    for _ in range(5):
        assert run.lr_of(new) == run.lr_of(old) > 0
        run.advance()


# -- the whole course ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", VARIANTS, ids=lambda m: type(m).__name__)
def test_step_7_rounds_at_k1_and_then_every_k2(method: Alora) -> None:
    small = start(method)
    totals = [small.run.total_rank]
    small.to_the_end(lambda: totals.append(small.run.total_rank))
    changes = [e for e in small.run.events if e.kind in ("prune", "grow")]
    assert sorted({e.step for e in changes}) == [4, 7, 10]
    assert max(totals) == totals[0] == 9
    for step in (4, 7, 10):
        here = [e for e in changes if e.step == step]
        assert sum(e.before - e.after for e in here if e.kind == "prune") == 3
        assert sum(e.after - e.before for e in here if e.kind == "grow") in (0, 3)
        assert not {e.module for e in here if e.kind == "grow"} & {
            e.module for e in here if e.kind == "prune"
        }
    stored = sum(layer.stored_rank for layer in small.layers)
    assert stored == small.run.total_rank <= 9
    torch.testing.assert_close(small.run.model(small.x), merged_output(small), rtol=0, atol=1e-12)
    method.check(small.run)


def test_phases_may_be_epochs_and_shares() -> None:
    small = start(method_with(first_round="30%", interval="0.2ep", rounds=2), total=20)
    small.to_the_end()
    assert sorted({e.step for e in small.run.events}) == [6, 10]


def test_fewer_active_ranks_than_n_prune_end_the_rounds() -> None:
    small = scored([[0.0, 1.0, 2.0]] * 3, method_with(n_prune=4, rounds=4))
    small.method.before_forward(small.run)  # prunes (0,0), (1,0), (2,0) and (0,1), and no one grows
    assert ranks(small) == [1, 2, 2]
    object.__setattr__(small.method, "importance", lambda run: ([[0.0], [1.0, 2.0], [1.0, 2.0]],) * 2)
    while small.run.step < 7:
        small.step()
    small.method.before_forward(small.run)
    assert ranks(small) == [0, 0, 1]
    object.__setattr__(small.method, "importance", lambda run: pytest.fail("nothing is scored"))
    steps(small, 5)
    stop = small.run.events[-1]
    assert (stop.step, stop.kind, stop.before, stop.after) == (10, "stop", 1, 1)
    assert (small.run.scratch["done"], small.run.scratch["stopped"]) == (2, True)
    small.method.check(small.run)


@given(st.data())
@settings(max_examples=300)
def test_totals_never_rise_and_are_kept_where_a_matrix_lost_nothing(data: st.DataObject) -> None:
    """The pure functions, round after round: sums, and no matrix both loses and gains."""
    held = data.draw(st.lists(st.integers(0, 5), min_size=1, max_size=6))
    count = data.draw(st.integers(1, 8))
    begin, carry, debt = sum(held), data.draw(st.booleans()), 0
    score = st.one_of(st.floats(-1, 1), st.sampled_from([0.0, 1e-6, 4e-7]))
    for _ in range(data.draw(st.integers(1, 5))):
        before = sum(held)
        if before < count:
            break
        scores = [data.draw(st.lists(score, min_size=r, max_size=r)) for r in held]
        pruned = prune_lowest(scores, count, grid=GRID)
        assert sum(map(len, pruned)) == count
        lost = [round(scores[m][r] / GRID) for m, row in enumerate(pruned) for r in row]
        kept = [
            round(s / GRID) for m, row in enumerate(scores) for r, s in enumerate(row) if r not in pruned[m]
        ]
        assert not kept or max(lost) <= min(kept)
        means = {m: sum(row) / len(row) for m, row in enumerate(scores) if row and not pruned[m]}
        gained = share_evenly(count + debt, means, grid=GRID)
        assert sum(gained.values()) == (count + debt if means else 0)
        assert all(not pruned[m] and held[m] > 0 for m in gained)
        assert not means or max(gained.values()) - min(gained.get(m, 0) for m in means) <= 1
        debt = (count + debt if carry else 0) if not gained else 0
        held = [r - len(pruned[m]) + gained.get(m, 0) for m, r in enumerate(held)]
        assert min(held) >= 0
        assert sum(held) <= begin
        assert sum(held) == before if means and not carry else sum(held) <= begin
        assert sum(held) + debt == begin or not carry


@pytest.mark.parametrize("method", VARIANTS, ids=lambda m: type(m).__name__)
@pytest.mark.parametrize("stop", [4, 5, 9, 13])
def test_resume_is_bit_exact(method: Alora, stop: int, tmp_path: Path) -> None:
    """Stopped right before a round, right after one, and when all is over."""
    whole = start(method).to_the_end()
    half = steps(start(method), stop)
    frozen = checkpoint.frozen_base_names(start(method).run, moves_base=False)
    checkpoint.save(tmp_path, half.run, frozen, {})
    resumed = start(method)
    found = checkpoint.newest(tmp_path)
    assert found is not None
    checkpoint.restore(resumed.run, *found)
    assert resumed.run.step == stop
    resumed.to_the_end()
    one, other = whole.run.model.state_dict(), resumed.run.model.state_dict()
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert resumed.run.events == whole.run.events
    for key, value in whole.run.scratch.items():
        same = torch.equal(value, resumed.run.scratch[key]) if isinstance(value, Tensor) else None
        assert same or value == resumed.run.scratch[key], key


# -- Eq. 5: ALoRA-DNAS --------------------------------------------------------------------------------------


def test_eq_5_relaxed_gate() -> None:
    a = torch.tensor([0.0, math.log(3), -math.log(3), 50.0])
    torch.testing.assert_close(relaxed_gate(a), torch.tensor([1.0, 1.5, 0.5, 2.0]))


def test_eq_4_one_step_of_the_gates_and_one_of_the_weights() -> None:
    """a moves as torch's AdamW moves it on the other rows; the weights have no gradient of that."""
    small = start(DNAS)
    reference = nn.Parameter(torch.zeros(9, dtype=torch.float64))
    adam = torch.optim.AdamW([reference], lr=0.1, betas=(0.5, 0.999), eps=1e-8, weight_decay=0.01)
    for _ in range(4):  # up to the first round
        leaves = relaxed_gate(reference)
        for block, gate in zip(small.blocks, leaves.split(3), strict=True):
            block.step_gate = gate
        adam.zero_grad()
        loss = sum(part() for part in small.run.arch_parts())
        (reference.grad,) = torch.autograd.grad(loss, reference)
        adam.step()
        for block in small.blocks:
            block.step_gate = None
        assert small.run.optimizer is not None
        small.run.optimizer.zero_grad()
        small.method.before_forward(small.run)
        assert all(p.grad is None for p in small.run.model.parameters())
        rows = small.run.scratch["architecture"]
        torch.testing.assert_close(rows[:, 0], reference.detach(), rtol=0, atol=1e-12)
        gates = torch.cat([block.gate for block in small.blocks])
        torch.testing.assert_close(gates, relaxed_gate(rows[:, 0]), rtol=0, atol=0)
        small.loss().backward()
        small.run.set_learning_rates()
        small.run.optimizer.step()
        small.run.advance()
    assert reference.detach().abs().max() > 0.01


def test_dnas_prunes_by_the_gate_and_the_numbers_follow_the_ranks() -> None:
    small = start(replace(DNAS))
    steps(small, 4)
    rows = small.run.scratch["architecture"]
    rows[:, 0] = torch.tensor([0.5, -3.0, 0.1, 0.2, 0.3, -2.0, 0.9, -1.0, 0.4], dtype=torch.float64)
    rows[:, 3] = torch.arange(9, dtype=torch.float64)
    scores, _ = DNAS.importance(small.run)
    assert scores[0][1] == pytest.approx(2 / (1 + math.exp(3)))
    object.__setattr__(small.method, "arch_lr", 1e-300)
    rows[:, 1:3] = 0
    small.method.before_forward(small.run)  # each matrix loses one; none grows
    rows = small.run.scratch["architecture"]
    assert rows[:, 0].tolist() == [0.5, 0.1, 0.2, 0.3, 0.9, 0.4]
    assert rows[:, 3].tolist() == [1.0, 3.0, 4.0, 5.0, 7.0, 9.0]
    gates = torch.cat([block.gate for block in small.blocks])
    torch.testing.assert_close(gates, relaxed_gate(rows[:, 0]), rtol=0, atol=0)


@pytest.mark.parametrize("after", ["keep", "one"])
def test_dnas_gates_stop_after_the_last_round(after: str) -> None:
    small = start(replace(DNAS, gates_after=after))
    steps(small, 11)
    assert "architecture" not in small.run.scratch
    gates = torch.cat([block.gate for block in small.blocks])
    assert bool((gates == 1).all()) is (after == "one")
    small.to_the_end()
    assert torch.equal(torch.cat([block.gate for block in small.blocks]), gates)
    assert (DNAS.validation_batches(), DNAS.architecture_share) == ((0, 0), 0.5)


def test_adamw_rows_of_unlike_age_are_adamw_each() -> None:
    draw = torch.Generator().manual_seed(3)
    grads = torch.randn(6, 2, generator=draw, dtype=torch.float64)
    params = [nn.Parameter(torch.zeros((), dtype=torch.float64)) for _ in range(2)]
    adams = [torch.optim.AdamW([p], lr=0.1, betas=(0.5, 0.9), weight_decay=0.1) for p in params]
    rows = torch.zeros(1, 4, dtype=torch.float64)
    for step, grad in enumerate(grads):
        if step == 3:
            rows = torch.cat([rows, torch.zeros(1, 4, dtype=torch.float64)])
        rows = adamw_rows(rows, grad[: len(rows)], lr=0.1, betas=(0.5, 0.9), eps=1e-8, weight_decay=0.1)
        for k in range(len(rows)):
            params[k].grad = grad[k]
            adams[k].step()
    torch.testing.assert_close(rows[:, 0], torch.stack([p.detach() for p in params]), rtol=0, atol=1e-12)
    assert rows[:, 3].tolist() == [6, 3]


def test_rows_follow_their_ranks() -> None:
    flat = torch.arange(1.0, 14.0)  # 2 x 2, 3 x 3
    assert carry_rows(flat, [2, 3], [2, 3], [[0], [1]], {0: 2}).tolist() == [
        3,
        4,
        0,
        0,
        0,
        0,
        5,
        6,
        7,
        11,
        12,
        13,
    ]
    assert carry_rows(flat, [2, 3], [2, 3], [[], [0, 1, 2]], {}).tolist() == [1, 2, 3, 4]
    assert carry_rows(flat[:4], [2, 0], [2, 3], [[], []], {1: 1}).tolist() == [1, 2, 3, 4, 0, 0, 0]


# -- ALoRA-Sensi --------------------------------------------------------------------------------------------


def test_sensi_is_adaloras_triplet_with_the_gate_of_one() -> None:
    """AdaLoRA Eq. 7-11 by hand over two steps, for rank 1 of module 2."""
    small = start(SENSI)
    mean = [0.0] * 9
    spread = [0.0] * 9
    for _ in range(2):
        small.step()
        block = small.blocks[2]
        a, da, b, db = (
            t[1].tolist() for t in (block.a.detach(), block.a.grad, block.b.detach(), block.b.grad)
        )
        entries = [abs(sum(x * g for x, g in zip(a, da, strict=True)))]
        entries += [abs(x * g) for x, g in zip(a, da, strict=True)] + [
            abs(x * g) for x, g in zip(b, db, strict=True)
        ]
        mean = [0.85 * m + 0.15 * s for m, s in zip(mean, entries, strict=True)]
        spread = [0.85 * u + 0.15 * abs(s - m) for u, s, m in zip(spread, entries, mean, strict=True)]
    products = [m * u for m, u in zip(mean, spread, strict=True)]
    expected = products[0] + sum(products[1:6]) / 5 + sum(products[6:]) / 3
    scores, _ = SENSI.importance(small.run)
    assert scores[2][1] == pytest.approx(expected, rel=1e-9)
    assert expected > 0


def test_sensi_smooths_on_for_survivors_and_anew_for_new_ranks() -> None:
    method = replace(SENSI, n_prune=3)
    small = steps(start(method), 4)
    state = small.run.scratch
    before = state["sensitivity"].split([3 * 10, 3 * 11, 3 * 9])
    object.__setattr__(method, "importance", lambda run: ([[0.0, 9.0, 0.0], [9.0] * 3, [9.0, 0.0, 9.0]],) * 2)
    method.before_forward(small.run)
    now = state["sensitivity"].split([1 * 10, 6 * 11, 2 * 9])
    assert torch.equal(now[0], before[0][10:20])
    assert torch.equal(now[1][:33], before[1])
    assert not now[1][33:].any()
    assert torch.equal(now[2], torch.cat([before[2][:9], before[2][18:]]))
    assert state["uncertainty"].shape == state["sensitivity"].shape


def test_sensi_stops_scoring_after_the_last_round() -> None:
    small = steps(start(SENSI), 11)
    last = small.run.scratch["sensitivity"].clone()
    steps(small, 2)
    assert torch.equal(small.run.scratch["sensitivity"], last)
    assert SENSI.validation_batches() == (0, 0)


# -- refusals and the promise -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rank": 0}, "method.rank=0 must be at least 1"),
        ({"rounds": 0}, "method.rounds=0"),
        ({"n_prune": 0}, "method.n_prune=0"),
        ({"validation_rows": 0}, "method.validation_rows=0"),
        ({"alpha": 0.0}, "method.alpha=0.0"),
        ({"dropout": 1.0}, "method.dropout=1.0"),
        ({"score_grid": -1.0}, "method.score_grid=-1.0"),
        ({"scorer": "brut"}, "unknown value of method.scorer 'brut'; did you mean 'brute'"),
        ({"grow_out": "ones"}, "method.grow_out"),
        ({"leftover": "keep"}, "method.leftover"),
        ({"scale_by": "rank"}, "method.scale_by"),
    ],
)
def test_refused_settings(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        replace(METHOD, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arch_lr": 0.0}, "method.arch_lr=0.0"),
        ({"arch_weight_decay": -1.0}, "method.arch_weight_decay"),
        ({"arch_beta1": 1.0}, "method.arch_beta1=1.0"),
        ({"arch_share": 1.0}, "method.arch_share=1.0"),
        ({"gates_after": "two"}, "method.gates_after"),
    ],
)
def test_refused_settings_of_dnas(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        replace(DNAS, **changes)
    with pytest.raises(UserError, match="method.beta2=1.0"):
        replace(SENSI, beta2=1.0)


FACTS = Facts(total_steps=30, steps_per_epoch=10, warmup=2, modules=4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"first_round": 10, "interval": 5, "rounds": 5},
            r"take 35 steps, but the training has 30 .*: 4 rounds fit",
        ),
        ({"first_round": 10, "interval": 5, "rounds": 6}, "take 40 steps.*: 4 rounds fit"),
        ({"first_round": 10, "interval": 2, "rounds": 11}, "10 rounds fit"),
        (
            {"first_round": "2ep", "interval": "0.5ep", "rounds": 8},
            r"first_round=2ep \(20 steps\).*: 2 rounds fit",
        ),
        ({"first_round": 40}, "0 rounds fit"),
        ({"first_round": 0}, "method.first_round=0 must be at least 1"),
        ({"interval": 0}, "method.interval=0 must be at least 1"),
        ({"interval": "soon"}, "method.interval='soon' is not a length"),
        ({"n_prune": 12}, "prunes 12 ranks a round .* 4 matrices of rank 3 have 12 in all"),
        ({"rank": 1, "n_prune": 4}, "prunes 4 ranks a round .* 4 matrices of rank 1 have 4 in all"),
    ],
)
def test_refused_before_anything_is_loaded(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        replace(METHOD, **changes).precheck(FACTS)
    replace(METHOD, first_round=10, interval=5, rounds=4).precheck(FACTS)


def test_the_published_phases_fit_three_epochs_of_any_length() -> None:
    """Quarters of an epoch are rounded up one by one, not added up first."""
    method = replace(METHOD, first_round="1ep", interval="0.25ep", rounds=8)
    shares = replace(method, first_round="33.3%", interval="8.3%")
    for per_epoch in range(4, 60):
        facts = Facts(total_steps=3 * per_epoch, steps_per_epoch=per_epoch, warmup=0, modules=4)
        method.precheck(facts)
        assert method.plan(facts.steps, 9) == [per_epoch + math.ceil(n * per_epoch / 4) for n in range(9)]
        with pytest.raises(UserError, match="[67] rounds fit"):
            method.precheck(replace(facts, total_steps=3 * per_epoch - 2))
    for total in range(24, 400):
        facts = Facts(total_steps=total, steps_per_epoch=4, warmup=0, modules=4)
        shares.precheck(facts)
        assert shares.plan(facts.steps, 8)[-1] < total


def test_two_rounds_are_never_made_at_once() -> None:
    method = replace(METHOD, first_round=2, interval="0.1ep", rounds=4)
    facts = Facts(total_steps=6, steps_per_epoch=3, warmup=0, modules=4)
    assert method.plan(facts.steps, 5) == [2, 3, 4, 5, 6]
    method.precheck(facts)
    with pytest.raises(UserError, match="3 rounds fit"):
        method.precheck(replace(facts, total_steps=5))


def test_promise_the_rounds_were_scored() -> None:
    small = start().to_the_end()
    METHOD.check(small.run)
    with pytest.raises(PromiseBroken, match="scored 3 rounds instead of 4"):
        replace(METHOD, rounds=4).check(small.run)
    small.run.scratch["initial_total"] = 5
    with pytest.raises(PromiseBroken, match="more than the 5 it began with"):
        METHOD.check(small.run)


@pytest.mark.parametrize("scorer", ["exact", "brute", "screened"])
def test_a_score_that_is_not_finite_stops_the_run(scorer: str) -> None:
    small = steps(start(method_with(scorer=scorer)), 4)
    small.run.validation[0] = [lambda: small.loss() * math.nan]
    with pytest.raises(Diverged, match="not finite at step 4"):
        small.step()
