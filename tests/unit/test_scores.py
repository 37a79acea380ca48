"""What a score table may compare: rows of the same training, with the same number of seeds."""

from __future__ import annotations

from typing import Any

from report_records import record

from adalora_bench.report.cells import cell_summary
from adalora_bench.report.scores import OTHER_ROWS, on_other_rows, sections
from adalora_bench.report.tables import build_tables
from adalora_bench.store.schema import OURS


def seeds(method: str, count: int, value: float, rows: int = 1000, *overrides: str) -> list[dict[str, Any]]:
    """Seeds of a cell on RTE, all with this accuracy, trained on so many rows."""
    found = []
    for seed in range(count):
        one = record(method, "rte", seed, *overrides)
        one["final"]["scores"] = dict.fromkeys(one["final"]["scores"], value + 0.001 * seed)
        one["rows"] = {"train": rows, "report": 277}
        found.append(one)
    return found


def scores(records: list[dict[str, Any]]) -> dict[str, str]:
    lines = sections(cell_summary(records))[1].splitlines()[2:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {line[0]: line[2] for line in cells}


def test_who_trained_on_other_rows_is_marked_and_not_ranked() -> None:
    records = [*seeds("lora", 5, 0.9, 2490), *seeds("sora", 5, 0.8), *seeds("bitfit", 5, 0.7, 968)]
    assert [row.method for row in on_other_rows(cell_summary(records))] == ["lora"]
    found = scores(records)
    assert found["lora"] == f"90.20 [90.00, 90.40] n=5{OTHER_ROWS}"
    assert found["sora"].startswith("**80.20**")
    assert found["bitfit"].startswith("<u>70.20</u>")
    (text,) = build_tables(records).values()
    assert "- `(other rows)`: trained on another number of rows" in text
    assert "(other rows)`" not in "".join(build_tables(records[5:]).values())


def test_of_two_that_differ_the_one_with_more_rows_stands() -> None:
    rows = cell_summary([*seeds("lora", 2, 0.9, 2490), *seeds("sora", 2, 0.8)])
    assert [row.method for row in on_other_rows(rows)] == ["sora"]


def test_variations_are_held_against_the_methods_of_their_column() -> None:
    records = [
        *seeds("lora", 5, 0.9),
        *seeds("sora", 5, 0.8),
        *(one for rank in (2, 4) for one in seeds("lora", 5, 0.9, 500, f"rank={rank}")),
    ]
    text = "\n".join(sections(cell_summary(records)))
    assert text.count(f"n=5{OTHER_ROWS}") == 2


def test_fewer_seeds_are_not_ranked_and_one_never() -> None:
    found = scores([*seeds("lora", 5, 0.7), *seeds("sora", 1, 0.9), *seeds("bitfit", 5, 0.6)])
    assert found["sora"] == "90.00 [90.00, 90.00] n=1"
    assert found["lora"].startswith("**70.20**")
    alone = scores([*seeds("lora", 1, 0.7), *seeds("sora", 1, 0.9)])
    assert not any("**" in text for text in alone.values())


def test_a_method_of_our_own_reading_says_so_in_its_rows() -> None:
    ours = [one | {"notes": [f"{OURS} is our reading of the idea"]} for one in seeds("sora", 5, 0.8)]
    assert set(scores([*ours, *seeds("lora", 5, 0.7)])) == {"majority class", "sora (ours)", "lora"}
    varied = [*ours, *seeds("sora", 5, 0.7, 1000, "rank=2")]
    assert "| sora (method.rank=2) " in "\n".join(sections(cell_summary(varied)))
