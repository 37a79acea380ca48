"""Tables, claims, figures and the page around damaged and odd records: each is named, the others count."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from report_records import diverged, record

from adalora_bench.report import claim_text, page
from adalora_bench.report.cells import arrange
from adalora_bench.report.papers import fill
from adalora_bench.report.tables import build_tables
from adalora_bench.settings.compose import conf_dir
from adalora_bench.settings.published import load_table
from adalora_bench.store.records import RecordStore


def seeds(*overrides: str, **more: Any) -> list[dict[str, Any]]:
    return [record("lora", "rte", seed, *overrides) | more for seed in range(5)]


@pytest.fixture
def store(tmp_path: Path) -> RecordStore:
    store = RecordStore(tmp_path / "runs")
    for one in seeds():
        store.write(one)
    return store


def cell_of(records: list[dict[str, Any]]) -> Any:
    (filled,) = [
        one
        for one in fill("aflora_1", load_table(conf_dir() / "table", "aflora_1"), records)
        if one.place.scale == "cpu"
    ]
    return filled.cells["LoRA r=8"]["RTE"]


def everything_is_written(store: RecordStore, records: list[dict[str, Any]], folder: Path) -> str:
    path = folder / "report.html"
    assert page.refresh(conf_dir(), store, records, path)
    return path.read_text()


WHOLE = json.dumps(record("lora", "rte", 4))
DAMAGED = {
    "NaN": (WHOLE.replace(str(record("lora", "rte", 4)["final"]["scores"]["acc"]), "NaN"), "NaN is no JSON"),
    "old schema": (WHOLE.replace('"schema": 1', '"schema": 0'), "schema is 0, not 1"),
    "truncated": (WHOLE[: len(WHOLE) // 2], "does not parse"),
}


@pytest.mark.fault("R8")
@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_record_is_named_and_the_others_count(
    store: RecordStore, tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    content, reason = DAMAGED[damage]
    one = record("lora", "rte", 4)
    (store.folder(one["names"], one["key"], 4) / "record.json").write_text(content)
    with caplog.at_level(logging.WARNING):
        scan = store.scan()
    assert reason in scan.quarantined[0].reason
    assert "record.json.bad-1" in caplog.text
    assert (cell_of(scan.records).n, cell_of(scan.records).finished) == (4, 4)
    named = "rte/deberta_v3_base/lora/" + f"{one['key'][:8]}/seed4/record.json.bad-1"
    caplog.clear()
    for again in (scan, store.scan()):  # an earlier command renamed it: it is not forgotten
        assert again.not_counted(store.root) == [named]
        [text] = build_tables(again.records, not_counted=again.not_counted(store.root)).values()
        assert "n=4 " in text
        assert f"Not counted, since it is no record: {named}." in text
    assert f"{named}: not counted" in caplog.text
    html = page.page(conf_dir(), store, scan.records, [named])
    assert named in html
    judged = claim_text.refresh(conf_dir() / "claim", scan.records, tmp_path / "claims.md")
    assert {one.verdict for one in judged} == {"not run"}
    store.write(one)
    assert store.scan().not_counted(store.root) == [], "the unit ran again"


@pytest.mark.fault("R10")
def test_a_diverged_seed_counts_everywhere(store: RecordStore, tmp_path: Path) -> None:
    store.write(diverged(record("lora", "rte", 4)))
    records = store.scan().records
    assert (cell_of(records).n, cell_of(records).finished) == (5, 4)
    [text] = build_tables(records).values()
    assert "n=4/5" in text
    html = everything_is_written(store, records, tmp_path)
    assert "n=4/5" in html
    assert "4 ok, 1 diverged" in html
    assert "diverged: the loss is NaN" in html


def test_two_records_of_one_seed_under_one_key(store: RecordStore) -> None:
    """A copied folder is refused and named; of two records in memory the newer counts, in any order."""
    one = record("lora", "rte", 4)
    folder = store.folder(one["names"], one["key"], 4)
    copy = folder.with_name("seed4_copy")
    copy.mkdir()
    (copy / "record.json").write_bytes((folder / "record.json").read_bytes())
    scan = store.scan()
    assert [refused.path for refused in scan.quarantined] == [copy / "record.json"]
    assert cell_of(scan.records).n == 5
    newer = one | {"finished": "2026-02-01T00:00:00+00:00", "final": {"epoch": 2.0, "scores": {"acc": 0.99}}}
    for records in ([*scan.records, newer], [newer, *scan.records]):
        assert (cell_of(records).n, cell_of(records).high) == (5, 99.0)


def test_two_keys_for_one_place_are_named(store: RecordStore, tmp_path: Path) -> None:
    later = seeds(key="f" * 64, settings_key="e" * 64, finished="2026-02-01T00:00:00+00:00")
    for one in later:
        store.write(one)
    records = store.scan().records
    [other] = arrange(records).others
    assert (other.records, other.why) == (5, "key ffffffff is shown")
    assert cell_of(records).n == 5
    html = everything_is_written(store, records, tmp_path)
    assert f"key {other.key8}: key ffffffff is shown" in html


def test_weights_of_two_folders_are_two_rows_that_say_which(tmp_path: Path) -> None:
    """Two records of one label whose weights came from other folders: neither stands for the other."""
    records = []
    for key, folder in (("1" * 64, "A"), ("2" * 64, "B")):
        one = record("lora", "rte", 0)
        source = {"served_by": "local", "detail": folder}
        records.append(one | {"key": key, "sources": {"backbone": source, "task": source}})
    for given in (records, records[::-1]):
        cells = arrange(given)
        assert [row.overrides for row in cells.rows] == [("weights of A",), ("weights of B",)]
        assert cells.others == []
    (alone,) = arrange(records[:1]).rows
    assert (alone.overrides, alone.weights) == ((), "A")
    (text,) = build_tables(records).values()
    assert "weights of the local folder `A`" in text
    assert "weights of the local folder `B`" in text
