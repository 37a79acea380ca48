"""Notes of a table: what differs from seed to seed in its numbers alone is said once."""

from __future__ import annotations

from typing import Any

from report_records import record

from adalora_bench.report.tables import build_tables


def noted(*notes: list[str]) -> str:
    records: list[dict[str, Any]] = [
        record("sora", "rte", seed, notes=text) for seed, text in enumerate(notes)
    ]
    (table,) = build_tables(records).values()
    return table


def test_notes_that_differ_in_numbers_become_one_with_their_range() -> None:
    table = noted(
        *([f"{share}% of the {count} ranks"] for share, count in ((97, "1,144"), (100, "1,144"), (9, "144")))
    )
    assert table.count("Method `sora`") == 1
    assert "- Method `sora`: 9 to 100% of the 144 to 1,144 ranks." in table


def test_names_and_versions_are_no_numbers() -> None:
    table = noted(["r8 of peft 0.21.2"], ["r9 of peft 0.21.2"], ["r8 of peft 0.21.3"])
    assert table.count("Method `sora`") == 3
