"""What a record says of adapters at the end: cosines by hand, and which gates are listed."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from adalora_bench.lowrank.adapter import LowRankLinear, RankBlock
from adalora_bench.lowrank.ending import MANY, cosine, cosines, final_gates
from adalora_bench.lowrank.plain import update_of


def layer(gates: list[float], *, scale: float = 1.0) -> LowRankLinear:
    """W0 = [[3, 0], [0, 0]] and one column of dW: every rank adds gate * scale to the lower left."""
    base = nn.Linear(2, 2, bias=False)
    base.weight.data = torch.tensor([[3.0, 0.0], [0.0, 0.0]])
    made, rank = LowRankLinear(base, scale=scale, role="q"), len(gates)
    a, b = torch.tensor([[1.0, 0.0]]).repeat(rank, 1), torch.tensor([[0.0, 1.0]]).repeat(rank, 1)
    made.append(RankBlock(a, b, torch.tensor(gates), train_gate=True))
    return made


def test_cosine_is_that_of_the_two_weights() -> None:
    assert cosines({"one": layer([1.0, 1.0], scale=2.0)}, update_of) == {"one": pytest.approx(3 / 5)}
    assert cosines({"one": layer([0.0])}, update_of) == {"one": 1.0}
    assert cosine(torch.tensor([[1.0, 0.0]]), torch.tensor([[-2.0, 0.0]])) == -1.0
    assert math.isnan(cosine(torch.zeros(2), torch.ones(2)))


def test_gates_are_listed_where_they_say_something() -> None:
    adapters = {
        "plain": layer([1.0, 1.0]),
        "gated": layer([0.12345678, -2.0]),
        "none left": layer([]),
        "many": layer([0.5] * (MANY + 1)),
    }
    adapters["gated"].append(RankBlock(torch.ones(1, 2), torch.ones(1, 2), torch.ones(1), reserve=True))
    assert final_gates(adapters) == {"gated": [0.123457, -2.0]}
