"""bench plan: what a command would do, what a table stands for, and what it costs by past records."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from adalora_bench.engine.plan import duration, expect, gib_of, makespan, phases_of, plan, plan_lines
from adalora_bench.errors import UserError
from adalora_bench.methods.base import Facts
from adalora_bench.settings.cells import cells_of, checked
from adalora_bench.settings.compose import compose_cells
from adalora_bench.settings.config import Cell
from adalora_bench.settings.prepare import Assets

FACTS = Facts(total_steps=100, steps_per_epoch=50, warmup=6, modules=12)


def cell(*more: str) -> Cell:
    (one,) = compose_cells(
        ["method=increlora", "task=toy", "backbone=tiny_bert", "scale=smoke", "seeds=[0,1,2,3]", *more]
    )
    return one.with_keys("a" * 64, "b" * 64)


def record(seed: int, **more: Any) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "key": "a" * 64,
        "settings_key": "b" * 64,
        "seed": seed,
        "status": "ok",
        "names": {"task": "toy", "backbone": "tiny_bert", "method": "increlora", "scale": "smoke"},
        "config": {"train": {"batch_size": 32}},
        "steps": 50,
        "seconds": {"total": 100.0},
        "peak_memory_bytes": 2**30,
        "finished": "2026-11-22T10:00:00+00:00",
    }
    return fields | more


def test_units_by_state() -> None:
    records = [
        record(0),
        record(1, status="failed"),
        record(2, key="c" * 64),  # the same settings under another version
        record(0, key="c" * 64),
    ]
    (one,) = plan([cell()], [FACTS], records)
    assert one.units == {"done": 1, "missing": 1, "stale": 1, "failed": 1}
    assert one.left == 3


def test_phases_in_steps() -> None:
    assert phases_of(cell("method.interval=10%", "method.growth_warmup=1ep"), FACTS) == {
        "interval": 10,
        "growth_warmup": 50,
    }


def test_expected_time_is_taken_from_the_nearest_records() -> None:
    other = {"task": "toy", "backbone": "tiny_bert", "method": "lora", "scale": "smoke"}
    far = {"task": "rte", "backbone": "tiny_bert", "method": "lora", "scale": "smoke"}
    nearest = [record(0), record(1, seconds={"total": 200.0}), record(2, seconds={"total": 300.0})]
    found = expect(cell(), 100, [*nearest, record(0, names=other, seconds={"total": 9.0})])
    assert found is not None
    assert (found.seconds, found.gib, found.basis) == (
        400.0,
        1.0,
        "3 records of the same task, backbone, method, scale",
    )
    less = expect(cell(), 100, [record(0, names=other), record(0, names=far, seconds={"total": 9.0})])
    assert less is not None
    assert (less.seconds, less.basis) == (200.0, "1 records of the same task, backbone")
    assert expect(cell(), 100, [record(0, config={"train": {"batch_size": 8}})]) is None
    assert expect(cell(), 100, []) is None


def test_the_newest_of_equally_near_records_count() -> None:
    old = [record(seed, seconds={"total": 900.0}) for seed in range(20)]
    new = [record(seed, finished=f"2026-11-22T11:00:{seed:02d}+00:00") for seed in range(10)]
    found = expect(cell(), 50, [*new, *old])
    assert found is not None
    assert (found.seconds, found.records) == (100.0, 10)


def test_lines_for_people() -> None:
    lines = plan_lines(plan([cell()], [FACTS], [record(0)]), jobs=2)
    assert lines[0] == "method=increlora task=toy backbone=tiny_bert scale=smoke: 1 done, 3 missing"
    assert "100 steps (50 an epoch), warmup 6" in lines[1]
    assert "about 3 min a unit, 1.0 GiB" in lines[2]
    assert lines[-2] == "1 cell, 4 units: 1 done, 3 missing; 3 to train"
    assert lines[-1] == "expected: 10 min of work, about 7 min with jobs=2, 2 processes of 1.0 GiB at most"
    unknown = plan_lines(plan([cell()], [None], []), jobs=1)
    assert "data is not on this machine" in unknown[1]


def test_what_is_recorded_without_its_data_here_is_not_said_to_be_missing_in_silence() -> None:
    keyless = replace(cell(), key="")
    (planned,) = plan([keyless], [FACTS], [record(0)])
    assert planned.units == {"missing": 4}
    said = "so records are not recognised and all units count as missing"
    assert any(line.startswith("toy: ") and said in line for line in plan_lines([planned], jobs=1))
    assert not any(said in line for line in plan_lines(plan([cell()], [FACTS], [record(0)]), jobs=1))


def test_a_table_stands_for_its_rows_and_columns() -> None:
    cells, left_out = cells_of(["table=increlora_2", "scale=smoke", "backbone=tiny_bert"], multirun=False)
    assert len(cells) == 6 * 2
    assert not left_out
    assert {one.names["task"] for one in cells} == {"rte", "stsb"}
    raw = cells[0]
    assert raw.config["method"]["orthogonality"] == 0.0
    assert raw.config["method"]["advance_learning"] is False
    chosen, _ = cells_of(
        ["table=increlora_2", "method=lora", "task=rte", "scale=smoke", "backbone=tiny_bert"], multirun=False
    )
    assert [one.names["method"] for one in chosen] == ["lora"]
    at_paper, _ = cells_of(["table=increlora_2", "scale=paper", "task=rte"], multirun=False)
    assert {one.names["backbone"] for one in at_paper} == {"deberta_v3_base"}


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["table=increlora_9"], "increlora_1"),
        (["table=increlora_2", "method=sora"], "lora"),
        (["table=increlora_2", "task=mnlii"], "rte"),
    ],
)
def test_wrong_tables_are_answered_with_the_nearest_name(overrides: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        cells_of(overrides, multirun=False)


def test_a_cell_that_can_only_fail_is_left_out_of_a_table_and_refused_alone() -> None:
    good, bad = cell(), cell("method.targets=[gate]")
    cells, facts, left_out = checked([good, bad], Assets(), table=True)
    assert cells == [good]
    assert len(facts) == 1
    (sentence,) = left_out
    assert sentence.startswith(
        "method=increlora task=toy backbone=tiny_bert scale=smoke method.targets=[gate]"
    )
    assert " is left out: " in sentence
    with pytest.raises(UserError) as alone:
        checked([good, bad], Assets(), table=False)
    assert str(alone.value) in sentence
    with pytest.raises(UserError, match="no cell of this table can be run: method=increlora"):
        checked([bad], Assets(), table=True)


def test_durations() -> None:
    assert [duration(s) for s in (45, 120, 3600, 12600)] == ["45 s", "2 min", "60 min", "3.5 h"]


def test_makespan_of_units_in_their_order() -> None:
    assert makespan([3, 1, 1, 1, 2], 1) == 8
    assert makespan([3, 1, 1, 1, 2], 2) == 5  # 3 + 2 beside 1 + 1 + 1
    assert makespan([3, 1, 1, 1, 2], 64) == 3
    assert makespan([], 4) == 0


def test_memory_is_taken_from_records_of_the_same_cell_alone() -> None:
    names = {"task": "toy", "backbone": "tiny_bert", "method": "lora", "scale": "smoke"}
    assert gib_of([cell(), cell()], [record(0), record(1)]) == {"a" * 64: 1.0}
    assert gib_of([cell()], [record(0, names=names)]) == {}
    paper = record(0, names=names | {"method": "increlora", "scale": "paper"}, peak_memory_bytes=2**40)
    assert gib_of([cell()], [paper]) == {}
    assert gib_of([cell()], [paper, record(0)]) == {"a" * 64: 1.0}
