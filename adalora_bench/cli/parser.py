"""The commands of bench and what each takes: main, and --help."""

from __future__ import annotations

import argparse
import os
import sys
import textwrap
from collections.abc import Sequence
from typing import Any

from adalora_bench.cli.results import (
    claims_command,
    collect_command,
    export_command,
    figures_command,
    judge_command,
    pack_command,
    report_command,
    tables_command,
    unpack_command,
    verify_command,
)
from adalora_bench.cli.run import fetch_command, plan_command, run_command
from adalora_bench.cli.show import ls_command, show_command
from adalora_bench.errors import EXIT_CONFIG, EXIT_INTERRUPTED, UserError
from adalora_bench.settings.conf_files import CONF_VARIABLE

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
    arguments = parser().parse_args(_with_own_settings(sys.argv[1:] if argv is None else list(argv)))
    try:
        code: int = arguments.command(arguments)
        return code
    except UserError as error:
        sys.stderr.write(f"bench: {error}\n")
        return error.exit_code
    # a name that is too long, a folder that may not be entered, a share that is away
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        sys.stderr.write(f"bench: {shortened(where)}{error.strerror or error}.\n")
        return EXIT_CONFIG
    except KeyboardInterrupt:
        sys.stderr.write("bench: interrupted; nothing was lost.\n")
        return EXIT_INTERRUPTED


def shortened(text: str) -> str:
    """For a sentence on a terminal."""
    return text if len(text) <= 200 else f"{text[:197]}..."


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


def parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
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
    verifying = add(
        "verify", verify_command, "is every record what its unit wrote? exit code 1 where one is not"
    )
    verifying.add_argument("given", nargs="*", metavar="FOLDER", help="the results folder (results)")
    for name, command, text in (
        ("pack", pack_command, "the records as a few compressed files, as git keeps them"),
        ("unpack", unpack_command, "packed records as files again"),
    ):
        add(name, command, text).add_argument(
            "overrides", nargs="*", metavar="NAME=VALUE", help="results_dir=... task=..."
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
