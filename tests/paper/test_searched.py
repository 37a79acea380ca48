"""Learned-Adapter, SPT and SSP as we read them: relaxed choices, the end of the search, what is left; by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from small_backbones import ALL, batch_of, one_step, run_on
from small_runs import Small
from torch import Tensor

from adalora_bench.errors import PromiseBroken, UserError
from adalora_bench.inserts.bottleneck import AfterLinear, Bottleneck, activate
from adalora_bench.inserts.prefix import sites
from adalora_bench.inserts.prompt import Prompt
from adalora_bench.inserts.searched_bottleneck import SearchedBottleneck
from adalora_bench.methods.base import Facts
from adalora_bench.methods.run import Run
from adalora_bench.methods.searched import share_of, top
from adalora_bench.methods.ssp import fitting
from adalora_bench.settings.compose import method_settings
from adalora_bench.settings.config import build
from adalora_bench.store.schema import OURS

NAMES = ["learned_adapter", "spt", "ssp"]


def made(name: str, **changes: Any) -> Any:
    return build(method_settings(name, changes), "method")


def prompts(run: Run) -> list[Prompt]:
    return [module for module in run.model.modules() if isinstance(module, Prompt)]


# -- what the three share -------------------------------------------------------------------------------------


def test_top_and_share() -> None:
    assert top([0.1, 0.3, 0.3, -1.0], 2) == [1, 2]
    assert top([0.0, 0.0, 0.0], 2) == [0, 1]
    assert [share_of("n", value, 32) for value in ("25%", 8, "100%", "1%")] == [8, 8, 32, 1]
    for wrong, said in ((33, "33 of 32"), (0, "0 of 32"), ("2ep", "a count")):
        with pytest.raises(UserError, match=said):
            share_of("method.kept", wrong, 32)


@pytest.mark.parametrize("name", NAMES)
def test_the_search_must_end_before_the_training(name: str) -> None:
    method = made(name, search=10)
    with pytest.raises(UserError, match="method.search=10 is 10 of 10 steps"):
        method.precheck(Facts(total_steps=10, steps_per_epoch=10, warmup=0, modules=8))
    with pytest.raises(UserError, match="method.search=0 is 0 of 10"):
        made(name, search=0).precheck(Facts(total_steps=10, steps_per_epoch=10, warmup=0, modules=8))
    method.precheck(Facts(total_steps=11, steps_per_epoch=10, warmup=0, modules=8))


@pytest.mark.parametrize("name", NAMES)
def test_gates_train_with_a_rate_of_their_own_and_only_while_the_search_lasts(name: str) -> None:
    method = made(name, search=2, gate_lr=0.5)
    run = run_on("tiny_bert", method)
    assert run.optimizer is not None
    groups = {group["name"]: group for group in run.optimizer.param_groups}
    gates = method.choices(run)
    assert {id(p) for p in groups["gate"]["params"]} == {id(p) for p in gates}
    assert (groups["gate"]["peak_lr"], groups["gate"]["weight_decay"]) == (0.5, 0.0)
    before = sum(p.numel() for p in run.trainable_parameters())
    for step in range(4):
        one_step(method, run, batch_of("tiny_bert"))
        assert ("kept" in run.scratch) == (step >= 1)
    assert sum(p.numel() for p in run.trainable_parameters()) < before
    assert not groups["gate"]["params"]
    stages = [(e.step, e.kind, e.module) for e in run.events if e.kind == "stage"]
    assert stages == [(1, "stage", "search")]
    method.finalize(run)
    method.check(run)
    assert method.notes(run)[0].startswith(f"{OURS} is our reading")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("backbone", ["tiny_deberta_v2", "tiny_roberta", "tiny_llama"])
def test_a_search_runs_on_the_architectures_that_the_contract_leaves_out(name: str, backbone: str) -> None:
    method = made(name, search=2)
    run = run_on(backbone, method)
    for _ in range(3):
        one_step(method, run, batch_of(backbone))
    with torch.no_grad():
        before = run.model(**batch_of(backbone))
        method.finalize(run)
        torch.testing.assert_close(run.model(**batch_of(backbone)), before)
    method.check(run)


@pytest.mark.parametrize("name", NAMES)
def test_a_run_without_a_search_is_no_result(name: str) -> None:
    method = made(name)
    run = run_on("tiny_bert", method)
    with pytest.raises(PromiseBroken, match="nothing kept"):
        method.check(run)


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("learned_adapter", {"activations": []}, "empty"),
        ("learned_adapter", {"activations": ["relo"]}, "relu"),
        ("learned_adapter", {"bottleneck": 0}, "bottleneck=0"),
        ("spt", {"targets": ["o"]}, r"\[k, v\]"),
        ("spt", {"tokens": 0}, "tokens=0"),
        ("ssp", {"budget": 0.0}, "budget=0.0"),
        ("ssp", {"budget": 1.5}, "budget=1.5"),
        ("ssp", {"rank": 0}, "rank=0"),
        ("ssp", {"gate_lr": 0.0}, "gate_lr=0.0"),
    ],
)
def test_refusals(name: str, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        made(name, **changes)


def test_counts_that_a_backbone_cannot_give_are_refused_with_the_numbers() -> None:
    facts = Facts(total_steps=10, steps_per_epoch=10, warmup=0, modules=4)
    for method, said in (
        (made("learned_adapter", kept=5), "method.kept=5 is 5 of 4"),
        (made("spt", prompt_layers=3), "method.prompt_layers=3 is 3 of 2"),
        (made("ssp", budget=0.2), "method.budget=0.2 of 4"),
    ):
        with pytest.raises(UserError, match=said):
            method.precheck(facts)


# -- Learned-Adapter ------------------------------------------------------------------------------------------


def searched() -> SearchedBottleneck:
    adapter = SearchedBottleneck(
        activations=["relu", "tanh"], down=torch.tensor([[1.0, -1.0]]), up=torch.tensor([[3.0], [0.5]])
    )
    adapter.up_bias.data.copy_(torch.tensor([1.0, 0.0]))
    return adapter


def test_mixture_of_activations_with_numbers() -> None:
    """Weights 3/4 and 1/4, gate 2 sigmoid(log 3) = 1.5: 1.5 * (U (0.75 * 2 + 0.25 * tanh 2) + bias)."""
    adapter = searched()
    adapter.mixture.data.copy_(torch.tensor([math.log(3), 0.0]))
    adapter.position.data.fill_(math.log(3))
    mixed = 0.75 * 2 + 0.25 * math.tanh(2)
    expected = torch.tensor([1.5 * (3 * mixed + 1), 1.5 * 0.5 * mixed])
    torch.testing.assert_close(adapter(torch.tensor([3.0, 1.0])), expected)


def test_a_hardened_adapter_keeps_its_gate_in_the_way_up() -> None:
    adapter = searched()
    adapter.mixture.data.copy_(torch.tensor([50.0, 0.0]))  # relu alone, to rounding
    adapter.position.data.fill_(math.log(3))
    h = torch.tensor([[3.0, 1.0], [0.0, 1.0]])
    before = adapter(h)
    adapter.fold_gate()
    adapter.activation = "relu"
    torch.testing.assert_close(adapter(h), before)
    torch.testing.assert_close(before, torch.tensor([[1.5 * 7.0, 1.5], [1.5, 0.0]]))


def test_the_largest_gates_and_the_likeliest_activation_stay() -> None:
    method = made(
        "learned_adapter", search=1, kept=2, bottleneck=3, targets=["o", "down"], lr=1e-9, gate_lr=1e-9
    )
    run = run_on("tiny_bert", method)
    layers = [run.model.get_submodule(n) for n, role in run.modules.items() if role in ("o", "down")]
    for layer, gate, weights in zip(
        layers, (0.1, 0.4, -1.0, 0.3), ((0, 1), (2, 0), (9, 9), (0, 3)), strict=True
    ):
        layer.adapter.position.data.fill_(gate)  # type: ignore[operator, union-attr]
        layer.adapter.mixture.data[:2] = torch.tensor(weights, dtype=torch.float32)  # type: ignore[union-attr]
    one_step(method, run, batch_of("tiny_bert"))
    assert run.scratch == {"kept": [1, 3], "activations": ["relu", "gelu"]}
    assert [layer.enabled for layer in layers] == [False, True, False, True]
    dropped = [e.module for e in run.events if e.kind == "mask"]
    assert dropped == [
        "body.encoder.layer.0.attention.output.dense",
        "body.encoder.layer.1.attention.output.dense",
    ]
    method.finalize(run)
    left = [m for m in run.model.modules() if isinstance(m, AfterLinear)]
    assert [type(layer.adapter) for layer in left] == [Bottleneck, Bottleneck]
    assert [layer.adapter.activation for layer in left] == ["relu", "gelu"]
    assert sum(p.numel() for p in run.added()) == 2 * (2 * 3 * 32 + 3 + 32)


# -- SPT ------------------------------------------------------------------------------------------------------


def test_prompt_generator_by_hand() -> None:
    """P = U tanh(D s + bias) + bias2, through the attention's own projections."""
    run = run_on("tiny_bert", made("spt", tokens=2, bottleneck=3))
    prompt = prompts(run)[0]
    prompt.up_bias.data.normal_(generator=torch.Generator().manual_seed(1))
    seeds: Tensor = prompt.seeds  # type: ignore[assignment]
    made_of = torch.tanh(seeds @ prompt.down.T + prompt.down_bias) @ prompt.up.T + prompt.up_bias
    keys, values, bias = prompt()
    site = sites(run.model, run.modules)[0]
    for found, layer in ((keys, site.key), (values, site.value)):
        assert found.shape == (2, 2, 16)
        torch.testing.assert_close(found.transpose(0, 1).flatten(1), made_of @ layer.weight.T + layer.bias)  # type: ignore[operator, union-attr]
    assert bias is not None
    assert float(bias.detach()) == pytest.approx(0.0)  # gate 1
    prompt.position.data.fill_(-math.log(3))
    assert math.exp(float(prompt()[2].detach())) == pytest.approx(0.5)


