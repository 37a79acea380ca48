"""bench: run, plan, fetch; tables, claims, figures, report, collect, export, judge, show, ls. Thin; imports late."""

from __future__ import annotations

import argparse
import os
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adalora_bench.errors import EXIT_INTERRUPTED, EXIT_OK, UserError
from adalora_bench.reading import (
    claims_command,
    collect_command,
    console,
    export_command,
    figures_command,
    judge_command,
    light_records,
    ls_command,
    print_cells,
    refresh_papers,
    refresh_tables,
    report_command,
    say_verdicts,
    show_command,
    tables_command,
)
from adalora_bench.settings.conf_files import CONF_VARIABLE

if TYPE_CHECKING:
    from rich.console import Console

    from adalora_bench.engine.units import Summary
    from adalora_bench.settings.config import Cell

OVERRIDES_HELP = "settings as name=value: method=increlora task=rte method.target_rank=4 'seeds=[0,1]'"
EXPORT_HELP = """settings:
  form=peft      a LoRA adapter for peft (default); form=merged: a transformers checkpoint
  to=FOLDER      a new folder; without it, the form's name beside the record
  data_dir=, offline=, task.source.local=, backbone.source.local=   where the assets are, as for a run
"""
JUDGE_HELP = """settings:
  judge.url=     an OpenAI-compatible endpoint up to its version, such as https://api.example.org/v1
  judge.model=   the name that it knows the judge by
  judge.key_env= NAME of the environment variable that holds the key, where one is needed
  judge.folder=  a folder with MT-Bench's own judge_prompts.jsonl and reference_answer_gpt-4.jsonl
  judge.attempts=6 judge.timeout=120   tries for one answer, and seconds for one try
  results_dir=, data_dir=, offline=, task.source.local=   where records and questions are, as for a run
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the `bench` command. Returns the exit code (errors.py)."""
    arguments = _parser().parse_args(_with_own_settings(sys.argv[1:] if argv is None else list(argv)))
    try:
        code: int = arguments.command(arguments)
        return code
    except UserError as error:
        sys.stderr.write(f"bench: {error}\n")
        return error.exit_code
    except KeyboardInterrupt:
        sys.stderr.write("bench: interrupted; nothing was lost.\n")
        return EXIT_INTERRUPTED


def _with_own_settings(argv: list[str]) -> list[str]:
    """The arguments without --config-dir FOLDER, which is put where compose.py and the workers look for it.

    Taken off before the others are parsed, because the lists of --help depend on it. -m may stand anywhere: it is put
    behind the command, since argparse takes no flag between two settings.
    """
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--config-dir", action="append", default=[])
    own, rest = first.parse_known_args(argv)
    if own.config_dir:
        os.environ[CONF_VARIABLE] = os.pathsep.join(own.config_dir)
    return [*rest[:1], *sorted(rest[1:], key=lambda text: text not in ("-m", "--multirun"))]


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
    planning = add("plan", plan_command, "what a run would do, and how long it would take", epilog=_groups())
    for one in (run, planning):
        one.add_argument("-m", "--multirun", action="store_true", help="every combination of task=rte,mrpc")
        one.add_argument("overrides", nargs="*", metavar="NAME=VALUE", help=OVERRIDES_HELP)
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
    for name, command, text in (
        ("claims", claims_command, "judge the papers' claims by the records: results/claims.md"),
        ("figures", figures_command, "draw every figure that the records allow: results/figures"),
        (
            "report",
            report_command,
            "write results/report.html: tables, figures, claims and cells on one page",
        ),
    ):
        add(name, command, text).add_argument(
            "overrides", nargs="*", metavar="NAME=VALUE", help="results_dir=..."
        )
    collecting = add("collect", collect_command, "bring the records of other results folders into this one")
    collecting.add_argument(
        "folders", nargs="+", metavar="FOLDER", help="results folders; and results_dir=..."
    )
    exporting = add(
        "export",
        export_command,
        "a recorded model as a PEFT adapter or a merged checkpoint",
        epilog=EXPORT_HELP,
    )
    exporting.add_argument("record", metavar="RECORD", help="the record.json of a unit, or its folder")
    exporting.add_argument("overrides", nargs="*", metavar="NAME=VALUE", help="to=FOLDER form=peft")
    judging = add(
        "judge",
        judge_command,
        "have a language model grade the stored answers of mt_bench; goes on where it stopped",
        epilog=JUDGE_HELP,
    )
    judging.add_argument(
        "given",
        nargs="+",
        metavar="RECORD|NAME=VALUE",
        help="records of mt_bench or their folders (none: all), and settings",
    )
    showing = add(
        "show", show_command, "the resolved settings of a task or cell, and one example as a model sees it"
    )
    showing.add_argument(
        "overrides", nargs="+", metavar="NAME=VALUE", help="task=rte, or all settings of a run"
    )
    listing = add(
        "ls", ls_command, "list methods, tasks, backbones, scales, tables or metrics, one line each"
    )
    listing.add_argument("group", choices=["methods", "tasks", "backbones", "scales", "tables", "metrics"])
    return parser


