"""The keys of the records in results/ follow from their settings today as on the day they were written.

A refactoring that moves a class or renames a field would otherwise make every record a stranger: `bench run` would
train again what is recorded.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from adalora_bench.key import digest, settings_of
from adalora_bench.store.records import RecordStore

RESULTS = Path(__file__).parents[2] / "results"


@pytest.mark.parametrize("folder, least", [("runs", 450), ("search/runs", 300)])
def test_every_stored_record_keeps_its_keys(folder: str, least: int) -> None:
    records = RecordStore(RESULTS / folder).scan().records
    assert len(records) >= least
    strangers = [
        record["key"] for record in records if keys(record) != (record["key"], record["settings_key"])
    ]
    assert strangers == []


def keys(record: dict[str, Any]) -> tuple[str, str]:
    """(key, settings key), calculated anew from what the record says."""
    settings = settings_of(record["config"])
    versions = {"engine": record["versions"]["engine"]}
    versions |= {group: settings[group].pop("version") for group in ("method", "task", "backbone")}
    whole = {
        "settings": settings,
        "versions": versions,
        "data": record["data_fingerprint"],
        "weights": record["sources"]["backbone"]["detail"],
    }
    return digest(whole), digest(settings)
