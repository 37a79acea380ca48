"""Pictures from the data of series.py, drawn by matplotlib: SVG and PNG, the same bytes for the same records.

drawing.py has how each type of data looks.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from adalora_bench.errors import UserError
from adalora_bench.report.drawing import DRAWERS
from adalora_bench.report.kinds import load_figures, pictures
from adalora_bench.report.rows import Record
from adalora_bench.report.series import Picture, Steps, shown
from adalora_bench.store.files import write_all, writing
from adalora_bench.store.records import RecordStore

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
    "text.parse_math": False,  # a $ in a label is a $
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
    for path in folder.glob("*"):
        if path.suffix in (".svg", ".png") and path.stem not in drawn and path.is_file():
            with writing(path):
                path.unlink()
    written = write_all(
        (folder / f"{stem}.{ending}", content)
        for stem, files in drawn.items()
        for ending, content in files.items()
    )
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
        return store.steps(store.folder(record["names"], record["key"], record["seed"]))

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
        DRAWERS[type(picture.data)](canvas, picture.data)
        canvas.suptitle(picture.title, x=0.01, ha="left")
        files = {}
        for ending in endings:
            out = io.BytesIO()
            canvas.savefig(out, format=ending, metadata=_METADATA[ending], dpi=110)
            files[ending] = out.getvalue()
    return files
