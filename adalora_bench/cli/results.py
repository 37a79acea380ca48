"""Commands on what is recorded: tables, claims, figures, report, collect, export, judge."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adalora_bench.errors import EXIT_OK, EXIT_UNIT_FAILED, UserError, unknown
from adalora_bench.settings.conf_files import at_home
from adalora_bench.settings.config import PATHS

Records = Sequence[Mapping[str, Any]]

if TYPE_CHECKING:
    from rich.console import Console

    from adalora_bench.settings.config import Cell
    from adalora_bench.store.pack import Packing
    from adalora_bench.store.records import RecordStore, Scan


def console() -> Console:
    """Standard output: coloured on a terminal, plain and 120 wide elsewhere."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 120, highlight=False, markup=False)


def plain(overrides: Sequence[str], valid: set[str]) -> dict[str, str]:
    """name=value pairs of a command that composes nothing."""
    chosen = {}
    for text in overrides:
        name, equals, value = text.partition("=")
        if not equals:
            raise UserError(f"cannot read {text!r}; settings are written name=value, for example task=rte.")
        if name not in valid:
            raise UserError(unknown("setting", name, valid))
        chosen[name] = at_home(name, value) if name in PATHS or name == "to" else value
    return chosen


def tables_command(arguments: argparse.Namespace) -> int:
    """Every table from the records; with --compare, the cells on the terminal as well."""
    chosen = plain(arguments.overrides, {"results_dir", "task", "method", "backbone", "scale"})
    results = recorded_in(chosen)
    chosen.pop("results_dir", None)
    if chosen and not arguments.compare:
        raise UserError(
            f"{next(iter(chosen))}= chooses what --compare prints; without it every table is written."
        )
    out, scan = console(), light_records(results)
    records = scan.records
    if arguments.compare or not records:
        print_cells(results, records, None, out, chosen)
    if records:
        with all_tried() as attempt:
            attempt(refresh_tables, results, scan, None, out)
            attempt(refresh_papers, results, records, None, out)
    return EXIT_OK


def recorded_in(chosen: Mapping[str, str]) -> Path:
    """The results folder of a command that reads records. UserError: it is not there, so that nothing is made."""
    given = chosen.get("results_dir", "results")
    results = Path(at_home("results_dir", given))
    if (results / "runs").is_dir() or (given == "results" and not results.exists()):
        return results
    near = [path.name for path in results.parent.glob("*") if (path / "runs").is_dir()] if given else []
    if not results.is_dir() and near:
        raise UserError(unknown("results folder", results.name, near))
    raise UserError(f"results_dir={given!r} holds no runs/, so there are no records to read.")


@contextmanager
def all_tried() -> Iterator[Callable[..., None]]:
    """Calls, each of which may raise UserError; the others are made all the same. At the end one UserError says all."""
    refused: list[str] = []

    def attempt(call: Callable[..., object], *arguments: Any) -> None:
        try:
            call(*arguments)
        except UserError as error:
            refused.append(str(error))

    yield attempt
    if refused:
        raise UserError("\n".join(refused))


def split_given(texts: Sequence[str]) -> tuple[list[str], list[str]]:
    """(paths, settings) of a command that takes both; what is there under this name is a path, whatever it holds."""
    settings = [text for text in texts if re.match(r"[a-z_][\w.]*=", text) and not Path(text).exists()]
    return [text for text in texts if text not in settings], settings


def light_records(results: Path) -> Scan:
    """All records of a folder of results, without their long lists, and what counts as none."""
    from adalora_bench.store.records import RecordStore

    return RecordStore(results / "runs").scan(light=True)


def refresh_tables(results: Path, scan: Scan, cells: list[Cell] | None, out: Console) -> None:
    """Write the tables that these cells touch (None: all)."""
    from adalora_bench.report.rows import Group
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
    for path in refresh(scan.records, results / "tables", only, scan.not_counted(results / "runs")):
        out.print(f"wrote {path}", soft_wrap=True)


