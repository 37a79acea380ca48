"""Ours against peft's: the same initial tensors, data and optimizer give the same losses, step after step.

Both sides go through `adalora_bench.attach`: ours as lora, adalora and vera, peft's as peft and peft_adalora, so that
hooks, penalty, freezing and learning rates are the product's on either side, and the arithmetic of the layer is each
one's own. What our defaults have otherwise is set to what peft does, and said.
"""

from __future__ import annotations

import warnings
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from small_runs import Net, data, only_block
from torch import Tensor, nn

from adalora_bench.methods.peft import ADAPTER, wrapped
from adalora_bench.own_loop import OwnLoop, attach

STEPS = 50
WIDTHS = (6, 10, 10, 5)
MODULES = {"layers.0": "q", "layers.1": "up", "layers.2": "down"}
# rounding of one loss in float32, and what 50 steps of Adam make of that of float64
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}


def attached(method: str, dtype: torch.dtype, settings: dict[str, Any]) -> OwnLoop:
    """50 steps with warm-up, decay and a linear schedule, on the same backbone under the same seed."""
    run = attach(
        Net(WIDTHS, dtype=dtype),
        method,
        modules=MODULES,
        head=["head"],
        total_steps=STEPS,
        steps_per_epoch=10,
        settings={"lr": 0.02} | settings,
        warmup=5,
        weight_decay=0.01,
        seed=3,
    )
    run.model.to(dtype)  # peft makes adapters in float32 where it is not told otherwise
    return run


def losses(run: OwnLoop, dtype: torch.dtype, clip: float) -> tuple[list[float], list[float]]:
    """The task's loss and the penalty of every step; two micro-batches."""
    x, y = data(WIDTHS[0], 12, dtype=dtype)
    found, penalties = [], []
    for _ in range(STEPS):
        run.zero_grad()
        run.before_forward()
        total = 0.0
        for rows in (slice(0, 5), slice(5, 12)):
            loss = (run.model(x[rows]) - y[rows]).square().sum() / len(x)
            loss.backward()
            total += float(loss.detach())
        found.append(total)
        penalties.append(run.after_backward() or 0.0)
        run.optimizer_step(max_grad_norm=clip)
        run.after_step()
    run.finalize()
    return found, penalties


def assert_same_course(ours: OwnLoop, theirs: OwnLoop, dtype: torch.dtype, clip: float = 1.0) -> None:
    one, other = losses(ours, dtype, clip), losses(theirs, dtype, clip)
    for mine, his in zip(one, other, strict=True):
        assert mine == pytest.approx(his, rel=0, abs=TOLERANCE[dtype])
    assert one[0][-1] < 0.7 * one[0][0], "nothing was learned, so equal traces say little"


def copy_into(target: Tensor, source: Tensor) -> None:
    with torch.no_grad():
        assert target.shape == source.shape
        target.copy_(source)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("rslora", [False, True])
def test_lora_has_the_losses_of_peft(dtype: torch.dtype, rslora: bool) -> None:
    ours = attached("lora", dtype, {"rank": 4, "alpha": 8.0, "rslora": rslora})
    theirs = attached("peft", dtype, {"arguments": {"r": 4, "lora_alpha": 8, "use_rslora": rslora}})
    for layer, twin in zip(ours.adapters.values(), wrapped(theirs).values(), strict=True):
        block = only_block(layer)
        copy_into(twin.lora_A[ADAPTER].weight, block.a)
        copy_into(twin.lora_B[ADAPTER].weight, block.b.T)
    assert_same_course(ours, theirs, dtype)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("interval", "final"), [(1, 10), (3, 17)])
def test_adalora_has_the_losses_and_the_masks_of_peft(dtype: torch.dtype, interval: int, final: int) -> None:
    """Of our settings, orthogonality 0.1 becomes peft's 0.5; its plain norm is peft's already.

    Nothing is clipped: after the last mask the gates of the losers count in peft's gradient norm, and not in ours.
    """
    phases = {"initial_warmup": 6, "final_phase": final, "interval": interval}
    ours = attached(
        "adalora", dtype, phases | {"init_rank": 4, "target_rank": 2, "alpha": 8.0, "orthogonality": 0.5}
    )
    arguments = {"init_r": 4, "target_r": 2, "lora_alpha": 8, "orth_reg_weight": 0.5}
    theirs = attached("peft_adalora", dtype, phases | {"arguments": arguments})
    for layer, twin in zip(ours.adapters.values(), wrapped(theirs).values(), strict=True):
        block = only_block(layer)
        copy_into(twin.lora_A[ADAPTER], block.a)
        copy_into(twin.lora_B[ADAPTER], block.b.T)
        copy_into(twin.lora_E[ADAPTER], block.gate[:, None])
    assert_same_course(ours, theirs, dtype, clip=0)
    live = [int((twin.lora_E[ADAPTER] != 0).sum()) for twin in wrapped(theirs).values()]
    assert list(ours.ranks.values()) == live
    assert sum(live) == 6
    masks = [[(e.step, e.after) for e in run.events if e.kind == "mask"] for run in (ours, theirs)]
    assert masks[0] == masks[1]
    assert masks[0][-1][1] == 6


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_vera_has_the_losses_of_peft(dtype: torch.dtype) -> None:
    """Nothing is copied: the projections are the same numbers under the same seed, the vectors start alike."""
    ours = attached("vera", dtype, {"rank": 8, "projection_seed": 5})
    arguments = {"r": 8, "projection_prng_key": 5, "d_initial": 0.1}
    theirs = attached("peft", dtype, {"type": "VERA", "arguments": arguments})
    for layer, twin in zip(ours.adapters.values(), wrapped(theirs).values(), strict=True):
        block = only_block(layer)
        # peft keeps one pair for all layers, of the largest sizes, and slices it in the forward pass
        big_a, big_b = (getattr(twin, name)[ADAPTER].to(dtype) for name in ("vera_A", "vera_B"))
        twin.vera_A[ADAPTER], twin.vera_B[ADAPTER] = big_a, big_b
        assert torch.equal(block.a, big_a[:, : layer.in_features])
        assert torch.equal(block.b.T, big_b[: layer.out_features])
    assert_same_course(ours, theirs, dtype)


def test_the_penalty_is_the_one_that_peft_adds_to_a_loss() -> None:
    """peft's forward adds it where the model returns a `loss`; here that loss is 0."""
    from peft.tuners.adalora import AdaLoraModel

    run = attached(
        "peft_adalora", torch.float64, {"arguments": {"init_r": 4, "target_r": 2, "orth_reg_weight": 0.3}}
    )

    class Returns(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = Net(WIDTHS)

        def forward(self) -> Any:
            return SimpleNamespace(loss=torch.zeros((), dtype=torch.float64))

    method: Any = run.method
    config = method.config(r"net\.layers\.\d", STEPS)
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        theirs = AdaLoraModel(Returns(), config, ADAPTER).double()
    twins = [m for m in theirs.modules() if hasattr(m, "ranknum")]
    for layer, twin in zip(wrapped(run).values(), twins, strict=True):
        copy_into(twin.lora_A[ADAPTER], layer.lora_A[ADAPTER])
        copy_into(twin.lora_B[ADAPTER], layer.lora_B[ADAPTER])
    penalty = float(method.penalty(run).detach())
    assert penalty == pytest.approx(float(theirs().loss.detach()), rel=1e-12)
    assert penalty > 0.1
