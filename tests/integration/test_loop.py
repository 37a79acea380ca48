"""The loop: hooks in their order, what a step weighs, when it stops; and what a method does to a Run."""

from __future__ import annotations

import signal
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import toy_forms
from torch import Tensor, nn

from adalora_bench.errors import Diverged, Interrupted
from adalora_bench.lowrank.adapter import LowRankLinear, RankBlock
from adalora_bench.methods.base import Method
from adalora_bench.methods.run import Group, OptimizerSettings, Run
from adalora_bench.train import loop
from adalora_bench.train.meter import Meter

HOOKS = ("before_forward", "penalty", "after_backward", "after_step")
LENGTHS = (3, 1, 2, 5, 4)


class Toy(nn.Module):
    """Logit = weight * number of tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0]))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.weight * attention_mask.sum(1, keepdim=True).float()


@dataclass(frozen=True, kw_only=True)
class Spy(Method):
    """Writes down every hook; full training of the one weight."""

    calls: list[str] = field(default_factory=list)
    seen: dict[str, Any] = field(default_factory=dict)

    def attach(self, run: Run) -> None:
        self.calls.append("attach")

    def setup(self, run: Run) -> None:
        self.calls.append("setup")

    def before_forward(self, run: Run) -> None:
        self.calls.append("before_forward")
        self.seen["grad_before"] = next(run.model.parameters()).grad

    def penalty(self, run: Run) -> Tensor | None:
        self.calls.append("penalty")
        return 0 * next(run.model.parameters()).sum()

    def after_backward(self, run: Run) -> None:
        self.calls.append("after_backward")
        self.seen["grad"] = _grad(run).clone()

    def after_step(self, run: Run) -> None:
        self.calls.append("after_step")
        self.seen["clipped"] = _grad(run).clone()

    def finalize(self, run: Run) -> None:
        self.calls.append("finalize")

    def check(self, run: Run) -> None:
        self.calls.append("check")


def _grad(run: Run) -> Tensor:
    grad = next(run.model.parameters()).grad
    assert grad is not None
    return grad


def make(total: int = 6, **more: Any) -> tuple[Spy, Run, loop.Data, loop.LoopSettings]:
    spy = Spy(version=1, targets=["all"], lr=0.1, head_lr=None)
    run = Run(
        Toy(),
        {},
        total_steps=total,
        steps_per_epoch=2,
        settings=OptimizerSettings(
            weight_decay=0.0, betas=(0.9, 0.999), eps=1e-8, warmup=2, schedule="linear"
        ),
        generator=torch.Generator(),
    )
    examples = [toy_forms.example(n) for n in LENGTHS]
    data = loop.Data(train=examples, form=toy_forms.regression(), device=torch.device("cpu"))
    settings: dict[str, Any] = {"batch_size": 3, "micro_batches": 2, "max_grad_norm": 1.0, "eval_every": 0}
    settings |= {"eval_at_start": False, "log_every": 100, "precision": "fp32"} | more
    loop.begin(spy, run)
    return spy, run, data, loop.LoopSettings(**settings)


def train(parts: Any, **calls: Any) -> list[dict[str, Any]]:
    spy, run, data, settings = parts
    rows: list[dict[str, Any]] = []
    plain: dict[str, Any] = {
        "evaluate": lambda: {"acc": 1.0},
        "log": rows.append,
        "evaluated": lambda scores: None,
        "milestone": lambda: None,
        "stepped": lambda row, save: None,
        "stop": lambda: None,
    }
    call = loop.Callbacks(**(plain | calls))
    loop.train(spy, run, data, 0, settings, Meter(), call)
    loop.finish(spy, run, call)
    return rows


def test_hooks_are_called_in_the_order_of_the_docstring() -> None:
    parts = make(total=3)
    train(parts)
    assert parts[0].calls == ["attach", "setup", *HOOKS * 3, "finalize", "check"]
    assert parts[0].seen["grad_before"] is None  # zero_grad comes first


def test_gradient_is_the_mean_over_the_whole_batch_and_clipped_after_the_method_saw_it() -> None:
    from adalora_bench.data.collate import batch_positions

    spy, run, data, settings = make()
    for step in range(2):  # 3 rows, then the 2 that are left
        weight = float(next(run.model.parameters()).detach())
        rows = batch_positions(5, 3, 0, step)
        assert len(rows) == (3, 2)[step]
        loop.training_step(spy, run, data, 0, settings, Meter())
        wanted = sum(2 * weight * LENGTHS[i] ** 2 for i in rows) / len(rows)
        assert spy.seen["grad"].item() == pytest.approx(wanted)
        assert spy.seen["clipped"].item() == pytest.approx(1.0, abs=1e-5)


def test_learning_rate_starts_at_zero_and_ends_near_zero() -> None:
    rows = train(make(total=6, log_every=1))
    assert [row["lr"] for row in rows] == pytest.approx([0, 0.05, 0.1, 0.075, 0.05, 0.025])
    assert [row["step"] for row in rows] == list(range(6))


def test_evaluates_when_due_and_once_at_the_end() -> None:
    parts = make(total=6, eval_every=2)
    at: list[int] = []
    train(parts, evaluated=lambda scores: at.append(parts[1].step))
    assert at == [2, 4, 6]
    assert parts[1].model.training


def test_a_loss_that_is_not_finite_is_divergence() -> None:
    parts = make()
    with torch.no_grad():
        next(parts[1].model.parameters()).fill_(float("inf"))
    with pytest.raises(Diverged, match="loss is inf at step 0"):
        train(parts)


@pytest.mark.parametrize("at", [1, 3])
def test_a_signal_stops_after_the_step_with_a_checkpoint(at: int) -> None:
    parts = make(total=4)
    saved: list[tuple[int, bool]] = []
    stop = {"stop": lambda: signal.SIGTERM if parts[1].step == at else None}
    with pytest.raises(Interrupted) as caught:
        train(parts, stepped=lambda row, save: saved.append((parts[1].step, save)), **stop)
    assert caught.value.signum == signal.SIGTERM
    assert saved[-1] == (at, True)


def test_a_signal_after_the_last_step_lets_the_unit_finish() -> None:
    parts = make(total=4)
    train(parts, stop=lambda: signal.SIGTERM if parts[1].step == 4 else None)
    assert parts[0].calls[-1] == "check"


def adapted() -> tuple[Run, LowRankLinear]:
    """A run over one adapter of ranks 3 and 2 after one step."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3))
    layer = LowRankLinear(model[0], scale=1.0, role="q")
    model[0] = layer
    for r in (3, 2):
        layer.append(RankBlock(torch.randn(r, 4), torch.randn(r, 3), torch.ones(r), train_gate=True))
    run = Run(
        model,
        {},
        total_steps=9,
        steps_per_epoch=3,
        settings=OptimizerSettings(
            weight_decay=0.0, betas=(0.9, 0.999), eps=1e-8, warmup=0, schedule="linear"
        ),
        generator=torch.Generator(),
    )
    run.adapters["0"] = layer
    run.start([Group(params=run.trainable_parameters(), lr=0.1, weight_decay=0.0)])
    move(run)
    return run, layer


