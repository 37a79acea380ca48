"""Rows that a method keeps for its decisions, and the loss on them in parts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import toy_forms
from torch import nn

from adalora_bench.engine.outcome import record_of
from adalora_bench.engine.training import Training
from adalora_bench.engine.units import Unit
from adalora_bench.errors import UserError
from adalora_bench.methods.base import Method
from adalora_bench.methods.run import OptimizerSettings, Run
from adalora_bench.settings import prepare
from adalora_bench.settings.compose import compose_cells
from adalora_bench.train import loop
from adalora_bench.train.parts import architecture_batches, divide, loss_parts


@dataclass(frozen=True, kw_only=True)
class Keeps(Method):
    """Keeps rows for decisions."""

    batches: int = 0
    size: int = 0
    share: float = 0.0

    def validation_batches(self) -> tuple[int, int]:
        return self.batches, self.size

    @property
    def architecture_share(self) -> float:
        return self.share


def keeps(**more: float) -> Keeps:
    return Keeps(version=1, targets=["all"], lr=0.1, head_lr=None, **more)  # type: ignore[arg-type]


class Toy(nn.Module):
    """Logit = weight * number of tokens; keeps the inputs that it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([2.0]))
        self.dropout = nn.Dropout(0.5)
        self.seen: list[torch.Tensor] = []

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        self.seen.append(input_ids)
        return self.dropout(self.weight * attention_mask.sum(1, keepdim=True).float())


def make(lengths: list[int]) -> tuple[Run, loop.Data]:
    run = Run(
        Toy(),
        {},
        total_steps=8,
        steps_per_epoch=4,
        settings=OptimizerSettings(),
        generator=torch.Generator(),
    )
    examples = [toy_forms.example(n) for n in lengths]
    return run, loop.Data(train=examples, form=toy_forms.regression(), device=torch.device("cpu"))


def settings(pieces: int) -> loop.LoopSettings:
    return loop.LoopSettings(
        batch_size=4,
        micro_batches=pieces,
        max_grad_norm=0.0,
        eval_every=0,
        eval_at_start=False,
        log_every=1,
        precision="fp32",
    )


def test_without_wishes_every_row_trains_the_weights_in_its_order() -> None:
    division = divide(7, keeps(), seed=3)
    assert (division.weights, division.validation, division.architecture) == (list(range(7)), [], [])


def test_division_is_disjoint_complete_and_depends_on_the_seed_alone() -> None:
    method = keeps(batches=2, size=3, share=0.5)
    division = divide(20, method, seed=3)
    assert [len(batch) for batch in division.validation] == [3, 3]
    assert (len(division.weights), len(division.architecture)) == (7, 7)
    every = [*division.weights, *division.architecture, *division.validation[0], *division.validation[1]]
    assert sorted(every) == list(range(20))
    assert division == divide(20, method, seed=3) != divide(20, method, seed=4)
    assert method.rows_for_weights(20) == 7


@pytest.mark.parametrize("method", [keeps(batches=1, size=20), keeps(share=0.01), keeps(share=1.0)])
def test_too_few_rows_are_refused_with_the_numbers(method: Keeps) -> None:
    with pytest.raises(UserError, match="20 training rows"):
        method.rows_for_weights(20)


def test_parts_sum_to_the_mean_loss_and_reuse_their_tensors() -> None:
    run, data = make([3, 1, 2, 5, 4])
    parts = loss_parts(run, data, [0, 1, 3], settings(pieces=2))
    run.validation = [parts]
    assert len(parts) == 2
    expected = ((2 * 3) ** 2 + (2 * 1) ** 2 + (2 * 5) ** 2) / 3  # squared error against 0, dropout off
    assert run.val_loss() == pytest.approx(expected)
    assert run.model.training
    seen = run.model.seen
    run.val_loss()
    assert [id(t) for t in seen[:2]] == [id(t) for t in seen[2:]]


def test_architecture_batches_follow_the_step_in_an_order_of_their_own() -> None:
    run, data = make(list(range(1, 9)))
    run.model.eval()
    run.arch_parts = architecture_batches(run, data, settings(pieces=1), seed=0)
    losses = []
    for _ in range(4):
        losses.append(float(sum(part() for part in run.arch_parts()).detach()))
        run.advance()
    epoch = sum((2 * n) ** 2 for n in range(1, 9)) / 4
    assert losses[0] + losses[1] == pytest.approx(epoch)
    assert losses[2] + losses[3] == pytest.approx(epoch)
    assert losses[0] != losses[2]


def test_a_method_without_a_share_has_no_architecture_batches() -> None:
    run, _ = make([1])
    with pytest.raises(ValueError, match="architecture_share"):
        run.arch_parts()


def test_every_stage_of_the_sora_schedule_is_scored_on_training_rows_too(tmp_path: Path) -> None:
    (cell,) = compose_cells(
        [
            "method=sora",
            "method.stages=[1.0,2.0]",
            "method.lr=0.01",
            "task=toy",
            "backbone=tiny_bert",
            "scale=smoke",
            "train.train_rows=12",
            "train.report_rows=8",
            "train.batch_size=4",
            "train.epochs=3",
            "train.eval_every=0",
        ]
    )
    (cell,) = prepare.keyed([cell], prepare.assets([cell], prepare.places_of(cell.config)))
    record = record_of(Training(Unit(cell, 0), tmp_path, lambda event: None, lambda: None))
    assert record["status"] in ("ok", "collapsed")
    assert [point["step"] for point in record["history"]] == [3, 6, 9]
    stages = [event for event in record["events"] if event["kind"] == "stage"]
    assert [event["step"] for event in stages] == [2, 5, 8]
    for point in record["history"]:
        assert set(point["train_scores"]) == set(point["scores"]) == {"acc"}
