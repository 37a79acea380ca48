"""Kinds of figures that are lines over steps, ranks or parameters: pure functions of cells."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from adalora_bench.metrics import higher_is_better, printed
from adalora_bench.report.measures import cosine_by_block
from adalora_bench.report.rows import Record
from adalora_bench.report.series import (
    Data,
    Figure,
    Line,
    Lines,
    Shown,
    Steps,
    band,
    front,
    lines_of,
    metric_of,
    scores,
    setting,
    staircase,
)
from adalora_bench.report.statistics import median

# What a point of a line of budgets may set. Not the targets: other matrices are another method's line.
ON_THE_LINE = {
    "method.rank",
    "method.init_rank",
    "method.target_rank",
    "method.ranks_per_growth",
    "method.lr",
}


def learning(_: Figure, cells: Sequence[Shown], __: Steps) -> Data | None:
    """Main score of the report rows at every evaluation."""
    found = []
    for cell in cells:
        metric = cell.row.main_metric
        seeds = [
            [
                (float(point["step"]), printed(metric, point["scores"][metric]))
                for point in record.get("history") or []
                if point["scores"].get(metric) is not None
            ]
            for record in cell.finished
        ]
        found.append(band(cell.row.label, seeds))
    return lines_of("step", metric_of(cells), found)


def rank_trace(_: Figure, cells: Sequence[Shown], __: Steps) -> Data | None:
    """Total rank over the steps, for cells in which it changes; of SoRA the ranks whose gate is not 0."""
    return lines_of("step", "total rank", _traced(cells, "ranks", 1), stairs=True)


def parameter_trace(_: Figure, cells: Sequence[Shown], __: Steps) -> Data | None:
    """Adapter parameters that train over the steps, where they change; of SoRA those of ranks whose gate is not 0."""
    return lines_of("step", "adapter parameters that train", _traced(cells, "params", 2), stairs=True)


def _traced(cells: Sequence[Shown], field: str, place: int) -> list[Line | None]:
    """The trace of a record's `field`, or of `ranks.nonzero` the entry at `place`, for cells in which it changes."""
    found = []
    for cell in cells:
        traces: list[list[tuple[float, float]]] = []
        for record in cell.finished:
            nonzero = [(point[0], point[place]) for point in (record.get("ranks") or {}).get("nonzero") or []]
            traces.append(
                nonzero or [(at, value) for at, value in (record.get(field) or {}).get("trace") or []]
            )
        if any(len({value for _, value in trace}) > 1 for trace in traces):
            ends = {float(record.get("steps") or 0) for record in cell.finished}
            xs = sorted({at for trace in traces for at, _ in trace} | ends)
            found.append(band(cell.row.label, [staircase(trace, xs) for trace in traces]))
    return found


def cosine(_: Figure, cells: Sequence[Shown], __: Steps) -> Data | None:
    """1 - cosine of trained to pretrained weights, mean over the matrices of a block (Delta-LoRA, Figure 3)."""
    found = []
    for cell in cells:
        seeds = [cosine_by_block(record) for record in cell.finished]
        stacks = sorted({stack for one in seeds for stack, _ in one})
        for stack in stacks:
            label = cell.row.label if len(stacks) == 1 else f"{cell.row.label}, {stack}"
            points = [
                # a block that no rank reached has not turned: 0 stands on no logarithmic axis
                [
                    (float(block), 1 - value)
                    for (of, block), value in sorted(one.items())
                    if of == stack and value < 1
                ]
                for one in seeds
            ]
            found.append(band(label, points))
    return lines_of("block", "1 - cosine, mean over the matrices of a block", found, log_y=True)


def training_matrices(_: Figure, cells: Sequence[Shown], __: Steps) -> Data | None:
    """Projection matrices that still train over the steps (AFLoRA)."""
    found = []
    for cell in cells:
        events = [(r, [e for e in r.get("events") or [] if e["kind"] == "freeze"]) for r in cell.finished]
        events = [(record, seen) for record, seen in events if seen]
        xs = sorted({0} | {e["step"] for _, seen in events for e in seen} | {r["steps"] for r, _ in events})
        found.append(
            band(
                cell.row.label,
                [
                    staircase([(0, seen[0]["before"]), *((e["step"], e["after"]) for e in seen)], xs)
                    for _, seen in events
                ],
            )
            if events
            else None
        )
    return lines_of("step", "projection matrices that train", found, stairs=True)


def penalty(figure: Figure, cells: Sequence[Shown], steps: Steps) -> Data | None:
    """Penalty over its weight (`setting`): the orthogonality loss itself."""
    found = []
    for cell in cells:
        seeds = []
        for record in cell.finished:
            weight = setting(record, figure.setting or "")
            if weight:
                seeds.append(
                    [
                        (float(row["step"]), row["penalty"] / weight)
                        for row in steps(record)
                        if row.get("penalty") is not None
                    ]
                )
        found.append(band(cell.row.label, seeds))
    return lines_of("step", "orthogonality loss", found)