def refresh_papers(results: Path, records: Records, names: Sequence[str] | None, out: Console) -> None:
    """Write the papers' tables with what is recorded of them (None: all), in four forms."""
    from adalora_bench.report.formats import refresh
    from adalora_bench.settings.conf_files import conf_dir

    written = refresh(conf_dir() / "table", records, results / "tables" / "papers", names)
    if written:
        out.print(
            f"wrote {len(written)} files of papers' tables in {results / 'tables' / 'papers'}", soft_wrap=True
        )


def say_verdicts(
    results: Path, records: Records, names: Sequence[str], scales: set[str], out: Console
) -> None:
    """For each of these tables at these scales: how its cells stand, and the file that has it whole."""
    from adalora_bench.report.formats import file_stem
    from adalora_bench.report.papers import fill
    from adalora_bench.report.wording import verdicts
    from adalora_bench.settings.conf_files import conf_dir
    from adalora_bench.settings.published import load_table

    for name in names:
        for filled in fill(name, load_table(conf_dir() / "table", name), records):
            if filled.place.scale in scales:
                title = f"{filled.table.paper}, Table {filled.table.number}"
                where = f"scale {filled.place.scale}, {filled.place.backbone}"
                path = results / "tables" / "papers" / f"{file_stem(filled)}.md"
                out.print(f"{title} ({where}): {verdicts(filled)}; see {path}", soft_wrap=True)


def print_cells(
    results: Path,
    records: Records,
    cells: list[Cell] | None,
    out: Console,
    chosen: dict[str, str] | None = None,
) -> None:
    """A small table on the terminal: median, range and n of each cell beside the majority class."""
    from adalora_bench.report.cells import cell_summary
    from adalora_bench.report.terminal import cells_table

    keys = None if cells is None else {cell.key for cell in cells}
    wanted = chosen or {}
    shown = [
        record
        for record in records
        if (keys is None or record["key"] in keys)
        and all(record["names"][group] == name for group, name in wanted.items())
    ]
    if shown:
        out.print(cells_table(cell_summary(shown)))
    elif cells is None:
        out.print(f"no records in {results}; `bench run method=lora task=film_reviews` makes some.")


def claims_command(arguments: argparse.Namespace) -> int:
    """A verdict on every claim of the papers that records can answer, here and in results/claims.md."""
    from adalora_bench.report.claim_text import counts, line, refresh
    from adalora_bench.settings.conf_files import conf_dir

    results, scan, _ = _recorded(arguments)
    judged = refresh(conf_dir() / "claim", scan.records, results / "claims.md")
    out = console()
    for one in judged:
        out.print(line(one), soft_wrap=True)
    out.print(f"{counts(judged)}; {results / 'claims.md'} says how to read it", soft_wrap=True)
    return EXIT_OK


def figures_command(arguments: argparse.Namespace) -> int:
    """Every figure that the records allow, as SVG and PNG; the others are named."""
    from adalora_bench.report.figures import refresh
    from adalora_bench.settings.conf_files import conf_dir

    results, scan, store = _recorded(arguments)
    written, skipped = refresh(conf_dir() / "figure", store, scan.records, results / "figures")
    out = console()
    for path in written:
        out.print(f"wrote {path}", soft_wrap=True)
    if skipped:
        out.print(f"no records for: {', '.join(skipped)}", soft_wrap=True)
    return EXIT_OK


def report_command(arguments: argparse.Namespace) -> int:
    """Everything on one page: results/report.html."""
    from adalora_bench.report.page import refresh
    from adalora_bench.settings.conf_files import conf_dir

    results, scan, store = _recorded(arguments)
    path = results / "report.html"
    changed = refresh(conf_dir(), store, scan.records, path, scan.not_counted(store.root))
    console().print(f"{'wrote' if changed else 'no change in'} {path}", soft_wrap=True)
    return EXIT_OK


def _recorded(arguments: argparse.Namespace) -> tuple[Path, Scan, RecordStore]:
    """The folder of results, all its records whole, and their store."""
    from adalora_bench.store.records import RecordStore

    results = recorded_in(plain(arguments.overrides, {"results_dir"}))
    store = RecordStore(results / "runs")
    return results, store.scan(), store


