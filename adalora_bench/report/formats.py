"""A filled table of a paper as Markdown, LaTeX (booktabs), CSV and HTML. Pure: the same records give the same text."""

from __future__ import annotations

import csv
import html
import io
import re
from collections.abc import Sequence
from pathlib import Path

from adalora_bench.report.papers import Filled, fill
from adalora_bench.report.rows import Record
from adalora_bench.report.text import marked_markdown, one_line, pipe_table
from adalora_bench.report.wording import NOT_FOUND, against, caption, costs, marks, ours, spent, theirs
from adalora_bench.settings.published import load_table, table_names
from adalora_bench.store.files import write_all

WHERE_HEAD = ["table", "scale", "backbone", "row", "method", "task", "column"]
NUMBER_HEAD = ["value", "low", "high", "n", "finished", "collapsed", "published", "gap"]
SPENT_HEAD = ["parameters_initial", "parameters_final", "train_seconds", "peak_memory_bytes"]
CSV_HEAD = [*WHERE_HEAD, *NUMBER_HEAD, "verdict", *SPENT_HEAD]
TEX_COST_HEAD = ["parameters", "training, s", "memory, GiB"]
COST_HEAD = ["row", "parameters, published", "parameters, ours", "training, s", "peak memory, GiB"]


def file_stem(filled: Filled) -> str:
    """increlora_1_cpu_minilm_l6."""
    return f"{filled.name}_{filled.place.scale}_{filled.place.backbone}"


def render(filled: Filled) -> dict[str, str]:
    """Ending of the file -> text."""
    return {
        "md": markdown(filled),
        "tex": latex(filled),
        "csv": comma_separated(filled),
        "html": html_table(filled),
    }


def refresh(
    conf: Path, records: Sequence[Record], folder: Path, names: Sequence[str] | None = None
) -> list[Path]:
    """Write `<folder>/<table>_<scale>_<backbone>.<form>` for the tables of conf/table; return what changed.

    Args:
        conf: the folder conf/table.
        names: which tables; None takes all.
    """
    return write_all(
        (folder / f"{file_stem(filled)}.{ending}", text)
        for name in (table_names(conf) if names is None else names)
        for filled in fill(name, load_table(conf, name), records)
        for ending, text in render(filled).items()
    )


# -- the four forms --------------------------------------------------------------------------------------------


def markdown(filled: Filled) -> str:
    """Scores with the best in bold and the second underlined, costs, caption."""
    columns = filled.table.columns
    head = ["row", "", *(column.label for column in columns)]
    lines = [line for label in filled.cells for line in _lines(filled, label)]
    parts = [
        f"# {filled.table.paper}, Table {filled.table.number}, at scale {filled.place.scale} on "
        f"{filled.place.backbone}",
        "Made from the records by `bench tables`; do not edit.",
        pipe_table(head, lines),
        "## Cost",
        pipe_table(COST_HEAD, costs(filled)),
        "## How to read it",
        "\n".join(f"- {one_line(line)}" for line in caption(filled)),
    ]
    return "\n\n".join(parts) + "\n"


def latex(filled: Filled) -> str:
    """A table environment for booktabs; ours, published and verdict under each other."""
    columns = filled.table.columns
    body = []
    cost = {row: cells for row, *cells in costs(filled)}
    for label, cells in filled.cells.items():
        mine = [_tex_mark(_tex(ours(cells[c.label])), marks(filled, c).get(label)) for c in columns]
        paper = ["--" if cells[c.label].published is None else theirs(cells[c.label]) for c in columns]
        printed, *ours_spent = (_tex("--" if text in ("-", NOT_FOUND) else text) for text in cost[label])
        body.append(f"{_tex(label)} & ours & {' & '.join([*mine, *ours_spent])} \\\\")
        body.append(f" & published & {' & '.join([*paper, printed])} & & \\\\")
        if any(cell.verdict != "not run" and cell.published is not None for cell in cells.values()):
            body.append(
                f" & verdict & {' & '.join(_tex(against(cells[c.label])) for c in columns)} & & & \\\\"
            )
    return "\n".join(
        [
            "% Made from the records by `bench tables`; needs \\usepackage{booktabs}.",
            "\\begin{table}",
            "\\centering",
            f"\\begin{{tabular}}{{ll{'r' * (len(columns) + 3)}}}",
            "\\toprule",
            f" & & {' & '.join([*(_tex(column.label) for column in columns), *TEX_COST_HEAD])} \\\\",
            "\\midrule",
            *body,
            "\\bottomrule",
            "\\end{tabular}",
            f"\\caption{{{' '.join(_tex(line.replace('`', '')) for line in caption(filled))}}}",
            f"\\label{{tab:{file_stem(filled)}}}",
            "\\end{table}",
            "",
        ]
    )


