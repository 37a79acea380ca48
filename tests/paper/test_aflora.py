"""AFLoRA (arXiv 2403.13269): Eq. 1-5 and the freezing procedure, with numbers worked out by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_runs import Net, Small, in_optimizer, only_block
from torch import Tensor, nn

from adalora_bench.errors import Diverged, PromiseBroken, UserError
from adalora_bench.lowrank.allocate import freeze_lowest, freezing_fraction
from adalora_bench.lowrank.scores import freezing_score, freezing_signal, smooth, uncertainty
from adalora_bench.methods.aflora import AfLora
from adalora_bench.methods.base import Facts
from adalora_bench.methods.run import OptimizerSettings, Run
from adalora_bench.train import checkpoint

METHOD = AfLora(
    version=1,
    targets=["all"],
    lr=0.02,
    head_lr=None,
    rank=2,
    dropout=0.0,
    d_init=0.1,
    train_matrices=["up", "down"],
    initial_warmup=2,
    final_phase=10,
    score="grad",
    beta1=0.85,
    beta2=0.95,
    deviation_from="previous",
    window=1,
    freeze=True,
)
NAMES = ("q", "up", "down")  # of the layers, and their roles


def q_up_down() -> Net:
    return Net((4, 4, 6, 4), NAMES)


def started(method: AfLora = METHOD, **changes: Any) -> Small:
    how = {"steps_per_epoch": 5, "weight_decay": 0.1, "clip": 0.0} | changes
    return Small(method, net=q_up_down(), roles=NAMES, **how)


def frozen(small: Small) -> set[str]:
    return {name for name, p in small.method.matrices(small.run) if not p.requires_grad}


# -- Eq. 1: the layer ---------------------------------------------------------------------------------------


def test_eq1_by_hand() -> None:
    layer = started().run.adapters["q"]
    b = only_block(layer)
    b.a.data = torch.tensor([[1.0, 0, 2.0, 0], [0, 1.0, 0, -1.0]], dtype=torch.float64)
    b.b.data = torch.tensor([[1.0, 2.0, 0, 0], [0, 1.0, 1.0, 0]], dtype=torch.float64)
    b.gate.data = torch.tensor([0.5, 2.0], dtype=torch.float64)
    layer.out_gate.data = torch.tensor([1.0, -1.0, 3.0, 5.0], dtype=torch.float64)
    # x = (1, 1, 1, 0): A x = (3, 1), L_d: (1.5, 2), B: (1.5, 5, 2, 0), L_b: (1.5, -5, 6, 0); no alpha / r
    x = torch.tensor([[1.0, 1.0, 1.0, 0]], dtype=torch.float64)
    by_hand = torch.tensor([[1.5, -5.0, 6.0, 0]], dtype=torch.float64)
    torch.testing.assert_close(layer(x) - layer.base(x), by_hand, rtol=0, atol=1e-13)
    torch.testing.assert_close(layer.merge()(x), layer(x).detach(), rtol=0, atol=1e-12)
    up, down = (
        (layer.out_gate * b.b).detach(),
        (b.gate[:, None] * b.a).detach(),
    )  # a plain LoRA of the same rank
    torch.testing.assert_close(layer.delta().detach(), up.T @ down, rtol=0, atol=1e-14)


def test_eq1_starts_with_kaiming_matrices_a_small_gate_and_no_output() -> None:
    small = started(replace(METHOD, rank=600))
    assert torch.equal(small.run.model(small.x), q_up_down()(small.x))
    for layer in small.run.adapters.values():
        b = only_block(layer)
        assert layer.scale == 1.0
        assert (b.gate == 0.1).all()
        assert layer.out_gate.tolist() == [0.0] * layer.out_features
        for matrix, fan_in in ((b.a, layer.in_features), (b.b, 600)):  # B has its rank as fan_in
            bound, values = math.sqrt(6 / fan_in), matrix.detach()
            assert 0.98 * bound < float(values.abs().max()) <= bound
            assert float(values.std()) == pytest.approx(bound / math.sqrt(3), rel=0.05)
    small.loss().backward()
    for layer in small.run.adapters.values():  # only L_b sees a gradient at first
        b = only_block(layer)
        assert not any(p.grad is not None and p.grad.any() for p in (b.a, b.b, b.gate))
        assert layer.out_gate.grad.any()


@pytest.mark.parametrize(
    ("choice", "training"),
    [
        (["up", "down"], ["up.A", "up.B", "down.A", "down.B"]),
        (["down"], ["down.A", "down.B"]),
        (["all"], ["q.A", "q.B", "up.A", "up.B", "down.A", "down.B"]),
        ([], []),
    ],
)
def test_which_matrices_train_is_by_role_and_the_others_keep_their_random_values(
    choice: list[str], training: list[str]
) -> None:
    method = replace(METHOD, train_matrices=choice)
    small = started(method)
    assert [name for name, _ in method.matrices(small.run)] == training
    others = {
        f"{name}.{letter}": p
        for name, layer in small.run.adapters.items()
        for letter, p in (("A", only_block(layer).a), ("B", only_block(layer).b))
        if f"{name}.{letter}" not in training
    }
    before = {name: p.detach().clone() for name, p in others.items()}
    assert all(id(p) not in in_optimizer(small.run) for p in others.values())
    small.to_the_end()
    assert all(torch.equal(p, before[name]) and bool(p.any()) for name, p in others.items())
    method.check(small.run)
    for layer in small.run.adapters.values():  # vectors train everywhere, to the end
        assert only_block(layer).gate.requires_grad
        assert layer.out_gate.requires_grad
        assert {id(only_block(layer).gate), id(layer.out_gate)} <= in_optimizer(small.run)
        assert (only_block(layer).gate != 0.1).all()
        assert (layer.out_gate != 0).all()


# -- Eq. 2-4: the score -------------------------------------------------------------------------------------


def test_eq2_to_eq4_by_hand() -> None:
    """Two entries, gradients (2, -1) and then (0, 3), beta1 .85, beta2 .95."""
    zero = torch.zeros(2, dtype=torch.float64)
    weight = torch.tensor([0.5, 4.0], dtype=torch.float64)
    one = freezing_signal(weight, torch.tensor([2.0, -1.0], dtype=torch.float64))
    mean = smooth(zero, one, 0.85)
    deviation = uncertainty(zero, one, zero, 0.95)
    assert mean.tolist() == pytest.approx([0.3, 0.15])
    assert deviation.tolist() == pytest.approx(
        [0.1, 0.05]
    )  # .05 * |2 - 0|: against the mean before this step
    assert float(freezing_score(mean, deviation)) == pytest.approx((0.03 + 0.0075) / 2)
    two = freezing_signal(weight, torch.tensor([0.0, 3.0], dtype=torch.float64))
    new = smooth(mean, two, 0.85)
    deviation = uncertainty(deviation, two, mean, 0.95)
    assert new.tolist() == pytest.approx([0.255, 0.5775])
    assert deviation.tolist() == pytest.approx([0.095 + 0.05 * 0.3, 0.0475 + 0.05 * 2.85])
    assert float(freezing_score(new, deviation)) == pytest.approx((0.255 * 0.11 + 0.5775 * 0.19) / 2)


@pytest.mark.parametrize(
    ("kind", "by_hand"),
    [
        ("grad", [2.0, 1.0, 0.0]),
        ("weight_times_grad", [1.0, 4.0, 0.0]),
        ("grad_over_weight", [4.0, 0.25, 0.0]),
    ],
)
def test_eq2_has_three_signals_in_the_ablation(kind: str, by_hand: list[float]) -> None:
    weight, grad = torch.tensor([0.5, -4.0, 0.0]), torch.tensor([2.0, -1.0, 0.0])
    assert freezing_signal(weight, grad, kind=kind).tolist() == by_hand


@pytest.mark.parametrize("score", ["grad", "weight_times_grad", "grad_over_weight"])
@pytest.mark.parametrize("reference", ["previous", "updated"])
def test_eq2_to_eq4_in_training_use_unclipped_gradients_of_the_whole_batch(
    score: str, reference: str
) -> None:
    """The averages after six steps, rolled by hand from the gradients as they were before the clipping."""
    method = replace(METHOD, score=score, deviation_from=reference, initial_warmup=10, final_phase=8)
    small = started(method, clip=1e-4)
    mean, deviation = [0.0] * 4, [0.0] * 4
    hand: list[tuple[Any, Any]] = list(zip(mean, deviation, strict=True))

    def roll() -> None:
        for k, (_, p) in enumerate(method.matrices(small.run)):
            i = {
                "grad": lambda p: p.grad.abs(),
                "weight_times_grad": lambda p: (p.detach() * p.grad).abs(),
                "grad_over_weight": lambda p: (p.grad / p.detach()).abs(),
            }[score](p).clone()
            m, u = hand[k]
            new = 0.85 * m + 0.15 * i
            hand[k] = new, 0.95 * u + 0.05 * (i - (m if reference == "previous" else new)).abs()

    for _ in range(6):
        small.step(seen=roll)
    for k, (m, u) in enumerate(hand):
        assert m.max() > 1e-6
        torch.testing.assert_close(small.run.scratch[f"mean.{k}"], m, rtol=1e-12, atol=0)
        torch.testing.assert_close(small.run.scratch[f"deviation.{k}"], u, rtol=1e-12, atol=0)


@settings(max_examples=200)
@given(signals=st.lists(st.floats(0, 10), min_size=1, max_size=12))
def test_eq3_the_authors_form_is_beta1_times_the_papers(signals: list[float]) -> None:
    """|I_t - mean_t| = beta1 * |I_t - mean_(t-1)|: all scores shrink alike, no decision changes."""
    mean = paper = authors = torch.zeros((), dtype=torch.float64)
    for value in signals:
        signal = torch.tensor(value, dtype=torch.float64)
        new = smooth(mean, signal, 0.85)
        paper = uncertainty(paper, signal, mean, 0.95)
        authors = uncertainty(authors, signal, new, 0.95)
        mean = new
    torch.testing.assert_close(authors, 0.85 * paper, rtol=1e-9, atol=1e-12)


def test_window_smooths_the_mean_of_its_steps_once() -> None:
    method = replace(METHOD, window=3, initial_warmup=10, final_phase=8)
    small = started(method)
    signals: list[Tensor] = []
    for n in range(1, 7):
        small.step(seen=lambda: signals.append(only_block(small.run.adapters["up"]).b.grad.abs().clone()))
        assert ("mean.1" in small.run.scratch) == (n >= 3)
        assert ("window.1" in small.run.scratch) == (n % 3 != 0)
    one, two = sum(signals[:3]) / 3, sum(signals[3:]) / 3
    torch.testing.assert_close(
        small.run.scratch["mean.1"], 0.85 * 0.15 * one + 0.15 * two, rtol=1e-12, atol=0
    )
    hand = 0.95 * 0.05 * one + 0.05 * (two - 0.15 * one).abs()
    torch.testing.assert_close(small.run.scratch["deviation.1"], hand, rtol=1e-12, atol=0)


# -- Eq. 5: the schedule ------------------------------------------------------------------------------------


def test_eq5_by_hand() -> None:
    """T = 20, t_i = 2, t_f = 10: a window of 8 steps, r(6) = 1 - (1/2)^3."""
    r = [freezing_fraction(t, total=20, start=2, tail=10) for t in range(20)]
    assert r[:3] == [0, 0, 0]
    assert r[3] == 1 - Fraction(7, 8) ** 3
    assert (float(r[4]), float(r[6]), float(r[8])) == (1 - 27 / 64, 0.875, 1 - 1 / 64)
    assert r[9] == 1 - Fraction(1, 512)
    assert r[10:] == [1] * 10


def test_eq5_counts_do_not_hang_on_rounding() -> None:
    """r = 1 - .8^3 = .488: floor(r * 125) is 61; in floating point it comes out as 60."""
    assert math.floor(125 * freezing_fraction(2, total=10, start=0, tail=0)) == 61
    assert math.floor(125 * (1 - (1 - 0.2) ** 3)) == 60


@settings(max_examples=300)
@given(total=st.integers(1, 400), start=st.integers(0, 400), tail=st.integers(0, 400))
def test_eq5_rises_from_0_at_t_i_to_1_at_the_tail(total: int, start: int, tail: int) -> None:
    r = [freezing_fraction(t, total=total, start=start, tail=tail) for t in range(total)]
    assert r == sorted(r)
    assert all(0 <= value <= 1 for value in r)
    assert all(value == 0 for value in r[:start])
    assert all(value == 1 for value in r[max(start, total - tail, 0) :])
    if start < total - tail:
        assert r[start] == 0
        assert all(value < 1 for value in r[: total - tail])


# -- the procedure ------------------------------------------------------------------------------------------


def test_step4_lowest_scores_are_frozen_cumulatively_ties_by_index() -> None:
    assert freeze_lowest([3.0, 1.0, 2.0, 1.0], frozen=set(), count=2) == [1, 3]
    assert freeze_lowest([3.0, 1.0, 1.0, 1.0], frozen=set(), count=2) == [1, 2]
    assert freeze_lowest([3.0, 1.0, 2.0, 0.0], frozen={1, 3}, count=3) == [2]
    assert freeze_lowest([3.0, 1.0, 2.0, 0.0], frozen={0}, count=1) == []
    assert freeze_lowest([3.0, 1.0], frozen={0, 1}, count=1) == []  # what is frozen stays frozen


@settings(max_examples=200)
@given(
    rounds=st.lists(st.lists(st.floats(0, 1), min_size=7, max_size=7), min_size=1, max_size=6), data=st.data()
)
def test_step4_frozen_set_grows_to_the_count_and_holds_the_lowest(
    rounds: list[list[float]], data: Any
) -> None:
    done: set[int] = set()
    counts = sorted(data.draw(st.lists(st.integers(0, 7), min_size=len(rounds), max_size=len(rounds))))
    for scores, count in zip(rounds, counts, strict=True):
        new = freeze_lowest(scores, frozen=done, count=count)
        assert not set(new) & done
        done |= set(new)
        assert len(done) == count
        left = set(range(7)) - done
        assert all(scores[k] <= scores[other] for k in new for other in left)


def test_steps_1_to_4_follow_the_schedule_by_hand() -> None:
    """n = 4, window of 8 from step 2: floor(4 r) is 1 at 3 (r .33), 2 at 4 (.578), 3 at 5 (.756), 4 at 10."""
    small = started()
    counts = []
    for _ in range(20):
        small.step()
        counts.append(len(frozen(small)))
    assert counts == [0, 0, 0, 1, 2, 3, 3, 3, 3, 3] + [4] * 10
    assert [(e.step, e.kind, e.before, e.after) for e in small.run.events] == [
        (3, "freeze", 4, 3),
        (4, "freeze", 3, 2),
        (5, "freeze", 2, 1),
        (10, "freeze", 1, 0),
    ]
    assert {e.module for e in small.run.events} == {"up.A", "up.B", "down.A", "down.B"}
    METHOD.check(small.run)


def test_step4_freezes_who_scores_lowest() -> None:
    small = started()
    for _ in range(3):
        small.step()
    scores: dict[str, float] = {}

    def look() -> None:
        for k, (name, p) in enumerate(METHOD.matrices(small.run)):
            m, u, i = small.run.scratch[f"mean.{k}"], small.run.scratch[f"deviation.{k}"], p.grad.abs()
            scores[name] = float(((0.85 * m + 0.15 * i) * (0.95 * u + 0.05 * (i - m).abs())).mean())

    small.step(seen=look)
    assert len(set(scores.values())) == 4
    assert frozen(small) == {min(scores, key=lambda name: scores[name])}


def test_step4_frozen_matrix_does_not_move_in_that_very_step_and_costs_nothing_after() -> None:
    """With weight decay and momentum, which would move whatever is still in the optimizer."""
    small = started(weight_decay=0.5)
    known: dict[str, Tensor] = {}
    for _ in range(20):
        before = {name: p.detach().clone() for name, p in METHOD.matrices(small.run)}
        small.step()
        for name, p in METHOD.matrices(small.run):
            if p.requires_grad:
                assert not torch.equal(p, before[name])
                continue
            known.setdefault(name, before[name])
            assert torch.equal(p, known[name])
            assert p.grad is None
            assert id(p) not in in_optimizer(small.run)
            assert p not in small.run.optimizer.state
    assert len(known) == 4
    assert set(small.run.scratch) == {"start", "tail"}  # no average of a frozen matrix is kept


def test_step5_vectors_move_to_the_end() -> None:
    small = started()
    for _ in range(20):
        vectors = [
            v for layer in small.run.adapters.values() for v in (only_block(layer).gate, layer.out_gate)
        ]
        before = [v.detach().clone() for v in vectors]
        small.step()
        moved = [not torch.equal(v, old) for v, old in zip(vectors, before, strict=True)]
        assert all(moved)


def test_average_of_trainable_parameters_is_over_the_steps() -> None:
    """Vectors: 3 gates of 2 and 4 + 6 + 4 outputs = 20. up: A 8, B 12; down: A 12, B 8."""
    small = started().to_the_end()
    size = {"up.A": 8, "up.B": 12, "down.A": 12, "down.B": 8}
    steps_trained = {e.module: e.step for e in small.run.events}
    by_hand = 20 + sum(size[name] * steps / 20 for name, steps in steps_trained.items())
    assert small.run.budget.average_trainable == pytest.approx(by_hand)


def test_published_parameter_counts_on_the_shapes_of_deberta_v3_base() -> None:
    """No number is stored (meta device). Table 1's average of 0.14M lies between all trainable and all frozen."""
    shapes = {
        "q": (768, 768),
        "k": (768, 768),
        "v": (768, 768),
        "o": (768, 768),
        "up": (768, 3072),
        "down": (3072, 768),
    }
    with torch.device("meta"):
        net = nn.ModuleDict({f"{role}{i}": nn.Linear(*shapes[role]) for i in range(12) for role in shapes})
    run = Run(
        net,
        {f"{role}{i}": role for i in range(12) for role in shapes},
        total_steps=100,
        steps_per_epoch=5,
        settings=OptimizerSettings(),
        generator=torch.Generator().manual_seed(0),
    )
    method = replace(METHOD, rank=4)
    method.attach(run)
    at_first = sum(p.numel() for p in run.trainable_parameters())
    matrices = sum(p.numel() for _, p in method.matrices(run))
    assert (at_first, matrices, at_first - matrices) == (451_872, 368_640, 83_232)
    # the schedule alone, all matrices being alike: one epoch of 20, then 30 % of training
    r = [float(freezing_fraction(t, total=100, start=5, tail=70)) for t in range(100)]
    assert 0.11e6 < sum(83_232 + (1 - x) * 368_640 for x in r) / 100 < 0.17e6