@pytest.mark.parametrize("name", ALL)
def test_a_closed_gate_is_the_bare_backbone_and_an_open_one_has_a_gradient(name: str) -> None:
    run, bare = run_on(name, made("spt", tokens=2, bottleneck=3)), run_on(name)
    inputs = batch_of(name)
    for prompt in prompts(run):
        prompt.up.data.normal_(generator=torch.Generator().manual_seed(1))
    run.model(**inputs).square().mean().backward()
    assert all(p.position.grad is not None and bool(p.position.grad) for p in prompts(run))
    with torch.no_grad():
        expected = bare.model(**inputs)
        assert not torch.allclose(run.model(**inputs), expected, rtol=0, atol=1e-5)
        for prompt in prompts(run):
            prompt.position.fill_(-80.0)
        torch.testing.assert_close(run.model(**inputs), expected, rtol=1e-4, atol=1e-5)


def test_the_gradient_of_a_gate_is_the_difference_quotient() -> None:
    run = run_on("tiny_bert", made("spt", tokens=2, bottleneck=3))
    run.model.double()
    prompt = prompts(run)[1]
    prompt.up.data.normal_(generator=torch.Generator().manual_seed(1))

    def loss(a: float) -> Tensor:
        prompt.position.data.fill_(a)
        out: Tensor = run.model(**batch_of("tiny_bert"))
        return (out * 1e3).square().mean()

    loss(0.3).backward()
    found = float(prompt.position.grad)  # type: ignore[arg-type]
    with torch.no_grad():
        quotient = float(loss(0.3 + 1e-5) - loss(0.3 - 1e-5)) / 2e-5
    assert found == pytest.approx(quotient, rel=1e-5)


