"""Translation edit rate (TER): words inserted, deleted, replaced, and phrases moved, per word of the reference.

Two searches for the moves: sacrebleu's, which follows Tercom, and pyter's, which WebNLG's script uses and which finds
fewer savings. Both on lower-cased text split at every non-word character, mean over rows of the best reference.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

from adalora_bench.metrics.base import OWN, Metric, mean
from adalora_bench.metrics.text import webnlg_texts

Words: TypeAlias = list[str]


def ter(predictions: Sequence[Any], references: Sequence[Any]) -> float:
    """TER with sacrebleu's edits: mean over rows of the smallest edits / words over the first 6 references.

    An empty prediction has rate 1.
    """
    from sacrebleu.metrics.ter import TER

    scorer = TER(case_sensitive=True)

    def edits(words: Words, reference: Words) -> int:
        return round(scorer.sentence_score(" ".join(words), [" ".join(reference)]).num_edits)

    return _mean_rate(*webnlg_texts("ter", predictions, references), edits)


def ter_pyter(predictions: Sequence[Any], references: Sequence[Any]) -> float:
    """`ter` with the edits of pyter, as the script behind the WebNLG tables of LoRA has them."""
    return _mean_rate(*webnlg_texts("ter_pyter", predictions, references), pyter_edits)


def pyter_edits(words: Words, reference: Words) -> int:
    """Moves plus edit distance. As long as some move lowers the distance, the one that lowers it most is made.

    A move takes a phrase that also stands in the reference, as long as it matches, to its index there. Among equals
    the one with the greatest list of words is made, as in pyter.
    """
    floor = _least_edits(words, reference)
    moves = 0
    table = _table(words, reference)
    while table[-1][-1] > floor:
        least, best = table[-1][-1], None
        for same, moved in _moves(words, reference):
            # A move that only equals the best so far counts if its words are greater.
            limit = least if best is not None and moved > best else least - 1
            distance = _distance(table[same], moved[same:], reference, limit)
            if distance <= limit:
                least, best = distance, moved
        if best is None:
            break
        moves += 1
        words, table = best, _table(best, reference)
    return moves + table[-1][-1]


def _mean_rate(
    said: Sequence[str], wanted: Sequence[Sequence[str]], edits: Callable[[Words, Words], int]
) -> float:
    rates = []
    for text, row in zip(said, wanted, strict=True):
        words = text.split()
        best = math.inf
        # The most alike first, so that those that cannot be better are not worked out.
        bounds = [
            (_least_edits(words, reference.split()) / len(reference.split()), reference) for reference in row
        ]
        for bound, reference in sorted(bounds):
            if bound < best:
                best = min(best, edits(words, reference.split()) / len(reference.split()))
        rates.append(best)
    return mean(rates)


def _least_edits(words: Words, reference: Words) -> int:
    """What no number of moves can go below: they do not change which words there are."""
    return max(len(words), len(reference)) - (Counter(words) & Counter(reference)).total()


def _moves(words: Words, reference: Words) -> Iterator[tuple[int, Words]]:
    """The different lists of words that one move can give, each after the number of its first words that stayed."""
    places: dict[str, list[int]] = {}
    for index, word in enumerate(reference):
        places.setdefault(word, []).append(index)
    seen: set[tuple[str, ...]] = set()
    for start, word in enumerate(words):
        for target in places.get(word, ()):
            if target == start:
                continue
            end, other = start + 1, target + 1
            while end < len(words) and other < len(reference) and words[end] == reference[other]:
                end, other = end + 1, other + 1
            rest = words[:start] + words[end:]
            moved = rest[:target] + words[start:end] + rest[target:]
            if tuple(moved) not in seen:
                seen.add(tuple(moved))
                yield min(start, target), moved


def _table(words: Words, reference: Words) -> list[list[int]]:
    """Row i: the edit distances of the first i words to the first 0, 1, ... words of the reference."""
    rows = [list(range(len(reference) + 1))]
    for word in words:
        rows.append(_next_row(rows[-1], word, reference))
    return rows


def _distance(row: list[int], words: Words, reference: Words, limit: int) -> int:
    """Edit distance when `words` come after those of `row`; any number above `limit` where it is more than that."""
    for word in words:
        row = _next_row(row, word, reference)
        if min(row) > limit:
            return limit + 1
    return row[-1]


def _next_row(above: list[int], word: str, reference: Words) -> list[int]:
    last = above[0] + 1
    row = [last]
    for column, other in enumerate(reference):
        if word == other:
            last = above[column]
        else:
            last = 1 + min(above[column], above[column + 1], last)
        row.append(last)
    return row


_VARIANT = "lower case, split at non-word characters, best of the first 6 references, mean over rows"

METRICS: dict[str, Metric] = {
    "ter": Metric(
        function=ter,
        description="translation edit rate with sacrebleu's edits, lower is better",
        kind="text",
        library="sacrebleu",
        variant=_VARIANT,
        unit="rate",
        higher_is_better=False,
    ),
    "ter_pyter": Metric(
        function=ter_pyter,
        description="translation edit rate as LoRA scores WebNLG, lower is better",
        kind="text",
        library=OWN,
        revision="1",
        variant=f"moves as pyter, {_VARIANT}",
        unit="rate",
        higher_is_better=False,
    ),
}