@settings(max_examples=200)
@given(
    total=st.integers(4, 12),
    start=st.integers(0, 6),
    tail=st.integers(0, 8),
    roles=st.sampled_from([["up", "down"], ["all"], ["q"], []]),
    score=st.sampled_from(["grad", "weight_times_grad", "grad_over_weight"]),
    window=st.integers(1, 3),
)
def test_frozen_set_follows_the_schedule_in_any_training(
    total: int, start: int, tail: int, roles: list[str], score: str, window: int
) -> None:
    method = replace(
        METHOD, initial_warmup=start, final_phase=tail, train_matrices=roles, score=score, window=window
    )
    try:
        method.precheck(Facts(total_steps=total, steps_per_epoch=5, warmup=0, modules=3))
    except UserError:
        assert start + tail >= total or window > max(1, start)
        return
    small = started(method, total=total)
    base = {name: layer.base.weight.detach().clone() for name, layer in small.run.adapters.items()}
    n, last, trained = len(method.matrices(small.run)), set[str](), 10**9
    for now in range(total):
        small.step()
        here = frozen(small)
        assert here >= last
        r = 0.0 if now < start else 1.0
        if start <= now < total - tail:
            r = 1 - (1 - (now - start) / (total - start - tail)) ** 3
        assert len(here) == math.floor(r * n + 1e-9)
        count = sum(p.numel() for p in small.run.trainable_parameters())
        assert count <= trained
        last, trained = here, count
    method.finalize(small.run)
    method.check(small.run)
    assert all(torch.equal(layer.base.weight, base[name]) for name, layer in small.run.adapters.items())


