"""peft behind our hooks: what is refused and how, randomness, exact targets, and promises that can be broken."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from adalora_bench.errors import PromiseBroken, UserError
from adalora_bench.methods.base import Facts
from adalora_bench.methods.peft import ADAPTER, Peft, merge, wrapped
from adalora_bench.methods.peft_adalora import PeftAdaLora
from adalora_bench.own_loop import OwnLoop, attach
from adalora_bench.settings.compose import method_settings
from adalora_bench.settings.config import build

FACTS = Facts(total_steps=40, steps_per_epoch=10, warmup=4, modules=2)
MODULES = {"first": "q", "inner.first": "down"}


class Net(nn.Module):
    """Two layers of which one's name ends with the whole name of the other, a layer norm and a head."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(7)
            self.first = nn.Linear(8, 8)
            self.inner = nn.ModuleDict({"first": nn.Linear(8, 8)})
            self.norm = nn.LayerNorm(8)
            self.head = nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(torch.tanh(self.inner["first"](torch.tanh(self.first(x))))))


def method(name: str = "peft", **settings: Any) -> Any:
    return build(method_settings(name, settings, warmup=0), "method")


def begun(name: str = "peft", *, total: int = 10, seed: int = 0, **settings: Any) -> OwnLoop:
    return attach(
        Net(),
        name,
        modules=MODULES,
        head=["head"],
        total_steps=total,
        steps_per_epoch=total,
        settings=settings,
        seed=seed,
    )


def train(run: OwnLoop) -> OwnLoop:
    x = torch.randn(6, 8, generator=torch.Generator().manual_seed(1))
    while run.step < run.total_steps:
        run.zero_grad()
        run.before_forward()
        (run.model(x) - 1).square().mean().backward()
        run.after_backward()
        run.optimizer_step()
        run.after_step()
    return run


