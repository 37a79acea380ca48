"""Training with given ranks (IncreLoRA, arXiv 2308.12043, section 4.5 and Table 3): Eq. 3 and 4 by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from small_runs import Small, fill, in_optimizer, merged_output

from adalora_bench.errors import PromiseBroken, UserError
from adalora_bench.methods.svd_pattern import SvdPattern

METHOD = SvdPattern(
    version=1,
    targets=["all"],
    lr=0.01,
    head_lr=None,
    pattern_from=None,
    ranks={"layers.0": 3, "layers.1": 1, "layers.2": 0},
    rank=2,
    alpha=16.0,
    scale_by="active",
    init_std=0.02,
    orthogonality=0.1,
    orthogonality_squared=False,
    dropout=0.0,
)
WIDTHS = (4, 5, 3, 2)  # three modules


def test_table3_every_module_has_its_rank_and_starts_at_0() -> None:
    small = Small(METHOD, WIDTHS)
    assert [layer.stored_rank for layer in small.layers] == [3, 1, 0]
    assert small.run.total_rank == 4
    for layer in small.layers:
        assert not layer.delta().any()
    for block in small.blocks:
        assert block.gate.requires_grad
        assert not block.gate.detach().any()
        assert 0 < float(block.a.detach().abs().max()) < 0.2  # N(0, 0.02)
    assert small.run.optimizer is not None
    held = in_optimizer(small.run)
    assert all(id(p) in held for block in small.blocks for p in (block.a, block.b, block.gate))


@pytest.mark.parametrize(
    ("scale_by", "scales"),
    [
        ("active", [16 / 3.00001, 16 / 1.00001, 16 / 0.00001]),
        ("target", [12.0, 12.0, 12.0]),  # average rank 4 / 3
        ("none", [16.0, 16.0, 16.0]),
    ],
)
def test_eq3_scale(scale_by: str, scales: list[float]) -> None:
    small = Small(replace(METHOD, scale_by=scale_by), WIDTHS)
    assert [layer.scale for layer in small.layers] == pytest.approx(scales, rel=1e-14)


def test_eq3_update_by_hand() -> None:
    small = Small(replace(METHOD, ranks={"layers.0": 2}), (2, 2))
    (layer,) = small.layers
    fill(small.blocks[0], [[1.0, 2.0], [0.0, 4.0]], [[3.0, -1.0], [1.0, 5.0]], [0.5, 0.25])
    # 0.5 b1 a1 = [[1.5, 3], [-.5, -1]]; 0.25 b2 a2 = [[0, 1], [0, 5]]; scale 16 / 2.00001
    by_hand = 16 / 2.00001 * torch.tensor([[1.5, 4.0], [-0.5, 4.0]], dtype=torch.float64)
    torch.testing.assert_close(layer.delta(), by_hand, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("squared", "expected"), [(False, 0.1 * (math.sqrt(3) + 3) / 4), (True, 0.1 * (3 + 9) / 4)]
)
def test_eq4_penalty_is_the_mean_over_modules_that_have_ranks(squared: bool, expected: float) -> None:
    ranks = {"layers.0": 2, "layers.1": 1, "layers.2": 0}
    small = Small(replace(METHOD, ranks=ranks, orthogonality_squared=squared), (2, 2, 2, 2))
    one, two = small.blocks
    # A A^T - I = [0 1; 1 1], 3.  B B^T - I = [3 0; 0 0], 9.  The second module is orthonormal, the third has no ranks.
    fill(one, [[1.0, 0.0], [1.0, 1.0]], [[2.0, 0.0], [0.0, 1.0]], [0.3, 0.4])
    fill(two, [[0.0, 1.0]], [[1.0, 0.0]], [0.3])
    penalty = small.method.penalty(small.run)
    assert penalty is not None
    assert float(penalty.detach()) == pytest.approx(expected, abs=1e-14)
    assert replace(METHOD, orthogonality=0.0).penalty(small.run) is None


def test_table3_trains_and_keeps_its_ranks() -> None:
    small = Small(METHOD, WIDTHS, total=40)
    first = float(small.loss().detach())
    small.to_the_end()
    assert float(small.loss().detach()) < first
    assert [layer.rank for layer in small.layers] == [3, 1, 0]
    assert small.run.events == []
    torch.testing.assert_close(merged_output(small), small.run.model(small.x).detach(), rtol=0, atol=1e-12)
    small.method.check(small.run)
    small.blocks[0].kill(torch.tensor([True, False, False]))
    with pytest.raises(PromiseBroken, match=r"layers\.0 ended with rank 2 instead of 3"):
        small.method.check(small.run)


def test_without_a_pattern_every_module_has_the_same_rank() -> None:
    small = Small(replace(METHOD, ranks=None), WIDTHS)
    assert [layer.rank for layer in small.layers] == [2, 2, 2]


def test_a_name_may_leave_out_its_beginning() -> None:
    method = replace(METHOD, ranks={"encoder.layer.0.output.dense": 4, "layer.1.output.dense": 2})
    modules = ["body.deberta.encoder.layer.0.output.dense", "body.deberta.encoder.layer.1.output.dense"]
    assert method.ranks_of(modules) == dict(zip(modules, (4, 2), strict=True))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ranks": {"layers.0": 3, "layers.1": 1}}, r"method\.ranks has no rank for layers\.2"),
        ({"ranks": {f"layers.{k}": 1 for k in range(4)}}, r"method\.ranks names layers\.3"),
        ({"ranks": {"layers.0": -1, "layers.1": 1, "layers.2": 1}}, r"layers\.0 the rank -1"),
        ({"ranks": {"layers.0": 0}}, "no module a rank above 0"),
        ({"rank": 0}, r"method\.rank=0"),
        ({"alpha": 0.0}, r"method\.alpha=0"),
        ({"orthogonality": math.nan}, r"method\.orthogonality=nan"),
        ({"scale_by": "rank"}, r"method\.scale_by='rank'"),
        ({"dropout": 1.0}, r"method\.dropout=1"),
    ],
)
def test_settings_that_cannot_work_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Small(replace(METHOD, **changes), WIDTHS)
