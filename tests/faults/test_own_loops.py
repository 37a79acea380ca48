"""Any method on any net: layers that are left out, optimizers that exist already, another default dtype, few ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from by_night import mostly_by_night
from torch import Tensor, nn

import adalora_bench
from adalora_bench.errors import PromiseBroken, UserError
from adalora_bench.settings.conf_files import options

pytestmark = pytest.mark.fault("own loops")

ROLES = {"a": "q", "b": "v", "unused": "q"}
STEPS = 24
# More settings for a training of 24 steps on three small layers.
MORE: dict[str, dict[str, Any]] = {
    "alora": {"first_round": 4, "interval": 4, "rounds": 2},
    "alora_dnas": {"first_round": 4, "interval": 4, "rounds": 2},
    "alora_sensi": {"first_round": 4, "interval": 4, "rounds": 2},
    "increlora": {"target_rank": 2, "top_h": 1, "interval": 2, "growth_warmup": 2},
    "increlora_r8": {"target_rank": 2, "top_h": 1, "ranks_per_growth": 1, "interval": 2, "growth_warmup": 2},
    "increlora_authors": {"target_rank": 2, "top_h": 1, "interval": 2, "growth_warmup": 2},
    "delta_lora": {"start": 2},
    "adalora": {"initial_warmup": 4, "final_phase": 8, "interval": 2},
    "adalora_r2": {"initial_warmup": 4, "final_phase": 8, "interval": 2},
    "aflora": {"initial_warmup": 2, "final_phase": 4, "window": 1},
    "vera": {"rank": 8},
    "elora": {"rank": 8},
}
# Whose settings name blocks of a transformer, or the ranks of a record.
ELSEWHERE = {"adapterdrop", "learned_adapter", "lst", "ptuning_v2", "spt", "ssp"}
METHODS = [
    name
    for name in options("method")
    if name not in ELSEWHERE
    and not name.startswith(("peft", "increlora_retrain"))
    and name not in ("houlsby", "pfeiffer", "parallel_adapter")
]


class Net(nn.Module):
    """Two layers that are used, and one that the forward pass leaves out."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            self.a, self.b, self.unused = (nn.Linear(8, 8) for _ in range(3))
            self.head = nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(torch.tanh(self.b(torch.tanh(self.a(x)))))
        return y


def data() -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(32, 8, generator=draw, dtype=torch.float32)
    return x, x.sum(1, keepdim=True).sin()


def loss_of(model: nn.Module) -> Tensor:
    x, y = data()
    dtype = next(model.parameters()).dtype
    return (model(x.to(dtype)) - y.to(dtype)).square().mean()


def attached(method: str, model: nn.Module, *, modules: dict[str, str] = ROLES, **more: Any) -> Any:
    return adalora_bench.attach(
        model,
        method,
        modules=modules,
        head=["head"],
        total_steps=STEPS,
        steps_per_epoch=8,
        warmup=2,
        settings={"lr": 0.01, **MORE.get(method, {}), **more.pop("settings", {})},
        val_loss=lambda: loss_of(model),
        arch_loss=lambda: loss_of(model),
        **more,
    )


def trained(run: Any, model: nn.Module) -> list[float]:
    losses = []
    for _ in range(run.total_steps):
        run.zero_grad()
        run.before_forward()
        loss = loss_of(model)
        loss.backward()
        losses.append(float(loss.detach()))
        run.after_backward()
        run.optimizer_step(max_grad_norm=1.0)
        run.after_step()
    run.finalize()
    return losses


@pytest.mark.parametrize("method", METHODS)
def test_a_layer_that_the_forward_pass_leaves_out_stops_no_method(method: str) -> None:
    model = Net()
    losses = trained(attached(method, model), model)
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("make", mostly_by_night([torch.optim.SGD, torch.optim.AdamW], [torch.optim.SGD]))
def test_an_optimizer_that_exists_already_takes_the_groups_of_any_method(
    method: str, make: Callable[..., torch.optim.Optimizer]
) -> None:
    model, own = Net(), nn.Parameter(torch.zeros(2))
    optimizer = make([{"params": [own], "lr": 0.5}])
    run = attached(method, model, optimizer=optimizer)
    trained(run, model)
    assert optimizer.param_groups[0]["lr"] == 0.5
    assert optimizer.param_groups[0]["params"][0] is own


@pytest.fixture
def float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("method", METHODS)
def test_initial_numbers_do_not_follow_the_default_dtype(method: str, float64: None) -> None:
    """A state that is saved under one default dtype is loaded under another with the same outputs."""
    model = Net().float()
    attached(method, model)
    here = {name: value.clone() for name, value in model.state_dict().items()}
    frozen = {name: buffer.clone() for name, buffer in model.named_buffers()}
    torch.set_default_dtype(torch.float32)
    model = Net()
    other = Net()
    torch.set_default_dtype(torch.float64)
    again = Net().float()
    again.load_state_dict(other.state_dict())
    torch.set_default_dtype(torch.float32)
    attached(method, model)
    torch.set_default_dtype(torch.float64)
    attached(method, again)
    assert here.keys() == model.state_dict().keys()
    for name, value in again.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name
    assert frozen.keys() == dict(model.named_buffers()).keys()


@pytest.mark.parametrize("method", ["alora", "alora_dnas", "alora_sensi"])
@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("modules", [1, 2, 3])
@pytest.mark.parametrize("seed", mostly_by_night(range(3), [0]))
def test_alora_keeps_a_rank_whatever_its_budget(method: str, rank: int, modules: int, seed: int) -> None:
    model = Net()
    chosen = dict(list(ROLES.items())[:modules])
    settings = {"rank": rank, "first_round": 2, "interval": 2, "rounds": 5}
    if rank * modules < 2:
        with pytest.raises(UserError, match=r"method\.n_prune"):
            attached(method, model, modules=chosen, settings=settings)
        return
    run = attached(method, model, modules=chosen, settings=settings, seed=seed)
    try:
        trained(run, model)
    except PromiseBroken as error:
        assert "rounds" in str(error)  # noqa: PT017  (one rank was left, and it was said)
    assert 1 <= sum(run.ranks.values()) <= rank * modules
