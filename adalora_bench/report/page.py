"""results/report.html: every table, figure, claim and cell in one file that needs no network.

The same records give the same bytes. Style and script stand beside this module.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from html import escape
from itertools import groupby
from pathlib import Path

from adalora_bench.metrics import printed
from adalora_bench.report import figures, kinds
from adalora_bench.report.cells import Cells, arrange
from adalora_bench.report.claim_text import counts, notes, numbers, published, verdict_at
from adalora_bench.report.claims import Judged, judge_all
from adalora_bench.report.formats import html_table
from adalora_bench.report.page_cells import cell_details
from adalora_bench.report.papers import VERDICTS, Filled, fill
from adalora_bench.report.rows import CellRow, Group, Record
from adalora_bench.report.series import Dots, Figure, Lines, Picture, shown
from adalora_bench.report.statistics import Summary
from adalora_bench.settings.published import PaperClaims, load_claims, load_table, table_names
from adalora_bench.store.files import write_if_changed
from adalora_bench.store.records import RecordStore
from adalora_bench.store.schema import STATUSES

_HERE = Path(__file__).parent
_ID = re.compile(r'(\bid="|url\(#|href="#)')
_SIZE = re.compile(r'(<svg\b[^>]*?) width="([\d.]+)pt" height="[\d.]+pt"', re.DOTALL)


def refresh(
    conf: Path, store: RecordStore, records: Sequence[Record], path: Path, not_counted: Sequence[str] = ()
) -> bool:
    """Write the page where it changed; whether it did.

    Args:
        conf: the folder conf, with table, claim and figure.
    """
    return write_if_changed(path, page(conf, store, records, not_counted))


def page(conf: Path, store: RecordStore, records: Sequence[Record], not_counted: Sequence[str] = ()) -> str:
    """The whole file. `not_counted` are files of the store that are no records."""
    tables = [
        filled
        for name in table_names(conf / "table")
        for filled in fill(name, load_table(conf / "table", name), records)
    ]
    claims = load_claims(conf / "claim")
    judged = judge_all(claims, records)
    pictures, skipped = figures.all_pictures(conf / "figure", store, records)
    cells = shown(records)
    arranged = arrange(records)
    methods = sorted({row.method for row in arranged.rows} | {r.method for t in tables for r in t.table.rows})
    tasks = sorted({row.task for row in arranged.rows} | {task for t in tables for task in t.table.tasks})
    return "\n".join(
        [
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<link rel="icon" href="data:,">',
            f"<title>adalora_bench</title>\n<style>\n{(_HERE / 'page.css').read_text()}</style>\n</head>\n<body>",
            '<header class="top"><h1>adalora_bench</h1>',
            "<p>Published tables of five papers on adaptive low-rank adaptation beside our runs. Made from the records "
            "by <code>bench report</code>.</p></header>",
            _bar(methods, tasks),
            "<main>",
            _overview(arranged, tables, judged, skipped, not_counted),
            _scale_tables(arranged.rows),
            _paper_tables(tables),
            _figures(kinds.load_figures(conf / "figure"), pictures, skipped),
            _claims(claims, judged),
            '<section id="cells"><h2>Cells</h2>',
            *(cell_details(cell) for cell in cells),
            "</section>\n</main>",
            f"<script>\n{(_HERE / 'page.js').read_text()}</script>\n</body>\n</html>\n",
        ]
    )


def _bar(methods: Sequence[str], tasks: Sequence[str]) -> str:
    names = ("overview", "scales", "tables", "figures", "claims", "cells")
    links = " ".join(f'<a href="#{name}">{name}</a>' for name in names)
    selects = "".join(
        f'<label>{name} <select id="{name}"><option value="">all</option>'
        + "".join(f"<option>{escape(value)}</option>" for value in values)
        + "</select></label>"
        for name, values in (("method", methods), ("task", tasks))
    )
    return f'<nav class="bar"><div>{links}{selects}</div></nav>'


def _overview(
    arranged: Cells,
    tables: Sequence[Filled],
    judged: Sequence[Judged],
    skipped: Sequence[str],
    not_counted: Sequence[str],
) -> str:
    lines = []
    for group, found in groupby(arranged.rows, key=lambda row: row.group):
        rows = list(found)
        statuses = Counter[str]()
        for row in rows:
            statuses.update(row.statuses)
        values = [
            group.scale,
            group.backbone,
            group.split,
            len({row.method for row in rows}),
            ", ".join(sorted({row.task for row in rows})),
            len(rows),
            ", ".join(f"{statuses[status]} {status}" for status in STATUSES if statuses[status]),
        ]
        lines.append("".join(f"<td>{escape(str(value))}</td>" for value in values))
    head = ["scale", "backbone", "split", "methods", "tasks", "cells", "seeds"]
    cell_verdicts = [(name, sum(_verdicts(one)[name] for one in tables)) for name in VERDICTS]
    words = ", ".join(f"{count} {name}" for name, count in cell_verdicts)
    hidden = [
        f"{one.label} on {one.task} ({one.group.scale}, {one.group.backbone}), key {one.key8}: {one.why}"
        for one in [*arranged.others, *arranged.stale]
    ]
    parts = [
        '<section id="overview"><h2>Overview</h2>',
        _table(head, [f"<tr>{line}</tr>" for line in lines])
        if lines
        else "<p>No records: nothing was run.</p>",
        f"<p>Cells of the papers' tables: {words}. Claims: {counts(judged)}.</p>",
        "<p>Only numbers at scale <code>paper</code> stand beside published ones; every other scale is shortened.</p>",
    ]
    if skipped:
        parts.append(f"<p>Figures without records: {escape(', '.join(skipped))}.</p>")
    if not_counted:
        parts.append(f"<p>Not counted, since they are no records: {escape(', '.join(not_counted))}.</p>")
    if hidden:
        items = "".join(f"<li>{escape(text)}</li>" for text in hidden)
        parts.append(
            f"<details><summary>{len(hidden)} not shown: other keys and stale</summary><ul>{items}</ul></details>"
        )
    return "\n".join([*parts, "</section>"])


def _verdicts(filled: Filled) -> Counter[str]:
    return Counter(cell.verdict for row in filled.cells.values() for cell in row.values())


def _paper_tables(tables: Sequence[Filled]) -> str:
    parts = ['<section id="tables"><h2>Tables of the papers</h2>']
    for filled in tables:
        table, place, found = filled.table, filled.place, _verdicts(filled)
        words = ", ".join(f"{found[name]} {name}" for name in VERDICTS if found[name])
        title = f"{table.paper}, Table {table.number}: {table.title} ({place.scale}, {place.backbone})"
        columns = " ".join(column.task for column in table.columns)
        parts.append(
            f'<details data-columns="{columns}"{"" if found["not run"] == found.total() else " open"}>'
            f"<summary>{escape(title)}: {words}</summary>"
            f'<div class="scroll">{html_table(filled)}</div></details>'
        )
    return "\n".join([*parts, "</section>"])


def _scale_tables(rows: Sequence[CellRow]) -> str:
    parts = ['<section id="scales"><h2>What was run, by scale</h2>']
    for group, found in groupby(rows, key=lambda row: row.group):
        parts.append(_scale_table(group, list(found)))
    return "\n".join([*parts, "</section>"])


def _scale_table(group: Group, rows: Sequence[CellRow]) -> str:
    columns = sorted({(row.task, metric) for row in rows for metric in row.scores})
    labels = sorted({(row.method, row.label) for row in rows})
    cells = {(row.label, row.task): row for row in rows}
    lines = []
    for method, label in labels:
        tds = []
        for task, metric in columns:
            row = cells.get((label, task))
            summary = None if row is None else row.scores.get(metric)
            text = _score(row, summary, metric) if row and summary else '<td data-value="">-</td>'
            tds.append(text)
        lines.append(f'<tr data-method="{escape(method)}"><th>{escape(label)}</th>{"".join(tds)}</tr>')
    head = ["method", *(f"{task}: {metric}" for task, metric in columns)]
    return (
        f"<h3>{escape(group.backbone)}, scale {escape(group.scale)}, split {escape(group.split)}</h3>"
        f'<div data-columns="{" ".join(task for task, _ in columns)}">{_table(head, lines, sortable=True)}</div>'
        "<p>Median [min, max] over the seeds, scores x100. *: a seed collapsed, one prediction for every row.</p>"
    )


def _score(row: CellRow, summary: Summary, metric: str) -> str:
    """As in the Markdown: a star for a collapsed seed, and how many failed."""
    texts = [
        f"{printed(metric, value):.2f}" if abs(value) != float("inf") else "diverged"
        for value in (summary.median, summary.low, summary.high)
    ]
    n = str(summary.n) if summary.n == summary.finished else f"{summary.finished}/{summary.n}"
    value = "" if texts[0] == "diverged" else texts[0]
    star = "*" if row.statuses.get("collapsed") else ""
    failed = f", {row.statuses['failed']} failed" if row.statuses.get("failed") else ""
    return f'<td class="number" data-value="{value}">{texts[0]}{star} [{texts[1]}, {texts[2]}] n={n}{failed}</td>'


def _figures(known: dict[str, Figure], found: dict[str, list[Picture]], skipped: Sequence[str]) -> str:
    parts = ['<section id="figures"><h2>Figures</h2>']
    for name, figure in known.items():
        if name in skipped:
            continue
        answers = f" As {', '.join(figure.answers)}." if figure.answers else ""
        ranges = any(isinstance(picture.data, (Lines, Dots)) for picture in found[name])
        what = f"{figure.what[0].upper()}{figure.what[1:]}.{answers}"
        what += " Ranges go from the lowest to the highest seed." if ranges else ""
        parts.append(f"<h3>{escape(figure.title)}</h3><p>{escape(what)}</p>")
        parts += [_figure(picture) for picture in found[name]]
    return "\n".join([*parts, "</section>"])


def _figure(picture: Picture) -> str:
    """The SVG without its prologue, as wide as drawn at most, with names of its own for what it refers to."""
    svg = figures.draw(picture, ["svg"])["svg"].decode()
    svg = _ID.sub(rf"\g<1>{picture.stem}-", svg[svg.index("<svg") :])
    svg = _SIZE.sub(r'\1 style="max-width: \2pt" role="img"', svg, count=1)
    return f'<figure aria-label="{escape(picture.title)}">{svg}</figure>'


def _claims(papers: Sequence[PaperClaims], judged: Sequence[Judged]) -> str:
    by_name = {paper.paper: paper for paper in papers}
    lines = []
    for one in judged:
        paper, claim = by_name[one.paper], one.claim
        methods = sorted({paper.row(label).method for label in [*claim.a, *claim.b]})
        tasks = sorted({paper.measure(label).task for label in claim.on})
        says = escape(claim.says) + (f" ({escape(claim.note)})" if claim.note else "")
        lines.append(
            f'<tr data-methods="{" ".join(methods)}" data-tasks="{" ".join(tasks)}">'
            f"<th>{escape(claim.id)}</th><td>{escape(one.paper)}, {escape(claim.where)}</td><td>{says}</td>"
            f"<td>{escape(published(one))}</td>"
            f'<td class="{one.verdict.replace(" ", "-")}">{escape(verdict_at(one))}</td>'
            f"<td>{escape(numbers(one))}</td><td>{escape(claim.source)}</td></tr>"
        )
    head = ["claim", "where", "the paper says", "published", "verdict", "ours", "source"]
    captions = "".join(f"<li>{escape(text.replace('`', ''))}</li>" for text in notes())
    return "\n".join(
        [
            f'<section id="claims"><h2>Claims</h2><p>{counts(judged)}.</p>',
            _table(head, lines, sortable=True),
            f'<ul class="caption">{captions}</ul></section>',
        ]
    )


def _table(head: Sequence[str], rows: Sequence[str], *, sortable: bool = False) -> str:
    cells = "".join(f"<th>{escape(name)}</th>" for name in head)
    kind = ' class="sortable"' if sortable else ""
    body = "\n".join(rows)
    return f'<div class="scroll"><table{kind}><thead><tr>{cells}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>'
