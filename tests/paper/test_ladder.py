"""Ladder side-tuning: the mixing rule with numbers, and that nothing of the backbone is part of the backward pass."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from small_backbones import ALL, batch_of, loss_of, one_step, run_on
from torch import Tensor, nn

from adalora_bench.errors import PromiseBroken, UserError
from adalora_bench.inserts.ladder import Ladder, Rung, blocks_with_names
from adalora_bench.methods.base import Facts
from adalora_bench.methods.run import Run
from adalora_bench.settings.compose import method_settings
from adalora_bench.settings.config import build


def made(**changes: Any) -> Any:
    return build(method_settings("lst", changes), "method")


def ladder_of(run: Run) -> Ladder:
    ladder = run.model.ladder
    assert isinstance(ladder, Ladder)
    return ladder


def rung(*, gate: float = 0.0, second: float = 0.0) -> Rung:
    """Side width 2 beside a backbone of width 3; D takes the first two numbers."""
    return Rung(
        down=torch.eye(3)[:2],
        first=torch.eye(2),
        second=torch.eye(2) * second,
        gate=gate,
        temperature=0.1,
    )


def test_mixing_rule_with_numbers() -> None:
    """m = sigmoid(p / 0.1): p = 0 takes half of each, p = 0.1 log 3 three quarters of the ladder's own state."""
    side, state = torch.tensor([4.0, 8.0]), torch.tensor([2.0, 0.0, 5.0])
    assert rung()(side, state).tolist() == [3.0, 4.0]
    gated = rung(gate=0.1 * math.log(3))
    assert float(gated.mix().detach()) == pytest.approx(0.75)
    torch.testing.assert_close(gated(side, state), torch.tensor([3.5, 6.0]))


def test_small_block_with_numbers() -> None:
    """h + W2 gelu(W1 LN(h)): LN of (3, 4) is (-1, 1) but for its eps."""
    found = rung(second=2.0)(torch.tensor([4.0, 8.0]), torch.tensor([2.0, 0.0, 5.0]))
    gelu = [0.5 * x * (1 + math.erf(x / math.sqrt(2))) for x in (-1.0, 1.0)]
    torch.testing.assert_close(found, torch.tensor([3 + 2 * gelu[0], 4 + 2 * gelu[1]]), rtol=1e-4, atol=1e-4)


