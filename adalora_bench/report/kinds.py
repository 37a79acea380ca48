"""Every kind of figure (conf/figure), and the pictures that records allow: pure functions of cells."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from adalora_bench.errors import UserError, unknown
from adalora_bench.metrics import higher_is_better
from adalora_bench.report import curves
from adalora_bench.report.comparison import paired_differences
from adalora_bench.report.measures import freezing, ranks_by_place
from adalora_bench.report.rows import median_of
from adalora_bench.report.scores import on_other_rows
from adalora_bench.report.series import (
    Bars,
    Data,
    Dots,
    Figure,
    Map,
    Maps,
    Picture,
    Shown,
    Steps,
    metric_of,
    scores,
    setting,
)

ROLES = ("q", "k", "v", "o", "gate", "up", "down")  # order of the columns of a map


def load_figures(folder: Path) -> dict[str, Figure]:
    """All files of conf/figure by name. UserError: a file that does not fit."""
    import yaml

    from adalora_bench.settings.config import typed

    found: dict[str, Figure] = {
        path.stem: typed(Figure, yaml.safe_load(path.read_text()), f"figure/{path.stem}")
        for path in sorted(folder.glob("*.yaml"))
    }
    for name, figure in found.items():
        if figure.kind not in KINDS:
            raise UserError(unknown(f"kind of figure {name}", figure.kind, list(KINDS)))
    return found


def pictures(name: str, figure: Figure, cells: Iterable[Shown], steps: Steps) -> list[Picture]:
    """The pictures that records allow: one per scale, backbone, split and task, or fewer."""
    chosen = [cell for cell in cells if not figure.methods or cell.row.method in figure.methods]
    places: dict[tuple[Any, str], list[Shown]] = defaultdict(list)
    for cell in chosen:
        if cell.finished:
            task = "" if figure.kind in ACROSS else cell.row.task
            places[cell.row.group, task].append(cell)
    found = []
    for (group, task), here in sorted(places.items(), key=lambda item: (item[0][0].sort_key, item[0][1])):
        if figure.kind in COMPARING:
            odd = {(row.label, row.task) for row in on_other_rows([cell.row for cell in here])}
            here = [cell for cell in here if (cell.row.label, cell.row.task) not in odd]
        data = KINDS[figure.kind](figure, here, steps)
        if data is not None:
            split = "" if group.split == "validation" else group.split
            where = ", ".join(part for part in (group.scale, group.backbone, split, task) if part)
            stem = "_".join(part for part in (name, group.scale, group.backbone, split, task) if part)
            found.append(Picture(stem=stem, title=f"{figure.title} ({where})", data=data))
    return found


def rank_map(_: Figure, cells: Sequence[Shown], __: Steps) -> Data | None:
    """Mean final rank of every matrix over the seeds, for cells in which the ranks differ."""
    maps = [one for cell in cells for one in mean_ranks(cell)]
    return Maps(unit="mean final rank", maps=maps) if maps else None


def mean_ranks(cell: Shown, *, even: bool = False) -> list[Map]:
    """One map per stack. With `even`, also where all ranks are the same."""
    found = [ranks_by_place(record) for record in cell.finished]
    if not even and len({rank for ranks in found for rank in ranks.values()}) < 2:
        return []
    at: dict[tuple[str, str, int], list[float]] = defaultdict(list)
    for ranks in found:
        for place, rank in ranks.items():
            at[place].append(rank)
    return _maps(cell, {place: fmean(values) for place, values in at.items()})


def freeze_map(_: Figure, cells: Sequence[Shown], __: Steps) -> Data | None:
    """Mean step at which each projection matrix was frozen (AFLoRA)."""
    maps = []
    for cell in cells:
        at: dict[tuple[str, str, int], list[float]] = defaultdict(list)
        for record in cell.finished:
            for (stack, role, letter, block), step in freezing(record).items():
                at[stack, f"{role}.{letter}", block].append(step)
        maps += _maps(cell, {place: fmean(values) for place, values in at.items()})
    return Maps(unit="mean step of freezing", maps=maps) if maps else None


def _maps(cell: Shown, values: Mapping[tuple[str, str, int], float]) -> list[Map]:
    stacks = sorted({stack for stack, _, _ in values})
    maps = []
    for stack in stacks:
        here = {(column, block): value for (of, column, block), value in values.items() if of == stack}
        columns = sorted(
            {column for column, _ in here}, key=lambda name: (_role_place(name.split(".")[0]), name)
        )
        blocks = range(max(block for _, block in here) + 1)
        label = cell.row.label if len(stacks) == 1 else f"{cell.row.label}, {stack}"
        table = [[here.get((column, block)) for column in columns] for block in blocks]
        maps.append(Map(label=label, columns=columns, values=table))
    return maps


def _role_place(role: str) -> tuple[int, str]:
    return (ROLES.index(role) if role in ROLES else len(ROLES), role)


def costs(_: Figure, cells: Sequence[Shown], __: Steps) -> Data | None:
    """Runtime, FLOPs of a step and parameters, each over the largest, mean over the tasks that all labels have."""
    by_label: dict[str, dict[str, Shown]] = defaultdict(dict)
    cells = without_single_seeds(cells)
    plain = [cell for cell in cells if not cell.row.overrides]
    # variations of a method are mostly run on one task, which would leave that task alone for all
    for cell in plain if len({cell.row.label for cell in plain}) > 1 else cells:
        by_label[cell.row.label][cell.row.task] = cell
    tasks = sorted(set.intersection(*(set(found) for found in by_label.values())))
    if len(by_label) < 2 or not tasks:
        return None
    names = {
        "runtime": ("seconds", "train"),
        "FLOPs of a step": ("flops", "first_step"),
        "parameters": ("params", "adapter_average"),
    }
    bars: dict[str, list[float | None]] = {label: [] for label in by_label}
    for field_name, part in names.values():
        raw = {
            label: [median_of(found[task].finished, field_name, part) for task in tasks]
            for label, found in by_label.items()
        }
        means = {
            label: fmean(known) if len(known := [v for v in values if v is not None]) == len(tasks) else None
            for label, values in raw.items()
        }
        largest = max((value for value in means.values() if value is not None), default=None)
        for label, value in means.items():
            bars[label].append(value / largest if value is not None and largest else None)
    return Bars(y=f"share of the largest ({', '.join(tasks)})", categories=list(names), bars=bars)


def by_setting(figure: Figure, cells: Sequence[Shown], __: Steps) -> Data | None:
    """Main score of the seeds for each value of one setting."""
    rows: dict[Any, tuple[str, list[float]]] = {}
    for cell in cells:
        value = setting(cell.seeds[0], figure.setting or "")
        known = [score for score in scores(cell).values() if score is not None]
        # One setting is varied alone: of several cells with the same value the plainest stands for it.
        if value is not None and (value not in rows or not cell.row.overrides):
            rows[value] = (f"{cell.row.method}, {(figure.setting or '').split('.')[-1]}={value}", known)
    if len(rows) < 2:
        return None
    order = sorted(rows, key=lambda value: (isinstance(value, str), value))
    return Dots(x=metric_of(cells), rows=[rows[value] for value in order])


def forest(figure: Figure, cells: Sequence[Shown], __: Steps) -> Data | None:
    """Paired differences of every cell to the baseline's plain one (else its first), own settings before others."""
    here = sorted(without_single_seeds(cells), key=lambda cell: bool(cell.row.overrides))
    base = [cell for cell in here if cell.row.method == figure.baseline]
    if not base:
        return None
    plain = min(base, key=lambda cell: (len(cell.row.overrides), cell.row.overrides))
    sign = 1.0 if higher_is_better(plain.row.main_metric) else -1.0
    rows = []
    for cell in here:
        if cell is not plain and cell.row.main_metric == plain.row.main_metric:
            found = paired_differences(scores(cell), scores(plain))
            if found:
                label = f"{cell.row.label} - {plain.row.label}"
                rows.append((label, [sign * value for value in found.values() if math.isfinite(value)]))
    x = f"difference in {plain.row.main_metric}, points; right is better"
    return Dots(x=x, rows=rows, zero=True) if rows else None


def without_single_seeds(cells: Sequence[Shown]) -> list[Shown]:
    """All but the cells with one seed on a task where others have more: one run beside five compares nothing."""
    most: Counter[str] = Counter()
    for cell in cells:
        most[cell.row.task] = max(most[cell.row.task], len(cell.row.seeds))
    return [cell for cell in cells if len(cell.row.seeds) > 1 or most[cell.row.task] == 1]


KINDS: dict[str, Callable[[Figure, Sequence[Shown], Steps], Data | None]] = {
    "learning": curves.learning,
    "rank_trace": curves.rank_trace,
    "parameter_trace": curves.parameter_trace,
    "cosine": curves.cosine,
    "training_matrices": curves.training_matrices,
    "penalty": curves.penalty,
    "sparsity": curves.sparsity,
    "budget": curves.budget,
    "pareto": curves.pareto,
    "rank_map": rank_map,
    "freeze_map": freeze_map,
    "costs": costs,
    "by_setting": by_setting,
    "forest": forest,
}
ACROSS = ("costs",)  # one picture for all tasks
COMPARING = (
    "learning",
    "budget",
    "pareto",
    "costs",
    "by_setting",
    "forest",
)  # not with cells trained on other rows
