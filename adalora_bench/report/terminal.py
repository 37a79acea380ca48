"""The cells of a command as a small table for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table

from adalora_bench.metrics import printed
from adalora_bench.report.rows import CellRow
from adalora_bench.report.statistics import Summary


def cells_table(rows: Sequence[CellRow]) -> Table:
    """One line per cell: main score as median [min, max] x 100, n, majority class, ranks, parameters, seconds."""
    places = dict.fromkeys(
        f"{row.group.backbone}, scale {row.group.scale}, split {row.group.split}" for row in rows
    )
    table = Table(
        title="; ".join(places), title_justify="left", title_style="", box=SIMPLE_HEAD, pad_edge=False
    )
    for name in ("task", "method"):
        table.add_column(name, overflow="fold")
    for name in ("median [min, max]", "n", "majority", "ranks", "parameters", "train seconds"):
        table.add_column(name, justify="right", no_wrap=name in ("median [min, max]", "ranks", "parameters"))
    several = len(places) > 1
    for row in rows:
        summary = row.scores.get(row.main_metric)
        table.add_row(
            row.task,
            f"{row.short} @ {row.group.backbone}" if several else row.short,
            row.main_metric + " " + ("-" if summary is None else _interval(row.main_metric, summary)),
            "-" if summary is None else _n(summary, row.statuses),
            _score(row.main_metric, row.baseline.get(row.main_metric)),
            _change(row.rank_initial, row.rank_final),
            _change(row.params_initial, row.params_final),
            "-" if row.seconds is None else f"{row.seconds:.0f}",
        )
    return table


def _interval(metric: str, summary: Summary) -> str:
    median, low, high = (_score(metric, value) for value in (summary.median, summary.low, summary.high))
    return f"{median} [{low}, {high}]"


def _n(summary: Summary, statuses: dict[str, int]) -> str:
    n = str(summary.n) if summary.finished == summary.n else f"{summary.finished}/{summary.n}"
    return f"{n}*" if statuses.get("collapsed") else n


def _score(metric: str, value: float | None) -> str:
    if value is None:
        return "-"
    return f"{printed(metric, value):.1f}" if abs(value) != float("inf") else "diverged"


def _change(initial: float | None, final: float | None) -> str:
    if initial is None or final is None:
        return "-"
    return f"{final:,.0f}" if initial == final else f"{initial:,.0f} -> {final:,.0f}"