def test_ladder_climbs_in_order() -> None:
    """D_0 e, then rung after rung; without blocks: h = ((e + b1) / 2 + b2) / 2, and U LN(h)."""
    ladder = Ladder(entry=torch.eye(3)[:2], rungs=[rung(), rung()], up=torch.eye(3)[:, :2] * 5, replace=False)
    states = [torch.tensor([[a, b, 9.0]]) for a, b in ((0.0, 8.0), (4.0, 0.0), (0.0, 2.0))]
    # (0, 8) -> (2, 4) -> (1, 3), normalised to (-1, 1)
    torch.testing.assert_close(ladder(states), torch.tensor([[-5.0, 5.0, 0.0]]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ALL)
def test_blocks_are_found(name: str) -> None:
    stack = {"tiny_bart": "body.model.decoder.layers", "tiny_gpt2": "body.transformer.h"}
    stack |= {"tiny_llama": "body.model.layers", "tiny_bert": "body.encoder.layer"}
    stack |= {"tiny_roberta": "body.roberta.encoder.layer", "tiny_deberta_v2": "body.deberta.encoder.layer"}
    run = run_on(name)
    found = [block for block, _ in blocks_with_names(run.model, run.modules)]
    assert found == [f"{stack[name]}.{i}" for i in range(2)]


@pytest.mark.parametrize("name", ALL)
def test_no_gradient_reaches_backbone_activations(name: str) -> None:
    """No output of any module of the backbone requires a gradient, but for what stands behind its last state."""
    method = made()
    run = run_on(name, method)
    one_step(method, run, batch_of(name))  # away from U = 0, where little has a gradient
    stack = run.model.body.base_model  # type: ignore[union-attr]
    guilty = []

    def look(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        tensors = [output] if isinstance(output, Tensor) else [x for x in output if isinstance(x, Tensor)]
        guilty.extend(type(module).__name__ for x in tensors if x.requires_grad)

    inner = [module for module in stack.modules() if module is not stack]  # type: ignore[union-attr]
    for module in inner:
        module.register_forward_hook(look)
    run.model.train()
    loss = loss_of(run, batch_of(name))
    loss.backward()
    assert inner
    assert guilty == []
    assert all(p.grad is None for p in stack.parameters())  # type: ignore[union-attr]
    grads = [p.grad for p in ladder_of(run).parameters()]
    assert all(grad is not None and bool(grad.any()) for grad in grads)


def test_what_backward_keeps_does_not_grow_with_the_backbone() -> None:
    """Bytes that autograd saves inside the backbone's own modules: none with a ladder, many with LoRA."""

    def saved(method: Any) -> int:
        run = run_on("tiny_bert", method)
        weights = {p.data_ptr() for p in run.model.parameters()}
        kept: dict[int, int] = {}

        def keep(x: Tensor) -> Tensor:
            if x.data_ptr() not in weights:
                kept[x.data_ptr()] = x.numel() * x.element_size()
            return x

        run.model.train()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            loss = loss_of(run, batch_of("tiny_bert", length=64))
        assert loss.requires_grad
        return sum(kept.values())

    lora = build(method_settings("lora", {}), "method")
    # of the backbone a ladder keeps the three states that it reads; the rest is an eighth as wide
    assert saved(made(reduction=8)) < 0.5 * saved(lora)


@pytest.mark.parametrize("name", ALL)
def test_added_to_the_last_state_it_changes_nothing_at_the_start(name: str) -> None:
    run, bare = run_on(name, made()), run_on(name)
    inputs = batch_of(name)
    with torch.no_grad():
        assert torch.equal(run.model(**inputs), bare.model(**inputs))
        ladder_of(run).up.normal_(generator=torch.Generator().manual_seed(1))
        assert not torch.allclose(run.model(**inputs), bare.model(**inputs), rtol=0, atol=1e-6)
    assert made().starts_unchanged
    assert not made(replace=True).starts_unchanged


@torch.no_grad()
def test_replacing_gives_the_ladder_alone() -> None:
    run = run_on("tiny_gpt2", made(replace=True))
    ladder = ladder_of(run)
    ladder.up.zero_()
    logits = run.model(**batch_of("tiny_gpt2"))
    assert torch.equal(logits, torch.zeros_like(logits))  # the output layer has no bias


def test_widths_and_count_by_hand() -> None:
    """d = 32, k = 8: side 4, inner 16; an entry, two rungs and the way up."""
    run = run_on("tiny_bert", made())
    each = 4 * 32 + 1 + 2 * 4 + 2 * 16 * 4
    assert sum(p.numel() for p in run.added()) == 4 * 32 + 2 * each + 2 * 4 + 32 * 4
    trained = {id(p) for p in run.trainable_parameters()} - {id(p) for p in run.head}
    assert trained == {id(p) for p in ladder_of(run).parameters()}


def test_nothing_of_a_pass_is_kept_alive() -> None:
    run = run_on("tiny_bert", made())
    run.model(**batch_of("tiny_bert"))
    assert ladder_of(run).seen == []


def test_a_ladder_that_never_moved_is_no_result() -> None:
    method = made()
    run = run_on("tiny_bert", method)
    with pytest.raises(PromiseBroken, match="did not move"):
        method.check(run)
    one_step(method, run, batch_of("tiny_bert"))
    method.check(run)
    assert "position-wise" in method.notes(run)[0]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"targets": ["q"]}, r"\[all\]"),
        ({"reduction": 0}, "reduction=0"),
        ({"inner": 0}, "inner=0"),
        ({"temperature": 0.0}, "temperature=0.0"),
        ({"gate": math.inf}, "gate=inf"),
    ],
)
def test_refusals(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        made(**changes)


def test_a_ladder_without_width_is_refused_with_the_numbers() -> None:
    with pytest.raises(UserError, match="reduction=64 leaves no ladder: the backbone has width 32"):
        run_on("tiny_bert", made(reduction=64))
    with pytest.raises(UserError, match="names 0 layers"):
        made().precheck(Facts(total_steps=9, steps_per_epoch=9, warmup=0, modules=0))