def test_prompts_with_the_largest_gates_stay() -> None:
    method = made("spt", search=1, prompt_layers=1, tokens=2, bottleneck=3, lr=1e-9, gate_lr=1e-9)
    run = run_on("tiny_gpt2", method)
    prompts(run)[1].position.data.fill_(0.5)
    one_step(method, run, batch_of("tiny_gpt2"))
    assert run.scratch["kept"] == [1]
    assert [prompt.enabled for prompt in prompts(run)] == [False, True]
    assert prompts(run)[1]()[2] is None  # the gate is 1
    method.finalize(run)
    assert len(prompts(run)) == 1
    assert sum(p.numel() for p in run.added()) == 2 * 3 * 32 + 3 + 32


# -- SSP ------------------------------------------------------------------------------------------------------


def test_modules_that_fit_the_budget_by_hand() -> None:
    """Budget 0.5 of 20 is 10: the 8 goes first, a 6 and a 4 no longer fit, the 2 does."""
    assert fitting([0.9, 0.8, 0.7, 0.1], [8, 6, 4, 2], 0.5) == [0, 3]
    assert fitting([0.1, 0.1, 0.1, 0.1], [5, 5, 5, 5], 0.5) == [0, 1]
    assert fitting([0.1, 0.2], [1, 9], 0.5) == [1]  # not even the best fits


