"""ROUGE-L and CIDEr as coco-caption computes them, for the E2E challenge. Own code, without Java.

Words are `tokens.ptb_words`, close to the Stanford tokeniser that coco-caption starts in Java.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from adalora_bench.metrics.base import OWN, Metric, mean, texts
from adalora_bench.metrics.tokens import ptb_words

Ngram = tuple[str, ...]

ROUGE_BETA = 1.2
CIDER_ORDER = 4
CIDER_SIGMA = 6.0


def rougeL_coco(predictions: Sequence[Any], references: Sequence[Any]) -> float:  # noqa: N802
    """Mean over rows of (1 + b^2) P R / (R + b^2 P), b = 1.2.

    P and R are the longest common subsequence over the words of the prediction and of the reference, each the best
    over the references (not of one reference). 0.0 for an empty prediction.
    """
    said, wanted = texts("rougeL_coco", predictions, references)
    return mean([_rouge_row(text, row) for text, row in zip(said, wanted, strict=True)])


def cider(predictions: Sequence[Any], references: Sequence[Any]) -> float:
    """CIDEr as coco-caption computes it (CIDEr-D): 10 times the mean over rows and references, 0..10.

    Per n = 1..4 the cosine of tf-idf vectors, with the prediction's weights clipped to the reference's and the
    factor exp(-d^2 / 72) for a length difference d; the idf counts the rows among whose references an n-gram is. So
    the score needs a corpus: on one row alone it is 0.
    """
    said, wanted = texts("cider", predictions, references)
    predicted = [_counts(text) for text in said]
    rows = [[_counts(text) for text in row] for row in wanted]
    spread: Counter[Ngram] = Counter()
    for row in rows:
        spread.update({ngram for counts in row for ngram in counts})
    scores = [
        mean([_similarity(counts, reference, spread, len(rows)) for reference in row])
        for counts, row in zip(predicted, rows, strict=True)
    ]
    return 10.0 * mean(scores)


def _rouge_row(prediction: str, references: Sequence[str]) -> float:
    words = ptb_words(prediction)
    precision = recall = 0.0
    for reference in references:
        wanted = ptb_words(reference)
        common = _longest_common(words, wanted)
        if common:
            precision = max(precision, common / len(words))
            recall = max(recall, common / len(wanted))
    if not precision:
        return 0.0
    square = ROUGE_BETA**2
    return (1 + square) * precision * recall / (recall + square * precision)


def _longest_common(left: Sequence[str], right: Sequence[str]) -> int:
    """Length of the longest common subsequence."""
    above = [0] * (len(right) + 1)
    for word in left:
        here = [0]
        for column, other in enumerate(right):
            here.append(above[column] + 1 if word == other else max(above[column + 1], here[column]))
        above = here
    return above[-1]


def _counts(text: str) -> Counter[Ngram]:
    """n-grams of one to four words -> how often."""
    words = ptb_words(text)
    return Counter(
        tuple(words[i : i + n]) for n in range(1, CIDER_ORDER + 1) for i in range(len(words) - n + 1)
    )


def _similarity(left: Counter[Ngram], right: Counter[Ngram], spread: Counter[Ngram], rows: int) -> float:
    """Mean over n of the clipped cosine, times the length factor. The length is the number of word pairs."""
    weights = [_weights(counts, spread, rows) for counts in (left, right)]
    pairs = [sum(count for ngram, count in counts.items() if len(ngram) == 2) for counts in (left, right)]
    dot, square_left, square_right = ([0.0] * (CIDER_ORDER + 1) for _ in range(3))
    for ngram, weight in weights[0].items():
        other = weights[1].get(ngram, 0.0)
        dot[len(ngram)] += min(weight, other) * other
        square_left[len(ngram)] += weight**2
    for ngram, weight in weights[1].items():
        square_right[len(ngram)] += weight**2
    cosines = [
        dot[n] / math.sqrt(square_left[n] * square_right[n]) if square_left[n] * square_right[n] else 0.0
        for n in range(1, CIDER_ORDER + 1)
    ]
    return mean(cosines) * math.exp(-((pairs[0] - pairs[1]) ** 2) / (2 * CIDER_SIGMA**2))


def _weights(counts: Counter[Ngram], spread: Counter[Ngram], rows: int) -> dict[Ngram, float]:
    """Term frequency times log(rows / rows that have it); one that no reference has counts as one row."""
    return {ngram: count * math.log(rows / max(1, spread[ngram])) for ngram, count in counts.items()}


_WORDS = "PTB-like words (own, not Java), lower case, no punctuation"

METRICS: dict[str, Metric] = {
    "rougeL_coco": Metric(
        function=rougeL_coco,
        description="ROUGE-L as coco-caption and the E2E challenge compute it",
        kind="text",
        library=OWN,
        revision="1",
        variant=f"beta 1.2, best precision and best recall of the references, {_WORDS}",
    ),
    "cider": Metric(
        function=cider,
        description="CIDEr as coco-caption and the E2E challenge compute it, 0..10",
        kind="text",
        library=OWN,
        revision="1",
        variant=f"CIDEr-D, sigma 6, idf of the scored references, {_WORDS}",
        unit="points",
    ),
}
