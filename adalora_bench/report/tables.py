"""Markdown tables as pure functions of records: one file per scale, backbone and split. No torch, no clock.

The text depends on the records alone: not on their order, on paths, on the machine or on when it is made.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from adalora_bench.files import write_if_changed
from adalora_bench.metrics import printed
from adalora_bench.report.cells import (
    CellRow,
    Group,
    Hidden,
    Record,
    Selection,
    arrange,
    cell_summary,
    selection_of,
)
from adalora_bench.report.hidden import not_shown
from adalora_bench.report.markdown import one_line, pipe_table
from adalora_bench.report.statistics import Summary, median_coverage, standard_error
from adalora_bench.schema import STATUSES

__all__ = ["CellRow", "build_tables", "cell_summary", "refresh", "table_name"]

NOT_RUN = "not run"
UNDEFINED = "undefined"
DIVERGED = "diverged"
# The split that a table is about unless its name says otherwise.
_USUAL_SPLIT = "validation"


def build_tables(records: Iterable[Record], selection: Selection | None = None) -> dict[str, str]:
    """Table name ("cpu_minilm_l6") -> Markdown, in order of the names.

    Without a `selection` each split has its own.
    """
    cells = arrange(records, selection)
    # Stale records are named even where nothing else of their table is left.
    groups = {row.group for row in cells.rows} | {one.group for one in cells.stale}
    tables = {}
    for group in sorted(groups, key=lambda one: one.sort_key):
        tables[table_name(group)] = _table(
            group,
            [row for row in cells.rows if row.group == group],
            [one for one in cells.others if one.group == group],
            [one for one in cells.stale if one.group == group],
            selection or selection_of(group.split),
        )
    return dict(sorted(tables.items()))


def refresh(records: Iterable[Record], tables_dir: Path, only: Collection[str] | None = None) -> list[Path]:
    """Write <tables_dir>/<name>.md from the records; return the files whose content changed.

    `only` names the tables to look at (default: all). UserError: the folder cannot be written.
    """
    written = []
    for name, text in build_tables(records).items():
        path = tables_dir / f"{name}.md"
        if (only is None or name in only) and write_if_changed(path, text):
            written.append(path)
    return written


def table_name(group: Group) -> str:
    """The file name without its ending: scale and backbone, and the split where it is not `validation`."""
    parts = [group.scale, group.backbone, *([] if group.split == _USUAL_SPLIT else [group.split])]
    return re.sub(r"[^A-Za-z0-9_.-]", "_", "_".join(parts))


def _table(
    group: Group,
    rows: Sequence[CellRow],
    others: Sequence[Hidden],
    stale: Sequence[Hidden],
    selection: Selection,
) -> str:
    parts = [
        f"# {group.backbone}, scale {group.scale}, split {group.split}",
        "Made from the records by `bench tables`; edit nothing here.",
    ]
    if rows:
        parts += ["## Scores", _markdown(*_scores(rows)), "## Cost", _markdown(*_costs(rows))]
    parts += [
        "## How to read it",
        "\n".join(f"- {note}" for note in _notes(group, rows, others, stale, selection)),
    ]
    return "\n\n".join(parts) + "\n"


def _scores(rows: Sequence[CellRow]) -> tuple[list[str], list[list[str]]]:
    """Head and lines: a column per task and metric, a line per method with its overrides, the majority first."""
    columns = [
        (task, metric) for task in sorted({row.task for row in rows}) for metric in _metrics(rows, task)
    ]
    cells = {(row.method, row.overrides, row.task): row for row in rows}
    lines = [["majority class", *(_baseline(rows, task, metric) for task, metric in columns)]]
    for method, overrides in sorted({(row.method, row.overrides) for row in rows}):
        line = []
        for task, metric in columns:
            row = cells.get((method, overrides, task))
            line.append(NOT_RUN if row is None else _cell(row, metric))
        label = f"{method} ({', '.join(overrides)})" if overrides else method
        lines.append([label, *line])
    return ["method", *(f"{task}: {metric}" for task, metric in columns)], lines


def _metrics(rows: Sequence[CellRow], task: str) -> list[str]:
    """The main metric (or metrics, where an override changed it), then the others by name."""
    here = [row for row in rows if row.task == task]
    main = sorted({row.main_metric for row in here})
    return main + sorted({metric for row in here for metric in row.scores} - set(main))


def _cell(row: CellRow, metric: str) -> str:
    failed = row.statuses.get("failed", 0)
    summary = row.scores.get(metric)
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
        "rows train / report",
        "seeds",
        "key",
    ]
    lines = [
        [
            row.task,
            row.label,
            _change(row.params_initial, row.params_final),
            _change(row.rank_initial, row.rank_final),
            _number(row.seconds),
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


def _notes(
    group: Group,
    rows: Sequence[CellRow],
    others: Sequence[Hidden],
    stale: Sequence[Hidden],
    selection: Selection,
) -> list[str]:
    notes = []
    if group.scale != "paper":
        notes.append(
            f"Scale `{group.scale}` is shortened training: no number here stands for a published one."
        )
    notes += [
        f"Backbone `{group.backbone}`: {caveat}" for caveat in sorted({r.caveat for r in rows if r.caveat})
    ]
    notes += sorted({f"Method `{r.method}`: {note}." for r in rows for note in r.notes})
    notes.append(f"Split `{group.split}`. {_selection(rows, selection)}")
    notes.append(
        "Cells: median [min, max] over seeds, scores x100, n seeds; a [min, max] of 5 is a "
        f"{100 * median_coverage(5):.2f} % interval for the median."
    )
    notes.append(
        "A seed that diverged ranks below every finished one and counts: n=4/5 means that 4 of 5 finished. "
        "A failed seed has no result. `*`: a seed collapsed (one prediction for every row) and keeps its score."
    )
    totals = {status: sum(row.statuses.get(status, 0) for row in rows) for status in STATUSES}
    notes.append(f"Seeds in this table: {', '.join(f'{totals[status]} {status}' for status in STATUSES)}.")
    notes += [
        f"Failed: {row.label} on {row.task}, seed {', '.join(map(str, row.failed_seeds))}."
        for row in rows
        if row.failed_seeds
    ]
    notes.append(
        "What 5 seeds cannot show: no paired sign or Wilcoxon test of two methods on one task can fall below "
        "p = 0.05 (its smallest p is 0.0625), and a gap of one standard deviation between seeds is missed about "
        "three times in four."
    )
    notes.append(
        "Majority class: the score without training on the report rows; SE is its binomial standard error there "
        "(rows, not seeds); undefined for correlations."
    )
    notes.append(
        "Cost: parameters of the adapters and total rank, initial -> final where they differ, mean over finished "
        "seeds; seconds of training alone per seed, median."
    )
    signatures = sorted({f"`{text}`" for row in rows for text in row.signatures.values()})
    if signatures:
        notes.append(f"Metrics: {', '.join(signatures)}.")
    notes += [
        f"Subset: {one}." for one in sorted({f"{row.task}: {text}" for row in rows for text in row.subsets})
    ]
    notes += [not_shown(others, "with other settings")] if others else []
    notes += [_stale(one) for one in stale]
    return [one_line(note) for note in notes]


def _selection(rows: Sequence[CellRow], selection: Selection) -> str:
    if selection == "last":
        return "Selection: the last step of each run; the best one is in the records and not shown."
    chosen = sorted({split for row in rows for split in row.best_selected_on})
    own = any(row.group.split == split for row in rows for split in row.best_selected_on)
    caution = ", which are the reported rows: these scores are optimistic" if own else ""
    return (
        f"Selection: the best step of each run, chosen on {' and '.join(chosen) or 'nothing'}{caution}; "
        "parameters and ranks are those of the last step."
    )


def _stale(one: Hidden) -> str:
    noun = "record" if one.records == 1 else "records"
    return f"Stale, not shown: {one.label} on {one.task}, key {one.key8}, {one.records} {noun} ({one.why})."


def _markdown(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    return pipe_table(
        [one_line(cell) for cell in head], [[one_line(cell) for cell in line] for line in lines]
    )