def test_gate_multiplies_the_update_and_its_gradient_is_that_of_one_number() -> None:
    """d loss / d a through y = W x + s * 2 sigmoid(a) * B^T A x, by autograd on a dense layer."""
    method = made("ssp", targets=["q"], rank=2, alpha=4)
    small = Small(method, widths=(4, 3))
    block = small.blocks[0]
    block.b.data.normal_(generator=torch.Generator().manual_seed(2))
    block.gate.data.fill_(0.4)
    small.backward()
    a = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    layer = small.layers[0]
    weight = layer.weight + 4 / 2 * 2 * torch.sigmoid(a) * block.b.detach().T @ block.a.detach()
    out = small.run.model.head(torch.tanh(small.x @ weight.T + layer.base.bias))
    ((out - small.y).square().sum() / 6).backward()
    assert block.gate.grad is not None
    assert a.grad is not None
    torch.testing.assert_close(block.gate.grad, a.grad.expand(2))


def test_kept_modules_keep_their_gate_and_the_others_vanish() -> None:
    method = made("ssp", targets=["q"], rank=2, search=2, budget=0.5, lr=0.05, gate_lr=0.05)
    small = Small(method, widths=(4, 5, 4, 5), total=6)  # three matrices of equal cost
    ends = []
    for step in range(4):
        before = small.run.model(small.x).detach()
        small.step()
        if step == 1:
            ends = [layer.rank for layer in small.layers]
            (kept,) = small.run.scratch["kept"]
            block = small.blocks[0]
            assert not block.gate.requires_grad
            assert block.step_gate is None
            assert float(block.gate[0]) != 1.0
        assert not torch.equal(small.run.model(small.x), before)
    assert sorted(ends) == [0, 0, 2]
    pruned = [(e.step, e.module, e.before, e.after) for e in small.run.events if e.kind == "prune"]
    assert pruned == [(1, f"layers.{i}", 2, 0) for i in range(3) if i != kept]
    small.to_the_end()
    method.check(small.run)
    assert small.run.total_rank == 2


def test_activations_of_the_search_are_those_of_the_adapters() -> None:
    x = torch.tensor([-1.0, 2.0])
    torch.testing.assert_close(activate("silu", x), x / (1 + torch.exp(-x)))