def test_resumed_run_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    """Stopped while two matrices are frozen and a window is half full."""
    method = replace(METHOD, window=2)
    whole, first = started(method), started(method)
    names = checkpoint.frozen_base_names(first.run, moves_base=False)
    for _ in range(5):
        first.step()
    assert 0 < len(frozen(first)) < 4
    assert any(key.startswith("window.") for key in first.run.scratch)
    checkpoint.save(tmp_path, first.run, names, {})
    second = started(method)
    newest = checkpoint.newest(tmp_path)
    assert newest is not None
    checkpoint.restore(second.run, *newest)
    assert frozen(second) == frozen(first)
    for small in (whole, second):
        small.to_the_end()
    for p, q in zip(whole.run.model.parameters(), second.run.model.parameters(), strict=True):
        assert torch.equal(p, q)
    assert whole.run.events == second.run.events
    method.check(second.run)


def test_scores_that_are_not_finite_stop_the_run() -> None:
    small = started()
    for _ in range(3):
        small.step()
    with pytest.raises(Diverged, match="step 3"):
        small.step(seen=lambda: only_block(small.run.adapters["up"]).a.grad.fill_(math.nan))


def test_scores_are_reduced_over_processes_before_the_decision() -> None:
    small = started()
    small.run.reduce = lambda score: torch.tensor([3.0, 2.0, 0.5, 1.0][: len(score)], dtype=torch.float64)
    for _ in range(4):
        small.step()
    assert frozen(small) == {"down.A"}


