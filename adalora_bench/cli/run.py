"""bench run, plan and fetch: cells of a command, checked, trained, and shown."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adalora_bench.cli.results import (
    all_tried,
    console,
    light_records,
    print_cells,
    refresh_papers,
    refresh_tables,
    say_verdicts,
)
from adalora_bench.engine.units import Summary, Unit, count, summary_lines, unit_folder
from adalora_bench.errors import EXIT_OK, UserError
from adalora_bench.settings import prepare
from adalora_bench.settings.config import Cell
from adalora_bench.settings.prepare import Assets

if TYPE_CHECKING:
    from rich.console import Console


def run_command(arguments: argparse.Namespace) -> int:
    """Check everything that can be checked, skip what is recorded, train the rest, refresh the tables."""
    from adalora_bench.engine.launch import check
    from adalora_bench.settings.cells import checked
    from adalora_bench.store.records import RecordStore

    out = console()
    cells = _cells(arguments, out)
    common = cells[0].config
    check(common["launcher"])
    places = prepare.places_of(common)
    table = _is_table(arguments)
    present = prepare.look(cells, places)
    cells, _, left_out = checked(cells, present, table=table)
    _say(left_out, out)
    _say_scale(cells, arguments.overrides, out)
    found = prepare.assets(cells, places)
    if found != present:  # what was not there before may have other row counts than official
        cells, _, left_out = checked(cells, found, table=table)
        _say(left_out, out)
    cells = _keyed(cells, found, out)

    results = Path(common["results_dir"])
    store = RecordStore(results / "runs")
    store.check_writable()
    units = [Unit(cell, seed) for cell in cells for seed in cell.seeds]
    done = [not common["force"] and store.is_done(unit.cell, unit.seed) for unit in units]
    skipped = [unit for unit, is_done in zip(units, done, strict=True) if is_done]
    for unit in skipped:
        store.tidy(unit_folder(results, unit))
    if skipped:
        out.print(f"skipped: {count(len(skipped), 'unit')} already recorded (force=true runs them again)")
    todo = [unit for unit, is_done in zip(units, done, strict=True) if not is_done]
    summary = _train(todo, skipped, common, results)
    tables = [
        name for text in arguments.overrides if text.startswith("table=") for name in text[6:].split(",")
    ]
    with all_tried() as attempt:  # whatever becomes of the tables, the command says how its units ended
        attempt(_tables, results, cells, tables, out)
        for line in summary_lines(summary, forced=common["force"]):
            out.print(line, soft_wrap=True)
    return summary.exit_code


def _tables(results: Path, cells: list[Cell], tables: Sequence[str], out: Console) -> None:
    """What a command's units changed: tables, those of papers that were asked for, and the cells on the terminal."""
    scan = light_records(results)
    with all_tried() as attempt:
        attempt(refresh_tables, results, scan, cells, out)
        if tables:
            attempt(refresh_papers, results, scan.records, tables, out)
        print_cells(results, scan.records, cells, out)
        if tables:
            say_verdicts(results, scan.records, tables, {cell.names["scale"] for cell in cells}, out)


def plan_command(arguments: argparse.Namespace) -> int:
    """Which units are done, missing, stale or failed, the phases of each method, hours and GiB by past records."""
    from adalora_bench.engine import plan
    from adalora_bench.engine.local import worker_count
    from adalora_bench.settings.cells import checked
    from adalora_bench.store.records import RecordStore

    out = console()
    cells = _cells(arguments, out)
    common = cells[0].config
    found = prepare.look(cells, prepare.places_of(common))
    cells = _keyed(cells, found, out)
    cells, facts, left_out = checked(cells, found, table=_is_table(arguments))
    _say(left_out, out)
    _say_scale(cells, arguments.overrides, out)
    records = light_records(Path(common["results_dir"])).records
    workers = worker_count(common["jobs"], sum(len(cell.seeds) for cell in cells), _devices(cells))
    if not RecordStore(Path(common["results_dir"]) / "runs").may_be_written():
        out.print(
            f"note: {common['results_dir']} cannot be written from here, so a run would be refused",
            soft_wrap=True,
        )
    for line in plan.plan_lines(plan.plan(cells, facts, records), jobs=workers):
        out.print(line, soft_wrap=True)
    return EXIT_OK


