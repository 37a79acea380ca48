"""One cell of the page: its settings, seeds, learning curve and final ranks. Pure: text in, HTML out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

from adalora_bench.metrics import printed
from adalora_bench.report.kinds import mean_ranks
from adalora_bench.report.rows import Record
from adalora_bench.report.series import Map, Shown

# Cividis at four places; values between are mixed.
_COLOURS = ((0, 34, 78), (87, 93, 109), (165, 156, 116), (254, 232, 56))
_WIDTH, _HEIGHT, _LEFT, _EDGE = 420, 190, 46, 22
_DASHES = ("", "6 3", "2 3", "8 3 2 3", "1 4")


def cell_details(cell: Shown) -> str:
    """A closed <details> with everything about one cell."""
    row = cell.row
    names = f"{row.label} on {row.task} ({row.group.scale}, {row.group.backbone}, {row.group.split})"
    parts = [f"<p>Key <code>{row.key8}</code>.</p>", _seeds(cell), _curve(cell)]
    parts += [_map(one) for one in mean_ranks(cell, even=True)]
    settings = "\n".join(f"{name} = {value}" for name, value in _flat(cell.seeds[0]["config"]))
    parts.append(f"<details><summary>settings</summary><pre>{escape(settings)}</pre></details>")
    return (
        f'<details class="cell" data-methods="{escape(row.method)}" data-tasks="{escape(row.task)}">'
        f"<summary>{escape(names)}</summary>{''.join(parts)}</details>"
    )


def _seeds(cell: Shown) -> str:
    head = [
        "seed",
        "status",
        cell.row.main_metric,
        "best",
        "parameters",
        "total rank",
        "training, s",
        "steps",
    ]
    lines = []
    for record in cell.seeds:
        values = [
            str(record["seed"]),
            record["status"] + (f": {record['reason']}" if record.get("reason") else ""),
            _score(record, "final"),
            _score(record, "best"),
            _change(record, "params", "adapter_initial", "adapter_final"),
            _change(record, "ranks", "initial_total", "final_total"),
            _number((record.get("seconds") or {}).get("train")),
            _number(record.get("steps")),
        ]
        lines.append("<tr>" + "".join(f"<td>{escape(value)}</td>" for value in values) + "</tr>")
    heads = "".join(f"<th>{escape(name)}</th>" for name in head)
    return f'<div class="scroll"><table><thead><tr>{heads}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'


def _score(record: Record, point: str) -> str:
    value = ((record.get(point) or {}).get("scores") or {}).get(record["main_metric"])
    return "-" if value is None else f"{printed(record['main_metric'], value):.2f}"


def _change(record: Record, field: str, first: str, last: str) -> str:
    part = record.get(field) or {}
    start, end = _number(part.get(first)), _number(part.get(last))
    return start if start == end else f"{start} -> {end}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"


def _curve(cell: Shown) -> str:
    """The main score of each seed over the steps, as a small SVG; nothing with fewer than two evaluations."""
    metric = cell.row.main_metric
    seeds = {
        record["seed"]: [
            (float(point["step"]), printed(metric, point["scores"][metric]))
            for point in record.get("history") or []
            if point["scores"].get(metric) is not None
        ]
        for record in cell.seeds
    }
    seeds = {seed: points for seed, points in seeds.items() if len(points) > 1}
    if not seeds:
        return ""
    xs = [x for points in seeds.values() for x, _ in points]
    ys = [y for points in seeds.values() for _, y in points]
    left, right, low, high = min(xs), max(xs), min(ys), max(ys)
    wide, tall = (right - left) or 1.0, (high - low) or 1.0

    def place(x: float, y: float) -> str:
        across = _LEFT + (x - left) / wide * (_WIDTH - _LEFT - 8)
        down = 8 + (high - y) / tall * (_HEIGHT - _EDGE - 16)
        return f"{across:.1f},{down:.1f}"

    lines = "".join(
        f'<polyline fill="none" stroke="currentColor" stroke-width="1.5" stroke-dasharray="{_DASHES[k % 5]}" '
        f'points="{" ".join(place(x, y) for x, y in points)}"><title>seed {seed}</title></polyline>'
        for k, (seed, points) in enumerate(sorted(seeds.items()))
    )
    texts = [
        (_LEFT - 4, 14, "end", f"{high:.1f}"),
        (_LEFT - 4, _HEIGHT - _EDGE - 6, "end", f"{low:.1f}"),
        (_LEFT, _HEIGHT - 6, "start", f"step {left:.0f}"),
        (_WIDTH - 8, _HEIGHT - 6, "end", f"{right:.0f}"),
    ]
    words = "".join(
        f'<text x="{x}" y="{y}" text-anchor="{anchor}" font-size="11" fill="currentColor">{text}</text>'
        for x, y, anchor, text in texts
    )
    return (
        f'<p>{escape(metric)} of each seed over the steps</p><svg class="curve" role="img" '
        f'aria-label="learning curve" viewBox="0 0 {_WIDTH} {_HEIGHT}">{lines}{words}</svg>'
    )


def _map(one: Map) -> str:
    """Final ranks, mean over the seeds, as a coloured table."""
    known = [value for row in one.values for value in row if value is not None]
    low, high = min(known), max(known)
    head = "".join(f"<th>{escape(column)}</th>" for column in one.columns)
    lines = []
    for block, row in enumerate(one.values):
        tds = "".join("<td></td>" if value is None else _coloured(value, low, high) for value in row)
        lines.append(f"<tr><th>{block}</th>{tds}</tr>")
    return (
        f'<p>Mean final rank, {escape(one.label)}</p><div class="scroll"><table class="map"><thead><tr><th>block</th>'
        f"{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


def _coloured(value: float, low: float, high: float) -> str:
    share = (value - low) / (high - low) if high > low else 0.0
    place = min(share * (len(_COLOURS) - 1), len(_COLOURS) - 1.001)
    k, rest = int(place), place - int(place)
    mixed = [round(a + rest * (b - a)) for a, b in zip(_COLOURS[k], _COLOURS[k + 1], strict=True)]
    text = "#000000" if share > 0.5 else "#ffffff"
    return f'<td style="background: rgb({mixed[0]}, {mixed[1]}, {mixed[2]}); color: {text}">{value:.3g}</td>'


def _flat(node: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted setting and value, in order of the names."""
    for name, value in sorted(node.items()):
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{before}{name}.")
        else:
            yield f"{before}{name}", value
