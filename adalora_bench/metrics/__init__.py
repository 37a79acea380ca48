"""Every metric, each under one name that fixes its variant.

A metric is a plain function of two sequences of equal length n: predictions, then labels (of what kind, says
`Metric.kind`). Values are shares 0..1 where `Metric.unit` says nothing else. The libraries that do the work are
imported inside the functions, so that importing this package stays cheap.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from adalora_bench.errors import UserError, unknown
from adalora_bench.metrics import answers, captions, classification, edits, meteor, text
from adalora_bench.metrics.base import LabelKind, Metric, Unit

__all__ = [
    "METRICS",
    "LabelKind",
    "Metric",
    "Unit",
    "higher_is_better",
    "in_points",
    "label_kind",
    "names",
    "of_score",
    "printed",
    "require",
    "score",
    "signature",
    "unparsed",
]

GRADE = "judge_score"  # 1..10, given by a judge (judge.py) and not by a function of rows
NOT_JUDGED = "not judged"

# How a generative backbone answered, by the suffix of the metric's name.
_ANSWERED = {"gen": "answer by generation", "lik": "answer by likelihood"}


def score(name: str, predictions: Sequence[Any], labels: Sequence[Any]) -> float:
    """The metric `name` of n predictions against n labels, as a float.

    UserError: no such metric. AssetError: `require` says which. ValueError: empty input, unequal lengths, and what
    does not fit the kind: a NaN or infinite value, a class that is no whole number, a negative class label (GLUE
    marks hidden test labels with -1), a prediction that is no string, a row without a reference text.
    """
    return float(_find(name).function(predictions, labels))


def unparsed(name: str, predictions: Sequence[Any]) -> int:
    """How many predictions hold no readable answer: class -1, a blank text, for GSM8k a text without its number.

    They count as wrong in the score. UserError: no such metric.
    """
    metric = _find(name)
    if metric.readable is not None:
        return sum(not metric.readable(value) for value in predictions)
    if metric.kind == "text":
        return sum(not value.strip() for value in predictions)
    if metric.kind == "number":
        return 0
    return sum(value < 0 for value in predictions)


def require(wanted: Sequence[str]) -> None:
    """Checks before a run what the metrics need beyond pip. AssetError: WordNet, Java or a jar is missing."""
    for name in wanted:
        needs = _find(name).needs
        if needs is not None:
            needs()


def signature(name: str) -> str:
    """What a record stores beside a score: `acc|scikit-learn:1.9.1|share of equal classes`.

    The version is that of the library, or for own code (`own:1`) a number that changes with its results.
    """
    # Slow to import, and not needed by what only scores.
    from importlib.metadata import version

    metric = _find(name)
    return f"{name}|{metric.library}:{metric.revision or version(metric.library)}|{metric.variant}"


def names() -> list[str]:
    """All metric names, sorted."""
    return sorted(METRICS)


def of_score(name: str) -> Metric | None:
    """The metric behind the name of a score, which may end in the suffix of its report rows: `ter_all` is `ter`."""
    parts = name.split("_")
    ends = range(len(parts), 0, -1)
    return next((METRICS[base] for end in ends if (base := "_".join(parts[:end])) in METRICS), None)


def higher_is_better(score_name: str) -> bool:
    """Which way a score is better; true for a name that is no metric's."""
    metric = of_score(score_name)
    return metric is None or metric.higher_is_better


def in_points(score_name: str) -> bool:
    """Whether a score is printed as it is (NIST, CIDEr, a judge's grade), and not x100."""
    metric = of_score(score_name)
    return score_name == GRADE if metric is None else metric.unit == "points"


def printed(score_name: str, value: float) -> float:
    """A score as tables print it: x100, or as it is where it is in points."""
    return float(value) if in_points(score_name) else 100 * float(value)


def label_kind(name: str) -> LabelKind:
    """What the metric compares: classes, numbers, texts or grouped classes. UserError: no such metric."""
    return _find(name).kind


def _find(name: str) -> Metric:
    if name not in METRICS:
        raise UserError(unknown("metric", name, METRICS))
    return METRICS[name]


def _with_answers(plain: Mapping[str, Metric]) -> dict[str, Metric]:
    """The metrics, and those that a generative backbone can answer under a name that says how it did."""
    return dict(plain) | {
        f"{name}_{suffix}": metric._replace(
            description=f"{metric.description}; {how}", variant=f"{metric.variant}, {how}"
        )
        for name, metric in plain.items()
        if metric.by_answer
        for suffix, how in _ANSWERED.items()
    }


METRICS: dict[str, Metric] = _with_answers(
    classification.METRICS
    | answers.METRICS
    | text.METRICS
    | edits.METRICS
    | captions.METRICS
    | meteor.METRICS
)