def collect_command(arguments: argparse.Namespace) -> int:
    """Bring the records of other results folders into this one, and name what is there twice."""
    from adalora_bench.engine.units import count
    from adalora_bench.store.collect import collect

    named, given = split_given(arguments.folders)
    chosen, folders = plain(given, {"results_dir"}), [Path(at_home("folder", text)) for text in named]
    if not folders:
        raise UserError("no folder given; name the results folders to bring in: bench collect FOLDER...")
    results = Path(at_home("results_dir", chosen.get("results_dir", "results")))
    found, out = collect(folders, results), console()
    out.print(
        f"{count(len(found.copied), 'unit')} copied into {results}, {len(found.same)} there already",
        soft_wrap=True,
    )
    for path, words in found.both:
        out.print(f"twice, both kept: {path} ({words})", soft_wrap=True)
    for sentence in (*found.held, *found.refused):
        out.print(f"left out: {sentence}", soft_wrap=True)
    return EXIT_UNIT_FAILED if found.held or found.refused else EXIT_OK


def pack_command(arguments: argparse.Namespace) -> int:
    """Put the records of a results folder into a few compressed files."""
    from adalora_bench.store.pack import pack

    return _convert(arguments, pack, "packed")


def unpack_command(arguments: argparse.Namespace) -> int:
    """Write packed records as files again."""
    from adalora_bench.store.pack import unpack

    return _convert(arguments, unpack, "unpacked")


def verify_command(arguments: argparse.Namespace) -> int:
    """Look at every record: checksum, key against settings, schema, the files beside it."""
    from adalora_bench.engine.units import count
    from adalora_bench.settings.key import keys_of_record
    from adalora_bench.store.verify import verify

    named, given = split_given(arguments.given)
    if len(named) > 1:
        raise UserError(f"one results folder at a time; received {', '.join(named)}.")
    chosen = plain(given, {"results_dir"}) | ({"results_dir": named[0]} if named else {})
    found, out = verify(recorded_in(chosen) / "runs", keys_of_record), console()
    for sentence in found.said:
        out.print(sentence, soft_wrap=True)
    out.print(
        f"verified: {count(found.records, 'record')}, {found.with_checksum} with a checksum; "
        f"{count(len(found.said), 'misfit')}",
        soft_wrap=True,
    )
    return EXIT_UNIT_FAILED if found.said else EXIT_OK


def _convert(
    arguments: argparse.Namespace, convert: Callable[[Path, Sequence[str]], Packing], word: str
) -> int:
    from adalora_bench.engine.units import count

    chosen = plain(arguments.overrides, {"results_dir", "task"})
    tasks = [name for name in chosen.get("task", "").split(",") if name]
    done, out = convert(recorded_in(chosen) / "runs", tasks), console()
    for sentence in done.left:
        out.print(f"left: {sentence}", soft_wrap=True)
    out.print(
        f"{word}: {count(len(done.units), 'unit')}, {count(len(done.files), 'packed file')}", soft_wrap=True
    )
    return EXIT_UNIT_FAILED if done.left else EXIT_OK


def export_command(arguments: argparse.Namespace) -> int:
    """Write a recorded model in a form that others read, and check that it is the same model."""
    from adalora_bench.export.command import SETTINGS, export

    out = console()
    for line in export(arguments.record, plain(arguments.overrides, set(SETTINGS))):
        out.print(line, soft_wrap=True)
    return EXIT_OK


def judge_command(arguments: argparse.Namespace) -> int:
    """Grades for stored answers, by a judge that the settings name; then the tables anew."""
    import logging

    from adalora_bench.judge.command import SETTINGS, grade_records
    from adalora_bench.store.records import LeaseHeld

    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    logging.getLogger("adalora_bench.judge").setLevel(logging.INFO)
    named, given = split_given(arguments.given)
    settings = plain(given, set(SETTINGS))
    out, results = console(), Path(settings.get("results_dir", "results"))
    try:
        for path, verdict in grade_records(named, settings):
            out.print(f"{path}: {verdict}", soft_wrap=True)
    except LeaseHeld as error:
        raise UserError(str(error)) from error
    refresh_tables(results, light_records(results), None, out)
    return EXIT_OK
