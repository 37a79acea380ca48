"""Metrics of classes and numbers, over scikit-learn and scipy, which are imported where they are used."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from adalora_bench.metrics.base import Metric, classes, numbers


def acc(predictions: Sequence[Any], labels: Sequence[Any]) -> float:
    """Share of rows whose predicted class is the label. A prediction of -1 (no readable answer) is wrong."""
    from sklearn.metrics import accuracy_score

    predicted, true = classes("acc", predictions, labels)
    return float(accuracy_score(true, predicted))


def f1(predictions: Sequence[Any], labels: Sequence[Any]) -> float:
    """F1 of class 1 in a task of two classes; 0.0 where class 1 is neither predicted nor true.

    A prediction other than 1 counts as "not class 1".
    """
    return binary_f1("f1", *classes("f1", predictions, labels))


def macro_f1(predictions: Sequence[Any], labels: Sequence[Any]) -> float:
    """Mean of the F1 of each class that is predicted or true, as CommitmentBank is scored.

    A prediction of -1 (no readable answer) is a miss for its label, but no class of its own.
    """
    from sklearn.metrics import f1_score

    predicted, true = classes("macro_f1", predictions, labels)
    seen = sorted({value for value in [*predicted, *true] if value >= 0})
    return float(f1_score(true, predicted, labels=seen, average="macro", zero_division=0.0))


def mcc(predictions: Sequence[Any], labels: Sequence[Any]) -> float:
    """Matthews correlation of the classes; by our definition 0.0 where one side is constant (else 0/0)."""
    from sklearn.metrics import matthews_corrcoef

    predicted, true = classes("mcc", predictions, labels)
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


def binary_f1(name: str, predicted: Sequence[int], true: Sequence[int]) -> float:
    """F1 of class 1, 0.0 without positives. ValueError: a label other than 0 and 1."""
    from sklearn.metrics import f1_score

    beyond = sorted(set(true) - {0, 1})
    if beyond:
        raise ValueError(f"{name} is for two classes, 0 and 1, but the labels hold {beyond[0]}.")
    hits = [int(value == 1) for value in predicted]
    return float(f1_score(true, hits, pos_label=1, average="binary", zero_division=0.0))


def _correlation(
    name: str, function: Callable[..., Any], predictions: Sequence[Any], labels: Sequence[Any]
) -> float:
    predicted, true = numbers(name, predictions, labels)
    if len(set(predicted)) == 1 or len(set(true)) == 1:
        return 0.0
    with warnings.catch_warnings():
        # scipy warns of nearly constant input, where rounding decides; a NaN from that is constant to us.
        warnings.simplefilter("ignore")
        value = float(function(predicted, true).statistic)
    return value if math.isfinite(value) else 0.0


METRICS: dict[str, Metric] = {
    "acc": Metric(
        function=acc,
        description="accuracy",
        kind="class",
        library="scikit-learn",
        variant="share of equal classes",
        by_answer=True,
    ),
    "f1": Metric(
        function=f1,
        description="F1 of class 1, two classes",
        kind="class",
        library="scikit-learn",
        variant="binary, positive class 1, 0 without positives",
        by_answer=True,
    ),
    "macro_f1": Metric(
        function=macro_f1,
        description="mean F1 over the classes",
        kind="class",
        library="scikit-learn",
        variant="macro over classes predicted or true, 0 without positives",
        by_answer=True,
    ),
    "mcc": Metric(
        function=mcc,
        description="Matthews correlation, constant input gives 0 by definition",
        kind="class",
        library="scikit-learn",
        variant="constant input = 0",
        unit="correlation",
        by_answer=True,
    ),
    "pearson": Metric(
        function=pearson,
        description="Pearson correlation, constant input gives 0 by definition",
        kind="number",
        library="scipy",
        variant="constant input = 0",
        unit="correlation",
    ),
    "spearman": Metric(
        function=spearman,
        description="Spearman correlation with mean ranks for ties, constant input gives 0 by definition",
        kind="number",
        library="scipy",
        variant="mean ranks, constant input = 0",
        unit="correlation",
    ),
}
