"""Pictures from the data of series.py, drawn by matplotlib: SVG and PNG, the same bytes for the same records.

Lines differ in colour, dash and marker, bars in hatching, so that a picture can be read in grey; the colours are those
of Okabe and Ito, maps use cividis.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from adalora_bench.errors import UserError
from adalora_bench.files import read_jsonl, write_if_changed
from adalora_bench.records import RecordStore
from adalora_bench.report.cells import Record
from adalora_bench.report.kinds import load_figures, pictures
from adalora_bench.report.series import Bars, Data, Dots, Lines, Maps, Picture, Steps, shown
from adalora_bench.report.statistics import median

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (8, 2)), (0, (1, 3)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*")
HATCHES = ("", "//", "..", "xx", "\\\\", "--", "++", "oo")
TOGETHER = 6  # more lines than these get a panel each
# Nothing that changes from day to day.
_METADATA = {"svg": {"Date": None, "Creator": None}, "png": {"Software": None}}
STYLE = {
    "svg.hashsalt": "adalora_bench",
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9,
    "figure.titlesize": 10,
    "figure.facecolor": "white",
    "legend.frameon": False,
}


def refresh(
    conf: Path, store: RecordStore, records: Sequence[Record], folder: Path
) -> tuple[list[Path], list[str]]:
    """Write `<folder>/<picture>.svg` and .png where they changed, remove pictures that no record makes any more.

    Args:
        conf: the folder conf/figure.

    Returns:
        What was written, and the names of figures without records.
    """
    drawn, skipped = draw_all(conf, store, records)
    written = []
    for stem, files in drawn.items():
        for ending, content in files.items():
            path = folder / f"{stem}.{ending}"
            if write_if_changed(path, content):
                written.append(path)
    for path in folder.glob("*"):
        if path.suffix in (".svg", ".png") and path.stem not in drawn:
            path.unlink()
    return written, skipped


def draw_all(
    conf: Path, store: RecordStore, records: Sequence[Record]
) -> tuple[dict[str, dict[str, bytes]], list[str]]:
    """Picture -> ending -> content, and the names of figures without records."""
    found, skipped = all_pictures(conf, store, records)
    return {one.stem: draw(one) for pictures_of in found.values() for one in pictures_of}, skipped


def all_pictures(
    conf: Path, store: RecordStore, records: Sequence[Record]
) -> tuple[dict[str, list[Picture]], list[str]]:
    """Figure -> its pictures, and the names of figures without records."""
    cells = shown(records)
    found = {name: pictures(name, one, cells, steps_of(store)) for name, one in load_figures(conf).items()}
    return {name: some for name, some in found.items() if some}, [
        name for name, some in found.items() if not some
    ]


def steps_of(store: RecordStore) -> Steps:
    """Reads steps.jsonl beside a record; an absent file has no rows."""

    def read(record: Record) -> list[dict[str, Any]]:
        path = store.folder(record["names"], record["key"], record["seed"]) / "steps.jsonl"
        return read_jsonl(path)[0] if path.is_file() else []

    return read


def draw(picture: Picture, endings: Sequence[str] = ("svg", "png")) -> dict[str, bytes]:
    """Ending -> content of the file. UserError: no matplotlib."""
    try:
        import matplotlib
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure as Canvas
    except ImportError:
        raise UserError("figures need matplotlib; install it with pip install matplotlib.") from None
    with matplotlib.rc_context(STYLE):
        canvas = Canvas()
        FigureCanvasAgg(canvas)
        _DRAWERS[type(picture.data)](canvas, picture.data)
        canvas.suptitle(picture.title, x=0.01, ha="left")
        files = {}
        for ending in endings:
            out = io.BytesIO()
            canvas.savefig(out, format=ending, metadata=_METADATA[ending], dpi=110)
            files[ending] = out.getvalue()
    return files


# -- drawers ---------------------------------------------------------------------------------------------------


def _draw_lines(canvas: Canvas, data: Lines) -> None:
    single = all(len(line.x) == 1 for line in data.lines)
    if len(data.lines) > TOGETHER and not single:
        _draw_panels(canvas, data)
        return
    rows = math.ceil(len(data.lines) / 2)
    canvas.set_size_inches(7, 4 + 0.2 * rows)
    canvas.set_layout_engine("constrained")
    axes = canvas.add_subplot()
    for number, line in enumerate(data.lines):
        colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
        if single:
            low, high = line.middle[0] - line.low[0], line.high[0] - line.middle[0]
            axes.errorbar(
                line.x,
                line.middle,
                yerr=[[low], [high]],
                color=colour,
                marker=marker,
                linestyle="none",
                capsize=2,
                linewidth=1,
                label=line.label,
                markerfacecolor=colour if number < len(MARKERS) else "none",
            )
            if line.label in data.best:
                axes.plot(line.x, line.middle, "o", ms=13, mfc="none", mec="black", mew=1)
        else:
            axes.plot(
                line.x,
                line.middle,
                color=colour,
                linestyle=DASHES[number % len(DASHES)],
                marker=marker if len(line.x) <= 30 else None,
                ms=4,
                drawstyle="steps-post" if data.stairs else "default",
                label=line.label,
            )
            axes.fill_between(
                line.x, line.low, line.high, color=colour, alpha=0.15, linewidth=0, step=_step(data)
            )
    _name_axes(axes, data)
    canvas.legend(loc="outside lower left", ncols=2, fontsize=8)


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
        axes.set_title(_wrapped(line.label, 34), loc="left", fontsize=8)
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
    if data.log_x:
        axes.set_xscale("log")
    if data.log_y:
        axes.set_yscale("log")


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
        axes.set_title(_wrapped(one.label, 10 + 5 * wide), loc="left", fontsize=8)
        axes.set_ylabel("block")
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
    assert image is not None
    canvas.colorbar(image, ax=grid, shrink=0.8, label=data.unit)


def _draw_bars(canvas: Canvas, data: Bars) -> None:
    labels = list(data.bars)
    canvas.set_size_inches(7, 3.6 + 0.2 * math.ceil(len(labels) / 2))
    canvas.set_layout_engine("constrained")
    axes = canvas.add_subplot()
    width = 0.84 / len(labels)
    for number, label in enumerate(labels):
        for place, value in enumerate(data.bars[label]):
            axes.bar(
                place - 0.42 + width * (number + 0.5),
                math.nan if value is None else value,
                0.92 * width,
                color=COLOURS[number % len(COLOURS)],
                hatch=HATCHES[number % len(HATCHES)],
                edgecolor="white",
                label=label if place == 0 else None,
            )
    axes.set_xticks(range(len(data.categories)), data.categories)
    axes.set_ylabel(_wrapped(data.y, 48))
    axes.set_ylim(0, 1.05)
    canvas.legend(loc="outside lower left", ncols=2, fontsize=8)


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
    axes.set_yticks(range(len(data.rows)), [_wrapped(label, 60) for label, _ in data.rows])
    axes.set_ylim(len(data.rows) - 0.5, -0.5)
    axes.set_xlabel(data.x)
    axes.grid(visible=True, axis="x", color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)


def _wrapped(text: str, width: int) -> str:
    import textwrap

    return textwrap.fill(text, width)


_DRAWERS: dict[type[Data], Callable[..., None]] = {
    Lines: _draw_lines,
    Maps: _draw_maps,
    Bars: _draw_bars,
    Dots: _draw_dots,
}