def _cells(arguments: argparse.Namespace, out: Console) -> list[Cell]:
    """The cells of a command; only a table=NAME needs the tables' module."""
    from adalora_bench.settings.compose import compose_cells

    if not _is_table(arguments):
        return compose_cells(arguments.overrides, multirun=arguments.multirun)
    from adalora_bench.settings.cells import cells_of

    cells, left_out = cells_of(arguments.overrides, multirun=arguments.multirun)
    _say(left_out, out)
    return cells


def _keyed(cells: list[Cell], found: Assets, out: Console) -> list[Cell]:
    """The cells with their keys; says where several that were typed are one."""
    keyed = prepare.keyed(cells, found)
    if len(keyed) < len(cells):
        again = count(len(cells) - len(keyed), "cell")
        out.print(f"counted once: {again} with the same numbers as another of this command", soft_wrap=True)
    return keyed


def _is_table(arguments: argparse.Namespace) -> bool:
    return any(text.startswith("table=") for text in arguments.overrides)


def _say(sentences: Sequence[str], out: Console) -> None:
    for sentence in sentences:
        out.print(sentence, soft_wrap=True)


def _train(todo: list[Any], skipped: list[Any], common: dict[str, Any], results: Path) -> Summary:
    from adalora_bench.engine.launch import launch
    from adalora_bench.engine.progress import make_progress

    if not todo:
        return Summary(skipped=skipped)
    options = {"force": common["force"], "on_interrupt": common["on_interrupt"]}
    options |= _devices([unit.cell for unit in todo])
    if common["launcher"] != "local":
        options["launch"] = common["launch"] | {"cpus": max(common["launch"]["cpus"], options["gpus_each"])}
    if common["launcher"] == "ray":
        from adalora_bench.engine import plan

        options["gib"] = plan.gib_of([unit.cell for unit in todo], light_records(results).records)
    return launch(
        todo,
        store_root=results,
        jobs=common["jobs"],
        options=options,
        progress=make_progress(),
        skipped=skipped,
        launcher=common["launcher"],
    )


def _devices(cells: Sequence[Cell]) -> dict[str, Any]:
    """What workers share: the GPUs of this machine, and how many of them (or of the cores) one unit takes."""
    from adalora_bench.settings.compose import accelerators

    gpus = [] if cells[0].config["device"] == "cpu" else accelerators()
    return {"gpus": gpus, "gpus_each": max(cell.config["processes"] for cell in cells)}


def _say_scale(cells: list[Cell], overrides: Sequence[str], out: Console) -> None:
    if not any(text.startswith("scale=") for text in overrides):
        scale = cells[0].names["scale"]
        why = "an accelerator was found" if scale == "paper" else "no accelerator was found"
        backbones = ", ".join(dict.fromkeys(cell.names["backbone"] for cell in cells))
        out.print(f"scale={scale} (backbone {backbones}), because {why}; scale=paper, cpu or smoke chooses.")


def fetch_command(arguments: argparse.Namespace) -> int:
    """Bring what the cells of a command read. A task or a backbone alone will do: the method does not matter."""
    from adalora_bench.data.sources import ensure
    from adalora_bench.settings.compose import compose_cells

    out = console()
    named = {text.split("=", 1)[0] for text in arguments.overrides}
    if not named & {"task", "backbone"}:
        raise UserError("nothing to fetch; name a task or a backbone, for example bench fetch task=rte,mrpc.")
    # what is not named costs nothing: no method has assets, and the toy task is made by code
    rest = [text for name, text in (("method", "method=lora"), ("task", "task=toy")) if name not in named]
    overrides = [*arguments.overrides, *rest]
    cells = compose_cells(overrides, multirun=True)
    _say_scale(cells, overrides, out)
    every = prepare.wanted(cells)
    for want, found in zip(every, ensure(every, prepare.places_of(cells[0].config)), strict=True):
        out.print(f"{want.name}: {found.served_by}, {found.detail}", soft_wrap=True)
    return EXIT_OK
