"""README.md shows the numbers that the records in results/ give."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from loaded_script import load
from report_records import record

from adalora_bench.report.cells import cell_summary


@pytest.fixture(scope="module")
def script() -> Any:
    return load("readme_results")


def test_its_table_is_that_of_the_records(script: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["readme_results.py", "--check"])
    assert script.main() == 0


def test_only_whole_rows_of_its_tasks_are_shown(script: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor a method with all seeds on one of them alone: an ablation."""
    monkeypatch.setattr(script, "TASKS", ("mrpc", "cola"))
    records = [record("lora", task, seed) for task in ("mrpc", "cola") for seed in range(5)]
    records += [record("sora", task, seed) for task in ("mrpc", "cola") for seed in range(4)]
    records += [record("aflora", task, seed) for task in ("cola", "rte") for seed in range(5)]
    records += [record("increlora", task, seed) for task in ("mrpc", "cola", "rte") for seed in range(5)]
    monkeypatch.setattr(script, "GROUP", cell_summary(records)[0].group)
    text = script.table(cell_summary(records))
    assert [line.split("|")[1].strip() for line in text.splitlines()] == [
        "method",
        "-" * (text.index("|", 1) - 1),
        "majority class",
        "increlora",
        "lora",
    ]
    assert "rte" not in text


def test_what_stands_around_the_marks_stays(script: Any) -> None:
    text = f"head\n{script.START}\nold\n{script.END}\ntail\n"
    assert script.written(text, "new") == f"head\n{script.START}\n\nnew\n\n{script.END}\ntail\n"
