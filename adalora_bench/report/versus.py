"""Every method of a scale table against plain LoRA: paired differences, and across tasks. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from adalora_bench.metrics import higher_is_better, printed
from adalora_bench.report.comparison import (
    Scores,
    difference_interval,
    holm,
    interquartile_mean,
    paired_differences,
    probability_of_improvement,
    sign_flip_test,
    stratified_bootstrap,
)
from adalora_bench.report.markdown import one_line, pipe_table
from adalora_bench.report.rows import CellRow

BASELINE = "lora"
SEEDS = 5  # fewer decide nothing
EXACT = 12  # seeds up to which all signs are tried


def against_lora(rows: Sequence[CellRow]) -> tuple[list[str], list[str]]:
    """Parts of the Markdown, and notes on them; nothing without plain LoRA and another method on one of its tasks.

    Args:
        rows: of one scale, backbone and split.
    """
    plain = [row for row in rows if not row.overrides]
    base = {row.task: row for row in plain if row.method == BASELINE}
    tasks = sorted(base)
    methods = sorted({row.method for row in plain if row.task in base} - {BASELINE})
    if not methods:
        return [], []
    cells = {(row.method, row.task): row for row in plain}
    lines, p_values = [], []
    for method in [BASELINE, *methods]:
        line = [one_line(method)]
        for task in tasks:
            row = cells.get((method, task))
            differences = [] if row is None or method == BASELINE else _differences(row, base[task])
            line.append(_difference(differences))
            if SEEDS <= len(differences) <= EXACT:
                p_values.append(sign_flip_test(differences))
        across = _across([cells.get((method, task)) for task in tasks], [base[task] for task in tasks])
        lines.append([*line, *across] if len(tasks) > 1 else line)
    head = ["method", *(one_line(f"{task}: {base[task].main_metric}") for task in tasks)]
    head += (
        [f"interquartile mean of {len(tasks)} tasks", f"P(better than {BASELINE})"] if len(tasks) > 1 else []
    )
    return [f"## Against {BASELINE}", pipe_table(head, lines)], _notes(p_values, several=len(tasks) > 1)


def _differences(row: CellRow, base: CellRow) -> list[float]:
    """Per seed, as printed; above 0 the method is better."""
    sign = 1.0 if higher_is_better(base.main_metric) else -1.0
    if row.main_metric != base.main_metric:
        return []
    found = paired_differences(row.seeds, base.seeds)
    return [sign * printed(base.main_metric, value) for value in found.values()]


def _difference(values: Sequence[float]) -> str:
    if not values:
        return "-"
    found = difference_interval(values)
    middle = f"{found.value:+.2f}"
    if found.excludes_zero and len(values) >= SEEDS:
        middle = f"**{middle}**"
    return f"{middle} [{found.low:+.2f}, {found.high:+.2f}] n={len(values)}"


def _across(rows: Sequence[CellRow | None], base: Sequence[CellRow]) -> list[str]:
    """Interquartile mean over all tasks, and the probability that a run is better than LoRA's, with intervals."""
    mine, theirs = _array(rows), _array(base)
    if mine is None:
        return ["-", "-"]
    mean = stratified_bootstrap([mine], interquartile_mean)
    texts = [f"{mean.value:.2f} [{mean.low:.2f}, {mean.high:.2f}]"]
    if theirs is None or list(rows) == list(base):
        return [*texts, "-"]
    better = stratified_bootstrap([mine, theirs], probability_of_improvement)
    return [*texts, f"{better.value:.2f} [{better.low:.2f}, {better.high:.2f}]"]


def _array(rows: Sequence[CellRow | None]) -> Scores | None:
    """(seeds x tasks) of printed scores, higher is better; None unless every task has the same seeds, all finished."""
    columns: list[list[float | None]] = []
    seeds: set[frozenset[int]] = set()
    for row in rows:
        if row is None or len(row.seeds) < SEEDS:
            return None
        seeds.add(frozenset(row.seeds))
        sign = 1.0 if higher_is_better(row.main_metric) else -1.0
        values = [
            None if value is None else sign * printed(row.main_metric, value) for value in row.seeds.values()
        ]
        columns.append(values)
    if len(seeds) != 1 or any(None in column for column in columns):
        return None
    return np.array(columns, dtype=float).T


def _notes(p_values: Sequence[float], *, several: bool) -> list[str]:
    notes = [
        f"Against {BASELINE}: median [min, max] of the differences per seed, points of the main score, above 0 is "
        "better; bold where five seeds or more agree in the sign. A seed that diverged in either has no difference."
    ]
    if several:
        notes.append(
            "Across tasks: seeds are drawn anew within each task, 10,000 times; these 95 % intervals cover only 82 to "
            "90 % with five seeds (docs/log.md). `-`: not every task has five finished seeds."
        )
    if p_values:
        notes.append(
            f"Exact sign-flip tests of these {len(p_values)} differences: smallest p {min(p_values):.4f}, "
            f"{min(holm(p_values)):.2f} after Holm's correction for all of them."
        )
    return notes
