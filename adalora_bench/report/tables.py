"""Markdown tables as pure functions of records: one file per scale, backbone and split. No torch, no clock.

The text depends on the records alone: not on their order, on paths, on the machine or on when it is made.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from adalora_bench.report.cells import Hidden, arrange, cell_summary, not_shown
from adalora_bench.report.rows import CellRow, Group, Record, Selection, selection_of
from adalora_bench.report.scores import OTHER_ROWS, on_other_rows, sections
from adalora_bench.report.statistics import median_coverage
from adalora_bench.report.text import one_line
from adalora_bench.store.files import write_all
from adalora_bench.store.schema import STATUSES

__all__ = ["CellRow", "build_tables", "cell_summary", "refresh", "table_name"]

# The split that a table is about unless its name says otherwise.
_USUAL_SPLIT = "validation"
_NUMBER = re.compile(
    r"(?<![\w.])\d[\d,]*(?:\.\d+)?(?!\.?\w)"
)  # 72, 331,776, 0.5 and the 97 of 97%, no version, no r8


def build_tables(
    records: Iterable[Record], selection: Selection | None = None, not_counted: Sequence[str] = ()
) -> dict[str, str]:
    """Table name ("cpu_minilm_l6") -> Markdown, in order of the names.

    Without a `selection` each split has its own. `not_counted` are files <task>/<backbone>/... that are no records.
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
            [path for path in not_counted if path.split("/")[1] == group.backbone],
        )
    return dict(sorted(tables.items()))


def refresh(
    records: Iterable[Record],
    tables_dir: Path,
    only: Collection[str] | None = None,
    not_counted: Sequence[str] = (),
) -> list[Path]:
    """Write <tables_dir>/<name>.md from the records; return the files whose content changed.

    `only` names the tables to look at (default: all). UserError: the folder cannot be written.
    """
    texts = build_tables(records, not_counted=not_counted)
    return write_all(
        (tables_dir / f"{name}.md", text) for name, text in texts.items() if only is None or name in only
    )


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
    not_counted: Sequence[str],
) -> str:
    from adalora_bench.report.versus import against_lora, at_equal_budget  # numpy, only where a table is made

    against, more = against_lora(rows)
    equal, equal_notes = at_equal_budget(rows)
    parts = [
        f"# {group.backbone}, scale {group.scale}, split {group.split}",
        "Made from the records by `bench tables`; do not edit.",
    ]
    if rows:
        parts += [*sections(rows), *against, *equal]
    parts += [
        "## How to read it",
        "\n".join(
            f"- {note}"
            for note in _notes(group, rows, [*more, *equal_notes], others, stale, selection, not_counted)
        ),
    ]
    return "\n\n".join(parts) + "\n"


def _notes(
    group: Group,
    rows: Sequence[CellRow],
    more: Sequence[str],
    others: Sequence[Hidden],
    stale: Sequence[Hidden],
    selection: Selection,
    not_counted: Sequence[str],
) -> list[str]:
    notes = []
    if group.scale != "paper":
        notes.append(
            f"Scale `{group.scale}` is shortened training: no number here stands for a published one."
        )
    notes += [
        f"Backbone `{group.backbone}`: {caveat}" for caveat in sorted({r.caveat for r in rows if r.caveat})
    ]
    notes += sorted(
        {f"Backbone `{group.backbone}`: weights of the local folder `{r.weights}`" for r in rows if r.weights}
    )
    notes += _merged({f"Method `{r.method}`: {note}." for r in rows for note in r.notes})
    notes.append(f"Split `{group.split}`. {_selection(rows, selection)}")
    notes.append(
        "Cells: median [min, max] over seeds, scores x100, n seeds; a [min, max] of 5 is a "
        f"{100 * median_coverage(5):.2f} % interval for the median."
    )
    notes.append(
        "A seed that diverged ranks below every finished one and counts: n=4/5 means that 4 of 5 finished. "
        "A failed seed has no result. `*`: a seed collapsed (one prediction for every row) and keeps its score."
    )
    if on_other_rows(rows):
        notes.append(
            f"`{OTHER_ROWS.strip()}`: trained on another number of rows than most of its column (see Cost), so neither "
            "ranked nor compared."
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
    notes += more
    notes.append(
        "Majority class: the score without training on the report rows; SE is its binomial standard error there "
        "(rows, not seeds); undefined for correlations."
    )
    notes.append(
        "Scores: the best of a column in bold, the second underlined, among the rows with the most seeds; what lies "
        "within the range of the best is not ranked apart from it. Parameters there are means over the tasks."
    )
    notes.append(
        "Cost: parameters of the adapters and total rank, initial -> final where they differ, mean over finished "
        "seeds; seconds of training alone per seed and peak memory of its process, medians."
    )
    signatures = sorted({f"`{text}`" for row in rows for text in row.signatures.values()})
    if signatures:
        notes.append(f"Metrics: {', '.join(signatures)}.")
    notes += [
        f"Subset: {one}." for one in sorted({f"{row.task}: {text}" for row in rows for text in row.subsets})
    ]
    notes += [not_shown(others, "with other settings")] if others else []
    notes += [_stale(one) for one in stale]
    notes += [f"Not counted, since it is no record: {path}." for path in not_counted]
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


def _merged(notes: Iterable[str]) -> list[str]:
    """Sorted; notes that differ in their numbers alone become one, with the range of each: 97 to 100%."""
    alike: dict[str, list[str]] = {}
    for note in sorted(notes):
        alike.setdefault(_NUMBER.sub("0", note), []).append(note)
    return [_as_one(same) for same in alike.values()]


def _as_one(same: Sequence[str]) -> str:
    columns = iter(list(zip(*map(_NUMBER.findall, same), strict=True)))
    return _NUMBER.sub(lambda _: _range(next(columns)), same[0])


def _range(numbers: Sequence[str]) -> str:
    in_order = sorted(set(numbers), key=lambda text: float(text.replace(",", "")))
    return in_order[0] if len(in_order) == 1 else f"{in_order[0]} to {in_order[-1]}"
