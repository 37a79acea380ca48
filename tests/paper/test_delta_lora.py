"""Delta-LoRA (arXiv 2309.02411): Eq. 3-8 and Algorithm 1, worked out by hand, and what follows from them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_runs import WHOLE, Net, Small, in_optimizer, only_block, square
from torch import Tensor, nn

from adalora_bench.errors import PromiseBroken, UserError
from adalora_bench.lowrank.adapter import LowRankLinear
from adalora_bench.lowrank.function import delta, product_step
from adalora_bench.methods.base import Facts
from adalora_bench.methods.delta_lora import DeltaLora
from adalora_bench.methods.lora import Lora
from adalora_bench.train.checkpoint import frozen_base_names

METHOD = DeltaLora(
    version=1,
    targets=["all"],
    lr=0.01,
    head_lr=None,
    rank=2,
    alpha=4.0,
    ratio=0.5,
    start=3,
    dropout=0.0,
    allow_dropout=False,
)


class Turned(nn.Module):
    """A linear layer that stores its weight as (in, out), as GPT-2's does."""

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width_in, width_out) / width_in**0.5)
        self.bias = nn.Parameter(torch.zeros(width_out))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight + self.bias


class Rehearsal(Small):
    """A run whose batch is one piece, and how far it moved the weights."""

    def __init__(
        self, method: DeltaLora | Lora, net: Net | None = None, *, total: int = 8, warmup: int = 2, **how: Any
    ) -> None:
        net = square(2, 5) if net is None else net
        super().__init__(method, net=net, total=total, warmup=warmup, schedule="linear", pieces=WHOLE, **how)
        self.base = [layer.weight.detach().clone() for layer in self.layers]

    def moved(self) -> list[Tensor]:
        """W_t - W_0 of every layer."""
        return [layer.weight.detach() - w0 for layer, w0 in zip(self.layers, self.base, strict=True)]


def product(layer: LowRankLinear) -> Tensor:
    """AB in the paper's notation, (out, in), without the scale."""
    block = only_block(layer)
    return (block.b.T @ block.a).detach()


def lora(alpha: float = 4.0) -> Lora:
    return Lora(
        version=1,
        targets=["all"],
        lr=0.01,
        head_lr=None,
        rank=2,
        rank_pattern=None,
        alpha=alpha,
        dropout=0.0,
        rslora=False,
    )


# -- the forward pass and its gradients ---------------------------------------------------------------------


