"""Metrics of short answers: SQuAD and ReCoRD texts, MultiRC's grouped answers, GSM8k's numbers."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from adalora_bench.metrics.base import OWN, Metric, grouped, mean, texts
from adalora_bench.metrics.classification import binary_f1

if TYPE_CHECKING:
    from fractions import Fraction

_PUNCTUATION = str.maketrans("", "", "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~")
# Patterns stay text, which re compiles at first use: importing this package must stay cheap.
_ARTICLE = r"\b(a|an|the)\b"

# Thousands may be set apart by commas or by blanks of any kind; then comes a power of ten or a fraction.
_BLANKS = " \u00a0\u2007\u2009\u202f"
_MINUS = "-\u2212\u2010\u2011\u2012\u2013\ufe63\uff0d"
_DIGITS = rf"(?:[0-9]{{1,3}}(?:[,{_BLANKS}][0-9]{{3}})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+"
_VULGAR = "[\u00bc-\u00be\u2150-\u215e]"
_VALUE = (
    rf"(?:(?P<mixed>[0-9]+)[{_BLANKS}](?=[0-9]+/[0-9]))?"
    rf"(?:(?P<digits>{_DIGITS})(?P<power>[eE][+-]?[0-9]{{1,3}}(?!\w))?)?"
    rf"(?:(?<=[0-9])[{_BLANKS}]?/[{_BLANKS}]?(?P<below>[0-9]+)|[{_BLANKS}]?(?P<vulgar>{_VULGAR}))?"
    rf"(?<=[0-9\u00bc-\u00be\u2150-\u215e])"
)
_MARKED = rf"####\s*\$?(?P<sign>[{_MINUS}]?)\s*\$?{_VALUE}"
# A minus right behind a letter, digit or bracket joins two things ("20-25") and is no sign.
_NUMBER = rf"(?:(?<![\w.,)\]])(?P<sign>[{_MINUS}]))?\$?(?=\.?[0-9]|{_VULGAR}){_VALUE}"


def normalise(text: str) -> str:
    """SQuAD's normalisation: lower case, no ASCII punctuation, no articles, single blanks."""
    return " ".join(re.sub(_ARTICLE, " ", text.lower().translate(_PUNCTUATION)).split())


def squad_em(predictions: Sequence[Any], references: Sequence[Any]) -> float:
    """Share of predictions equal to one of their references after normalisation (SQuAD 1.1)."""
    return _best("squad_em", predictions, references, _equal)


def squad_f1(predictions: Sequence[Any], references: Sequence[Any]) -> float:
    """Mean over rows of the best F1 of words against one reference, after normalisation (SQuAD 1.1).

    As in the official script, two texts without a word left ("the" and "a") have F1 0 but are equal for EM.
    """
    return _best("squad_f1", predictions, references, _word_f1)


def squad_mean(predictions: Sequence[Any], references: Sequence[Any]) -> float:
    """Mean of `squad_em` and `squad_f1`, which ALoRA's Table 1 shows."""
    return (squad_em(predictions, references) + squad_f1(predictions, references)) / 2


def record_em(predictions: Sequence[Any], references: Sequence[Any]) -> float:
    """ReCoRD's exact match: SQuAD's, against the answer entities of the row."""
    return _best("record_em", predictions, references, _equal)


def record_f1(predictions: Sequence[Any], references: Sequence[Any]) -> float:
    """ReCoRD's F1 of words: SQuAD's, against the answer entities of the row."""
    return _best("record_f1", predictions, references, _word_f1)


def record_mean(predictions: Sequence[Any], references: Sequence[Any]) -> float:
    """Mean of `record_em` and `record_f1`, which ALoRA's Table 1 shows."""
    return (record_em(predictions, references) + record_f1(predictions, references)) / 2


def multirc_f1a(predictions: Sequence[Any], labels: Sequence[Any]) -> float:
    """F1 of class 1 over all answers of all questions; labels are pairs (question, class)."""
    predicted, true, _ = grouped("multirc_f1a", predictions, labels)
    return binary_f1("multirc_f1a", predicted, true)


def multirc_em(predictions: Sequence[Any], labels: Sequence[Any]) -> float:
    """Share of questions all of whose answers are classed right; labels are pairs (question, class)."""
    predicted, true, groups = grouped("multirc_em", predictions, labels)
    right: dict[Any, bool] = defaultdict(lambda: True)
    for said, label, group in zip(predicted, true, groups, strict=True):
        right[group] = right[group] and said == label
    return sum(right.values()) / len(right)


def gsm8k_strict(predictions: Sequence[Any], references: Sequence[Any]) -> float:
    """Share of predictions whose number after the first `####` is that of a reference; none there is wrong."""
    return _share_of_numbers("gsm8k_strict", predictions, references, marked_number)


def gsm8k_flexible(predictions: Sequence[Any], references: Sequence[Any]) -> float:
    """Share of predictions whose last number is that of a reference; a text without a number is wrong."""
    return _share_of_numbers("gsm8k_flexible", predictions, references, last_number)


