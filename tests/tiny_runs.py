"""Tiny trainings for the contract: what a method does on a random backbone, watched after every step.

A method is found by its YAML. A backbone joins the contract by its name in BACKBONES. An encoder learns a regression,
a generative backbone to answer with text.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from adalora_bench.engine.outcome import record_of
from adalora_bench.engine.training import Training
from adalora_bench.engine.units import Unit
from adalora_bench.errors import Interrupted
from adalora_bench.seeds import derive
from adalora_bench.settings import prepare
from adalora_bench.settings.compose import compose_cells, conf_dir, options
from adalora_bench.settings.config import Cell

METHODS = options("method")
# The others differ from one of the first three in names and shapes alone, which two methods show as well: for the time.
SOME = ("lora", "increlora")
# Not everywhere, for the time: peft's methods are peft's, and tests/paper/test_searched.py tries the searched ones.
NOT_ON: dict[str, set[str]] = {
    "tiny_gpt2": {"peft", "peft_adalora"},
    "tiny_bart": {"peft", "peft_adalora", "learned_adapter", "spt", "ssp"},
}
BACKBONES: dict[str, Sequence[str]] = {
    "tiny_bert": METHODS,
    "tiny_gpt2": [method for method in METHODS if method not in NOT_ON["tiny_gpt2"]],
    "tiny_bart": [method for method in METHODS if method not in NOT_ON["tiny_bart"]],
    "tiny_deberta_v2": SOME,
    "tiny_roberta": SOME,
    "tiny_llama": SOME,
}
FIRST = "tiny_bert"
TEXT = ("tiny_gpt2", "tiny_bart", "tiny_llama")


def is_preset(method: str) -> bool:
    """Whether a method's YAML only changes settings of another one: one backbone is enough for it."""
    return "defaults:" in (conf_dir() / "method" / f"{method}.yaml").read_text()


def is_thorough(method: object, backbone: object) -> bool:
    """Whether this pair is the one on which a method is interrupted often and run twice; the others save that time."""
    return backbone == FIRST and not is_preset(str(method))


AT_NIGHT = {
    (method, "tiny_bart")
    for method in ("adalora", "aflora", "alora", "delta_lora", "dylora", "salora", "sora", "vera")
}


def _marks(method: str, backbone: str) -> list[pytest.MarkDecorator]:
    """One worker trains a pair for all of its checks.

    What peft promises is checked at night, and so are on tiny_bart the methods that are LoRA but for their ranks,
    which `SOME` stand for by day.
    """
    by_night = method.startswith("peft_") if backbone == FIRST else (method, backbone) in AT_NIGHT
    nightly = [pytest.mark.nightly] if by_night else []
    return [pytest.mark.xdist_group(f"{method}-{backbone}"), *nightly]


PAIRS = [
    pytest.param(method, backbone, marks=_marks(method, backbone))
    for backbone, methods in BACKBONES.items()
    for method in methods
    if backbone == FIRST or not is_preset(method)
]

# A second training of the same seed, for every method once: a resumed run that equals the whole one shows it too.
REPEATED = [pair for pair in PAIRS if is_thorough(*pair.values)]

# Batches of 8, 8 and 4 rows, 30 steps.
SETTINGS = (
    "scale=smoke",
    "scale.max_steps=null",
    "train.batch_size=8",
    "train.micro_batches=2",
    "train.epochs=10",
    "train.log_every=3",
    "train.weight_decay=0.01",
)
# The mean label is far from 0, so that every model has something to learn soon.
REGRESSION = (
    "task=toy_regression",
    "train.report_rows=12",
    "train.eval_every=4ep",
    "method.lr=0.01",
)
# Few and short answers: generation is what costs. A frozen output layer wants larger steps.
ANSWERS = (
    "task=toy_text",
    "train.report_rows=4",
    "train.eval_every=5ep",
    "task.generation.max_new_tokens=4",
    "method.lr=0.02",
)
ROWS = {"alora": 24, "alora_dnas": 40}  # 20 are left where a method keeps rows for its decisions
# The search of ALoRA is cut short: every rank is scored by two passes.
ALORA = ("method.rank=2", "method.first_round=4", "method.rounds=2", "method.interval=4")
METHOD_SETTINGS = {
    "increlora_retrain": ("method.rank=2",),
    "increlora_retrain_adalora": ("method.rank=2",),
    "alora": (*ALORA, "method.validation_rows=4"),
    "alora_sensi": ALORA,
    "alora_dnas": ALORA,
    "peft_fourierft": ("train.eps=1e-4",),  # float32 inside: Adam would make steps of its rounding
}
SEED = 3


def dropout(backbone: str) -> list[str]:
    """Settings of a dropout wherever the model has a place for it."""
    return ["backbone.dropout=0.1", *([] if backbone in TEXT else ["backbone.head_dropout=0.1"])]


@dataclass(frozen=True)
class Step:
    """Facts after one step, counted by hand. `grouped`: every parameter that the optimizer holds."""

    ranks: dict[str, int]
    trained_numbers: int
    trained_tensors: int
    trainable: list[nn.Parameter]
    grouped: list[nn.Parameter]


