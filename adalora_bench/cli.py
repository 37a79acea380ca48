"""bench: run | fetch | tables | ls. Thin: parses, asks the other modules, prints. Imports the heavy ones late."""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adalora_bench.errors import EXIT_INTERRUPTED, EXIT_OK, UserError

if TYPE_CHECKING:
    from rich.console import Console

    from adalora_bench.config import Cell
    from adalora_bench.units import Summary

OVERRIDES_HELP = "settings as name=value: method=increlora task=rte method.target_rank=4 'seeds=[0,1]'"


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the `bench` command. Returns the exit code (errors.py)."""
    arguments = _parser().parse_args(argv)
    try:
        code: int = arguments.command(arguments)
        return code
    except UserError as error:
        sys.stderr.write(f"bench: {error}\n")
        return error.exit_code
    except KeyboardInterrupt:
        sys.stderr.write("bench: interrupted; nothing was lost.\n")
        return EXIT_INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bench", description="Fine-tune with adaptive low-rank methods, and compare them fairly."
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def add(name: str, command: Any, text: str, **more: Any) -> argparse.ArgumentParser:
        sub = commands.add_parser(
            name, help=text, description=text, formatter_class=argparse.RawDescriptionHelpFormatter, **more
        )
        sub.set_defaults(command=command)
        return sub

    run = add(
        "run", run_command, "train cells (method x task x backbone) under their seeds", epilog=_groups()
    )
    run.add_argument("-m", "--multirun", action="store_true", help="run every combination of task=rte,mrpc")
    run.add_argument("overrides", nargs="*", metavar="NAME=VALUE", help=OVERRIDES_HELP)
    fetch = add("fetch", fetch_command, "bring the data and weights that a run needs", epilog=_groups())
    fetch.add_argument(
        "overrides", nargs="*", metavar="NAME=VALUE", help="task=rte, or all settings of a run"
    )
    tables = add("tables", tables_command, "write results/tables from the records; never trains")
    tables.add_argument(
        "--compare", action="store_true", help="print the cells of the records on the terminal"
    )
    tables.add_argument(
        "overrides", nargs="*", metavar="NAME=VALUE", help="results_dir=..., and task=... with --compare"
    )
    listing = add("ls", ls_command, "list methods, tasks, backbones or scales with one line each")
    listing.add_argument("group", choices=["methods", "tasks", "backbones", "scales"])
    return parser


def _groups() -> str:
    """The options of every config group, for --help."""
    from adalora_bench.compose import options
    from adalora_bench.config import GROUPS

    lines = [
        textwrap.fill(
            ", ".join(options(group)), 110, initial_indent=f"  {group + '=':10} ", subsequent_indent=" " * 13
        )
        for group in GROUPS
    ]
    return "\n".join(
        ["groups:", *lines, "\nAny other setting of conf/*.yaml is changed the same way: train.epochs=5"]
    )


# -- run -------------------------------------------------------------------------------------------------------


def run_command(arguments: argparse.Namespace) -> int:
    """Check everything that can be checked, skip what is recorded, train the rest, refresh the tables."""
    from adalora_bench import prepare
    from adalora_bench.compose import compose_cells
    from adalora_bench.records import RecordStore
    from adalora_bench.units import Unit

    console = _console()
    cells = compose_cells(arguments.overrides, multirun=arguments.multirun)
    common = cells[0].config
    places = prepare.places_of(common)
    present = prepare.look(cells, places)
    for cell in cells:
        prepare.check_late_failures(cell, present)
    _say_scale(cells, arguments.overrides, console)
    found = prepare.assets(cells, places)
    if found.keys() - present.keys():  # what was not there before may have other row counts than official
        for cell in cells:
            prepare.check_late_failures(cell, found)
    cells = prepare.keyed(cells, found)

    results = Path(common["results_dir"])
    store = RecordStore(results / "runs")
    store.check_writable()
    units = [Unit(cell, seed) for cell in cells for seed in cell.seeds]
    skipped = [] if common["force"] else [unit for unit in units if store.is_done(unit.cell, unit.seed)]
    if skipped:
        console.print(
            f"skipped: {_count(len(skipped), 'unit')} already recorded (force=true runs them again)"
        )
    todo = [unit for unit in units if unit not in skipped]
    summary = _train(todo, skipped, common, results)
    _refresh_tables(results, cells, console)
    _print_cells(results, cells, console)
    _print_summary(summary, console, forced=common["force"])
    return summary.exit_code


def _train(todo: list[Any], skipped: list[Any], common: dict[str, Any], results: Path) -> Summary:
    from adalora_bench.compose import accelerators
    from adalora_bench.launch import launch
    from adalora_bench.progress import make_progress
    from adalora_bench.units import Summary

    if not todo:
        return Summary(skipped=skipped)
    gpus = [] if common["device"] == "cpu" else accelerators()
    options = {"force": common["force"], "gpus": gpus}
    return launch(
        todo,
        store_root=results,
        jobs=common["jobs"],
        options=options,
        progress=make_progress(),
        skipped=skipped,
    )


def _say_scale(cells: list[Cell], overrides: Sequence[str], console: Console) -> None:
    if not any(text.startswith("scale=") for text in overrides):
        scale = cells[0].names["scale"]
        why = "an accelerator was found" if scale == "paper" else "no accelerator was found"
        backbones = ", ".join(dict.fromkeys(cell.names["backbone"] for cell in cells))
        console.print(
            f"scale={scale} (backbone {backbones}), because {why}; scale=paper, cpu or smoke chooses."
        )


def _print_summary(summary: Summary, console: Console, *, forced: bool) -> None:
    from adalora_bench.units import rerun_command

    parts = [f"{len(summary.done)} done", f"{len(summary.skipped)} skipped", f"{len(summary.failed)} failed"]
    for name in ("held", "left"):
        if getattr(summary, name):
            parts.append(f"{len(getattr(summary, name))} {name}")
    console.print("units: " + ", ".join(parts))
    for failure in summary.failed:
        console.print(f"failed: {failure.unit.name}: {failure.cause}", soft_wrap=True)
        if failure.error_log:
            console.print(f"  log:   {failure.error_log}", soft_wrap=True)
        console.print(f"  again: {rerun_command(failure.unit)}", soft_wrap=True)
    for unit in summary.held:
        console.print(f"held: {unit.name} is being trained by another process", soft_wrap=True)
    if summary.interrupted is not None:
        again = " without force=true" if forced else ""
        console.print(
            f"interrupted: {_count(len(summary.left), 'unit')} left, each saved where it was; what was finished is "
            f"kept. The same command{again} goes on from here.",
            soft_wrap=True,
        )


# -- tables ----------------------------------------------------------------------------------------------------


def tables_command(arguments: argparse.Namespace) -> int:
    """Every table from the records; with --compare, the cells on the terminal as well."""
    chosen = _plain(arguments.overrides, {"results_dir", "task", "method", "backbone", "scale"})
    results = Path(chosen.pop("results_dir", "results"))
    if chosen and not arguments.compare:
        raise UserError(
            f"{next(iter(chosen))}= chooses what --compare prints; without it every table is written."
        )
    console = _console()
    _refresh_tables(results, None, console)
    if arguments.compare or not (results / "runs").is_dir():
        _print_cells(results, None, console, chosen)
    return EXIT_OK


def _refresh_tables(results: Path, cells: list[Cell] | None, console: Console) -> None:
    """Write the tables that these cells touch (None: all)."""
    from adalora_bench.report.cells import Group
    from adalora_bench.report.tables import refresh, table_name

    only = (
        None
        if cells is None
        else {
            table_name(
                Group(scale=cell.names["scale"], backbone=cell.names["backbone"], split=cell.config["split"])
            )
            for cell in cells
        }
    )
    for path in refresh(results / "runs", results / "tables", only):
        console.print(f"wrote {path}", soft_wrap=True)


def _print_cells(
    results: Path, cells: list[Cell] | None, console: Console, chosen: dict[str, str] | None = None
) -> None:
    """A small table on the terminal: median, range and n of each cell beside the majority class."""
    from adalora_bench.records import RecordStore
    from adalora_bench.report.cells import cell_summary
    from adalora_bench.report.terminal import cells_table

    keys = None if cells is None else {cell.key for cell in cells}
    wanted = chosen or {}
    records = [
        record
        for record in RecordStore(results / "runs").scan(light=True).records
        if (keys is None or record["key"] in keys)
        and all(record["names"][group] == name for group, name in wanted.items())
    ]
    if records:
        console.print(cells_table(cell_summary(records)))
    elif cells is None:
        console.print(f"no records in {results}; `bench run method=lora task=film_reviews` makes some.")


# -- fetch, ls -------------------------------------------------------------------------------------------------


def fetch_command(arguments: argparse.Namespace) -> int:
    """Bring what the cells of a command read. A task or a backbone alone will do: the method does not matter."""
    from adalora_bench import prepare
    from adalora_bench.compose import compose_cells

    console = _console()
    named = {text.split("=", 1)[0] for text in arguments.overrides}
    if not named & {"task", "backbone"}:
        raise UserError("nothing to fetch; name a task or a backbone, for example bench fetch task=rte,mrpc.")
    # what is not named costs nothing: no method has assets, and the toy task is made by code
    rest = [text for name, text in (("method", "method=lora"), ("task", "task=toy")) if name not in named]
    overrides = [*arguments.overrides, *rest]
    cells = compose_cells(overrides, multirun=True)
    _say_scale(cells, overrides, console)
    for name, found in prepare.assets(cells, prepare.places_of(cells[0].config)).items():
        console.print(f"{name}: {found.served_by}, {found.detail}", soft_wrap=True)
    return EXIT_OK


def ls_command(arguments: argparse.Namespace) -> int:
    """One line for each option of a group: its description, or the first comment of its file."""
    from rich.table import Table

    from adalora_bench.compose import describe, options

    group = arguments.group.removesuffix("s")
    table = Table(box=None, show_header=False, pad_edge=False)
    for name in options(group):
        table.add_row(name, describe(group, name))
    _console().print(table)
    return EXIT_OK


# -- small things ----------------------------------------------------------------------------------------------


def _console() -> Console:
    """Standard output: coloured on a terminal, plain and 120 wide elsewhere."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 120, highlight=False, markup=False)


def _plain(overrides: Sequence[str], valid: set[str]) -> dict[str, str]:
    """name=value pairs of a command that composes nothing."""
    from adalora_bench.errors import unknown

    chosen = {}
    for text in overrides:
        name, equals, value = text.partition("=")
        if not equals:
            raise UserError(f"cannot read {text!r}; settings are written name=value, for example task=rte.")
        if name not in valid:
            raise UserError(unknown("setting", name, valid))
        chosen[name] = value
    return chosen


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


if __name__ == "__main__":
    sys.exit(main())
