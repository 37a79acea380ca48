"""Stored records -> exact Markdown, LaTeX, CSV and HTML of two paper tables, and exact data of two figures.

The records in paper_records.jsonl are synthetic, made by hand: five good seeds, one diverged, one collapsed, four
seeds only, a subset. After a wanted change: `python tests/golden/test_paper_tables.py`, then read the diff.
"""

from __future__ import annotations

import json
import random
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from adalora_bench.report.formats import file_stem, render
from adalora_bench.report.kinds import load_figures, pictures
from adalora_bench.report.papers import fill
from adalora_bench.report.series import shown
from adalora_bench.settings.compose import conf_dir
from adalora_bench.settings.published import load_table
from adalora_bench.store.schema import misfit

HERE = Path(__file__).parent
EXPECTED = HERE / "expected" / "papers"
TABLES = ("aflora_1", "increlora_2")
FIGURES = ("final_ranks", "rank_trace")


def records() -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (HERE / "paper_records.jsonl").read_text().splitlines()]
    assert not [reason for one in found if (reason := misfit(one))]
    return found


def texts(of: list[dict[str, Any]]) -> dict[str, str]:
    """File name -> text."""
    made = {}
    for name in TABLES:
        for filled in fill(name, load_table(conf_dir() / "table", name), of):
            made |= {f"{file_stem(filled)}.{ending}": text for ending, text in render(filled).items()}
    known = load_figures(conf_dir() / "figure")
    for name in FIGURES:
        for picture in pictures(name, known[name], shown(of), lambda _: []):
            made[f"{picture.stem}.json"] = json.dumps(asdict(picture), indent=1) + "\n"
    return made


def expected() -> dict[str, str]:
    return {path.name: path.read_bytes().decode() for path in EXPECTED.iterdir()}


def test_texts_are_exact() -> None:
    made = texts(records())
    assert made.keys() == expected().keys()
    for name, text in expected().items():
        assert made[name] == text, name


@pytest.mark.parametrize("seed", range(3))
def test_order_of_records_does_not_matter(seed: int) -> None:
    mixed = records()
    random.Random(seed).shuffle(mixed)
    assert texts(mixed) == expected()


def test_every_verdict_and_kind_of_seed_is_shown() -> None:
    text = expected()["aflora_1_paper_deberta_v3_base.md"]
    for sign in (
        "reproduced",
        "above",
        "below",
        "not comparable",
        "not run",
        "n=4/5",
        "[diverged, ",
        "n=4 ",
        "*",
    ):
        assert sign in text, sign
    assert "Seeds: 32 ok, 1 collapsed, 1 diverged, 0 failed" in text
    assert "Subset: mrpc: 1000 of 3668 training rows" in text
    cpu = expected()["increlora_2_cpu_minilm_l6.md"]
    assert "Shortened training: no number here stands for a published one." in cpu


if __name__ == "__main__":
    EXPECTED.mkdir(parents=True, exist_ok=True)
    for path in EXPECTED.iterdir():
        path.unlink()
    for name, text in texts(records()).items():
        (EXPECTED / name).write_bytes(text.encode())