@dataclass
class Course:
    """One training from its start to its record."""

    training: Training
    stop_at: frozenset[int] = frozenset()
    steps: list[Step] = field(default_factory=list)
    end: Step | None = None  # after `finalize`, which may shrink the adapters
    record: dict[str, Any] = field(default_factory=dict)
    rng: Tensor | None = None  # of torch, after the last evaluation

    def asked_to_stop(self) -> int | None:
        """The loop asks this after every step."""
        self.steps.append(facts(self.training))
        return signal.SIGTERM if self.training.run.step in self.stop_at else None


def begin(
    method: str, backbone: str, folder: Path, *more: str, stop_at: Sequence[int] = (), seed: int = SEED
) -> Course:
    """A training that is built, or continued where a checkpoint in `folder` left it."""
    cell = _cell(method, backbone, more)
    stop: list[Callable[[], int | None]] = []
    training = Training(Unit(cell, seed), folder, lambda event: None, lambda: stop[0]())
    course = Course(training, frozenset(stop_at))
    stop.append(course.asked_to_stop)
    return course


@cache
def _cell(method: str, backbone: str, more: tuple[str, ...]) -> Cell:
    names = (f"method={method}", f"backbone={backbone}", f"train.train_rows={ROWS.get(method, 20)}")
    task = ANSWERS if backbone in TEXT else REGRESSION
    settings = (*names, *SETTINGS, *task, *METHOD_SETTINGS.get(method, ()), *more)
    (cell,) = compose_cells(
        list({text.split("=")[0]: text for text in settings}.values())
    )  # the last word counts
    (cell,) = prepare.keyed([cell], prepare.assets([cell], prepare.places_of(cell.config)))
    return cell


def finish(course: Course) -> Course:
    """Train to the end, or raise Interrupted."""
    course.record = record_of(course.training)
    course.end = facts(course.training)
    course.rng = torch.get_rng_state()
    return course


@dataclass(frozen=True)
class Watched:
    """An uninterrupted training with what it looked like before its first step."""

    course: Course
    before: list[tuple[str, nn.Parameter, Tensor]]  # name, the parameter itself, a copy of its numbers
    start: Step
    logits: Tensor
    bare: nn.Module  # backbone and head without the method
    loss: float


@cache
def watched(method: str, backbone: str, folder: Path) -> Watched:
    """The training that most checks share; `folder` is the same for the whole module."""
    course = begin(method, backbone, folder / f"{method}-{backbone}", *dropout(backbone))
    training = course.training
    with torch.random.fork_rng(devices=[]):  # the training has its generator where it wants it
        bare = training.unit.cell.backbone.load(
            training.found.backbone(training.unit.cell),
            kind=training.form.kind,
            outputs=training.form.outputs,
            head_seed=derive(SEED, "head"),
        )
    before = [(name, p, p.detach().clone()) for name, p in training.run.model.named_parameters()]
    watched = Watched(
        course=course,
        before=before,
        start=facts(training),
        logits=logits_of(training, training.run.model),
        bare=bare.model,
        loss=training_loss(training),
    )
    finish(course)
    return watched


def interrupted(method: str, backbone: str, folder: Path, stops: Sequence[int]) -> Course:
    """The same training, stopped and continued from its checkpoint at each of these steps."""
    for stop in stops:
        course = begin(method, backbone, folder, *dropout(backbone), stop_at=[stop])
        with pytest.raises(Interrupted):
            finish(course)
        assert course.training.run.step == stop
    course = begin(method, backbone, folder, *dropout(backbone))
    assert course.training.run.step == stops[-1]
    return finish(course)


def facts(training: Training) -> Step:
    """Ranks and counts by going through the tensors, without asking the package's own counters."""
    run = training.run
    head = {id(p) for p in run.head}
    trainable = [p for p in run.model.parameters() if p.requires_grad]
    body = [p for p in trainable if id(p) not in head]
    assert run.optimizer is not None
    return Step(
        ranks={
            name: sum(int(block.alive.sum()) for block in layer.rank_blocks() if not block.reserve)
            for name, layer in run.adapters.items()
        },
        trained_numbers=sum(p.numel() for p in body),
        trained_tensors=len(body),
        trainable=trainable,
        grouped=[p for group in run.optimizer.param_groups for p in group["params"]],
    )


@torch.no_grad()
def logits_of(training: Training, model: nn.Module) -> Tensor:
    """Logits of the training rows in one padded batch, without dropout; the mode is put back."""
    mode = model.training
    model.eval()
    batch = training.form.collate(training.data.train, range(len(training.data.train)))
    logits: Tensor = model(**batch.inputs)
    model.train(mode)
    return logits


def training_loss(training: Training) -> float:
    """Mean loss over the training rows, without dropout."""
    batch = training.form.collate(training.data.train, range(len(training.data.train)))
    return float(training.form.losses(logits_of(training, training.run.model), batch).mean())
