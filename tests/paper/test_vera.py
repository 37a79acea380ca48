"""VeRA (arXiv 2310.11454), also ELoRA: by hand, and against peft's layers. methods.md section 9."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_runs import Net, Small, merged_output
from torch import nn

from adalora_bench.errors import PromiseBroken, UserError
from adalora_bench.lowrank.budget import stored
from adalora_bench.methods.run import OptimizerSettings, Run
from adalora_bench.methods.vera import Vera
from adalora_bench.train import checkpoint
from adalora_bench.train.loop import begin

METHOD = Vera(
    version=1,
    targets=["all"],
    lr=0.01,
    head_lr=None,
    rank=6,
    d_init=0.1,
    projection_seed=0,
    dropout=0.0,
)


def by_hand(values: list[list[float]]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


# -- the update -----------------------------------------------------------------------------------------------


def test_update_is_diag_b_times_b_diag_d_a_without_a_scale() -> None:
    small = Small(replace(METHOD, rank=2), (2, 2))
    (layer,), (block,) = small.layers, small.blocks
    block.a.data.copy_(by_hand([[1, 2], [0, 3]]))
    block.b.data.copy_(by_hand([[1, -1], [2, 1]]))
    block.gate.data.copy_(by_hand([[0.5, 2]])[0])
    assert layer.out_gate is not None
    layer.out_gate.data.copy_(by_hand([[10, 100]])[0])
    # d o (A x) with x = (1, 1): (.5 * 3, 2 * 3) = (1.5, 6); B^T of it: (1.5 + 12, -1.5 + 6); times b
    x = by_hand([[1, 1]])
    torch.testing.assert_close(layer(x) - layer.base(x), by_hand([[135, 450]]), rtol=0, atol=1e-12)
    # B^T diag(d) A = .5 (1, -1)^T (1, 2) + 2 (2, 1)^T (0, 3) = [[.5, 13], [-.5, 5]]
    torch.testing.assert_close(layer.delta(), by_hand([[5, 130], [-50, 500]]), rtol=0, atol=1e-12)


def test_start_d_is_a_tenth_b_is_zero_and_the_output_unchanged() -> None:
    small = Small(METHOD)
    assert torch.equal(small.run.model(small.x), Net((4, 5, 3))(small.x))
    for layer, block in zip(small.layers, small.blocks, strict=True):
        assert torch.equal(block.gate, torch.full((6,), 0.1, dtype=torch.float64))
        assert layer.out_gate is not None
        assert not layer.out_gate.any()
        assert layer.scale == 1
    with pytest.raises(PromiseBroken, match="no VeRA update"):
        METHOD.check(small.run)


def test_start_gradient_reaches_b_and_not_d() -> None:
    small = Small(METHOD)
    small.backward()
    for layer, block in zip(small.layers, small.blocks, strict=True):
        assert layer.out_gate is not None
        assert layer.out_gate.grad.any()
        assert not block.gate.grad.any()
        assert block.a.grad is None
        assert block.b.grad is None


# -- the projections ------------------------------------------------------------------------------------------


def test_projections_fill_the_kaiming_bounds_with_gain_root_2_by_fan_in() -> None:
    a, b = replace(METHOD, rank=150).projections(600, 300)
    assert (a.shape, b.shape) == ((150, 600), (150, 300))
    for x, bound in ((a, math.sqrt(6 / 600)), (b, math.sqrt(6 / 150))):  # sqrt(3) * sqrt(2 / fan_in)
        assert 0.999 * bound < float(x.abs().max()) <= bound
        assert float(x.var()) == pytest.approx(bound**2 / 3, rel=0.02)


def test_projections_follow_their_own_seed_and_not_the_run() -> None:
    one, other, moved = (
        Small(m, seed=s) for m, s in ((METHOD, 0), (METHOD, 1), (replace(METHOD, projection_seed=1), 0))
    )
    for i in range(2):
        assert torch.equal(one.blocks[i].a, other.blocks[i].a)
        assert not torch.equal(one.blocks[i].a, moved.blocks[i].a)
        assert not torch.equal(one.blocks[i].b, moved.blocks[i].b)
    fresh = torch.Generator().manual_seed(0)
    assert torch.equal(one.run.generator.get_state(), fresh.get_state())


def test_layers_take_the_first_columns_of_one_a_and_one_b_made_for_the_largest() -> None:
    small = Small(METHOD, (4, 5, 3))
    a, b = (x.double() for x in METHOD.projections(5, 5))
    first, second = small.blocks
    assert torch.equal(first.a, a[:, :4])
    assert torch.equal(second.a, a)
    assert torch.equal(first.b, b)
    assert torch.equal(second.b, b[:, :3])


@pytest.mark.parametrize("rank", [3, 16])
def test_same_projections_and_loss_trace_as_peft(rank: int) -> None:
    from peft import VeraConfig, get_peft_model

    small = Small(replace(METHOD, rank=rank), (4, 5, 3), weight_decay=0.0)
    config = VeraConfig(
        r=rank,
        target_modules=["layers.0", "layers.1"],
        projection_prng_key=0,
        vera_dropout=0.0,
        d_initial=0.1,
    )
    theirs = get_peft_model(Net((4, 5, 3)), config)
    for name, block in zip(small.run.adapters, small.blocks, strict=True):
        twin = theirs.base_model.model.get_submodule(name)
        twin.vera_lambda_b["default"].data = twin.vera_lambda_b["default"].data.double()
        twin.vera_lambda_d["default"].data = twin.vera_lambda_d["default"].data.double()
        for part, ours in (("vera_A", block.a), ("vera_B", block.b.T)):
            full = getattr(twin, part)["default"].double()
            getattr(twin, part)["default"] = full
            assert torch.equal(full[: ours.shape[0], : ours.shape[1]], ours), part
    theirs.base_model.model.head.requires_grad_(True)
    optimizer = torch.optim.AdamW(
        [p for p in theirs.parameters() if p.requires_grad], lr=0.01, weight_decay=0.0
    )
    for _ in range(15):
        optimizer.zero_grad()
        loss = (theirs(small.x) - small.y).square().sum() / len(small.x)
        loss.backward()
        assert float(small.loss().detach()) == pytest.approx(float(loss.detach()), rel=1e-9)
        optimizer.step()
        small.backward()
        small.run.set_learning_rates()
        assert small.run.optimizer is not None
        small.run.optimizer.step()
        small.run.advance()


# -- what is stored, what trains --------------------------------------------------------------------------------


def bytes_by_storage(tensors: list[torch.Tensor]) -> int:
    """Brute force: every storage once, in full."""
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


def test_shared_tensors_are_stored_and_counted_once() -> None:
    small = Small(METHOD, (4, 5, 3, 5, 5))
    added = small.run.added()
    assert len({block.a.untyped_storage().data_ptr() for block in small.blocks}) == 1
    assert len({block.b.untyped_storage().data_ptr() for block in small.blocks}) == 1
    vectors = 4 * 6 + (5 + 3 + 5 + 5)
    assert stored(added) == 6 * 5 + 6 * 5 + vectors
    assert 8 * stored(added) == bytes_by_storage(list(added))
    trains = [p for p in added if p.requires_grad]
    assert sum(p.numel() for p in trains) == vectors
    bare = sum(p.numel() for p in Net((4, 5, 3, 5, 5)).parameters())
    assert sum(p.numel() for p in small.run.model.parameters()) - sum(p.numel() for p in added) == bare


def test_shared_tensors_are_in_no_checkpoint_and_tied_again_after_it(tmp_path: Path) -> None:
    whole = Small(METHOD)
    frozen = checkpoint.frozen_base_names(whole.run, moves_base=False)
    for _ in range(5):
        whole.step()
    folder = checkpoint.save(tmp_path, whole.run, frozen, {})
    from safetensors import safe_open

    with safe_open(folder / checkpoint.TENSORS, "pt") as file:
        names = [name for name in file.keys() if name.startswith("model.layers")]  # noqa: SIM118
    assert sorted({name.rpartition(".")[2] for name in names}) == ["alive", "gate", "out_gate"]

    found = checkpoint.newest(tmp_path)
    assert found is not None
    resumed = Small(METHOD, seed=5)
    checkpoint.restore(resumed.run, *found)
    assert len({block.a.untyped_storage().data_ptr() for block in resumed.blocks}) == 1
    assert stored(resumed.run.added()) == stored(whole.run.added())
    assert not any(p.requires_grad for block in resumed.blocks for p in (block.a, block.b))
    for small in (whole, resumed):
        small.to_the_end()
        METHOD.check(small.run)
    for one, other in zip(whole.run.model.parameters(), resumed.run.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_only_d_b_and_the_head_move() -> None:
    small = Small(METHOD)
    before = {name: p.detach().clone() for name, p in small.run.model.named_parameters()}
    small.to_the_end()
    moved = {n for n, p in small.run.model.named_parameters() if not torch.equal(p, before[n])}
    vectors = {f"layers.{i}.{part}" for i in range(2) for part in ("blocks.0.gate", "out_gate")}
    assert moved == vectors | {"head.weight", "head.bias"}
    small.blocks[0].a.data[0, 0] += 1
    small.layers[0].shared = tuple(x.clone() for x in METHOD.projections(4, 5))  # type: ignore[assignment]
    with pytest.raises(PromiseBroken, match="projections moved"):
        METHOD.check(small.run)


def test_published_count_of_elora_on_deberta_v3_base() -> None:
    """156,672 = 0.16M at r = 1024 on all 72 matrices (AFLoRA's comparison), on the meta device."""
    shapes = [(768, 768)] * 4 + [(768, 3072), (3072, 768)]
    net = nn.Module()
    net.layers = nn.ModuleList(nn.Linear(n, m, device="meta") for _ in range(12) for n, m in shapes)
    run = Run(
        net,
        {f"layers.{i}": "q" for i in range(72)},
        total_steps=1,
        steps_per_epoch=1,
        settings=OptimizerSettings(),
        generator=torch.Generator(),
    )
    replace(METHOD, rank=1024).attach(run)
    trains = [p for p in run.added() if p.requires_grad]
    assert sum(p.numel() for p in trains) == 156_672
    assert run.total_rank == 72 * 1024
    assert stored(run.added()) == 1024 * (3072 + 3072) + 156_672


@settings(max_examples=200)
@given(
    widths=st.lists(st.integers(1, 6), min_size=2, max_size=4),
    rank=st.integers(1, 8),
    d=st.floats(0.01, 2),
    seed=st.integers(0, 2**40),
)
def test_invariants_for_any_shape(widths: list[int], rank: int, d: float, seed: int) -> None:
    """Views of one tensor, counts by brute force, base unmoved, merged = adapted, formula of the update."""
    method = replace(METHOD, rank=rank, d_init=d, projection_seed=seed)
    small = Small(method, widths, total=3)
    bare = Net(widths)
    assert torch.equal(small.run.model(small.x), bare(small.x))
    small.to_the_end()
    for layer, block, base in zip(small.layers, small.blocks, bare.layers, strict=True):
        assert layer.out_gate is not None
        assert torch.equal(layer.base.weight, base.weight)
        dense = torch.diag(layer.out_gate) @ block.b.T @ torch.diag(block.gate) @ block.a
        torch.testing.assert_close(layer.delta(), dense, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(merged_output(small), small.run.model(small.x).detach(), rtol=0, atol=1e-12)
    assert 8 * stored(small.run.added()) == bytes_by_storage(small.run.added())
    for i in range(2):
        assert len({(b.a, b.b)[i].untyped_storage().data_ptr() for b in small.blocks}) == 1


# -- refusals -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rank": 0}, "method.rank=0"),
        ({"d_init": 0.0}, "method.d_init=0.0"),
        ({"d_init": math.nan}, "method.d_init=nan"),
        ({"projection_seed": -1}, "method.projection_seed=-1"),
        ({"dropout": 1.0}, "method.dropout=1.0"),
    ],
)
def test_settings_that_cannot_work_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        replace(METHOD, **changes)


def test_layers_that_are_not_targets_are_left_alone() -> None:
    net = Net((4, 5, 3))
    run = Run(
        net,
        {"layers.0": "q", "layers.1": "v"},
        total_steps=2,
        steps_per_epoch=2,
        settings=OptimizerSettings(),
        generator=torch.Generator(),
    )
    begin(replace(METHOD, targets=["v"]), run)
    assert list(run.adapters) == ["layers.1"]
    assert isinstance(net.layers[0], nn.Linear)
