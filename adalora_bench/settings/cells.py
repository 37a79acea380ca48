"""The cells that a command means, and which of them can be trained. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from adalora_bench.errors import AssetError, UserError, unknown
from adalora_bench.methods.base import Facts
from adalora_bench.settings import early, prepare
from adalora_bench.settings.compose import all_but_seeds, compose_cells, expanded, merged, usual_scale
from adalora_bench.settings.conf_files import conf_dir, options
from adalora_bench.settings.config import Cell
from adalora_bench.settings.key import digest
from adalora_bench.settings.prepare import Assets
from adalora_bench.settings.published import Row, load_table


def cells_of(overrides: Sequence[str], *, multirun: bool) -> tuple[list[Cell], list[str]]:
    """The cells of a command, where `table=NAME` stands for all rows and columns of a paper's table.

    With a table, method= and task= choose among its rows and columns; at paper scale the backbone is the table's.

    Returns:
        the cells, and a sentence for each row that cannot be run.
    """
    given = dict(text.partition("=")[::2] for text in overrides)
    if "table" not in given:
        return compose_cells(overrides, multirun=multirun), []
    rest = [text for text in overrides if text.partition("=")[0] not in ("table", "method", "task")]
    typed = {text.partition("=")[0] for text in rest}
    expanded(rest, multirun)  # what is wrong for every row is said once
    cells: list[Cell] = []
    left_out: dict[str, None] = {}  # in order, each sentence once
    for name in given["table"].split(","):
        for row, task, chosen in _places(name, given):
            if row.method not in options("method"):
                left_out[f"{name}: {row.label} is left out: there is no method {row.method}."] = None
                continue
            chosen = [text for text in chosen if text.partition("=")[0] not in typed]
            try:
                found = compose_cells([*chosen, *rest], multirun=multirun)
            except UserError as error:
                left_out[f"{name}: {row.label} on {task} is left out: {error}"] = None
                continue
            cells += found
    if not cells:
        raise UserError("no cell of this table can be run: " + " ".join(left_out))
    return merged(cells, all_but_seeds), list(left_out)


def _places(name: str, given: Mapping[str, str]) -> Iterable[tuple[Row, str, list[str]]]:
    """Every wanted (row, task) of a table with the overrides that stand for it."""
    table = load_table(conf_dir() / "table", name)
    wanted: dict[str, list[str]] = {}
    for axis, known in (("method", [row.method for row in table.rows]), ("task", table.tasks)):
        wanted[axis] = given[axis].split(",") if axis in given else list(known)
        for value in wanted[axis]:
            if value not in known:
                raise UserError(unknown(f"{axis} of table {name}", value, set(known)))
    scale = given.get("scale") or usual_scale()
    at_paper = scale == "paper" and "backbone" not in given
    for row in table.rows:
        for task in table.tasks:
            if row.method in wanted["method"] and task in wanted["task"]:
                chosen = [f"method={row.method}", f"task={task}"]
                chosen += [f"split={table.split}"] if table.split != "validation" else []
                chosen += [f"backbone={table.backbone}"] if at_paper else []
                yield row, task, [*chosen, *(f"{key}={_override(value)}" for key, value in row.set.items())]


def _override(value: Any) -> str:
    """A value of YAML in the grammar of the command line."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, list):
        return "[" + ",".join(_override(one) for one in value) + "]"
    return str(value)


def checked(
    cells: Iterable[Cell], found: Assets, *, table: bool
) -> tuple[list[Cell], list[Facts | None], list[str]]:
    """The cells that can be trained, the facts of each, and a sentence for each one that cannot.

    One impossible cell of a table must not keep the others from running; outside a table it is the user's wish.

    Raises:
        UserError: a cell of no table, or all cells of one, can only fail.
    """
    asked: dict[str, list[str]] = {}  # notes on references, by the rows that they are of
    good: list[Cell] = []
    facts: list[Facts | None] = []
    left_out = []
    for cell in cells:
        try:
            known = prepare.check_late_failures(cell, found)
            left_out += _on_rows(cell, found, asked)
        except AssetError:
            raise
        except UserError as error:
            if not table:
                raise
            left_out.append(f"{name_of(cell)} is left out: {error}")
            continue
        good.append(cell)
        facts.append(known)
    if not good:
        raise UserError("no cell of this table can be run: " + " ".join(left_out))
    return good, facts, left_out


def _on_rows(cell: Cell, found: Assets, asked: dict[str, list[str]]) -> list[str]:
    """Notes on a cell's rows, once for the same ones: other data than published, references that a metric cannot read.

    UserError: a metric refuses the references of a text task.
    """
    rows = digest([cell.config["task"], cell.config["split"], prepare.row_limits(cell)[1]])
    if rows in asked or not found.has_task(cell):
        return []
    here, split = found.task(cell), cell.config["split"]
    other = cell.task.other_note(here, split)
    said = [other] if other else []
    if cell.task.kind in ("text", "span"):
        report = prepare.rows_of(cell, here).report
        said += early.check_references(cell.task, {suffix: some[:ENOUGH] for suffix, some in report.items()})
    asked[rows] = [f"note: {cell.names['task']}: {one}" for one in said]
    return asked[rows]


ENOUGH = 500
"""Report rows of a set whose references are scored before a command starts; its units score all of them."""


def name_of(cell: Cell) -> str:
    """The cell as one would type it, for people."""
    name = " ".join(f"{group}={cell.names[group]}" for group in ("method", "task", "backbone", "scale"))
    return name + "".join(f" {text}" for text in cell.overrides)