def _groups() -> str:
    """The options of every config group, for --help."""
    from adalora_bench.settings.compose import options
    from adalora_bench.settings.config import GROUPS

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
    from adalora_bench.engine.launch import check
    from adalora_bench.engine.units import Unit, count, summary_lines, unit_folder
    from adalora_bench.settings import prepare
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
    if found.keys() - present.keys():  # what was not there before may have other row counts than official
        cells, _, left_out = checked(cells, found, table=table)
        _say(left_out, out)
    cells = prepare.keyed(cells, found)

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
    scan = light_records(results)
    records = scan.records
    refresh_tables(results, scan, cells, out)
    tables = [
        name for text in arguments.overrides if text.startswith("table=") for name in text[6:].split(",")
    ]
    if tables:
        refresh_papers(results, records, tables, out)
    print_cells(results, records, cells, out)
    if tables:
        say_verdicts(results, records, tables, {cell.names["scale"] for cell in cells}, out)
    for line in summary_lines(summary, forced=common["force"]):
        out.print(line, soft_wrap=True)
    return summary.exit_code


def plan_command(arguments: argparse.Namespace) -> int:
    """Which units are done, missing, stale or failed, the phases of each method, hours and GiB by past records."""
    from adalora_bench.engine import plan
    from adalora_bench.engine.local import worker_count
    from adalora_bench.settings import prepare
    from adalora_bench.settings.cells import checked

    out = console()
    cells = _cells(arguments, out)
    common = cells[0].config
    found = prepare.look(cells, prepare.places_of(common))
    here = [{cell.names["task"], cell.names["backbone"]} <= found.keys() for cell in cells]
    keyed = iter(prepare.keyed([cell for cell, there in zip(cells, here, strict=True) if there], found))
    cells = [next(keyed) if there else cell for cell, there in zip(cells, here, strict=True)]
    cells, facts, left_out = checked(cells, found, table=_is_table(arguments))
    _say(left_out, out)
    _say_scale(cells, arguments.overrides, out)
    records = light_records(Path(common["results_dir"])).records
    workers = worker_count(common["jobs"], sum(len(cell.seeds) for cell in cells), _devices(cells))
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


def _is_table(arguments: argparse.Namespace) -> bool:
    return any(text.startswith("table=") for text in arguments.overrides)


def _say(sentences: Sequence[str], out: Console) -> None:
    for sentence in sentences:
        out.print(sentence, soft_wrap=True)


def _train(todo: list[Any], skipped: list[Any], common: dict[str, Any], results: Path) -> Summary:
    from adalora_bench.engine.launch import launch
    from adalora_bench.engine.progress import make_progress
    from adalora_bench.engine.units import Summary

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
    from adalora_bench.settings import prepare
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
    for name, found in prepare.assets(cells, prepare.places_of(cells[0].config)).items():
        out.print(f"{name}: {found.served_by}, {found.detail}", soft_wrap=True)
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