def test_eq3_branch_is_alpha_over_r_ab_and_zero_at_the_start() -> None:
    small = Rehearsal(METHOD, square(1, 2))
    (layer,) = small.layers
    block = only_block(layer)
    x = torch.tensor([[1.0, -1.0]], dtype=torch.float64)
    assert torch.equal(layer(x), layer.base(x))
    assert block.a.abs().max() <= 2**-0.5
    assert not block.b.any()
    block.a.data = torch.tensor([[1.0, 2.0], [0.0, 1.0]], dtype=torch.float64)
    block.b.data = torch.tensor([[3.0, -1.0], [1.0, 1.0]], dtype=torch.float64)
    # A x = (-1, -1); B^T (A x) = (-3 - 1, 1 - 1); alpha / r = 2
    by_hand = torch.tensor([[-8.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(layer(x) - layer.base(x), by_hand, rtol=0, atol=1e-14)


def gradients(small: Rehearsal) -> list[tuple[Tensor, Tensor]]:
    """(g_W, g_AB) of every layer after one backward pass."""
    for layer in small.layers:
        only_block(layer).b.data.normal_(generator=small.run.generator)
        layer.base.weight.requires_grad_(True)
        layer.want_delta_grad = True
    small.run.model.train()
    small.loss().backward()
    return [(layer.base.weight.grad, layer.delta_grad) for layer in small.layers]  # type: ignore[misc]


def test_eq4_gradient_of_w_is_the_gradient_of_ab() -> None:
    small = Rehearsal(METHOD)
    for layer, (g_w, g_ab) in zip(small.layers, gradients(small), strict=True):
        assert g_w.abs().max() > 1e-3
        torch.testing.assert_close(g_ab, g_w, rtol=0, atol=1e-15)
        block = only_block(layer)  # and the factors' gradients carry s = 2, not (1 + lambda) s
        torch.testing.assert_close(block.a.grad, 2 * block.b.detach() @ g_w, rtol=0, atol=1e-14)
        torch.testing.assert_close(block.b.grad, 2 * block.a.detach() @ g_w.T, rtol=0, atol=1e-14)


def test_eq7_dropout_in_the_branch_breaks_that() -> None:
    small = Rehearsal(replace(METHOD, dropout=0.5, allow_dropout=True))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        pairs = gradients(small)
    assert all((g_w - g_ab).abs().max() > 1e-3 for g_w, g_ab in pairs)


# -- the update ---------------------------------------------------------------------------------------------


def test_eq5_expansion_has_minus_signs_in_its_first_order() -> None:
    """dAB = -eta A g_B - eta g_A B + eta^2 g_A g_B for plain descent; the printed Eq. 5 lost the signs."""
    generator = torch.Generator().manual_seed(0)
    a, g_a = torch.randn(2, 2, 4, generator=generator, dtype=torch.float64)
    b, g_b = torch.randn(2, 2, 3, generator=generator, dtype=torch.float64)
    eta = 0.1
    new_a, new_b = product_step(a, b, a - eta * g_a, b - eta * g_b)
    by_hand = -eta * b.T @ g_a - eta * g_b.T @ a + eta**2 * g_b.T @ g_a
    torch.testing.assert_close(new_b.T @ new_a, by_hand, rtol=0, atol=1e-14)
    assert (new_a.shape, new_b.shape) == ((4, 4), (4, 3))


def test_eq6_w_moves_by_lambda_alpha_over_r_times_the_step_of_ab() -> None:
    small = Rehearsal(replace(METHOD, rank=1, alpha=3.0, ratio=2.0, start=0), square(1, 2))
    (layer,) = small.layers
    block, run = only_block(layer), small.run
    block.a.data = torch.tensor([[1.0, 2.0]], dtype=torch.float64)
    block.b.data = torch.tensor([[1.0, -1.0]], dtype=torch.float64)
    METHOD.after_backward(run)
    with torch.no_grad():  # the optimizer's part, in place
        block.a.copy_(torch.tensor([[2.0, 1.0]]))
        block.b.copy_(torch.tensor([[0.0, 3.0]]))
    small.method.after_step(run)
    # AB: [[1, 2], [-1, -2]] -> [[0, 0], [6, 3]]; the step is [[-1, -2], [7, 5]]; 2 * 3 / 1 = 6 times it
    by_hand = torch.tensor([[-6.0, -12.0], [42.0, 30.0]], dtype=torch.float64)
    torch.testing.assert_close(small.moved()[0], by_hand, rtol=0, atol=1e-14)
    assert "before" not in run.scratch


def test_eq8_weight_decay_acts_on_a_and_b_and_reaches_w_through_their_product_only() -> None:
    small = Rehearsal(replace(METHOD, start=0, lr=0.1), square(1, 5), weight_decay=0.5, warmup=0)
    (layer,) = small.layers
    block, run = only_block(layer), small.run
    block.b.data.fill_(1.0)
    before = product(layer)
    METHOD.after_backward(run)
    run.set_learning_rates()
    block.a.grad, block.b.grad = torch.zeros_like(block.a), torch.zeros_like(block.b)
    assert run.optimizer is not None
    run.optimizer.step()  # no gradient: each factor shrinks by 1 - .1 * .5 = .95
    METHOD.after_step(run)
    torch.testing.assert_close(small.moved()[0], 0.5 * 2 * (0.95**2 - 1) * before, rtol=0, atol=1e-14)


def test_algorithm_1_the_first_step_that_moves_w_is_number_k() -> None:
    """Counted from 0, so K steps are plain LoRA; the base line is AB after these K steps."""
    small = Rehearsal(METHOD)
    for _ in range(3):
        small.step()
        assert all(not moved.any() for moved in small.moved())
    start = [product(layer) for layer in small.layers]
    assert all(ab.any() for ab in start)
    small.step()
    for layer, moved, ab in zip(small.layers, small.moved(), start, strict=True):
        assert moved.any()
        torch.testing.assert_close(moved, 0.5 * 2 * (product(layer) - ab), rtol=0, atol=1e-14)
    (event,) = small.run.events
    assert (event.step, event.kind, event.before, event.after) == (3, "base_moves", 0, 2)


def test_algorithm_1_w_is_no_parameter_of_the_optimizer_and_travels_in_checkpoints() -> None:
    small = Rehearsal(METHOD).to_the_end()
    held = in_optimizer(small.run)
    for layer in small.layers:
        assert id(layer.base.weight) not in held
        assert not layer.base.weight.requires_grad
        assert layer.base.weight.grad is None
    assert METHOD.moves_base
    assert not any("base.weight" in name for name in frozen_base_names(small.run, moves_base=True))


# -- what follows -------------------------------------------------------------------------------------------


@settings(max_examples=200)
@given(
    modules=st.integers(1, 2),
    rank=st.integers(1, 3),
    start=st.integers(0, 6),
    ratio=st.sampled_from([0.0, 0.5, 2.0]),
    alpha=st.sampled_from([1.0, 16.0]),
    turned=st.booleans(),
)
def test_invariant_steps_telescope_and_the_whole_change_has_rank_2r(
    modules: int, rank: int, start: int, ratio: float, alpha: float, turned: bool
) -> None:
    method = replace(METHOD, rank=rank, start=start, ratio=ratio, alpha=alpha)
    small = Rehearsal(method, square(modules, 8, make=Turned if turned else nn.Linear), total=6)
    run = small.run
    baseline = [product(layer) for layer in small.layers]
    while run.step < run.total_steps:
        if run.step <= start:
            baseline = [product(layer) for layer in small.layers]
        small.step()
        for layer, moved, ab in zip(small.layers, small.moved(), baseline, strict=True):
            s = alpha / rank
            if run.step <= start:
                assert not moved.any()
            torch.testing.assert_close(
                moved, ratio * s * (product(layer) - ab) * (run.step > start), rtol=0, atol=1e-13
            )
            whole = moved + layer.delta().detach()
            lifted = method.total_update(layer)
            assert lifted.a.shape == lifted.b.shape == (2 * rank, 8)
            exported = delta(lifted.a, lifted.b, lifted.gate, None, 1.0).detach()
            torch.testing.assert_close(exported, whole, rtol=0, atol=1e-13)
            assert torch.linalg.svdvals(whole)[2 * rank :].max() < 1e-13
    method.check(run)


@pytest.mark.parametrize("changes", [{"ratio": 0.0}, {"start": 8}])
def test_invariant_no_ratio_or_no_start_is_lora(changes: dict[str, Any]) -> None:
    ours = Rehearsal(replace(METHOD, **changes)).to_the_end()
    plain = Rehearsal(lora()).to_the_end()
    assert ours.losses == plain.losses
    assert all(not moved.any() for moved in ours.moved())
    for a, b in zip(ours.layers, plain.layers, strict=True):
        assert torch.equal(a.delta(), b.delta())


def test_invariant_from_step_0_with_adam_it_is_lora_with_alpha_times_1_plus_lambda() -> None:
    """Adam sees the scale of a gradient through its epsilon only (clipping sees it). A note for any table."""
    ours = Rehearsal(replace(METHOD, start=0, ratio=2.0), total=50, clip=0).to_the_end()
    plain = Rehearsal(lora(alpha=12.0), total=50, clip=0).to_the_end()
    assert ours.losses[0] - ours.losses[-1] > 0.1
    assert ours.losses == pytest.approx(plain.losses, abs=1e-4)
    late = Rehearsal(replace(METHOD, start=25, ratio=2.0), total=50, clip=0).to_the_end()
    assert abs(late.losses[-1] - plain.losses[-1]) > 1e-4


def test_export_merged_weight_and_rank_2r_factors_give_the_same_output() -> None:
    small = Rehearsal(METHOD).to_the_end()
    x = small.x
    for layer, w0 in zip(small.layers, small.base, strict=True):
        adapted = layer(x)
        torch.testing.assert_close(layer.merge()(x), adapted, rtol=0, atol=1e-14)
        up = METHOD.total_update(layer)
        by_factors = x @ w0.T + layer.base.bias + ((x @ up.a.T) * up.gate) @ up.b
        torch.testing.assert_close(by_factors, adapted, rtol=0, atol=1e-14)
        assert layer.get_buffer("start_b").any()


# -- refusals and the promise -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dropout": 0.1}, r"method.dropout=0.1.*allow_dropout=true"),
        ({"dropout": 1.0, "allow_dropout": True}, r"method.dropout=1.0 must lie in \[0, 1\)"),
        ({"ratio": -0.5}, "method.ratio=-0.5"),
        ({"ratio": float("nan")}, "method.ratio=nan"),
        ({"ratio": float("inf")}, "method.ratio=inf"),
        ({"rank": 0}, "method.rank=0"),
        ({"alpha": 0.0}, "method.alpha=0.0"),
    ],
)
def test_refused_settings(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        replace(METHOD, **changes)


@pytest.mark.parametrize(("start", "steps"), [(20, 20), ("100%", 20), ("2ep", 20), (500, 500)])
def test_refused_start_behind_the_end(start: int | str, steps: int) -> None:
    facts = Facts(total_steps=20, steps_per_epoch=10, warmup=2, modules=4)
    with pytest.raises(UserError, match=rf"method.start={start} is step {steps}, but .* 20 steps \(10 an"):
        replace(METHOD, start=start).precheck(facts)
    replace(METHOD, start=19).precheck(facts)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.uint8])
def test_refused_base_that_cannot_hold_small_steps(dtype: torch.dtype) -> None:
    net = square(1, 5)
    net.layers[0].weight = nn.Parameter(net.layers[0].weight.detach().to(dtype), requires_grad=False)
    with pytest.raises(UserError, match=str(dtype).removeprefix("torch.")):
        Rehearsal(METHOD, net)


def test_promise_every_step_from_k_on_moved_w() -> None:
    small = Rehearsal(METHOD).to_the_end()
    METHOD.check(small.run)
    assert small.run.scratch["updates"] == 5
    small.run.scratch["updates"] = 4
    with pytest.raises(PromiseBroken, match="in 4 steps instead of 5"):
        METHOD.check(small.run)
    still = Rehearsal(METHOD).to_the_end()
    for layer in still.layers:
        only_block(layer).a.data.copy_(layer.get_buffer("start_a"))
        only_block(layer).b.data.copy_(layer.get_buffer("start_b"))
    with pytest.raises(PromiseBroken, match="no Delta-LoRA update moved W"):
        METHOD.check(still.run)
