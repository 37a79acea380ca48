"""A filled table of a paper as Markdown, LaTeX (booktabs), CSV and HTML. Pure: the same records give the same text."""

from __future__ import annotations

import csv
import html
import io
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from adalora_bench.files import atomic_write
from adalora_bench.report.cells import Record
from adalora_bench.report.papers import VERDICTS, Cell, Column, Filled, fill, load_table, table_names
from adalora_bench.report.statistics import median, median_coverage
from adalora_bench.schema import STATUSES

NOT_FOUND = "not found"
FORMATS = ("md", "tex", "csv", "html")


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
    written = []
    for name in table_names(conf) if names is None else names:
        for filled in fill(name, load_table(conf, name), records):
            for ending, text in render(filled).items():
                path = folder / f"{file_stem(filled)}.{ending}"
                if not (path.is_file() and path.read_bytes() == text.encode()):
                    atomic_write(path, text.encode())
                    written.append(path)
    return written


# -- what a cell says ------------------------------------------------------------------------------------------


def ours(cell: Cell, places: int = 2) -> str:
    """88.09 [87.73, 88.45] n=5, or why there is no number."""
    if cell.value is None:
        return "not run" if cell.verdict == "not run" else f"no score (n=0/{cell.n})"
    if not math.isfinite(cell.value):
        return f"diverged n={cell.finished}/{cell.n}"
    star = "*" if cell.collapsed else ""
    seeds = f"n={cell.n}" if cell.n == cell.finished else f"n={cell.finished}/{cell.n}"
    low = f"{cell.low:.{places}f}" if cell.low is not None and math.isfinite(cell.low) else "diverged"
    return f"{cell.value:.{places}f}{star} [{low}, {cell.high:.{places}f}] {seeds}"


def theirs(cell: Cell) -> str:
    """The published number, or that it was not found."""
    return NOT_FOUND if cell.published is None else f"{cell.published:g}"


def against(cell: Cell) -> str:
    """Signed gap and verdict."""
    if cell.verdict == "not run" or cell.published is None:
        return cell.verdict if cell.published is not None else ""
    return cell.verdict if cell.gap is None else f"{cell.gap:+.2f}, {cell.verdict}"


def marks(filled: Filled, column: Column) -> dict[str, str]:
    """Row label -> "best" or "second"; what lies within the best row's range is not ranked apart from it.

    Costs are not ranked. Rows within the noise of each other share a mark; with one row there is none.
    """
    from adalora_bench.report.papers import COSTS

    if set(column.metrics) & COSTS.keys():
        return {}
    sign = -1.0 if column.metrics[0].split("_")[0] == "ter" else 1.0
    found = {
        label: cells[column.label]
        for label, cells in filled.cells.items()
        if cells[column.label].value is not None and math.isfinite(cells[column.label].value or math.nan)
    }
    if len(found) < 2:
        return {}
    marked: dict[str, str] = {}
    for mark in ("best", "second"):
        left = {label: cell for label, cell in found.items() if label not in marked}
        if not left:
            break
        top = max(left.values(), key=lambda cell: sign * (cell.value or 0.0))
        edge = top.low if sign > 0 else top.high
        if edge is None or not math.isfinite(
            edge
        ):  # a diverged seed tells nothing about the noise of the others
            edge = top.value
        for label, cell in left.items():
            if cell is top or (edge is not None and sign * (cell.value or 0.0) >= sign * edge):
                marked[label] = mark
    return marked


def caption(filled: Filled) -> list[str]:
    """What a reader must know of the numbers, one sentence or two each."""
    table, place = filled.table, filled.place
    seeds = [record for by_task in filled.used.values() for chosen in by_task.values() for record in chosen]
    lines = [f"{table.paper}, Table {table.number}: {table.title}. Published numbers: {table.source}."]
    if not seeds:
        lines.append(f"Scale `{place.scale}`, backbone `{place.backbone}`: no cell was run.")
    else:
        splits = ", ".join(f"`{split}`" for split in sorted({record["split"] for record in seeds}))
        lines.append(
            f"Scale `{place.scale}`, backbone `{place.backbone}`, split {splits}, selection: the last step."
        )
        if place.scale != "paper":
            lines.append("Shortened training: no number here stands for a published one.")
        counts = Counter(record["status"] for record in seeds)
        lines.append("Seeds: " + ", ".join(f"{counts[status]} {status}" for status in STATUSES) + ".")
    lines.append(
        f"Ours: {table.statistic} [min, max] over seeds, scores x100; a [min, max] of 5 is a "
        f"{100 * median_coverage(5):.2f} % interval for the median. `*`: a seed collapsed (one prediction for every "
        "row). A diverged seed ranks last and counts."
    )
    lines += sorted({f"Backbone: {text}" for record in seeds if (text := _caveat(record))})
    lines += sorted(
        {f"Method `{r['names']['method']}`: {note}." for r in seeds for note in r.get("notes") or []}
    )
    lines += sorted({f"Subset: {r['names']['task']}: {r['subset']}." for r in seeds if r.get("subset")})
    signatures = sorted({f"`{text}`" for record in seeds for text in (record.get("metrics") or {}).values()})
    lines += [f"Metrics: {', '.join(signatures)}."] if signatures else []
    lines += [f"{note[0].upper()}{note[1:]}" for note in table.notes]
    for source in dict.fromkeys(row.source for row in table.rows if row.source):
        labels = ", ".join(row.label for row in table.rows if row.source == source)
        lines.append(f"Published numbers of {labels}: {source}.")
    totals = Counter(cell.verdict for row in filled.cells.values() for cell in row.values())
    lines.append("Verdicts: " + ", ".join(f"{totals[name]} {name}" for name in VERDICTS) + ".")
    return lines


