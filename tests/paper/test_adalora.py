"""AdaLoRA (arXiv 2303.10512): Eq. 3-11 and the budget of appendix A, by hand, and the whole course against peft's."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_runs import WHOLE, Net, Small, fill, in_optimizer, square
from torch import Tensor, nn

from adalora_bench.errors import Diverged, PromiseBroken, UserError
from adalora_bench.lowrank.allocate import cubic_budget, keep_best
from adalora_bench.lowrank.scores import mean_orthogonality, sensitivity, triplet
from adalora_bench.methods.adalora import AdaLora
from adalora_bench.methods.base import Facts

METHOD = AdaLora(
    version=1,
    targets=["all"],
    lr=0.01,
    head_lr=None,
    init_rank=3,
    target_rank=2,
    initial_warmup=2,
    final_phase=3,
    interval=1,
    beta1=0.85,
    beta2=0.85,
    alpha=16.0,
    init_std=0.02,
    orthogonality=0.1,
    orthogonality_squared=False,
    dropout=0.0,
)


class Rehearsal(Small):
    """A run whose batch is one piece."""

    method: AdaLora

    def __init__(
        self,
        method: AdaLora = METHOD,
        net: Net | None = None,
        *,
        total: int = 12,
        clip: float = 1.0,
        schedule: str = "linear",
    ) -> None:
        net = square() if net is None else net
        super().__init__(method, net=net, total=total, clip=clip, schedule=schedule, pieces=WHOLE)

    @property
    def nonzero(self) -> int:
        """Singular values that are not 0, over all modules."""
        return sum(int((block.effective_gate() != 0).sum()) for block in self.blocks)

    def budget(self, step: int) -> int:
        run, m = self.run, self.method
        t_i, t_f, n = int(m.initial_warmup), int(m.final_phase), len(self.layers)
        if step <= t_i:
            return m.init_rank * n
        if step >= run.total_steps - t_f:
            return m.target_rank * n
        share = 1 - (step - t_i) / (run.total_steps - t_f - t_i)
        return int(m.target_rank * n + (m.init_rank - m.target_rank) * n * share**3)


def give(small: Rehearsal, gates: list[list[float]]) -> None:
    """One call of the hook after the step, with given gradients of the singular values and none elsewhere."""
    for block, g in zip(small.blocks, gates, strict=True):
        block.gate.grad = torch.tensor(g, dtype=torch.float64)
        block.a.grad, block.b.grad = torch.zeros_like(block.a), torch.zeros_like(block.b)
    small.method.after_step(small.run)
    small.run.advance()


# -- Eq. 3 and 4 --------------------------------------------------------------------------------------------


def test_eq3_update_is_b_e_a_times_a_constant_scale() -> None:
    small = Rehearsal(replace(METHOD, init_rank=2, target_rank=1), square(1, 2))
    (layer,) = small.layers
    fill(small.blocks[0], [[1.0, 2.0], [0.0, 4.0]], [[3.0, -1.0], [1.0, 5.0]], [0.5, -1.0])
    # .5 b1 a1 = [[1.5, 3], [-.5, -1]]; - b2 a2 = [[0, -4], [0, -20]]; alpha / (2 + 1e-5)
    by_hand = torch.tensor([[1.5, -1.0], [-0.5, -21.0]], dtype=torch.float64) * 16 / 2.00001
    torch.testing.assert_close(layer.delta(), by_hand, rtol=0, atol=1e-12)
    small.to_the_end()
    assert layer.rank == 1
    assert layer.scale == 16 / 2.00001  # pruning does not rescale what stays


def test_eq3_singular_values_start_at_zero_and_only_they_get_a_task_gradient() -> None:
    small = Rehearsal(replace(METHOD, orthogonality=0.0, init_rank=64, init_std=0.5), square(2, 16))
    assert torch.equal(small.run.model(small.x), square(2, 16)(small.x))
    assert small.method.penalty(small.run) is None
    small.backward()
    for block in small.blocks:
        assert not block.gate.any()
        assert block.gate.grad.any()
        assert not block.a.grad.any()
        assert not block.b.grad.any()
        for factor in (block.a.detach(), block.b.detach()):  # 1024 draws of N(0, .5)
            assert float(factor.std()) == pytest.approx(0.5, rel=0.1)
            assert abs(float(factor.mean())) < 0.06


@pytest.mark.parametrize(
    ("squared", "expected"), [(False, 0.1 * (math.sqrt(3) + 3) / 4), (True, 0.1 * (3 + 9) / 4)]
)
def test_eq4_penalty_is_the_mean_over_2n_matrices(squared: bool, expected: float) -> None:
    """The plain norm is the default; Eq. 4 as printed squares it."""
    method = replace(METHOD, init_rank=2, target_rank=1, orthogonality_squared=squared)
    small = Rehearsal(method, square(2, 2))
    one, two = small.blocks
    # A = [1 0; 1 1]: A A^T - I = [0 1; 1 1], squares sum to 3.  B rows [2 0], [0 1]: [3 0; 0 0], 9.
    fill(one, [[1.0, 0.0], [1.0, 1.0]], [[2.0, 0.0], [0.0, 1.0]], [0.3, 0.0])
    fill(two, [[1.0, 0.0], [0.0, 1.0]], [[0.0, 1.0], [1.0, 0.0]], [0.3, 0.3])
    penalty = method.penalty(small.run)
    assert penalty is not None
    assert float(penalty.detach()) == pytest.approx(expected, abs=1e-14)
    penalty.backward()
    assert torch.isfinite(two.a.grad).all()  # at exactly 0 the norm has no slope to divide by
    assert all(block.gate.grad is None for block in small.blocks)


@settings(max_examples=200)
@given(seed=st.integers(0, 10**6), rank=st.integers(1, 4), width=st.integers(1, 6), squared=st.booleans())
def test_eq4_gradient_is_the_closed_form(seed: int, rank: int, width: int, squared: bool) -> None:
    """With D = X X^T - I: 4 D X of the square, 2 D X / ||D|| of the norm; over the number of matrices."""
    generator = torch.Generator().manual_seed(seed)
    xs = [torch.randn(rank, width, generator=generator, dtype=torch.float64) for _ in range(3)]
    for x in xs:
        x.requires_grad_()
    mean_orthogonality(xs, squared=squared).backward()
    for x in xs:
        d = (x @ x.T - torch.eye(rank)).detach()
        by_hand = 4 * d @ x if squared else 2 * d @ x / d.norm()
        torch.testing.assert_close(x.grad, by_hand.detach() / 3, rtol=0, atol=1e-11)


# -- Eq. 7-11 -----------------------------------------------------------------------------------------------


def test_eq7_importance_of_a_triplet() -> None:
    gate = torch.tensor([1.0, 2.0])
    a = torch.tensor([[1.0, 3.0], [0.0, 0.0]])
    b = torch.tensor([[0.0, 3.0, 6.0], [1.0, 1.0, 1.0]])
    assert triplet(gate, a, b).tolist() == [1 + 2 + 3, 2 + 0 + 1]


def test_eq8_sensitivity_of_an_entry() -> None:
    assert sensitivity(torch.tensor([2.0, -3.0]), torch.tensor([-0.5, 4.0])).tolist() == [1, 12]


def test_eq8_takes_the_moved_parameter_and_the_clipped_gradient_of_the_whole_loss() -> None:
    small = Rehearsal(replace(METHOD, orthogonality=5.0), clip=0.01)
    small.backward()
    unclipped = [block.a.grad.clone() for block in small.blocks]
    before = [block.a.detach().clone() for block in small.blocks]
    small.optimize()
    small.method.after_step(small.run)
    parts = [p for block in small.blocks for p in (block.gate, block.a, block.b)]
    by_hand = torch.cat([(p.detach() * p.grad).abs().flatten() for p in parts])
    assert torch.equal(small.run.scratch["sensitivity"], (1 - 0.85) * by_hand)
    for block, old, whole in zip(small.blocks, before, unclipped, strict=True):
        assert (block.a - old).abs().max() > 1e-3
        assert block.a.grad.any()  # the singular values were 0: this is the penalty's
        assert block.a.grad.abs().max() < 0.1 * whole.abs().max()


def test_eq9_eq10_sensitivity_and_uncertainty_over_two_steps() -> None:
    """|S - I(t)| against the updated mean; 1 x 1 modules with gate 1, so that S is |gradient|."""
    small = Rehearsal(replace(METHOD, init_rank=1, target_rank=1), square(2, 1))
    for block in small.blocks:
        fill(block, [[1.0]], [[1.0]], [1.0])
    give(small, [[2.0], [-2.0]])
    state = small.run.scratch
    assert state["sensitivity"].tolist() == pytest.approx([0.3, 0, 0, 0.3, 0, 0], abs=1e-15)
    assert state["uncertainty"].tolist() == pytest.approx([0.255, 0, 0, 0.255, 0, 0], abs=1e-15)
    give(small, [[4.0], [0.0]])
    # .85 * .3 + .15 * 4 ; .85 * .3.  .85 * .255 + .15 * |4 - .855| ; .85 * .255 + .15 * .255
    assert state["sensitivity"].tolist() == pytest.approx([0.855, 0, 0, 0.255, 0, 0], abs=1e-15)
    assert state["uncertainty"].tolist() == pytest.approx([0.6885, 0, 0, 0.255, 0, 0], abs=1e-15)


def test_eq11_rank_is_by_the_product_and_not_by_either_factor() -> None:
    """Rank 0 has the highest I, rank 1 the highest U, rank 2 the highest product, of singular values alone."""
    small = Rehearsal(replace(METHOD, target_rank=1, final_phase=11, initial_warmup=0), square(1, 1))
    fill(small.blocks[0], [[1.0]] * 3, [[1.0]] * 3, [1.0, 1.0, 1.0])
    give(small, [[0.0, 0.0, 0.0]])
    state = small.run.scratch
    state["sensitivity"][:3] = torch.tensor([1.0, 0.1, 0.8], dtype=torch.float64)
    state["uncertainty"][:3] = torch.tensor([0.1, 1.0, 0.8], dtype=torch.float64)
    seen: list[list[float]] = []
    small.run.reduce = lambda score: seen.append(score.tolist()) or score  # type: ignore[func-returns-value]
    give(small, [[9.0, 9.0, 9.0]])  # the final phase: these gradients are not looked at any more
    assert seen[0] == pytest.approx([0.1, 0.1, 0.64], abs=1e-12)
    assert small.blocks[0].gate.tolist() == [0.0, 0.0, 1.0]


# -- Eq. 6 --------------------------------------------------------------------------------------------------


def test_eq6_keeps_exactly_b_and_a_tie_goes_to_the_lower_index() -> None:
    assert keep_best([1.0, 3.0, 2.0], 2) == [False, True, True]
    assert keep_best([1.0, 1.0, 1.0, 1.0], 3) == [True, True, True, False]
    assert keep_best([1.0, 2.0], 2) == [True, True]
    assert keep_best([1.0, 2.0], 0) == [False, False]


@settings(max_examples=200)
@given(scores=st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0]), min_size=1, max_size=12), share=st.floats(0, 1))
def test_eq6_no_triplet_that_stays_scores_below_one_that_goes(scores: list[float], share: float) -> None:
    budget = int(share * len(scores))
    kept = keep_best(scores, budget)
    assert sum(kept) == budget
    gone = [s for s, k in zip(scores, kept, strict=True) if not k]
    stay = [s for s, k in zip(scores, kept, strict=True) if k]
    assert not gone or not stay or min(stay) >= max(gone)


def test_eq6_mask_sets_singular_values_only_and_they_can_grow_again() -> None:
    small = Rehearsal(replace(METHOD, interval=3, target_rank=1), total=15)
    counts = []
    for step in range(12):
        small.backward()
        small.optimize()
        moved = [(b.a.detach().clone(), b.b.detach().clone(), b.gate.detach().clone()) for b in small.blocks]
        small.method.after_step(small.run)
        for block, (a, b, gate) in zip(small.blocks, moved, strict=True):
            assert torch.equal(block.a, a)
            assert torch.equal(block.b, b)
            assert (step in (3, 6, 9)) or torch.equal(block.gate, gate)
            assert bool(((block.gate == gate) | (block.gate == 0)).all())
        small.run.advance()
        counts.append(small.nonzero)
        assert small.run.total_rank == 9  # what can grow again still counts
    # t_i = 2, T - t_f = 12: b(3) = 3 + 6 * .9^3 = 7.37, b(6) = 3 + 6 * .6^3 = 4.3, b(9) = 3 + 6 * .3^3 = 3.2
    assert counts == [9, 9, 9, 7, 9, 9, 4, 9, 9, 3, 9, 9]
    small.step()
    assert small.nonzero == small.run.total_rank == 3


def test_algorithm_1_masking_before_the_step_would_be_undone_by_the_step() -> None:
    """The order of README and trainer: mask after the optimizer."""
    wrong = Rehearsal(replace(METHOD, final_phase=9))
    for _ in range(11):
        wrong.backward()
        wrong.optimize()
        wrong.run.advance()
    for block in wrong.blocks:
        block.gate.data.zero_()
    wrong.backward()
    wrong.optimize()
    assert wrong.nonzero == 9
    right = Rehearsal(replace(METHOD, final_phase=9))
    for step in range(12):
        right.step()
        assert right.nonzero == (6 if step >= 3 else 9)


# -- the budget ---------------------------------------------------------------------------------------------


def test_appendix_a_budget_by_hand() -> None:
    """From 864 to 576, t_i = 2, T - t_f = 6: shares (3/4)^3, (1/2)^3, (1/4)^3 of 288, rounded down."""
    table = [cubic_budget(t, first=864, last=576, warmup=2, end=6) for t in range(9)]
    assert table == [864, 864, 864, 697, 612, 580, 576, 576, 576]


@settings(max_examples=200)
@given(
    first=st.integers(1, 900),
    less=st.integers(0, 600),
    warmup=st.integers(0, 50),
    width=st.integers(1, 80),
)
def test_appendix_a_budget_never_rises(first: int, less: int, warmup: int, width: int) -> None:
    last = max(1, first - less)
    table = [
        cubic_budget(t, first=first, last=last, warmup=warmup, end=warmup + width)
        for t in range(warmup + width + 3)
    ]
    assert table == sorted(table, reverse=True)
    assert table[: warmup + 1] == [first] * (warmup + 1)
    assert table[warmup + width :] == [last] * 3


@settings(max_examples=200)
@given(
    modules=st.integers(1, 3),
    init=st.integers(1, 4),
    less=st.integers(0, 3),
    initial=st.integers(0, 3),
    final=st.integers(1, 4),
    interval=st.integers(1, 4),
)
def test_invariant_budget_is_met_exactly_at_every_mask_and_at_the_end(
    modules: int, init: int, less: int, initial: int, final: int, interval: int
) -> None:
    method = replace(
        METHOD,
        init_rank=init,
        target_rank=max(1, init - less),
        initial_warmup=initial,
        final_phase=final,
        interval=interval,
    )
    method.precheck(Facts(total_steps=8, steps_per_epoch=8, warmup=0, modules=modules))
    small = Rehearsal(method, square(modules, 3), total=8)
    run, pin, target = small.run, 8 - final, method.target_rank * modules
    pattern: list[list[bool]] = []
    for step in range(8):
        small.step()
        if step >= pin:
            assert small.nonzero == run.total_rank == target
            now = [block.alive.tolist() for block in small.blocks]
            assert now == (pattern or now)  # the choice stands
            pattern = now
        else:
            masked = step > initial and step % interval == 0
            assert small.nonzero == (small.budget(step) if masked else init * modules)
            assert run.total_rank == init * modules
    before = run.model(small.x).detach()
    method.finalize(run)
    assert sum(layer.stored_rank for layer in small.layers) == run.total_rank == target
    torch.testing.assert_close(run.model(small.x), before, rtol=0, atol=1e-13)
    method.check(run)
    shrunk = {e.module: e.before - e.after for e in run.events if e.kind == "prune"}
    assert sum(shrunk.values()) == init * modules - target
    budgets = [(e.before, e.after) for e in run.events if e.kind == "mask"]
    assert [b for b, _ in budgets] + [target] == [init * modules] + [a for _, a in budgets]
    assert all(e.step == pin for e in run.events if e.kind == "prune")


def test_final_phase_scores_nothing_and_keeps_no_scores() -> None:
    small = Rehearsal()
    for _ in range(9):
        small.step()
    last = small.run.scratch["sensitivity"].clone()
    seen: list[Tensor] = []
    small.run.reduce = lambda score: seen.append(score) or score  # type: ignore[func-returns-value]
    expected = small.method._importance(small.run)
    small.step()  # T - t_f = 9: masks with the scores of step 8
    assert last.any()
    assert seen[1].tolist() == expected
    small.step()
    assert len(seen) == 2
    assert not {"sensitivity", "uncertainty"} & set(small.run.scratch)


def test_finalize_takes_the_losers_out_of_model_and_optimizer() -> None:
    small = Rehearsal(replace(METHOD, target_rank=1))
    for _ in range(6):
        small.step()
    loser = small.layers[1]
    sizes = [p.numel() for block in small.blocks for p in (block.gate, block.a, block.b)]
    scores = [torch.ones(n, dtype=torch.float64) for n in sizes]
    for part in scores[3:6]:
        part.zero_()  # module 1 loses everything
    small.run.scratch["sensitivity"] = torch.cat(scores) * 1e9
    small.run.scratch["uncertainty"] = torch.cat(scores) * 1e9
    small.to_the_end()
    assert (loser.rank, loser.stored_rank, len(loser.blocks)) == (0, 0, 0)
    x = torch.ones(1, 4, dtype=torch.float64)
    assert torch.equal(loser(x), loser.base(x))
    assert in_optimizer(small.run) == {id(p) for p in small.run.trainable_parameters()}
    for block in small.blocks:
        assert small.run.optimizer.state[block.a]["exp_avg"].shape == block.a.shape
    small.method.check(small.run)


# -- against peft -------------------------------------------------------------------------------------------


class WithLoss(nn.Module):
    """peft adds its penalty to `loss` of what the model returns."""

    def __init__(self, net: Net) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, y: Tensor) -> SimpleNamespace:
        return SimpleNamespace(loss=(self.net(x) - y).square().mean())


@pytest.mark.parametrize(("interval", "final"), [(1, 4), (3, 5)])
def test_whole_course_equals_that_of_peft(interval: int, final: int) -> None:
    """Same tensors, same optimizer: singular values, factors and choice of ranks, step after step."""
    from peft import AdaLoraConfig
    from peft.tuners.adalora import AdaLoraModel

    total = 16
    method = replace(METHOD, interval=interval, final_phase=final, orthogonality=0.3)
    ours = Rehearsal(method, total=total, clip=0, schedule="constant")
    config = AdaLoraConfig(
        init_r=3,
        target_r=2,
        tinit=2,
        tfinal=final,
        deltaT=interval,
        total_step=total,
        beta1=0.85,
        beta2=0.85,
        orth_reg_weight=0.3,
        lora_alpha=16,
        lora_dropout=0.0,
        target_modules=[f"net.layers.{i}" for i in range(3)],
    )
    net = square()
    theirs = AdaLoraModel(WithLoss(net), config, "default").double()
    for param in net.head.parameters():
        param.requires_grad_(True)
    for block, layer in zip(ours.blocks, net.layers, strict=True):
        layer.lora_A["default"].data = block.a.detach().clone()
        layer.lora_B["default"].data = block.b.detach().T.clone()
        layer.lora_E["default"].data = block.gate.detach()[:, None].clone()
    # peft's own optimizers would train `ranknum`, the divisor of its scale, too: it has requires_grad
    trainable = [p for name, p in theirs.named_parameters() if p.requires_grad and "ranknum" not in name]
    optimizer = torch.optim.AdamW(trainable, lr=0.01, weight_decay=0.01)
    for step in range(total):
        optimizer.zero_grad()
        theirs(ours.x, ours.y).loss.backward()
        optimizer.step()
        theirs.update_and_allocate(step)
        ours.step()
        for block, layer in zip(ours.blocks, net.layers, strict=True):
            gate = layer.lora_E["default"].detach()[:, 0]
            torch.testing.assert_close(block.effective_gate(), gate, rtol=0, atol=1e-9)
            torch.testing.assert_close(block.a, layer.lora_A["default"], rtol=0, atol=1e-9)
            torch.testing.assert_close(block.b.T, layer.lora_B["default"], rtol=0, atol=1e-9)
    assert ours.nonzero == ours.run.total_rank == 6
    torch.testing.assert_close(ours.run.model(ours.x), net(ours.x), rtol=0, atol=1e-9)


# -- refusals and the promise -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target_rank": 4}, "method.target_rank=4 is above method.init_rank=3"),
        ({"target_rank": 0}, "method.target_rank=0"),
        ({"beta1": 1.0}, r"method.beta1=1.0 must lie in \[0, 1\)"),
        ({"beta2": -0.1}, "method.beta2=-0.1"),
        ({"dropout": 1.0}, "method.dropout=1.0"),
        ({"alpha": 0.0}, "method.alpha=0.0"),
        ({"init_std": 0.0}, "method.init_std=0.0"),
        ({"orthogonality": -1.0}, "method.orthogonality=-1.0"),
        ({"orthogonality": math.nan}, "method.orthogonality=nan"),
    ],
)
def test_refused_settings(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        replace(METHOD, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"initial_warmup": 17},
            r"initial_warmup=17 \(17 steps\) and method.final_phase=3 \(3 steps\) .* 20 steps",
        ),
        ({"initial_warmup": "1ep", "final_phase": "50%"}, r"\(10 steps\) and .* \(10 steps\).*10 an epoch"),
        ({"final_phase": 0}, "method.final_phase=0 must be at least 1"),
        ({"interval": 0}, "method.interval=0 must be at least 1"),
        ({"interval": "2ep"}, "method.interval=2ep is 20 steps, but the whole training has 20 steps"),
        ({"interval": "often"}, "method.interval='often' is not a length"),
    ],
)
def test_refused_phases(changes: dict[str, Any], message: str) -> None:
    facts = Facts(total_steps=20, steps_per_epoch=10, warmup=2, modules=4)
    with pytest.raises(UserError, match=message):
        replace(METHOD, **changes).precheck(facts)
    METHOD.precheck(facts)


def test_a_score_that_is_not_finite_stops_the_run() -> None:
    small = Rehearsal()
    for _ in range(3):
        small.step()
    small.run.scratch["sensitivity"][5] = math.nan
    with pytest.raises(Diverged, match="step 3"):
        small.step()


def test_promise_the_budget_is_met_and_the_model_really_is_smaller() -> None:
    small = Rehearsal().to_the_end()
    METHOD.check(small.run)
    with pytest.raises(PromiseBroken, match="6 ranks .6 stored. instead of 3"):
        replace(METHOD, target_rank=1).check(small.run)
    unresized = Rehearsal()
    for _ in range(12):
        unresized.step()
    with pytest.raises(PromiseBroken, match="6 ranks .9 stored. instead of 6"):
        METHOD.check(unresized.run)