def sparsity(_: Figure, cells: Sequence[Shown], __: Steps) -> Data | None:
    """Training and report score at the end of each stage, against the parameters that are left (SoRA, Algorithm 1).

    Records that did not count the parameters yet have the ranks; one axis cannot hold both.
    """
    found = []
    counted = all(
        (r.get("ranks") or {}).get("nonzero") for cell in cells for r in cell.finished if _stages(r)
    )
    for cell in cells:
        metric = cell.row.main_metric
        both: dict[str, list[list[tuple[float, float]]]] = {"train_scores": [], "scores": []}
        for record in cell.finished:
            left = {e["step"] + 1: e["after"] for e in _stages(record)}
            if counted:
                left = {step + 1: numbers for step, _, numbers in record["ranks"].get("nonzero") or []}
            stages = [
                point
                for point in record.get("history") or []
                if point.get("train_scores") and point["step"] in left
            ]
            for which, seeds in both.items():
                seeds.append(
                    [
                        (float(left[p["step"]]), printed(metric, p[which][metric]))
                        for p in stages
                        if p[which].get(metric) is not None
                    ]
                )
        # Seeds end a stage with other counts: the k-th stage of all seeds is one point.
        for which, word in (("train_scores", "training rows"), ("scores", "report rows")):
            found.append(_by_stage(f"{cell.row.label}, {word}", both[which]))
    what = "parameters of ranks" if counted else "ranks"
    return lines_of(f"{what} whose gate is not 0, median of the seeds", metric_of(cells), found)


def _stages(record: Record) -> list[Any]:
    return [event for event in record.get("events") or [] if event["kind"] == "stage"]


def _by_stage(label: str, seeds: Sequence[Sequence[tuple[float, float]]]) -> Line | None:
    stages = [list(stage) for stage in zip(*[one for one in seeds if one], strict=False)]
    if len(stages) < 2:
        return None
    order = sorted(stages, key=lambda stage: median([x for x, _ in stage]))
    return Line(
        label=label,
        x=[median([x for x, _ in stage]) for stage in order],
        middle=[median([y for _, y in stage]) for stage in order],
        low=[min(y for _, y in stage) for stage in order],
        high=[max(y for _, y in stage) for stage in order],
    )


def budget(_: Figure, cells: Sequence[Shown], __: Steps) -> Data | None:
    """Main score of one method at several budgets, against the parameters at the end.

    Cells that set more than the budget and its learning rate are no point of a line. Of those with one number of
    parameters the best median stands, as in the table of equal budgets; of equal ones the plainest.
    """
    by_method: dict[str, dict[float, list[float]]] = defaultdict(dict)
    for cell in sorted(cells, key=lambda one: (-one.row.middle, len(one.row.overrides), one.row.overrides)):
        known = [value for value in scores(cell).values() if value is not None]
        if cell.row.params_final and known and cell.row.overridden <= ON_THE_LINE:
            by_method[cell.row.method].setdefault(cell.row.params_final, known)
    lines = []
    for method, places in sorted(by_method.items()):
        if len(places) > 1:
            xs = sorted(places)
            lines.append(
                Line(
                    label=method,
                    x=xs,
                    middle=[median(places[x]) for x in xs],
                    low=[min(places[x]) for x in xs],
                    high=[max(places[x]) for x in xs],
                )
            )
    return lines_of("adapter parameters at the end", metric_of(cells), lines, log_x=True)


def pareto(_: Figure, cells: Sequence[Shown], __: Steps) -> Data | None:
    """Main score of every cell against the parameters at the end; the front of those with all seeds is marked.

    Other settings than a method's own stand aside, and so do cells with fewer seeds.
    """
    lines, of, aside = [], {}, []
    sign = 1.0 if higher_is_better(metric_of(cells)) else -1.0
    most = max((len(cell.row.seeds) for cell in cells), default=0)
    for cell in cells:
        known = [value for value in scores(cell).values() if value is not None]
        if cell.row.params_final:
            line = band(cell.row.label, [[(cell.row.params_final, value)] for value in known])
            assert line is not None
            lines.append(line)
            if len(cell.row.seeds) == most:
                of[cell.row.label] = (line.x[0], sign * line.middle[0])
            if cell.row.overrides or len(cell.row.seeds) < most:
                aside.append(cell.row.label)
    if len(lines) < 2:
        return None
    return Lines(
        x="adapter parameters at the end",
        y=metric_of(cells),
        lines=lines,
        log_x=True,
        best=front(of),
        aside=aside if len(aside) < len(lines) else [],
    )
