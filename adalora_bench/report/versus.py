"""Every method of a scale table against LoRA, plain and at an equal budget: paired differences. Pure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

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
from adalora_bench.report.rows import CellRow, alike_in_rows
from adalora_bench.report.text import one_line, pipe_table

BASELINE = "lora"
SEEDS = 5  # fewer decide nothing
NEAR = 1.25  # budgets within this factor count as equal
# What sets LoRA's number of parameters and nothing else; the learning rate, since each budget may want its own
BUDGET_KEYS = {"method.rank", "method.targets", "method.lr"}
EXACT = 12  # seeds up to which all signs are tried


def against_lora(rows: Sequence[CellRow]) -> tuple[list[str], list[str]]:
    """Parts of the Markdown, and notes on them; nothing without plain LoRA and another method on one of its tasks.

    Args:
        rows: of one scale, backbone and split.
    """
    plain = [row for row in rows if not row.overrides]
    base = {row.task: row for row in plain if row.method == BASELINE}
    found: dict[str, dict[str, list[float]]] = {}  # method -> task -> differences
    for row in plain:
        differences = _differences(row, base[row.task]) if row.task in base and row.method != BASELINE else []
        if differences:
            found.setdefault(row.method, {})[row.task] = differences
    if not found:
        return [], []
    tasks = sorted({task for of in found.values() for task in of})
    together = _together(found)
    cells = {(row.method, row.task): row for row in plain}
    lines, p_values = [], []
    for method in [BASELINE, *sorted(found)]:
        line = [one_line(method)]
        for task in tasks:
            differences = found.get(method, {}).get(task, [])
            line.append(_difference(differences))
            if SEEDS <= len(differences) <= EXACT:
                p_values.append(sign_flip_test(differences))
        if len(together) > 1:
            line += _across(
                [cells.get((method, task)) for task in together], [base[task] for task in together]
            )
        lines.append(line)
    head = ["method", *(one_line(f"{task}: {base[task].main_metric}") for task in tasks)]
    if len(together) > 1:
        names = one_line(", ".join(together))
        head += [f"interquartile mean of {names}", f"P(better than {BASELINE})"]
    return [f"## Against {BASELINE}", pipe_table(head, lines)], _notes(p_values, several=len(together) > 1)


def _together(found: Mapping[str, Mapping[str, Sequence[float]]]) -> list[str]:
    """The tasks that are summed up across: those with every seed for half as many methods as the fullest task."""
    full = Counter(task for of in found.values() for task, values in of.items() if len(values) >= SEEDS)
    return sorted(task for task, count in full.items() if 2 * count >= max(full.values()))


def at_equal_budget(rows: Sequence[CellRow]) -> tuple[list[str], list[str]]:
    """As `against_lora`, but every row against the LoRA row of its task whose adapters are nearest in parameters.

    The budget of a row is its parameters at the end, mean over its seeds; a LoRA on the same matrices is preferred, and
    of LoRA rows with one budget the best one is met. A row without a LoRA row within a factor of NEAR is left out, and
    so is LoRA itself. Nothing unless LoRA was run at two budgets on some task: with one the section would repeat the
    other.
    """
    loras: dict[str, list[CellRow]] = {}
    for row in sorted(rows, key=lambda row: len(row.overrides)):
        if row.method == BASELINE and row.params_final and row.overridden <= BUDGET_KEYS:
            loras.setdefault(row.task, []).append(row)
    if all(len(found) < 2 for found in loras.values()):
        return [], []
    cells: dict[str, dict[str, str]] = {}
    for row in rows:
        base = None if row.method == BASELINE else _nearest(row, loras.get(row.task, []))
        differences = [] if base is None else _differences(row, base)
        if base is not None and differences:
            budgets = f"{row.params_final:,.0f} : {base.params_final:,.0f}"
            text = f"{_difference(differences)}, {one_line(base.short)}, {budgets}"
            cells.setdefault(row.short, {})[row.task] = text
    if not cells:
        return [], []
    tasks = sorted({task for texts in cells.values() for task in texts})
    lines = [
        [one_line(label), *(texts.get(task, "-") for task in tasks)] for label, texts in sorted(cells.items())
    ]
    note = (
        f"At an equal budget: the same differences, to the {BASELINE} row of the task that is nearest in parameters of "
        f"the adapters at the end, within a factor of {NEAR:g}, one that adapts the same matrices where there is one; "
        f"its name and both numbers stand beside. Of {BASELINE} rows with one number of parameters the best median is "
        "met. Rows without a partner are left out."
    )
    head = ["method", *tasks]
    return [f"## Against {BASELINE} at an equal budget", pipe_table(head, lines)], [note]


def _nearest(row: CellRow, candidates: Sequence[CellRow]) -> CellRow | None:
    """Of what is near, first what adapts the same matrices, then the nearest, the best and the first; else None."""
    if not row.params_final:
        return None
    mine = math.log(row.params_final)
    near = [
        (base.targets != row.targets, distance, -base.middle, i)
        for i, base in enumerate(candidates)
        if base.params_final
        and (distance := round(abs(math.log(base.params_final) - mine), 9)) <= math.log(NEAR)
    ]
    return candidates[min(near)[-1]] if near else None


def _differences(row: CellRow, base: CellRow) -> list[float]:
    """Per seed, as printed; above 0 the method is better."""
    sign = 1.0 if higher_is_better(base.main_metric) else -1.0
    if row.main_metric != base.main_metric or not alike_in_rows(row, base):
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