# -- refusals -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"type": "DORRA"}, "unknown value of method.type 'DORRA'; did you mean 'DORA'"),
        (
            {"arguments": {"lora_alfa": 3}},
            "unknown argument of peft's LoraConfig 'lora_alfa'; did you mean 'lora_alpha'",
        ),
        ({"arguments": {"target_modules": ["q"]}}, "target_modules is not offered: method.targets"),
        ({"arguments": {"modules_to_save": ["head"]}}, "modules_to_save is not offered"),
        ({"arguments": {"init_lora_weights": "eva"}}, "init_lora_weights=eva needs more than the model"),
        ({"type": "OFT", "arguments": {"r": 4, "oft_block_size": 4}}, "peft refuses method.arguments="),
        ({"type": "PREFIX_TUNING"}, "PREFIX_TUNING puts trained vectors beside the tokens"),
        ({"type": "ADAPTION_PROMPT"}, "ADAPTION_PROMPT puts trained vectors beside the tokens"),
        ({"type": "ADALORA"}, "take method=peft_adalora"),
        ({"type": "XLORA"}, "XLORA does not fit: it mixes adapters"),
    ],
)
def test_refused_before_anything_is_loaded(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        method(**settings).precheck(FACTS)


def test_without_peft_the_command_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'adalora_bench\[peft\]'"):
        method().precheck(FACTS)


@pytest.mark.parametrize(
    ("type_", "arguments"), [("C3A", {"block_size": 5}), ("LORA", {"init_lora_weights": "pisa"})]
)
def test_what_does_not_fit_the_layers_is_one_sentence(type_: str, arguments: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"method.type={type_} does not fit this backbone"):
        begun(type=type_, arguments=arguments)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"type": "LORA"}, "peft_adalora runs ADALORA alone"),
        ({"arguments": {"tinit": 3}}, "method.arguments.tinit follows from"),
        ({"initial_warmup": 20, "final_phase": 20}, "no step left to prune in"),
        ({"final_phase": 0}, "method.final_phase=0"),
        ({"arguments": {"init_r": 4, "target_r": 4}}, "target_r=4 must be at least 1 and below init_r=4"),
    ],
)
def test_refused_adalora(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        method("peft_adalora", **settings).precheck(FACTS)


# -- building -----------------------------------------------------------------------------------------------


def test_only_the_layers_of_the_roles_are_wrapped() -> None:
    """peft takes a name for the end of a longer one; `first` alone must not take `inner.first` too."""
    assert list(wrapped(begun(targets=["q"]))) == ["first"]
    assert list(wrapped(begun(targets=["down"]))) == ["inner.first"]
    assert list(wrapped(begun())) == ["first", "inner.first"]


def test_head_and_adapters_train_and_nothing_else() -> None:
    run = begun(arguments={"r": 2})
    added = {id(p) for p in run.added()}
    training = [name for name, p in run.model.named_parameters() if p.requires_grad]
    assert all("lora_" in name or name.startswith("head.") for name in training)
    assert sum(p.numel() for p in run.added()) == 2 * 2 * (8 + 8)
    assert {id(p) for p in run.trainable_parameters()} == added | {id(p) for p in run.head}


def test_a_seed_repeats_and_the_global_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    one, same, other = (
        [p.detach().clone() for p in begun(seed=seed, arguments={"r": 2}).added()] for seed in (0, 0, 1)
    )
    assert torch.equal(torch.get_rng_state(), before)
    assert all(map(torch.equal, one, same))
    assert not all(map(torch.equal, one, other))
    torch.manual_seed(5)  # what the caller did with it does not matter either
    again = [p.detach() for p in begun(arguments={"r": 2}).added()]
    assert all(map(torch.equal, one, again))


def test_layer_norms_are_the_layers_of_ln_tuning() -> None:
    assert list(wrapped(begun(type="LN_TUNING"))) == ["norm"]


def test_ia3_scales_the_input_of_the_last_layer_of_the_ffn() -> None:
    q, down = wrapped(begun(type="IA3")).values()
    assert (q.is_feedforward, down.is_feedforward) == (False, True)


def test_pissa_changes_the_base_and_says_so() -> None:
    run = begun(type="PISSA", arguments={"r": 2, "lora_alpha": 2})
    bare = Net()
    assert run.method.moves_base
    assert not torch.allclose(run.model.first.base_layer.weight, bare.first.weight)
    x = torch.randn(3, 8, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(run.model(x), bare(x))
    assert "changed base weights" in " ".join(train(run).method.notes(run))
    run.finalize()
    lora = begun()
    assert not lora.method.moves_base
    assert torch.equal(lora.model.first.base_layer.weight, bare.first.weight)
    assert len(lora.method.notes(lora)) == 1
    import peft

    assert peft.__version__ in lora.method.notes(lora)[0]


def test_merged_layers_are_plain_and_give_the_same() -> None:
    run = train(begun(lr=0.05))
    x = torch.randn(3, 8, generator=torch.Generator().manual_seed(2))
    before = run.model(x).detach()
    merge(run.model)
    assert not wrapped(run)
    torch.testing.assert_close(run.model(x).detach(), before)
    assert not torch.allclose(Net()(x).detach(), before)


# -- promises -----------------------------------------------------------------------------------------------


def test_promise_of_adapters_that_move() -> None:
    run = begun()
    with pytest.raises(PromiseBroken, match="2 of 2 adapters did not move, first among them"):
        run.method.check(run)
    train(run)
    run.method.check(run)
    with torch.no_grad():
        run.model.norm.weight[0] += 1e-6
    with pytest.raises(PromiseBroken, match="not those of the start"):
        run.method.check(run)


def adalora() -> OwnLoop:
    arguments = {"init_r": 4, "target_r": 2}
    return begun("peft_adalora", initial_warmup=2, final_phase=3, interval=2, arguments=arguments, lr=0.01)


def test_adalora_meets_its_budget_and_fails_where_it_does_not() -> None:
    run = train(adalora())
    assert isinstance(run.method, PeftAdaLora)
    run.method.check(run)
    # cubic from 8 at step 2 to 4 at step 7: 4 + 4 (3/5)^3 at 4 and 4 + 4 (1/5)^3 at 6, cut off
    assert [(e.step, e.before, e.after) for e in run.events] == [(4, 8, 4)]
    layer = wrapped(run)["first"]
    with torch.no_grad():
        layer.lora_E[ADAPTER].zero_()
    with pytest.raises(PromiseBroken, match="live ranks instead of 4"):
        run.method.check(run)


def test_adalora_without_allocation_is_a_broken_promise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PeftAdaLora, "after_step", Peft.after_step)
    run = train(adalora())
    with pytest.raises(PromiseBroken, match="0 chosen"):
        run.method.check(run)


def test_the_divisor_of_peft_is_frozen() -> None:
    run = adalora()
    start = [float(layer.ranknum[ADAPTER]) for layer in wrapped(run).values()]
    assert not any(layer.ranknum[ADAPTER].requires_grad for layer in wrapped(run).values())
    train(run)
    assert [float(layer.ranknum[ADAPTER]) for layer in wrapped(run).values()] == start == [4.0, 4.0]