def move(run: Run) -> None:
    for p in run.trainable_parameters():
        p.grad = torch.randn_like(p)
    run.set_learning_rates()
    assert run.optimizer is not None
    run.optimizer.step()
    run.advance()


def test_a_frozen_parameter_does_not_move_any_more() -> None:
    run, layer = adapted()
    frozen = next(layer.rank_blocks()).a
    before = frozen.detach().clone()
    run.freeze(frozen)
    assert frozen.grad is None
    assert not frozen.requires_grad
    assert run.optimizer is not None
    assert frozen not in run.optimizer.state
    assert all(p is not frozen for group in run.optimizer.param_groups for p in group["params"])
    move(run)
    assert torch.equal(frozen, before)


def test_compact_moves_the_optimizer_state_of_the_survivors() -> None:
    run, layer = adapted()
    first, second = layer.rank_blocks()
    first.kill(torch.tensor([True, False, False]))
    second.kill(torch.tensor([True, True]))
    assert run.optimizer is not None
    old = {slot: value.clone() for slot, value in run.optimizer.state[first.a].items()}
    grad, delta = first.a.grad, layer.delta()
    assert grad is not None
    run.compact()
    torch.testing.assert_close(layer.delta(), delta, rtol=0, atol=1e-6)
    (left,) = layer.rank_blocks()
    assert left.rank == run.total_rank == 2
    state = run.optimizer.state[left.a]
    assert torch.equal(state["exp_avg"], old["exp_avg"][1:])
    assert torch.equal(state["step"], old["step"])
    assert left.a.grad is not None
    assert torch.equal(left.a.grad, grad[1:])
    held = [p for group in run.optimizer.param_groups for p in group["params"]]
    assert {id(p) for p in held} == {id(p) for p in run.trainable_parameters()}
    assert {id(p) for p in run.optimizer.state} == {id(p) for p in held}
    move(run)


def test_new_parameters_start_at_rate_zero_in_their_first_step() -> None:
    run, layer = adapted()
    block = layer.append(RankBlock(torch.randn(1, 4), torch.randn(1, 3), torch.ones(1)))
    run.add_params([block.a, block.b], lr=0.4, warmup=2, name="grown")
    assert run.optimizer is not None
    group = run.optimizer.param_groups[-1]
    rates = []
    while run.step < 9:
        rates.append(run.lr_of(group))
        run.advance()
    assert rates == pytest.approx([0, 0, 0.2, 0.4, 0.32, 0.24, 0.16, 0.08])
