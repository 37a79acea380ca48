"""The keys of the records in results/ follow from their settings today as on the day they were written.

A refactoring that moves a class or renames a field would otherwise make every record a stranger: `bench run` would
train again what is recorded.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from adalora_bench.settings.compose import compose_cells
from adalora_bench.settings.config import GROUPS, MOVED, build
from adalora_bench.settings.key import keys_of_record, settings_of
from adalora_bench.store.records import RecordStore

RESULTS = Path(__file__).parents[2] / "results"


@pytest.mark.parametrize("folder, least", [("runs", 450), ("search/runs", 300)])
def test_every_stored_record_keeps_its_keys(folder: str, least: int) -> None:
    records = RecordStore(RESULTS / folder).scan().records
    assert len(records) >= least
    strangers = [
        record["key"]
        for record in records
        if keys_of_record(record) != (record["key"], record["settings_key"])
    ]
    assert strangers == []


@pytest.mark.parametrize("former, now", MOVED.items())
def test_the_former_and_the_present_class_path_give_one_key_and_one_class(former: str, now: str) -> None:
    (cell,) = compose_cells(["method=lora", "task=toy", "backbone=tiny_bert", "scale=smoke"])
    group = next(name for name in GROUPS if cell.config[name].get("_target_") == now)
    older = cell.config | {group: cell.config[group] | {"_target_": former}}
    assert settings_of(older) == settings_of(cell.config)
    assert settings_of(older)[group]["_target_"] == former
    assert type(build(older[group], group)) is type(build(cell.config[group], group))
