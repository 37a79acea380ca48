"""Every metric, each under one name that fixes its variant. Values are shares 0..1 (correlations -1..1).

A metric is a plain function of two one-dimensional sequences of equal length n: predictions, then labels.
scikit-learn and scipy are imported inside the functions, so that importing this module stays cheap.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Literal

from adalora_bench.errors import UserError, unknown

LabelKind = Literal["class", "number"]


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A metric and what a reader must know of it; `library` and `variant` make its signature."""

    function: Callable[[Sequence[Any], Sequence[Any]], float]
    description: str
    kind: LabelKind  # "class": whole numbers, labels not negative; "number": finite floats
    library: str
    variant: str
    higher_is_better: bool = True


def score(name: str, predictions: Sequence[Any], labels: Sequence[Any]) -> float:
    """The metric `name` of n predictions against n labels, as a float.

    UserError: no such metric. ValueError: empty input, unequal lengths, a NaN or infinite value, a class that
    is no whole number, a negative class label (GLUE marks hidden test labels with -1).
    """
    return float(_find(name).function(predictions, labels))


def signature(name: str) -> str:
    """What a record stores beside a score: `acc|scikit-learn:1.9.1|share of equal classes`."""
    metric = _find(name)
    return f"{name}|{metric.library}:{version(metric.library)}|{metric.variant}"


def names() -> list[str]:
    """All metric names, sorted."""
    return sorted(METRICS)


def label_kind(name: str) -> LabelKind:
    """Whether the metric compares classes or numbers. UserError: no such metric."""
    return _find(name).kind


def acc(predictions: Sequence[Any], labels: Sequence[Any]) -> float:
    """Share of rows whose predicted class is the label. A prediction of -1 (no readable answer) is wrong."""
    from sklearn.metrics import accuracy_score

    predicted, true = _classes("acc", predictions, labels)
    return float(accuracy_score(true, predicted))


def f1(predictions: Sequence[Any], labels: Sequence[Any]) -> float:
    """F1 of class 1 in a task of two classes; 0.0 where class 1 is neither predicted nor true.

    A prediction other than 1 counts as "not class 1".
    """
    from sklearn.metrics import f1_score

    predicted, true = _classes("f1", predictions, labels)
    beyond = sorted(set(true) - {0, 1})
    if beyond:
        raise ValueError(f"f1 is for two classes, 0 and 1, but the labels hold {beyond[0]}.")
    hits = [int(value == 1) for value in predicted]
    return float(f1_score(true, hits, pos_label=1, average="binary", zero_division=0.0))


def mcc(predictions: Sequence[Any], labels: Sequence[Any]) -> float:
    """Matthews correlation of the classes; by our definition 0.0 where one side is constant (else 0/0)."""
    from sklearn.metrics import matthews_corrcoef

    predicted, true = _classes("mcc", predictions, labels)
    if len(set(predicted)) == 1 or len(set(true)) == 1:
        return 0.0
    return float(matthews_corrcoef(true, predicted))


def pearson(predictions: Sequence[Any], labels: Sequence[Any]) -> float:
    """Pearson correlation; by our definition 0.0 where one side is constant (else 0/0)."""
    from scipy.stats import pearsonr

    return _correlation("pearson", pearsonr, predictions, labels)


def spearman(predictions: Sequence[Any], labels: Sequence[Any]) -> float:
    """Spearman correlation (ties get their mean rank); by our definition 0.0 where one side is constant."""
    from scipy.stats import spearmanr

    return _correlation("spearman", spearmanr, predictions, labels)


METRICS: dict[str, Metric] = {
    "acc": Metric(
        function=acc,
        description="accuracy",
        kind="class",
        library="scikit-learn",
        variant="share of equal classes",
    ),
    "f1": Metric(
        function=f1,
        description="F1 of class 1, two classes",
        kind="class",
        library="scikit-learn",
        variant="binary, positive class 1, 0 without positives",
    ),
    "mcc": Metric(
        function=mcc,
        description="Matthews correlation, constant input gives 0 by definition",
        kind="class",
        library="scikit-learn",
        variant="constant input = 0",
    ),
    "pearson": Metric(
        function=pearson,
        description="Pearson correlation, constant input gives 0 by definition",
        kind="number",
        library="scipy",
        variant="constant input = 0",
    ),
    "spearman": Metric(
        function=spearman,
        description="Spearman correlation with mean ranks for ties, constant input gives 0 by definition",
        kind="number",
        library="scipy",
        variant="mean ranks, constant input = 0",
    ),
}


def _find(name: str) -> Metric:
    if name not in METRICS:
        raise UserError(unknown("metric", name, METRICS))
    return METRICS[name]


def _numbers(name: str, side: str, values: Sequence[Any]) -> list[float]:
    numbers = [float(value) for value in values]
    bad = [row for row, value in enumerate(numbers) if not math.isfinite(value)]
    if bad:
        raise ValueError(
            f"{name}: {len(bad)} of {len(numbers)} {side} are NaN or infinite, first in row {bad[0]}."
        )
    return numbers


def _both(name: str, predictions: Sequence[Any], labels: Sequence[Any]) -> tuple[list[float], list[float]]:
    if len(predictions) != len(labels):
        raise ValueError(f"{name}: {len(predictions)} predictions for {len(labels)} labels.")
    if len(labels) == 0:
        raise ValueError(f"{name}: no rows to score.")
    return _numbers(name, "predictions", predictions), _numbers(name, "labels", labels)


def _classes(name: str, predictions: Sequence[Any], labels: Sequence[Any]) -> tuple[list[int], list[int]]:
    predicted, true = _both(name, predictions, labels)
    for side, values in (("predictions", predicted), ("labels", true)):
        broken = [value for value in values if value != int(value)]
        if broken:
            raise ValueError(f"{name}: classes are whole numbers, but the {side} hold {broken[0]!r}.")
    if min(true) < 0:
        raise ValueError(f"{name}: the labels hold {int(min(true))}, the mark of rows without a label.")
    return [int(value) for value in predicted], [int(value) for value in true]


def _correlation(
    name: str, function: Callable[..., Any], predictions: Sequence[Any], labels: Sequence[Any]
) -> float:
    predicted, true = _both(name, predictions, labels)
    if len(set(predicted)) == 1 or len(set(true)) == 1:
        return 0.0
    with warnings.catch_warnings():
        # scipy warns of nearly constant input, where rounding decides; a NaN from that is constant to us.
        warnings.simplefilter("ignore")
        value = float(function(predicted, true).statistic)
    return value if math.isfinite(value) else 0.0
