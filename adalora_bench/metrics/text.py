"""Metrics of generated texts over n-grams: BLEU, NIST, ROUGE.

Predictions are strings, references a list of strings per row. BLEU and NIST follow the scripts behind the
tables of E2E and WebNLG; ROUGE is rouge-score's.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from adalora_bench.metrics.base import OWN, Metric, mean, texts
from adalora_bench.metrics.tokens import sentences, webnlg_words

if TYPE_CHECKING:
    from sacrebleu.metrics.bleu import BLEUScore

Ngram = tuple[str, ...]

WEBNLG_REFERENCES = 6
_NIST_ORDER = 5
# mteval-v13a: the length penalty is 0.5 where the prediction has 2/3 of the words of the mean reference.
_NIST_BETA = -math.log(0.5) / math.log(1.5) ** 2


def bleu_mteval_ci(predictions: Sequence[Any], references: Sequence[Any]) -> float:
    """Corpus BLEU-4 as the E2E challenge scores it: mteval-v13a words, lower case, closest reference length.

    0.0 where some n-gram order has no match, so also where no prediction has 4 words. (The challenge's script puts
    1e-15 in place of no match, which gives a score below 0.001.)
    """
    said, wanted = texts("bleu_mteval_ci", predictions, references)
    return _share(_bleu(said, wanted, lowercase=True))


def bleu_webnlg(predictions: Sequence[Any], references: Sequence[Any]) -> float:
    """Corpus BLEU-4 of lower-cased text split at every non-word character, as LoRA scores WebNLG.

    multi-bleu-detok.perl there cuts words by the rules of mteval-v13a once more; the first 6 references of a row.
    """
    said, wanted = webnlg_texts("bleu_webnlg", predictions, references)
    return _share(_bleu(said, wanted, lowercase=False))


def bleu_evaluate(predictions: Sequence[Any], references: Sequence[Any]) -> float:
    """Corpus BLEU-4 as `bleu` of the evaluate library: mteval-v13a words, case kept, shortest reference length."""
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

    said, wanted = texts("bleu_evaluate", predictions, references)
    found = _bleu(said, wanted, lowercase=False)
    cut = Tokenizer13a()
    shortest = sum(min(len(cut(text).split()) for text in row) for row in wanted)
    return _share(
        BLEU.compute_bleu(
            correct=found.counts,
            total=found.totals,
            sys_len=found.sys_len,
            ref_len=shortest,
            smooth_method="none",
        )
    )


def nist_mteval(predictions: Sequence[Any], references: Sequence[Any]) -> float:
    """NIST of up to 5-grams as the E2E challenge scores it: mteval-v13a words, lower case.

    Sum over n of (information of the matched n-grams / n-grams predicted), times a length penalty against the mean
    reference length. Information of w1..wn is log2(count(w1..wn-1) / count(w1..wn)) over all references.
    An order without predicted n-grams adds 0 (too short predictions would divide by zero).
    """
    from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

    said, wanted = texts("nist_mteval", predictions, references)
    cut = Tokenizer13a()
    words = [cut(text.lower()).split() for text in said]
    rows = [[cut(text.lower()).split() for text in row] for row in wanted]
    seen: Counter[Ngram] = Counter()
    for row in rows:
        for reference in row:
            seen[()] += len(reference)
            for n in range(1, _NIST_ORDER + 1):
                seen.update(_ngrams(reference, n))
    total = 0.0
    for n in range(1, _NIST_ORDER + 1):
        information, predicted = 0.0, 0
        for prediction, row in zip(words, rows, strict=True):
            most: Counter[Ngram] = Counter()
            for reference in row:
                most |= _ngrams(reference, n)
            have = _ngrams(prediction, n)
            predicted += have.total()
            information += sum(
                hits * math.log2(seen[ngram[:-1]] / seen[ngram]) for ngram, hits in (have & most).items()
            )
        total += information / predicted if predicted else 0.0
    length = sum(mean([len(reference) for reference in row]) for row in rows)
    ratio = sum(map(len, words)) / length if length else 0.0  # mteval drops words such as <skipped>
    if ratio == 0.0:
        return 0.0
    return total * math.exp(-_NIST_BETA * math.log(min(ratio, 1.0)) ** 2)


def rouge1(predictions: Sequence[Any], references: Sequence[Any]) -> float:
    """F of single words, Porter stems; of several references the best counts; mean over rows."""
    return _rouge("rouge1", "rouge1", predictions, references)


def rouge2(predictions: Sequence[Any], references: Sequence[Any]) -> float:
    """F of word pairs, Porter stems; of several references the best counts; mean over rows."""
    return _rouge("rouge2", "rouge2", predictions, references)


def rougeL(predictions: Sequence[Any], references: Sequence[Any]) -> float:  # noqa: N802
    """F of the longest common subsequence of the whole text, Porter stems; mean over rows."""
    return _rouge("rougeL", "rougeL", predictions, references)


def rougeL_evaluate(predictions: Sequence[Any], references: Sequence[Any]) -> float:  # noqa: N802
    """`rougeL` without a stemmer, the default of the evaluate library."""
    return _rouge("rougeL_evaluate", "rougeL", predictions, references, stemmer=False)


def rougeLsum(predictions: Sequence[Any], references: Sequence[Any]) -> float:  # noqa: N802
    """F of the summary-level longest common subsequence, sentence by sentence, Porter stems; mean over rows.

    A line break ends a sentence, and so does what `tokens.sentences` says.
    """
    return _rouge(
        "rougeLsum", "rougeLsum", predictions, references, cut=lambda text: "\n".join(sentences(text))
    )


def webnlg_texts(
    name: str, predictions: Sequence[Any], references: Sequence[Any]
) -> tuple[list[str], list[list[str]]]:
    """`texts` as LoRA prepares WebNLG: lower-cased words, one blank between, the first 6 references of a row."""
    said, wanted = texts(name, predictions, references)
    return (
        [" ".join(webnlg_words(text)) for text in said],
        [[" ".join(webnlg_words(text)) for text in row[:WEBNLG_REFERENCES]] for row in wanted],
    )


def _rouge(
    name: str,
    kind: str,
    predictions: Sequence[Any],
    references: Sequence[Any],
    *,
    stemmer: bool = True,
    cut: Callable[[str], str] = str,
) -> float:
    from rouge_score.rouge_scorer import RougeScorer

    said, wanted = texts(name, predictions, references)
    scorer = RougeScorer([kind], use_stemmer=stemmer)
    return mean(
        [
            float(scorer.score_multi([cut(reference) for reference in row], cut(text))[kind].fmeasure)
            for text, row in zip(said, wanted, strict=True)
        ]
    )


def _bleu(said: Sequence[str], wanted: Sequence[Sequence[str]], *, lowercase: bool) -> BLEUScore:
    from sacrebleu.metrics.bleu import BLEU

    # sacrebleu wants the k-th reference of all rows together; None stands where a row has fewer.
    widest = max(map(len, wanted))
    streams: list[Any] = [[row[k] if k < len(row) else None for row in wanted] for k in range(widest)]
    scorer = BLEU(tokenize="13a", lowercase=lowercase, smooth_method="none", force=True)
    return scorer.corpus_score(said, streams)


def _share(score: BLEUScore) -> float:
    # The exponential of a mean of logarithms can pass 1 by rounding.
    return min(score.score / 100, 1.0)


def _ngrams(words: Sequence[str], n: int) -> Counter[Ngram]:
    return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))


_SUMMARY = "Porter stemmer, F, best reference, mean over rows"

METRICS: dict[str, Metric] = {
    "bleu_mteval_ci": Metric(
        function=bleu_mteval_ci,
        description="BLEU as the E2E challenge scores it",
        kind="text",
        library="sacrebleu",
        variant="mteval-v13a words, lower case, closest reference length, no smoothing",
    ),
    "bleu_webnlg": Metric(
        function=bleu_webnlg,
        description="BLEU of lower-cased words, as LoRA scores WebNLG",
        kind="text",
        library="sacrebleu",
        variant="lower case, split at non-word characters, mteval-v13a words, first 6 references, no smoothing",
    ),
    "bleu_evaluate": Metric(
        function=bleu_evaluate,
        description="BLEU as the evaluate library gives it",
        kind="text",
        library="sacrebleu",
        variant="mteval-v13a words, case kept, shortest reference length, no smoothing",
    ),
    "nist_mteval": Metric(
        function=nist_mteval,
        description="NIST as the E2E challenge scores it, in points",
        kind="text",
        library=OWN,
        revision="1",
        variant="mteval-v13a words, lower case, 5-grams, mean reference length",
        unit="points",
    ),
    "rouge1": Metric(
        function=rouge1,
        description="ROUGE-1, F of single words",
        kind="text",
        library="rouge-score",
        variant=_SUMMARY,
    ),
    "rouge2": Metric(
        function=rouge2,
        description="ROUGE-2, F of word pairs",
        kind="text",
        library="rouge-score",
        variant=_SUMMARY,
    ),
    "rougeL": Metric(
        function=rougeL,
        description="ROUGE-L of the whole text",
        kind="text",
        library="rouge-score",
        variant=_SUMMARY,
    ),
    "rougeLsum": Metric(
        function=rougeLsum,
        description="ROUGE-L over sentences",
        kind="text",
        library="rouge-score",
        variant=f"{_SUMMARY}, a sentence per line (ours: cut after . ! ?)",
    ),
    "rougeL_evaluate": Metric(
        function=rougeL_evaluate,
        description="ROUGE-L of the whole text, as the evaluate library gives it",
        kind="text",
        library="rouge-score",
        variant="no stemmer, F, best reference, mean over rows",
    ),
}
