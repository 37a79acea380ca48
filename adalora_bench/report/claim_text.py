"""Verdicts on the papers' claims as Markdown, and as one line each for a terminal. Pure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from adalora_bench.report.claims import VERDICTS, Comparison, Judged, judge_all
from adalora_bench.report.rows import Record
from adalora_bench.report.statistics import median_coverage
from adalora_bench.settings.published import ORDERS, load_claims
from adalora_bench.store.files import write_if_changed

UNITS = {"delta": "", "ratio": "x", "fewer_pct": " %", "eq": ""}


def refresh(conf: Path, records: Sequence[Record], path: Path) -> list[Judged]:
    """Write the Markdown file where it changed; return what was judged.

    Args:
        conf: the folder conf/claim.
    """
    judged = judge_all(load_claims(conf), records)
    write_if_changed(path, markdown(judged))
    return judged


def verdict_at(one: Judged) -> str:
    """holds at cpu scale, minilm_l6."""
    if one.place is None:
        return one.verdict
    split = "" if one.place.split == "validation" else f", split {one.place.split}"
    return f"{one.verdict} at {one.place.scale} scale, {one.place.backbone}{split}"


def published(one: Judged) -> str:
    """What the paper states: a value, the margin of an order, or the order alone."""
    claim = one.claim
    if claim.value is not None:
        return f"{claim.value:g}{UNITS[claim.relation]}"
    word = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}[claim.relation]
    return word if claim.margin is None else f"{word}, by {claim.margin:g}"


def numbers(one: Judged) -> str:
    """The comparison that speaks least for the claim, and how many there are."""
    if not one.comparisons:
        return ""
    worst = min(one.comparisons, key=lambda comparison: _support(one, comparison))
    text = f"{_against(worst)}: {interval(worst)}"
    others = len(one.comparisons) - 1
    if others:
        text += f" (the weakest of {others + 1})"
    return text + (f"; {one.missing} of {one.missing + others + 1} not run" if one.missing else "")


def interval(comparison: Comparison) -> str:
    """+1.20 [-0.30, +2.00] n=5."""
    sign = "" if comparison.b is None else "+"
    texts = [
        format(number, f"{sign}.2f") if math.isfinite(number) else "diverged"
        for number in (comparison.middle, comparison.low, comparison.high)
    ]
    return f"{texts[0]} [{texts[1]}, {texts[2]}] n={len(comparison.seeds)}"


def line(one: Judged) -> str:
    """One line for a terminal."""
    found = numbers(one)
    return f"{one.claim.id}: {verdict_at(one)}" + (f" ({found})" if found else "")


def counts(judged: Sequence[Judged]) -> str:
    """Verdict -> how many claims, places counted apart."""
    totals = Counter(one.verdict for one in judged)
    return ", ".join(f"{totals[name]} {name}" for name in VERDICTS)


def markdown(judged: Sequence[Judged]) -> str:
    """One table per paper, with how to read it."""
    parts = [
        "# Claims of the papers",
        "Made from the records by `bench claims`; do not edit.",
        f"Verdicts: {counts(judged)}.",
    ]
    for paper, group in groupby(judged, key=lambda one: one.paper):
        parts += [f"## {paper}", _table(list(group))]
    parts += ["## How to read it", "\n".join(f"- {note}" for note in notes())]
    return "\n\n".join(parts) + "\n"


def notes() -> list[str]:
    """What the words and numbers mean."""
    return [
        "Ours: median [min, max] over the seeds that both rows have, of a - b (a / b for a ratio). Scores are x100. "
        f"A [min, max] of five is a {100 * median_coverage(5):.2f} % interval for the median difference.",
        "`holds` and `does not hold`: five seeds or more, and the interval leaves out 0 (1 for a ratio). "
        "`undecided`: it does not, or there are fewer seeds. A claim about several rows or tasks holds "
        "if each comparison does.",
        "A claim of order is judged wherever records are; a claim with a value only at paper scale, on its backbone "
        "and split, and is `not comparable` elsewhere. A margin is shown and not judged. A value holds if it lies in "
        "the interval, give or take half of its last digit.",
        "`not run`: a row or task of the claim has no seeds, and nothing that was run speaks against it.",
        "A diverged seed is worse than every finished one. Many claims are judged: some hold or fail by chance.",
    ]


def _table(judged: Sequence[Judged]) -> str:
    lines = [["claim", "where", "the paper says", "published", "verdict", "ours", "source"]]
    for one in judged:
        claim = one.claim
        says = claim.says + (f" ({claim.note})" if claim.note else "")
        lines.append(
            [claim.id, claim.where, says, published(one), verdict_at(one), numbers(one), claim.source]
        )
    texts = [[cell.replace("|", "\\|").replace("<", "&lt;") for cell in row] for row in lines]
    rows = ["| " + " | ".join(row) + " |" for row in texts]
    return "\n".join([rows[0], "|" + "---|" * len(lines[0]), *rows[1:]])


def _against(comparison: Comparison) -> str:
    rows = comparison.a if comparison.b is None else f"{comparison.a} - {comparison.b}"
    return f"{rows}, {comparison.on}"


def _support(one: Judged, comparison: Comparison) -> float:
    """How much a comparison speaks for the claim: the median in the claim's direction."""
    middle = comparison.middle
    if math.isnan(middle):
        return -math.inf
    return ORDERS.get(one.claim.relation, 1.0) * middle
