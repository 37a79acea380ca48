"""From a model to predictions and scores on the report rows, and what is kept of them on the way."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from adalora_bench import metrics
from adalora_bench.data.collate import evaluation_batches
from adalora_bench.data.fields import Row
from adalora_bench.errors import Diverged
from adalora_bench.forms.base import Example, Form
from adalora_bench.methods.run import Run
from adalora_bench.train.loop import autocast

Predictions = list[Any]
"""One a row: a class, a number, a text, or the texts of several turns."""


LOSS = "loss"
"""What train.early_stop.metric may name beside the task's scores: mean loss on the rows that select."""


@dataclass(kw_only=True)
class Scoring:
    """The evaluations of one training: report rows, dev rows where the split has some, the history and the best.

    Args:
        report, dev: rows by suffix of the metric; the best is chosen on `dev` where there is one, else on `report`.
        train: scored at milestones.
        split: what "selected_on" says where `dev` is empty.
        metric: what the best is chosen by; None is the task's main metric, "loss" the mean loss.
    """

    form: Form
    run: Run
    report: dict[str, list[Row]]
    dev: dict[str, list[Row]]
    train: list[Row]
    split: str
    metric: str | None
    device: torch.device
    precision: str
    history: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, Any] | None = None
    predicted: dict[str, Predictions] = field(default_factory=dict)
    train_scores: dict[str, float] | None = None  # for the next point of the history
    dev_scores: dict[str, float] | None = None

    def __post_init__(self) -> None:
        self._report = {k: self.form.encode(rows, train=False) for k, rows in self.report.items()}
        self._dev = {k: self.form.encode(rows, train=False) for k, rows in self.dev.items()}
        self.labels = {k: [self.form.task.gold(row) for row in rows] for k, rows in self.report.items()}

    def scores(self) -> dict[str, float]:
        """Of the report rows, by name. Diverged: a prediction is not finite."""
        self.predicted = {k: self._predict(examples) for k, examples in self._report.items()}
        values = [v for p in self.predicted.values() for v in p if isinstance(v, float)]
        if not all(map(math.isfinite, values)):
            raise Diverged(f"a prediction is not finite at step {self.run.step}")
        if self.dev:
            predicted = {k: self._predict(examples) for k, examples in self._dev.items()}
            self.dev_scores = self.form.score(predicted, self.dev)
        if self.metric == LOSS:
            rows = [row for part in (self.dev or self.report).values() for row in part]
            self.dev_scores = (self.dev_scores or {}) | {LOSS: self._loss(rows)}
        return self.form.score(self.predicted, self.report)

    def milestone(self) -> None:
        """Score the training rows, without their suffixes: SoRA's schedule compares memory and generalisation."""
        predicted = {"": self._predict(self.form.encode(self.train, train=False))}
        self.train_scores = self.form.score(predicted, {"": self.train})

    def keep(self, scores: dict[str, float]) -> int:
        """Put an evaluation into the history; returns how many were made since the best one."""
        point: dict[str, Any] = {"step": self.run.step, "epoch": round(self.run.epoch, 4), "scores": scores}
        for name in ("train_scores", "dev_scores"):
            if getattr(self, name) is not None:
                point[name] = getattr(self, name)
                setattr(self, name, None)
        unparsed = self.form.unparsed(self.predicted)
        if unparsed:
            point["unparsed"] = unparsed
        self.history.append(point)
        if self.run.step == 0:  # nothing is trained yet (train.eval_at_start)
            return 0
        if self.best is None or self._merit(point) > self._merit(self.best):
            self.best = point | {"selected_on": "dev" if self.dev else self.split}
        best_step = self.best["step"]
        return sum(one["step"] > best_step for one in self.history)

    def _merit(self, point: Mapping[str, Any]) -> float:
        """More is better, whatever the metric; a number that is none is the worst."""
        chosen = point.get("dev_scores") or point["scores"]
        name = self.metric or self.form.main_metric
        value = float(chosen[name])
        if math.isnan(value):
            return -math.inf
        return value if name != LOSS and metrics.higher_is_better(name) else -value

    def state(self) -> dict[str, Any]:
        """JSON for a checkpoint."""
        return {"history": self.history, "best": self.best, "train_scores": self.train_scores}

    def load(self, state: Mapping[str, Any]) -> None:
        self.history, self.best, self.train_scores = (state[k] for k in ("history", "best", "train_scores"))

    def _predict(self, examples: Sequence[Example]) -> Predictions:
        return predict(self.form, self.run.model, examples, device=self.device, precision=self.precision)

    @torch.inference_mode()
    def _loss(self, rows: list[Row]) -> float:
        """Mean item loss over these rows, without dropout."""
        self.run.model.eval()
        examples = self.form.encode(rows, train=True)
        total = 0.0
        for positions in evaluation_batches(examples, size=self.form.report_batch):
            batch = self.form.collate(examples, positions).to(self.device)
            with autocast(self.device, self.precision):
                logits = self.run.model(**batch.inputs)
            total += float(self.form.losses(logits, batch).sum())
        return total / self.form.items(examples, range(len(examples)))


@torch.inference_mode()
def predict(
    form: Form, model: nn.Module, examples: Sequence[Example], *, device: torch.device, precision: str
) -> Predictions:
    """One prediction for each example (of `form.encode(..., train=False)`), in the order given.

    Leaves the model in evaluation mode.

    Raises:
        Diverged: a logit is NaN or infinite.
    """
    model.eval()
    out: Predictions = [None] * len(examples)
    for positions in evaluation_batches(examples, size=form.report_batch):
        with autocast(device, precision):
            answers = form.answers(model, examples, positions, device)
        for position, answer in zip(positions, answers, strict=True):
            out[position] = answer
    return out


def is_collapsed(predicted: Mapping[str, Predictions], labels: Mapping[str, Sequence[Any]]) -> bool:
    """Whether one and the same answer was given to every row although the labels differ."""
    answers = {value for values in predicted.values() for value in values}
    return len(answers) == 1 and len({repr(label) for values in labels.values() for label in values}) > 1