# -- the promise and the refusals ---------------------------------------------------------------------------


def test_check_wants_the_schedule() -> None:
    small = started().to_the_end()
    METHOD.check(small.run)
    kept = small.run.events.copy()
    small.run.events[0] = replace(kept[0], step=4)
    small.run.events[1] = replace(kept[1], step=6)
    with pytest.raises(PromiseBroken, match="1 matrices frozen at step 4 instead of 2"):
        METHOD.check(small.run)
    small.run.events[:] = kept
    METHOD.matrices(small.run)[0][1].requires_grad_(True)
    with pytest.raises(PromiseBroken, match="3 of 4 matrices frozen instead of 4"):
        METHOD.check(small.run)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rank": 0}, "method.rank=0"),
        ({"window": 0}, "method.window=0"),
        ({"beta1": 1.0}, "method.beta1=1.0"),
        ({"beta2": -0.1}, "method.beta2=-0.1"),
        ({"dropout": 1.0}, "method.dropout=1.0"),
        ({"d_init": 0.0}, "method.d_init=0.0"),
        ({"score": "gradient"}, "grad"),
        ({"deviation_from": "new"}, "updated"),
        ({"train_matrices": ["ffn"]}, "ffn"),
        ({"targets": ["q", "v"]}, "names no role of method.targets=['q', 'v']"),
    ],
)
def test_wrong_settings_are_refused_with_the_value(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as caught:
        replace(METHOD, **changes)
    assert words in str(caught.value)


def test_an_empty_window_is_refused_with_the_numbers() -> None:
    facts = Facts(total_steps=15, steps_per_epoch=5, warmup=1, modules=3)
    paper = replace(METHOD, initial_warmup="1ep", final_phase="70%")
    with pytest.raises(
        UserError,
        match="initial_warmup=1ep is 5 steps and method.final_phase=70% is 11, which leaves none of 15",
    ):
        paper.precheck(facts)
    with pytest.raises(UserError, match="which leaves none of 17"):
        paper.precheck(replace(facts, total_steps=17))  # 5 + 12: not one step
    paper.precheck(replace(facts, total_steps=20))  # 5 + 14
    replace(paper, train_matrices=[]).precheck(facts)  # nothing to freeze, nothing to refuse
    replace(paper, freeze=False).precheck(facts)


def test_table4_all_trainable_freezes_nothing() -> None:
    method = replace(METHOD, train_matrices=["all"], freeze=False)
    small = started(method).to_the_end()
    method.check(small.run)
    assert not frozen(small)
    assert not [event for event in small.run.events if event.kind == "freeze"]


def test_a_window_of_averages_longer_than_the_start_is_refused() -> None:
    facts = Facts(total_steps=40, steps_per_epoch=5, warmup=1, modules=3)
    replace(METHOD, window=10, initial_warmup=10).precheck(facts)
    with pytest.raises(UserError, match="window=10 steps .* at step 9"):
        replace(METHOD, window=10, initial_warmup=9).precheck(facts)