def marked_number(text: str) -> Fraction | None:
    """The number after the first `####` that a number follows; "1,000", "1 000", "$5", "5e2", "3/4", "1 1/2", "-3"."""
    found = re.search(_MARKED, text)
    return _number(found) if found else None


def last_number(text: str) -> Fraction | None:
    """The last number of a text, written in any way that `marked_number` reads."""
    found = [*re.finditer(_NUMBER, text)]
    return _number(found[-1]) if found else None


def _number(found: re.Match[str]) -> Fraction | None:
    """The value of a match; None for a division by 0."""
    from fractions import Fraction

    written = re.sub(rf"[,{_BLANKS}]", "", found["digits"] or "0") + (found["power"] or "")
    value, below = Fraction(written), int(found["below"] or 1)
    if below == 0:
        return None
    value = value / below + int(found["mixed"] or 0)
    if found["vulgar"]:
        top, _, bottom = unicodedata.normalize("NFKC", found["vulgar"]).partition("\u2044")
        value += Fraction(int(top), int(bottom or 1))
    return -value if found["sign"] else value


def _best(
    name: str, predictions: Sequence[Any], references: Sequence[Any], one: Callable[[str, str], float]
) -> float:
    said, wanted = texts(name, predictions, references)
    return mean(
        [max(one(text, reference) for reference in row) for text, row in zip(said, wanted, strict=True)]
    )


def _equal(prediction: str, reference: str) -> float:
    return float(normalise(prediction) == normalise(reference))


def _word_f1(prediction: str, reference: str) -> float:
    said, wanted = normalise(prediction).split(), normalise(reference).split()
    common = sum((Counter(said) & Counter(wanted)).values())
    return 2 * common / (len(said) + len(wanted)) if common else 0.0


def _share_of_numbers(
    name: str,
    predictions: Sequence[Any],
    references: Sequence[Any],
    read: Callable[[str], Fraction | None],
) -> float:
    said, wanted = texts(name, predictions, references)
    right = 0
    for row, (text, solutions) in enumerate(zip(said, wanted, strict=True)):
        gold = {_gold(solution) for solution in solutions}
        if None in gold:
            raise ValueError(f"{name}: a reference of row {row} holds no number.")
        right += read(text) in gold
    return right / len(said)


def _gold(solution: str) -> Fraction | None:
    marked = marked_number(solution)
    return last_number(solution) if marked is None else marked


_SQUAD = "SQuAD 1.1: lower case, no punctuation, no articles; best of the references"
_RECORD = "normalised as SQuAD 1.1; best of the answer entities"

METRICS: dict[str, Metric] = {
    "squad_em": Metric(
        function=squad_em,
        description="share of answers equal to a reference, SQuAD's normalisation",
        kind="text",
        library=OWN,
        revision="1",
        variant=_SQUAD,
    ),
    "squad_f1": Metric(
        function=squad_f1,
        description="F1 of words against the best reference, SQuAD's normalisation",
        kind="text",
        library=OWN,
        revision="1",
        variant=_SQUAD,
    ),
    "squad_mean": Metric(
        function=squad_mean,
        description="mean of squad_em and squad_f1",
        kind="text",
        library=OWN,
        revision="1",
        variant=_SQUAD,
    ),
    "record_em": Metric(
        function=record_em,
        description="ReCoRD: share of answers equal to an answer entity",
        kind="text",
        library=OWN,
        revision="1",
        variant=_RECORD,
        by_answer=True,
    ),
    "record_f1": Metric(
        function=record_f1,
        description="ReCoRD: F1 of words against the best answer entity",
        kind="text",
        library=OWN,
        revision="1",
        variant=_RECORD,
        by_answer=True,
    ),
    "record_mean": Metric(
        function=record_mean,
        description="mean of record_em and record_f1",
        kind="text",
        library=OWN,
        revision="1",
        variant=_RECORD,
        by_answer=True,
    ),
    "multirc_f1a": Metric(
        function=multirc_f1a,
        description="MultiRC: F1 of class 1 over all answers",
        kind="grouped",
        library="scikit-learn",
        variant="binary over all answers, positive class 1, 0 without positives",
        by_answer=True,
    ),
    "multirc_em": Metric(
        function=multirc_em,
        description="MultiRC: share of questions with all answers right",
        kind="grouped",
        library=OWN,
        revision="1",
        variant="all answers of a question right",
        by_answer=True,
    ),
    "gsm8k_strict": Metric(
        function=gsm8k_strict,
        description="GSM8k: share of right numbers after ####",
        kind="text",
        library=OWN,
        revision="2",
        variant="number after the first ####, commas and $ dropped, equal as numbers",
        readable=lambda text: marked_number(text) is not None,
    ),
    "gsm8k_flexible": Metric(
        function=gsm8k_flexible,
        description="GSM8k: share of right last numbers",
        kind="text",
        library=OWN,
        revision="2",
        variant="last number, commas and $ dropped, equal as numbers",
        readable=lambda text: last_number(text) is not None,
    ),
}