def costs(filled: Filled) -> list[list[str]]:
    """Row, published parameters, ours initial -> final, seconds of training and peak memory (medians over what ran)."""
    lines = []
    for row in filled.table.rows:
        seeds = [record for chosen in filled.used[row.label].values() for record in chosen]
        initial, final = (_middle(seeds, "params", part) for part in ("adapter_initial", "adapter_final"))
        change = "-" if initial is None else f"{initial:,.0f}"
        if final is not None and final != initial:
            change += f" -> {final:,.0f}"
        seconds = _middle(seeds, "seconds", "train")
        memory = [float(r["peak_memory_bytes"]) for r in seeds if r.get("peak_memory_bytes")]
        lines.append(
            [
                row.label,
                row.params or NOT_FOUND,
                change,
                "-" if seconds is None else f"{seconds:,.0f}",
                f"{median(memory) / 2**30:.2f}" if memory else "-",
            ]
        )
    return lines


WHERE_HEAD = ["table", "scale", "backbone", "row", "method", "task", "column"]
NUMBER_HEAD = ["value", "low", "high", "n", "finished", "collapsed", "published", "gap"]
CSV_HEAD = [*WHERE_HEAD, *NUMBER_HEAD, "verdict"]
COST_HEAD = ["row", "parameters, published", "parameters, ours", "training, s", "peak memory, GiB"]


# -- the four forms --------------------------------------------------------------------------------------------


def markdown(filled: Filled) -> str:
    """Scores with the best in bold and the second underlined, costs, caption."""
    columns = filled.table.columns
    head = ["row", "", *(column.label for column in columns)]
    lines = [line for label in filled.cells for line in _lines(filled, label)]
    parts = [
        f"# {filled.table.paper}, Table {filled.table.number}, at scale {filled.place.scale} on "
        f"{filled.place.backbone}",
        "Made from the records by `bench tables`; edit nothing here.",
        _pipes(head, lines),
        "## Cost",
        _pipes(COST_HEAD, costs(filled)),
        "## How to read it",
        "\n".join(f"- {_plain(line)}" for line in caption(filled)),
    ]
    return "\n\n".join(parts) + "\n"


def latex(filled: Filled) -> str:
    """A table environment for booktabs; ours and published under each other."""
    columns = filled.table.columns
    body = []
    for label, cells in filled.cells.items():
        mine = [
            _tex_mark(_tex(ours(cells[c.label]).split(" n=")[0]), marks(filled, c).get(label))
            for c in columns
        ]
        paper = ["--" if cells[c.label].published is None else theirs(cells[c.label]) for c in columns]
        body.append(f"{_tex(label)} & ours & {' & '.join(mine)} \\\\")
        body.append(f" & published & {' & '.join(paper)} \\\\")
    return "\n".join(
        [
            "% Made from the records by `bench tables`; needs \\usepackage{booktabs}.",
            "\\begin{table}",
            "\\centering",
            f"\\begin{{tabular}}{{ll{'r' * len(columns)}}}",
            "\\toprule",
            f" & & {' & '.join(_tex(column.label) for column in columns)} \\\\",
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
    """One line per cell, with numbers unrounded."""
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
            writer.writerow([*where, *texts, c.verdict])
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
        f'<ul class="caption">{notes}</ul>\n'
    )


# -- small things ----------------------------------------------------------------------------------------------


def _lines(filled: Filled, label: str) -> list[list[str]]:
    """Three lines of a row: ours, published and, where there is something to judge, the verdict."""
    columns, cells = filled.table.columns, filled.cells[label]
    mine = [_md_mark(ours(cells[c.label]), marks(filled, c).get(label)) for c in columns]
    lines = [[label, "ours", *mine], ["", "published", *(theirs(cells[c.label]) for c in columns)]]
    if any(cell.verdict != "not run" for cell in cells.values()):
        lines.append(["", "verdict", *(against(cells[c.label]) for c in columns)])
    return lines


def _md_mark(text: str, mark: str | None) -> str:
    number, _, rest = text.partition(" ")
    if mark == "best":
        return f"**{number}** {rest}"
    return f"<u>{number}</u> {rest}" if mark == "second" else text


def _tex_mark(text: str, mark: str | None) -> str:
    number, _, rest = text.partition(" ")
    if mark is None:
        return text
    return f"\\{'textbf' if mark == 'best' else 'underline'}{{{number}}} {rest}"


def _tex(text: str) -> str:
    for char in "&%$#_{}":
        text = text.replace(char, f"\\{char}")
    return text.replace("->", "$\\to$").replace("~", "\\textasciitilde{}")


def _pipes(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    texts = [[cell.replace("|", "\\|") for cell in line] for line in [head, *lines]]
    widths = [max(len(line[k]) for line in texts) for k in range(len(head))]
    padded = [
        "| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |" for line in texts
    ]
    return "\n".join([padded[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *padded[1:]])


def _plain(text: str) -> str:
    return " ".join(text.split()).replace("<", "&lt;")


def _caveat(record: Record) -> str | None:
    backbone = record["config"].get("backbone")
    caveat = backbone.get("caveat") if isinstance(backbone, Mapping) else None
    return str(caveat) if caveat else None


def _middle(seeds: Sequence[Record], field: str, part: str) -> float | None:
    found = [(record.get(field) or {}).get(part) for record in seeds]
    known = [float(value) for value in found if value is not None]
    return median(known) if known else None
