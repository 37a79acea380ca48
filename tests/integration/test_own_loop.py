"""attach: methods in a loop of the caller's own, and the page that shows it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import adalora_bench
from adalora_bench.errors import UserError
from adalora_bench.lowrank.adapter import LowRankLinear
from adalora_bench.own_loop import OwnLoop

PAGE = Path(__file__).parents[2] / "docs" / "use_in_your_own_loop.md"
MODULES = {"0": "up", "2": "down"}


def net() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 1)).double()


def rows() -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(12, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    return x, x.sum(1, keepdim=True).sin()


def attached(method: str, model: nn.Module | None = None, **more: Any) -> OwnLoop:
    arguments: dict[str, Any] = {
        "modules": MODULES,
        "head": ["4"],
        "total_steps": 12,
        "steps_per_epoch": 6,
        "warmup": 2,
    }
    return adalora_bench.attach(net() if model is None else model, method, **(arguments | more))


def drive(run: OwnLoop) -> list[float]:
    x, y = rows()
    losses = []
    for _ in range(run.total_steps):
        run.zero_grad()
        run.before_forward()
        loss = (run.model(x) - y).square().mean()
        loss.backward()
        run.after_backward()
        run.optimizer_step(max_grad_norm=1.0)
        run.after_step()
        losses.append(float(loss.detach()))
    run.finalize()
    return losses


def test_the_page_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    names: dict[str, Any] = {}
    exec(code, names)
    printed = capsys.readouterr().out
    assert sum(names["run"].ranks.values()) == 6
    assert "grow" in printed
    assert float(names["loss"].detach()) < 0.5


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("lora", {"rank": 2}),
        ("adalora", {"init_rank": 3, "target_rank": 2, "initial_warmup": 2, "final_phase": 4, "interval": 1}),
        ("increlora", {"target_rank": 2, "top_h": 1, "interval": 2, "growth_warmup": 1}),
        ("sora", {"rank": 3}),
        ("aflora", {"rank": 2}),
        ("delta_lora", {"targets": ["all"]}),
        ("dylora", {}),
        ("salora", {}),
        ("vera", {"rank": 4}),
    ],
)
def test_float64_nets_of_plain_layers_train_and_the_output_starts_unchanged(
    method: str, settings: dict[str, Any]
) -> None:
    model, x = net(), rows()[0]
    before = model(x).detach()
    run = attached(method, model, settings={"lr": 0.02} | settings)
    torch.testing.assert_close(model(x), before, rtol=0, atol=1e-6)
    assert {p.dtype for p in model.parameters()} == {torch.float64}
    losses = drive(run)
    assert losses[-1] < losses[0]
    assert set(run.ranks) == set(MODULES)
    assert run.step == 12


def test_initial_tensors_can_be_loaded() -> None:
    model = net()
    run = attached("lora", model, settings={"rank": 1})
    state = model.state_dict()
    state["0.blocks.0.a"] = torch.full((1, 4), 0.5, dtype=torch.float64)
    model.load_state_dict(state)
    layer = run.adapters["0"]
    assert isinstance(layer, LowRankLinear)
    (block,) = layer.rank_blocks()
    assert block.a.tolist() == [[0.5] * 4]


def test_optimizers_of_the_caller() -> None:
    made = attached("lora", optimizer=lambda groups: torch.optim.SGD(groups, lr=0.0))
    assert isinstance(made.optimizer, torch.optim.SGD)
    drive(made)

    extra = nn.Parameter(torch.ones(1))
    mine = torch.optim.AdamW([extra], lr=0.125)
    run = attached(
        "increlora", optimizer=mine, settings={"target_rank": 2, "interval": 2, "growth_warmup": 1}
    )
    assert run.optimizer is mine
    drive(run)
    assert mine.param_groups[0]["lr"] == 0.125
    assert len(mine.param_groups) > 3
    assert mine.param_groups[1]["lr"] > 0


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"method": "lorra"}, "lora"),
        ({"settings": {"rnak": 2}}, "method.rank"),
        ({"settings": {"rank": 0}}, "method.rank=0"),
        ({"modules": {"7": "up"}}, "'7'"),
        ({"modules": {"0": "upp"}}, "up"),
        ({"head": ["9"]}, "'9'"),
        ({"warmup": 12}, "12"),
    ],
)
def test_wrong_calls_are_answered_in_one_sentence(more: dict[str, Any], said: str) -> None:
    more = dict(more)
    with pytest.raises(UserError, match=said):
        attached(more.pop("method", "lora"), **more)


def test_a_finished_run_takes_no_more_steps() -> None:
    run = attached("lora")
    drive(run)
    with pytest.raises(ValueError, match="all 12 steps"):
        run.before_forward()