def comma_separated(filled: Filled) -> str:
    """One line per cell, with numbers unrounded; what was spent are medians over the row's seeds on that task."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(CSV_HEAD)
    place = filled.place
    for row in filled.table.rows:
        for column in filled.table.columns:
            c = filled.cells[row.label][column.label]
            numbers = [c.value, c.low, c.high, c.n, c.finished, c.collapsed, c.published, c.gap]
            texts = ["" if number is None else repr(number) for number in numbers]
            where = [
                filled.name,
                place.scale,
                place.backbone,
                row.label,
                row.method,
                column.task,
                column.label,
            ]
            used = spent(filled.used[row.label][column.task])
            where = [_no_formula(text) for text in where]
            writer.writerow([*where, *texts, c.verdict, *("" if one is None else repr(one) for one in used)])
    return out.getvalue()


def html_table(filled: Filled) -> str:
    """A <table> with its caption, for the page: sortable by the `data-value` of each cell."""
    columns = filled.table.columns
    head = "".join(f"<th>{html.escape(column.label)}</th>" for column in columns)
    rows = []
    for row in filled.table.rows:
        cells = []
        for column in columns:
            cell = filled.cells[row.label][column.label]
            mark = marks(filled, column).get(row.label, "")
            value = "" if cell.value is None else f"{cell.value!r}"
            paper = "" if cell.published is None else f'<span class="published">{theirs(cell)}</span>'
            word = (
                f'<span class="verdict {cell.verdict.replace(" ", "-")}">{html.escape(against(cell))}</span>'
            )
            mine = f'<span class="{mark or "plain"}">{html.escape(ours(cell))}</span>'
            cells.append(f'<td data-value="{value}">{mine}{paper}{word}</td>')
        rows.append(
            f'<tr data-method="{html.escape(row.method)}"><th>{html.escape(row.label)}</th>{"".join(cells)}</tr>'
        )
    notes = "".join(f"<li>{html.escape(line.replace('`', ''))}</li>" for line in caption(filled))
    return (
        f'<table class="paper" id="{file_stem(filled)}" data-tasks="{" ".join(filled.table.tasks)}">\n'
        f"<thead><tr><th>row</th>{head}</tr></thead>\n<tbody>\n" + "\n".join(rows) + "\n</tbody>\n</table>\n"
        f"{_html_costs(filled)}"
        f'<ul class="caption">{notes}</ul>\n'
    )


def _html_costs(filled: Filled) -> str:
    """What was spent on the rows that ran, as a second table; nothing where none ran."""
    ran = {row.label: row.method for row in filled.table.rows if any(filled.used[row.label].values())}
    lines = [
        f'<tr data-method="{html.escape(ran[label])}"><th>{html.escape(label)}</th>'
        f"{''.join(f'<td>{html.escape(cell)}</td>' for cell in cells)}</tr>"
        for label, *cells in costs(filled)
        if label in ran
    ]
    head = "".join(f"<th>{html.escape(name)}</th>" for name in COST_HEAD)
    table = f'<table class="cost"><thead><tr>{head}</tr></thead>\n<tbody>\n' + "\n".join(lines)
    return f"{table}\n</tbody>\n</table>\n" if lines else ""


# -- small things ----------------------------------------------------------------------------------------------


def _lines(filled: Filled, label: str) -> list[list[str]]:
    """Three lines of a row: ours, published and, where there is something to judge, the verdict."""
    columns, cells = filled.table.columns, filled.cells[label]
    mine = [marked_markdown(ours(cells[c.label]), marks(filled, c).get(label)) for c in columns]
    lines = [[label, "ours", *mine], ["", "published", *(theirs(cells[c.label]) for c in columns)]]
    if any(cell.verdict != "not run" for cell in cells.values()):
        lines.append(["", "verdict", *(against(cells[c.label]) for c in columns)])
    return lines


TEX = {sign: f"\\{sign}" for sign in "&%$#_{}"} | {
    "\\": "\\textbackslash{}",
    "~": "\\textasciitilde{}",
    "^": "\\textasciicircum{}",
    "<": "\\textless{}",
    ">": "\\textgreater{}",
    "|": "\\textbar{}",
    "->": "$\\to$",
}
"""What LaTeX would take for a command -> how it is printed."""


def _no_formula(text: str) -> str:
    """A text that no spreadsheet takes for a formula."""
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r") else text


def _tex_mark(text: str, mark: str | None) -> str:
    number, _, rest = text.partition(" ")
    if mark is None:
        return text
    return f"\\{'textbf' if mark == 'best' else 'underline'}{{{number}}} {rest}"


def _tex(text: str) -> str:
    text = " ".join(text.split())
    return re.sub(r"->|[&%$#_{}\\~^<>|]", lambda m: TEX[m[0]], text)
