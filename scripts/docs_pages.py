"""Pages of the docs site that are made from the code: home, commands, settings, Python. A hook of mkdocs.

Nothing is written into docs/: the pages exist in the built site alone.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files

ROOT = Path(__file__).resolve().parent.parent
GROUPS = ("method", "task", "backbone", "train", "scale")
PYTHON = {
    "Your own loop": ["adalora_bench.own_loop"],
    "The contract of a method": ["adalora_bench.methods.base", "adalora_bench.methods.run"],
    "The adapter": ["adalora_bench.lowrank.adapter"],
    "Pure functions of ranks and scores": ["adalora_bench.lowrank.scores", "adalora_bench.lowrank.allocate"],
    "Tasks": ["adalora_bench.data.fields", "adalora_bench.data.tasks", "adalora_bench.data.converted"],
    "Records": ["adalora_bench.store.records", "adalora_bench.store.schema", "adalora_bench.store.packed"],
}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages."""
    from mkdocs.structure.files import File

    pages = {"index.md": home(), "commands.md": commands(), "settings.md": settings(), "python.md": python()}
    for name, text in pages.items():
        files.append(File.generated(config, name, content=text))
    picture = "results/figures/pareto_cpu_minilm_l6_stsb.png"
    if (ROOT / picture).is_file():
        files.append(File.generated(config, picture, content=(ROOT / picture).read_bytes()))
    return files


def home() -> str:
    """README.md, with its links as the site has them."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    text = re.sub(r"\]\(docs/", "](", text)
    return re.sub(r"\[([^]]+)\]\((?:CONTRIBUTING\.md|CITATION\.cff)\)", r"`\1`", text)


def commands() -> str:
    """--help of every command, as it is printed."""
    import argparse

    from adalora_bench.cli.parser import parser

    top = parser()
    (sub,) = [action for action in top._actions if isinstance(action, argparse._SubParsersAction)]
    parts = ["# Commands", _block(top.format_help())]
    for name, one in sub.choices.items():
        parts += [f"## bench {name}", _block(one.format_help())]
    return "\n\n".join(parts)


def settings() -> str:
    """Every file of the config groups, with its comments: they are the documentation of its settings."""
    parts = [
        "# Settings",
        "Each file of `conf/` as it stands. A setting is changed on the command line by its group and name, such as "
        "`method.rank=4` or `train.epochs=5`.",
        "## Of a whole command",
        _block((ROOT / "conf" / "run.yaml").read_text(encoding="utf-8"), "yaml"),
    ]
    for group in GROUPS:
        parts.append(f"## {group}")
        for path in sorted((ROOT / "conf" / group).glob("*.yaml")):
            text = path.read_text(encoding="utf-8")
            yaml.safe_load(text)
            parts += [f"### {group}={path.stem}", _block(text, "yaml")]
    return "\n\n".join(parts)


def python() -> str:
    """The public docstrings."""
    parts = ["# Python"]
    for title, modules in PYTHON.items():
        parts += [f"## {title}", *(f"::: {module}" for module in modules)]
    return "\n\n".join(parts)


def _block(text: str, language: str = "text") -> str:
    return f"```{language}\n{text.rstrip()}\n```"
