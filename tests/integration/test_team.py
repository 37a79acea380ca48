"""Two processes against one with the same global batch: the same decisions at every step, losses to 1e-5.

In bf16 losses to 1e-3: a logit between 1/2 and 1 is rounded by up to 2e-3, and other micro-batches round otherwise; the
mean of 16 items takes that to 5e-4, and both sides have it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed
from torch import Tensor, nn

from adalora_bench.train.team import Team

SCRIPT = Path(__file__).parent / "team_process.py"
# Every method that decides while it trains, and one that does not; tests/cli/test_processes.py has one in `make test`.
METHODS = (
    "lora", "increlora", "increlora_authors", "adalora", "aflora", "alora", "alora_dnas", "alora_sensi", "sora",
    "sora_authors", "salora", "dylora", "delta_lora", "adapterdrop", "learned_adapter", "spt", "ssp",
)  # fmt: skip


def courses(folder: Path, size: int, methods: Sequence[str]) -> list[dict[str, Any]]:
    """What each process of a team of that size saw: method -> course."""
    folder.mkdir()
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(SCRIPT.parents[2]), os.environ.get("PYTHONPATH", "")]),
    }
    team = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(rank), str(size), str(folder), *methods],
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(size)
    ]
    said = [process.communicate(timeout=600)[0] for process in team]
    assert [process.returncode for process in team] == [0] * size, said
    return [
        {m: json.loads((folder / f"{m}-{rank}.json").read_text()) for m in methods} for rank in range(size)
    ]


def compare(folder: Path, methods: Sequence[str], tolerance: float = 1e-5) -> None:
    (alone,) = courses(folder / "one", 1, methods)
    first, second = courses(folder / "two", 2, methods)
    for method in methods:
        one, two = alone[method], first[method]
        assert two == second[method], f"{method}: the processes differ from each other"
        assert len(one["losses"]) == len(two["losses"]) == 30, method
        assert two["losses"] == pytest.approx(one["losses"], abs=tolerance), method
        assert two["events"] == one["events"], method
        assert two["structure"] == one["structure"], method
        assert two["status"] == one["status"], method


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_alike_in_two_processes(tmp_path: Path, method: str) -> None:
    compare(tmp_path, [method])


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "increlora", "adalora", "delta_lora", "sora"])
def test_in_bf16_too(tmp_path: Path, method: str) -> None:
    compare(tmp_path, [f"{method}+train.precision=bf16"], 1e-3)


def made_up_run(*grads: Tensor | None) -> Any:
    """A run with one parameter of two numbers for each gradient."""
    params = [nn.Parameter(torch.tensor([3.0, 4.0])) for _ in grads]
    for param, grad in zip(params, grads, strict=True):
        param.grad = grad
    return SimpleNamespace(trainable_parameters=lambda: params, rank_blocks=list, adapters={}, step=7)


def test_pieces_are_shared_out_without_rest() -> None:
    pieces = list("abcde")
    assert [Team(rank, 3).share(pieces) for rank in range(3)] == [["a", "d"], ["b", "e"], ["c"]]
    assert Team().share(pieces) == pieces
    assert Team(3, 4).share(["a"]) == []


def test_alone_nothing_is_touched() -> None:
    grad = torch.tensor([1.0, 2.0])
    run = made_up_run(grad)
    assert Team().add_up(run, [torch.tensor(0.25), torch.tensor(0.5)]) == 0.75
    assert run.trainable_parameters()[0].grad is grad


def test_sums_of_loss_and_gradients_and_none_where_nobody_has_one(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[Tensor] = []

    def first(flat: Tensor) -> None:
        sent.append(flat.clone())
        flat *= 2  # as if the other had sent the same

    def second(flat: Tensor) -> None:
        flat += sent[0]

    monkeypatch.setattr(torch.distributed, "all_reduce", first)
    Team(1, 2).add_up(made_up_run(torch.tensor([10.0, 20.0]), torch.tensor([1.0, 1.0]), None), [])
    run = made_up_run(torch.tensor([1.0, 2.0]), None, None)
    monkeypatch.setattr(torch.distributed, "all_reduce", second)
    assert Team(0, 2).add_up(run, [torch.tensor(0.25), torch.tensor(0.5)]) == 0.75
    grads = [param.grad for param in run.trainable_parameters()]
    assert grads[0].tolist() == [11.0, 22.0]
    assert grads[1].tolist() == [1.0, 1.0]
    assert grads[2] is None


def test_processes_that_drifted_apart_are_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    def other(flat: Tensor) -> None:
        flat[1] += flat[1] * 1.01  # its norm of the parameters

    monkeypatch.setattr(torch.distributed, "all_reduce", other)
    with pytest.raises(RuntimeError, match="the 2 processes drifted apart at step 7"):
        Team(0, 2).add_up(made_up_run(torch.tensor([1.0, 2.0])), [torch.tensor(1.0)])
