"""How each type of data of series.py is drawn on a matplotlib canvas.

Lines differ in colour, dash and marker, bars bear numbers, so that a picture can be read in grey; the colours are those
of Okabe and Ito, maps use cividis.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

from adalora_bench.report.series import Bars, Data, Dots, Line, Lines, Maps
from adalora_bench.report.statistics import median

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (8, 2)), (0, (1, 3)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*")
LEGEND = 44  # characters of a line in a legend of two columns
TOGETHER = 6  # more lines than these get a panel each
# Of the distance of the medians: how far the seeds may reach before the axis is cut, and where it is cut.
FAR = 2.5
EDGE = 0.25


def _draw_lines(canvas: Canvas, data: Lines) -> None:
    if all(len(line.x) == 1 for line in data.lines):
        _draw_points(canvas, data)
        return
    if len(data.lines) > TOGETHER:
        _draw_panels(canvas, data)
        return
    axes = _with_legend(canvas, len(data.lines))
    for number, line in enumerate(data.lines):
        colour = COLOURS[number % len(COLOURS)]
        axes.plot(
            line.x,
            line.middle,
            color=colour,
            linestyle=DASHES[number % len(DASHES)],
            marker=MARKERS[number % len(MARKERS)] if len(line.x) <= 30 else None,
            ms=4,
            drawstyle="steps-post" if data.stairs else "default",
            label=_wrapped(_short(line.label), LEGEND),
        )
        axes.fill_between(
            line.x, line.low, line.high, color=colour, alpha=0.15, linewidth=0, step=_step(data)
        )
    _name_axes(axes, data)
    canvas.legend(loc="outside lower left", ncols=2, fontsize=8)


def _with_legend(canvas: Canvas, entries: int) -> Axes:
    canvas.set_size_inches(7, 4 + 0.2 * math.ceil(entries / 2))
    canvas.set_layout_engine("constrained")
    return canvas.add_subplot()


def _draw_points(canvas: Canvas, data: Lines) -> None:
    """A point per line with the range of its seeds; those aside in grey, without a say in where the axis ends."""
    front = [line for line in data.lines if line.label not in data.aside]
    behind = [line for line in data.lines if line.label in data.aside]
    axes = _with_legend(canvas, len(front) + bool(behind))
    for number, line in enumerate(behind):
        label = "other settings, or fewer seeds" if number == 0 else None
        _point(axes, line, color="#AAAAAA", marker="o", ms=3, linewidth=0.7, label=label, zorder=1)
    for number, line in enumerate(front):
        colour, hollow = COLOURS[number % len(COLOURS)], number >= len(MARKERS)
        _point(
            axes,
            line,
            color=colour,
            marker=MARKERS[number % len(MARKERS)],
            markerfacecolor="none" if hollow else colour,
            linewidth=1,
            label=_wrapped(_short(line.label), LEGEND),
        )
    best = [line for line in data.lines if line.label in data.best]
    for line in best:
        axes.plot(line.x, line.middle, "o", ms=13, mfc="none", mec="black", mew=1)
    _name_axes(axes, data)
    _end_axis(axes, data, [line.middle[0] for line in front])
    _name_best(axes, best)
    canvas.legend(loc="outside lower left", ncols=2, fontsize=8)


def _point(axes: Axes, line: Line, **style: Any) -> None:
    low, high = line.middle[0] - line.low[0], line.high[0] - line.middle[0]
    axes.errorbar(line.x, line.middle, yerr=[[low], [high]], linestyle="none", capsize=2, **style)


def _end_axis(axes: Axes, data: Lines, medians: Sequence[float]) -> None:
    """Where the seeds reach much further than these medians, end the axis near them and say how many ranges are cut."""
    apart = max(medians) - min(medians)
    reach = max(line.high[0] for line in data.lines) - min(line.low[0] for line in data.lines)
    if apart == 0 or reach <= FAR * apart:
        return
    bottom, top = min(medians) - EDGE * apart, max(medians) + EDGE * apart
    cut = sum(line.low[0] < bottom or line.high[0] > top for line in data.lines)
    axes.set_ylim(bottom, top)
    axes.set_ylabel(f"{data.y} ({cut} of {len(data.lines)} ranges leave the picture)")


def _name_best(axes: Axes, best: Sequence[Line]) -> None:
    """From left to right above and below in turn, so that neighbours do not lie on each other."""
    from matplotlib.patheffects import Normal, Stroke

    for number, line in enumerate(sorted(best, key=lambda line: line.x[0])):
        axes.annotate(
            _short(line.label),
            (line.x[0], line.middle[0]),
            xytext=(6, -15 if number % 2 else 9),
            textcoords="offset points",
            fontsize=7,
            path_effects=[Stroke(linewidth=2.5, foreground="white"), Normal()],
        )


def _draw_panels(canvas: Canvas, data: Lines) -> None:
    """A panel per line with its band, the others in grey behind it, all on the same axes."""
    columns = 3
    style = "steps-post" if data.stairs else "default"
    rows = math.ceil(len(data.lines) / columns)
    canvas.set_size_inches(8, 0.6 + 1.9 * rows)
    canvas.set_layout_engine("constrained")
    grid = canvas.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for number, axes in enumerate(grid.flat):
        if number >= len(data.lines):
            axes.set_axis_off()
            continue
        line = data.lines[number]
        for other in data.lines:
            axes.plot(other.x, other.middle, color="#BBBBBB", linewidth=0.6, drawstyle=style)
        axes.fill_between(
            line.x, line.low, line.high, color=COLOURS[0], alpha=0.25, linewidth=0, step=_step(data)
        )
        marker = "o" if len(line.x) <= 30 else None
        axes.plot(line.x, line.middle, color=COLOURS[0], marker=marker, ms=3, drawstyle=style)
        axes.set_title(_wrapped(_short(line.label), 34), loc="left", fontsize=8)
        _scale_axes(axes, data)
    canvas.supxlabel(data.x, fontsize=9)
    canvas.supylabel(data.y, fontsize=9)


def _step(data: Lines) -> Literal["post"] | None:
    return "post" if data.stairs else None


def _name_axes(axes: Any, data: Lines) -> None:
    axes.set_xlabel(data.x)
    axes.set_ylabel(data.y)
    _scale_axes(axes, data)
    axes.grid(visible=True, color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)


def _scale_axes(axes: Any, data: Lines) -> None:
    """Logarithmic where wanted, with ticks at 1, 2 and 5 as far as they fit; large numbers as 20k and 3M."""
    from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, NullLocator

    for axis, log, values in (
        (axes.xaxis, data.log_x, [x for line in data.lines for x in line.x]),
        (axes.yaxis, data.log_y, [y for line in data.lines for y in line.high]),
    ):
        if not log and axis is axes.xaxis:
            axis.get_major_locator().set_params(integer=True)  # steps, blocks and parameters are whole
        if log:
            axes.set(**{f"{axis.axis_name}scale": "log"})
            axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=12))
            axis.set_minor_locator(NullLocator())
        if max(values) >= 10_000:
            axis.set_major_formatter(EngFormatter(sep=""))
        elif log and max(values) < 0.01:
            axis.set_major_formatter(FuncFormatter(lambda value, _: _short_power(value)))


def _short_power(value: float) -> str:
    """2e-4, and 2.6e-4 where ticks lie closer than a factor of 2."""
    return f"{value:.1e}".replace(".0e", "e").replace("e-0", "e-")


def _draw_maps(canvas: Canvas, data: Maps) -> None:
    columns = min(len(data.maps), 3)
    rows = math.ceil(len(data.maps) / columns)
    blocks = max(len(one.values) for one in data.maps)
    wide = max(len(one.columns) for one in data.maps)
    canvas.set_size_inches(1.2 + columns * (0.8 + 0.45 * wide), 1.0 + rows * (0.7 + 0.24 * blocks))
    canvas.set_layout_engine("constrained")
    known = [value for one in data.maps for row in one.values for value in row if value is not None]
    low, high = min(known), max(known)
    grid = canvas.subplots(rows, columns, squeeze=False)
    image = None
    for number, axes in enumerate(grid.flat):
        if number >= len(data.maps):
            axes.set_axis_off()
            continue
        one = data.maps[number]
        table = [[math.nan if value is None else value for value in row] for row in one.values]
        image = axes.imshow(table, cmap="cividis", vmin=low, vmax=high, aspect="auto")
        for i, row in enumerate(one.values):
            for j, value in enumerate(row):
                if value is not None:
                    dark = high > low and (value - low) / (high - low) < 0.5
                    axes.text(
                        j,
                        i,
                        f"{value:.3g}",
                        ha="center",
                        va="center",
                        fontsize=6.5,
                        color="white" if dark else "black",
                    )
        axes.set_xticks(range(len(one.columns)), one.columns)
        axes.set_yticks(range(len(one.values)), [str(block) for block in range(len(one.values))])
        axes.set_title(_wrapped(_short(one.label), 10 + 5 * wide), loc="left", fontsize=8)
        axes.set_ylabel("block")
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
    assert image is not None
    canvas.colorbar(image, ax=grid, shrink=0.8, label=data.unit)


def _draw_bars(canvas: Canvas, data: Bars) -> None:
    """A panel per category, a bar per label with its number: no colour has to be told from another."""
    labels = list(data.bars)
    canvas.set_size_inches(7.5, 1.1 + 0.24 * len(labels))
    canvas.set_layout_engine("constrained")
    grid = canvas.subplots(1, len(data.categories), sharey=True, squeeze=False)
    for place, (axes, category) in enumerate(zip(grid.flat, data.categories, strict=True)):
        for number, label in enumerate(labels):
            value = data.bars[label][place]
            axes.barh(number, value or 0.0, 0.7, color=COLOURS[0])
            axes.text((value or 0.0) + 0.02, number, _share(value), va="center", fontsize=7)
        axes.set_title(category, loc="left")
        axes.set_xlim(0, 1.25)
        axes.set_xticks([0, 0.5, 1])
        axes.tick_params(axis="y", length=0)
    grid.flat[0].set_yticks(range(len(labels)), [_wrapped(_short(label), 34) for label in labels])
    grid.flat[0].set_ylim(len(labels) - 0.4, -0.6)
    canvas.supxlabel(_wrapped(data.y, 100), fontsize=9)


def _share(value: float | None) -> str:
    return "not recorded" if value is None else f"{value:.2f}" if value >= 0.01 else f"{value:.1g}"


def _draw_dots(canvas: Canvas, data: Dots) -> None:
    """Dots of the seeds, a line from the lowest to the highest and a bar at the median."""
    canvas.set_size_inches(7.5, 1.2 + 0.34 * len(data.rows))
    canvas.set_layout_engine("constrained")
    axes = canvas.add_subplot()
    if data.zero:
        axes.axvline(0, color="black", linewidth=0.8)
    for number, (_, values) in enumerate(data.rows):
        if values:
            axes.plot([min(values), max(values)], [number, number], color="#888888", linewidth=1.2)
            axes.plot(values, [number] * len(values), "o", ms=4.5, mfc="none", mec=COLOURS[0])
            axes.plot([median(values)], [number], "|", ms=14, mew=2.4, color=COLOURS[1])
    axes.set_yticks(range(len(data.rows)), [_wrapped(_short(label), 60) for label, _ in data.rows])
    axes.set_ylim(len(data.rows) - 0.5, -0.5)
    axes.set_xlabel(data.x)
    axes.grid(visible=True, axis="x", color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)


def _wrapped(text: str, width: int) -> str:
    import textwrap

    return textwrap.fill(text, width, break_long_words=False)


def _short(label: str) -> str:
    """lora (rank=2) for lora (method.rank=2): most settings are the method's."""
    return label.replace("(method.", "(").replace(", method.", ", ")


DRAWERS: dict[type[Data], Callable[..., None]] = {
    Lines: _draw_lines,
    Maps: _draw_maps,
    Bars: _draw_bars,
    Dots: _draw_dots,
}
