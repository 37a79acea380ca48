"""bench ls and show: what there is, and the settings of one cell with a row as its model sees it."""

from __future__ import annotations

import argparse
from typing import Any

from adalora_bench.cli.results import console
from adalora_bench.errors import EXIT_OK
from adalora_bench.settings.config import Cell


def ls_command(arguments: argparse.Namespace) -> int:
    """One line for each option of a group: its description, or the first comment of its file."""
    from rich.table import Table

    from adalora_bench import metrics
    from adalora_bench.settings.conf_files import describe, options

    group = arguments.group.removesuffix("s")
    table = Table(box=None, show_header=False, pad_edge=False)
    if group == "metric":
        for name in metrics.names():
            table.add_row(name, metrics.METRICS[name].description)
    else:
        for name in options(group):
            table.add_row(name, describe(group, name))
    console().print(table)
    return EXIT_OK


def show_command(arguments: argparse.Namespace) -> int:
    """The resolved settings of a cell, and one of its training rows as the backbone sees it."""
    from omegaconf import OmegaConf

    from adalora_bench.settings.compose import compose_cells

    named = {text.split("=", 1)[0] for text in arguments.overrides}
    rest = [] if "method" in named else ["method=lora"]
    rest += [] if "split" in named else ["split=holdout"]  # the training rows alone are needed
    (cell,) = compose_cells([*arguments.overrides, *rest])
    out = console()
    wanted = [name for name in ("task", "backbone", "method", "train", "scale") if name in named | {"task"}]
    out.print(OmegaConf.to_yaml({name: cell.config[name] for name in wanted}), soft_wrap=True)
    for line in one_example(cell):
        out.print(line, soft_wrap=True)
    return EXIT_OK


def one_example(cell: Cell) -> list[str]:
    """The first training row: its columns, and the text of what is given to the model and of what it must answer."""
    from adalora_bench.settings import prepare
    from adalora_bench.settings.assemble import form_of

    found = prepare.assets([cell], prepare.places_of(cell.config))
    form = form_of(cell, found)
    row = prepare.rows_of(cell, found.task(cell)).train[0]
    (example,) = form.encode([row], train=True)
    lines = [f"first training row on {cell.names['backbone']} (asked for: {form.kind}):"]
    lines += [f"  {name}: {_short(value)}" for name, value in row.items()]
    lines += [f"  -> {name}: {text}" for name, text in _readable(example, form.tokenizer)]
    return lines


def _readable(example: dict[str, Any], tokenizer: Any) -> list[tuple[str, str]]:
    """Parts of an encoded example as text: tokens are decoded, what carries no loss is left out of the target."""
    found = []
    for name, value in example.items():
        if name.endswith("_ids") and name != "token_type_ids":
            tokens = [token for token in value if token >= 0]
            found.append((f"{name} ({len(tokens)} tokens)", _short(tokenizer.decode(tokens), 400)))
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            for number, part in enumerate(value[:2]):
                found += [(f"{name}[{number}].{key}", text) for key, text in _readable(part, tokenizer)]
        elif name in ("label", "start", "end"):
            found.append((name, str(value)))
    return found


def _short(value: Any, limit: int = 200) -> str:
    text = str(value)
    return text if len(text) <= limit else f"{text[:limit]}..."
