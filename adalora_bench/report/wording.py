"""What a filled table of a paper says in words: its cells, marks, caption and costs. Pure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from adalora_bench.metrics import higher_is_better
from adalora_bench.report.cells import not_shown
from adalora_bench.report.papers import COSTS, VERDICTS, Cell, Filled
from adalora_bench.report.rows import Record, caveat_of, median_of, peak_memory_of, selection_of
from adalora_bench.report.statistics import median_coverage
from adalora_bench.report.text import Rank, best_and_second
from adalora_bench.settings.published import Column
from adalora_bench.store.schema import STATUSES

NOT_FOUND = "not found"


def ours(cell: Cell, places: int = 2) -> str:
    """88.09 [87.73, 88.45] n=5, or why there is no number."""
    if cell.value is None:
        return "not run" if cell.verdict == "not run" else f"{cell.absent} (n=0/{cell.n})"
    if not math.isfinite(cell.value):
        return f"diverged n={cell.finished}/{cell.n}"
    star = "*" if cell.collapsed else ""
    seeds = f"n={cell.n}" if cell.n == cell.finished else f"n={cell.finished}/{cell.n}"
    low = f"{cell.low:.{places}f}" if cell.low is not None and math.isfinite(cell.low) else "diverged"
    return f"{cell.value:.{places}f}{star} [{low}, {cell.high:.{places}f}] {seeds}"


def theirs(cell: Cell) -> str:
    """The published number with its digits (91.0, not 91), or that it was not found."""
    return NOT_FOUND if cell.published is None else str(cell.published)


def against(cell: Cell) -> str:
    """Signed gap and verdict."""
    if cell.verdict == "not run" or cell.published is None:
        return cell.verdict if cell.published is not None else ""
    return cell.verdict if cell.gap is None else f"{cell.gap:+.2f}, {cell.verdict}"


def marks(filled: Filled, column: Column) -> dict[str, str]:
    """Row label -> "best" or "second", see `best_and_second`. Costs are not ranked."""
    if set(column.metrics) & COSTS.keys():
        return {}
    found = {
        label: Rank(value=cell.value, low=cell.low, high=cell.high)
        for label, cells in filled.cells.items()
        if (cell := cells[column.label]).value is not None and math.isfinite(cell.value or math.nan)
    }
    return best_and_second(found, higher=higher_is_better(column.metrics[0]))


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
            f"Scale `{place.scale}`, backbone `{place.backbone}`, split {splits}, selection: {_selection(seeds)}."
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
    lines += sorted({f"Backbone: {text}" for record in seeds if (text := caveat_of(record))})
    lines += sorted(
        {f"Method `{r['names']['method']}`: {note}." for r in seeds for note in r.get("notes") or []}
    )
    lines += sorted({f"Subset: {r['names']['task']}: {r['subset']}." for r in seeds if r.get("subset")})
    signatures = sorted({f"`{text}`" for record in seeds for text in (record.get("metrics") or {}).values()})
    lines += [f"Metrics: {', '.join(signatures)}."] if signatures else []
    lines += [f"{note[0].upper()}{note[1:].rstrip('.')}." for note in table.notes]
    for source in dict.fromkeys(row.source for row in table.rows if row.source):
        labels = ", ".join(row.label for row in table.rows if row.source == source)
        lines.append(f"Published numbers of {labels}: {source}.")
    lines += [not_shown(filled.hidden, "with other settings or versions")] if filled.hidden else []
    lines.append(f"Verdicts: {verdicts(filled)}.")
    return lines


def verdicts(filled: Filled) -> str:
    """How many cells have which verdict."""
    totals = Counter(cell.verdict for row in filled.cells.values() for cell in row.values())
    return ", ".join(f"{totals[name]} {name}" for name in VERDICTS)


def _selection(seeds: Sequence[Record]) -> str:
    """Which evaluation of a run is shown, and on which rows it was chosen."""
    words = {"last": "the last step", "best": "the evaluation that was best on the dev rows"}
    found = {selection_of(record["split"]) for record in seeds}
    return " or, of another split, ".join(words[name] for name in sorted(found))


def costs(filled: Filled) -> list[list[str]]:
    """Row, published parameters, ours initial -> final, seconds of training and peak memory (medians over what ran)."""
    lines = []
    for row in filled.table.rows:
        initial, final, seconds, memory = spent(
            [record for chosen in filled.used[row.label].values() for record in chosen]
        )
        change = "-" if initial is None else f"{initial:,.0f}"
        if final is not None and final != initial:
            change += f" -> {final:,.0f}"
        lines.append(
            [
                row.label,
                row.params or NOT_FOUND,
                change,
                "-" if seconds is None else f"{seconds:,.0f}",
                "-" if memory is None else f"{memory / 2**30:.2f}",
            ]
        )
    return lines


def spent(seeds: Sequence[Record]) -> tuple[float | None, float | None, float | None, float | None]:
    """Parameters at the start and at the end, seconds of training, bytes of peak memory: medians over the seeds."""
    initial, final = (median_of(seeds, "params", part) for part in ("adapter_initial", "adapter_final"))
    return initial, final, median_of(seeds, "seconds", "train"), peak_memory_of(seeds)
