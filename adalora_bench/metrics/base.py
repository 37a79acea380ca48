"""What a metric is, and the checks that every metric makes of its input."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

LabelKind = Literal["class", "number", "text", "grouped"]
Unit = Literal["share", "correlation", "rate", "points"]

OWN = "own"


class Metric(NamedTuple):
    """A metric and what a reader must know of it; `library` and `variant` make its signature.

    Attributes:
        kind: what is compared, one prediction with one label per row.
            "class": whole numbers, labels not negative; "number": finite floats;
            "text": a string with a list of one or more reference strings;
            "grouped": a class with a pair (group, class), where the rows of one group (any hashable) belong together.
        library: the distribution that does the work, or "own" for code of this package.
        revision: version in the signature; None: that of the installed `library`.
        unit: "share" 0..1; "correlation" -1..1; "rate" from 0 (TER can pass 1); "points" from 0 with no common
            upper end (NIST, CIDEr). A table multiplies all but "points" by 100.
        by_answer: a generative backbone may answer it; then it also exists as `<name>_gen` and `<name>_lik`.
        readable: whether an answer could be read from a prediction; None: the rule of its kind.
        needs: raises AssetError where something that cannot be installed by pip alone is missing.
    """

    function: Callable[[Sequence[Any], Sequence[Any]], float]
    description: str
    kind: LabelKind
    library: str
    variant: str
    higher_is_better: bool = True
    revision: str | None = None
    unit: Unit = "share"
    by_answer: bool = False
    readable: Callable[[Any], bool] | None = None
    needs: Callable[[], object] | None = None


def mean(values: Sequence[float]) -> float:
    """The mean of one or more numbers, summed exactly."""
    return math.fsum(values) / len(values)


def numbers(name: str, predictions: Sequence[Any], labels: Sequence[Any]) -> tuple[list[float], list[float]]:
    """Both sides as finite floats. ValueError: no rows, unequal lengths, a NaN or infinite value."""
    _same_length(name, predictions, labels)
    return _finite(name, "predictions", predictions), _finite(name, "labels", labels)


def classes(name: str, predictions: Sequence[Any], labels: Sequence[Any]) -> tuple[list[int], list[int]]:
    """Both sides as whole numbers. ValueError: as `numbers`, a fraction, a negative label."""
    predicted, true = numbers(name, predictions, labels)
    for side, values in (("predictions", predicted), ("labels", true)):
        broken = [value for value in values if value != int(value)]
        if broken:
            raise ValueError(f"{name}: classes are whole numbers, but the {side} hold {broken[0]!r}.")
    if min(true) < 0:
        raise ValueError(f"{name}: the labels hold {int(min(true))}, the mark of rows without a label.")
    return [int(value) for value in predicted], [int(value) for value in true]


def grouped(
    name: str, predictions: Sequence[Any], labels: Sequence[Any]
) -> tuple[list[int], list[int], list[Any]]:
    """(predicted classes, true classes, groups). ValueError: as `classes`, or a label that is no pair."""
    _same_length(name, predictions, labels)
    for row, label in enumerate(labels):
        if not isinstance(label, tuple | list) or len(label) != 2:
            raise ValueError(f"{name}: a label is a pair (group, class), but row {row} has {label!r}.")
    predicted, true = classes(name, predictions, [label for _, label in labels])
    return predicted, true, [group for group, _ in labels]


def texts(
    name: str, predictions: Sequence[Any], references: Sequence[Any]
) -> tuple[list[str], list[list[str]]]:
    """Both sides; blank references are dropped.

    ValueError: no rows, unequal lengths, a prediction that is no string, references that are no list of strings,
    a row without any reference that is not blank.
    """
    _same_length(name, predictions, references)
    kept: list[list[str]] = []
    for row, (prediction, wanted) in enumerate(zip(predictions, references, strict=True)):
        if not isinstance(prediction, str):
            raise ValueError(f"{name}: row {row} predicts {prediction!r}, which is no string.")
        if isinstance(wanted, str) or not all(isinstance(text, str) for text in wanted):
            raise ValueError(f"{name}: the references of row {row} are no list of strings.")
        full = [text for text in wanted if text.strip()]
        if not full:
            raise ValueError(f"{name}: row {row} has no reference text.")
        kept.append(full)
    return list(predictions), kept


def _same_length(name: str, predictions: Sequence[Any], labels: Sequence[Any]) -> None:
    if len(predictions) != len(labels):
        raise ValueError(f"{name}: {len(predictions)} predictions for {len(labels)} labels.")
    if len(labels) == 0:
        raise ValueError(f"{name}: no rows to score.")


def _finite(name: str, side: str, values: Sequence[Any]) -> list[float]:
    found = [float(value) for value in values]
    bad = [row for row, value in enumerate(found) if not math.isfinite(value)]
    if bad:
        raise ValueError(
            f"{name}: {len(bad)} of {len(found)} {side} are NaN or infinite, first in row {bad[0]}."
        )
    return found
