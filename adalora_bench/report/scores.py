"""The scores and costs of one scale table as Markdown. Pure."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

from adalora_bench.metrics import GRADE, NOT_JUDGED, higher_is_better, printed
from adalora_bench.report.rows import CellRow, alike_in_rows
from adalora_bench.report.statistics import Summary, standard_error
from adalora_bench.report.text import Rank, best_and_second, marked_markdown, one_line, pipe_table
from adalora_bench.store.schema import STATUSES

NOT_RUN = "not run"
UNDEFINED = "undefined"
DIVERGED = "diverged"
OTHER_ROWS = " (other rows)"


def sections(rows: Sequence[CellRow]) -> list[str]:
    """The main scores of the methods, those of their variations, all other metrics, and what it cost."""
    tasks = sorted({row.task for row in rows})
    main = [(task, metric) for task in tasks for metric in _main(rows, task)]
    rest = [(task, metric) for task in tasks for metric in _metrics(rows, task) if (task, metric) not in main]
    odd = {(row.label, row.task) for row in on_other_rows(rows)}
    own = {row.method for row in rows if not row.overrides}
    plain = [row for row in rows if not row.overrides or row.method not in own]
    varied = [row for row in rows if row.overrides and row.method in own]
    parts = ["## Scores", pipe_table(*_scores(plain, main, odd, rank=True))]
    if varied:
        there = {row.task for row in varied}
        columns = [(task, metric) for task, metric in main if task in there]
        parts += ["## Scores with other settings", pipe_table(*_scores(varied, columns, odd))]
    if rest:
        there = {task for task, _ in rest}
        parts += [
            "## Other metrics",
            pipe_table(*_scores([row for row in rows if row.task in there], rest, odd)),
        ]
    return [*parts, "## Cost", pipe_table(*_costs(rows))]


def _scores(
    rows: Sequence[CellRow],
    columns: Sequence[tuple[str, str]],
    odd: Collection[tuple[str, str]],
    *,
    rank: bool = False,
) -> tuple[list[str], list[list[str]]]:
    """Head and lines: a column per task and metric, a line per method with its overrides, the majority first.

    With `rank` the best and the second of every column are marked. `odd` (label, task) trained on other rows than
    their column: they are marked as such and not ranked.
    """
    cells = {(row.label, row.task): row for row in rows}
    alike = [row for row in rows if (row.label, row.task) not in odd]
    marks = {column: _marks(alike, *column) if rank else {} for column in columns}
    lines = [["majority class", "0", *(_baseline(rows, task, metric) for task, metric in columns)]]
    for _, _, label in sorted({(row.method, row.overrides, row.label) for row in rows}):
        line = []
        for task, metric in columns:
            row = cells.get((label, task))
            text = (
                NOT_RUN if row is None else _cell(row, metric) + (OTHER_ROWS if (label, task) in odd else "")
            )
            line.append(marked_markdown(text, marks[task, metric].get(label)))
        lines.append([one_line(label), _parameters([row for row in rows if row.label == label]), *line])
    heads = [one_line(f"{task}: {metric}") for task, metric in columns]
    return ["method", "parameters", *heads], lines


def on_other_rows(rows: Sequence[CellRow]) -> list[CellRow]:
    """Those that were not trained on as many rows as most of their task (on more, where there is no most)."""
    odd = []
    for task in {row.task for row in rows}:
        here = [row for row in rows if row.task == task]
        usual = max(
            here, key=lambda row: (sum(alike_in_rows(row, other) for other in here), row.rows_train or 0)
        )
        odd += [row for row in here if not alike_in_rows(row, usual)]
    return odd


def _marks(rows: Sequence[CellRow], task: str, metric: str) -> dict[str, str]:
    """Of rows with as many seeds as the column has at most, and more than one: a single run is no rank."""
    here = [row for row in rows if row.task == task and metric in row.scores]
    most = max((len(row.seeds) for row in here), default=0)
    found = {row.label: row.scores[metric] for row in here if len(row.seeds) == most > 1}
    ranks = {
        label: Rank(value=one.median, low=one.low, high=one.high)
        for label, one in found.items()
        if math.isfinite(one.median)
    }
    return best_and_second(ranks, higher=higher_is_better(metric))


def _parameters(rows: Sequence[CellRow]) -> str:
    """Initial -> final, mean over the tasks."""
    known = [[row.params_initial for row in rows], [row.params_final for row in rows]]
    means = [[value for value in values if value is not None] for values in known]
    first, last = (round(sum(values) / len(values)) if values else None for values in means)
    return _change(first, last)


def _main(rows: Sequence[CellRow], task: str) -> list[str]:
    return sorted({row.main_metric for row in rows if row.task == task})


def _metrics(rows: Sequence[CellRow], task: str) -> list[str]:
    """The main metric (or metrics, where an override changed it), then the others by name."""
    here = [row for row in rows if row.task == task]
    main = _main(rows, task)
    asked = {GRADE for row in here if GRADE in row.signatures}
    return main + sorted(({metric for row in here for metric in row.scores} | asked) - set(main))


def _cell(row: CellRow, metric: str) -> str:
    failed = row.statuses.get("failed", 0)
    summary = row.scores.get(metric)
    if summary is None and metric == GRADE:
        return NOT_JUDGED
    if summary is None:
        return f"failed (n=0, {failed} failed)" if failed and not row.scores else "-"
    mark = "*" if row.statuses.get("collapsed") else ""
    seeds = f"n={summary.n}" if summary.finished == summary.n else f"n={summary.finished}/{summary.n}"
    text = f"{_score(metric, summary.median)}{mark} {_interval(metric, summary)} {seeds}"
    return f"{text}, {failed} failed" if failed else text


def _interval(metric: str, summary: Summary) -> str:
    return f"[{_score(metric, summary.low)}, {_score(metric, summary.high)}]"


def _score(metric: str, value: float) -> str:
    return f"{printed(metric, value):.2f}" if math.isfinite(value) else DIVERGED


def _baseline(rows: Sequence[CellRow], task: str, metric: str) -> str:
    """The score without training; with its standard error for an accuracy; all values where they differ."""
    found = set()
    for row in rows:
        value = row.baseline.get(metric) if row.task == task else None
        if value is None:
            continue
        error = standard_error(value, round(row.rows_report)) if metric == "acc" and row.rows_report else None
        shown = _score(metric, value)
        found.add(shown if error is None else f"{shown} (SE {100 * error:.2f})")
    return " or ".join(sorted(found)) or UNDEFINED


def _costs(rows: Sequence[CellRow]) -> tuple[list[str], list[list[str]]]:
    head = [
        "task",
        "method",
        "parameters",
        "total rank",
        "train seconds",
        "peak memory, GiB",
        "rows train / report",
        "seeds",
        "key",
    ]
    lines = [
        [
            one_line(row.task),
            one_line(row.label),
            _change(row.params_initial, row.params_final),
            _change(row.rank_initial, row.rank_final),
            _number(row.seconds),
            "-" if row.peak_memory is None else f"{row.peak_memory / 2**30:.2f}",
            f"{_number(row.rows_train)} / {_number(row.rows_report)}",
            _statuses(row.statuses),
            row.key8,
        ]
        for row in rows
    ]
    return head, lines


def _change(initial: float | None, final: float | None) -> str:
    before, after = _number(initial), _number(final)
    return before if before == after else f"{before} -> {after}"


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    text = f"{value:,.1f}"
    return text.removesuffix(".0")


def _statuses(statuses: dict[str, int]) -> str:
    return ", ".join(f"{statuses[status]} {status}" for status in STATUSES if statuses.get(status))
