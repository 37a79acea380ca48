"""Stored records -> exact Markdown. The records in store/ are synthetic, made by hand to show every kind of cell.

After a wanted change of the text: `python scripts/regenerate_golden.py`, then read the diff of tests/golden/expected.
"""

import random
import shutil
from pathlib import Path

import pytest

from adalora_bench.report.tables import build_tables, cell_summary, refresh
from adalora_bench.store.records import RecordStore

HERE = Path(__file__).parent


@pytest.fixture
def store(tmp_path):
    """A copy: reading a store may move broken files aside."""
    return Path(shutil.copytree(HERE / "store", tmp_path / "runs"))


@pytest.fixture
def records(store):
    scan = RecordStore(store).scan()
    assert not scan.quarantined
    assert all(record["environment"] == {"note": "synthetic"} for record in scan.records)
    return scan.records


def stored(store):
    return RecordStore(store).scan(light=True).records


def expected(selection=None):
    """Without a selection that of each split: the best step on dev rows where there are some, else the last."""
    if selection is None:
        return {
            name: expected("best" if name.endswith("dev_test") else "last")[name] for name in expected("last")
        }
    return {path.stem: path.read_bytes().decode() for path in (HERE / "expected" / selection).glob("*.md")}


@pytest.mark.parametrize("selection", ["last", "best"])
def test_text_is_exact(records, selection):
    assert build_tables(records, selection) == expected(selection)


@pytest.mark.parametrize("seed", range(5))
def test_order_of_records_does_not_matter(records, seed):
    random.Random(seed).shuffle(records)
    assert build_tables(records) == expected()


def test_refresh_writes_once_and_names_what_it_wrote(store, tmp_path):
    tables = tmp_path / "elsewhere" / "tables"
    written = refresh(stored(store), tables)
    assert [path.name for path in written] == ["cpu_minilm_l6.md", "smoke_tiny_bert_dev_test.md"]
    assert {path.stem: path.read_bytes().decode() for path in tables.iterdir()} == expected()
    before = {path: path.stat().st_mtime_ns for path in tables.iterdir()}
    assert refresh(stored(store), tables) == []
    assert {path: path.stat().st_mtime_ns for path in tables.iterdir()} == before


def test_refresh_only(store, tmp_path):
    written = refresh(stored(store), tmp_path / "tables", only=["smoke_tiny_bert_dev_test"])
    assert [path.name for path in written] == ["smoke_tiny_bert_dev_test.md"]
    assert list((tmp_path / "tables").iterdir()) == written


def test_tables_go_on_around_a_broken_record(store, tmp_path):
    victim = next(store.glob("rte/minilm_l6/lora/*/seed4/record.json"))
    victim.write_text("{")
    refresh(stored(store), tmp_path / "tables")
    text = (tmp_path / "tables" / "cpu_minilm_l6.md").read_text()
    assert "**56.68** [54.51, 58.84] n=5" in expected("last")["cpu_minilm_l6"]
    assert "n=4 " in text
    assert victim.with_name("record.json.bad-1").exists()


def test_no_records_no_tables(tmp_path):
    assert build_tables([]) == {}
    assert refresh(stored(tmp_path / "nothing"), tmp_path / "tables") == []
    assert not (tmp_path / "tables").exists()


def test_rows_for_the_terminal(records):
    rows = {(row.label, row.task): row for row in cell_summary(records)}
    row = rows["lora (method.rank=2)", "rte"]
    # Seeds 150 149 diverged 158 153 of 277 rows: sorted, the third is 150.
    assert row.scores["acc"].median == 150 / 277
    assert (row.scores["acc"].high, row.scores["acc"].n, row.scores["acc"].finished) == (158 / 277, 5, 4)
    assert row.baseline == {"acc": 0.5270758122743683}
    assert row.statuses == {"ok": 4, "diverged": 1}
    assert row.standard_error == pytest.approx(0.029939, abs=1e-6)
    assert (row.params_initial, row.params_final, row.rank_final, row.seconds) == (18432, 18432, 36, 84)
    grown = rows["increlora", "rte"]
    assert (grown.params_initial, grown.params_final) == (9216, 36864 + 512 * 2)
    assert grown.statuses == {"ok": 4, "collapsed": 1}
    assert rows["sora", "toy"].scores == {}
    assert rows["full", "stsb"].rank_final is None


def test_newest_key_is_shown_unless_it_only_failed(records):
    plain = [
        r
        for r in records
        if r["names"]["method"] == "lora" and not r["overrides"] and r["versions"]["engine"] == 2
    ]
    assert {row.key for row in cell_summary(plain)} == {max(plain, key=lambda r: r["finished"])["key"]}
    failed = {**plain[0], "key": "f" * 64, "settings_key": "e" * 64, "status": "failed", "final": None}
    failed["finished"] = "2027-01-01T00:00:00+00:00"
    assert "f" * 64 not in {row.key for row in cell_summary([*plain, failed])}


def test_times_of_other_zones_are_compared_as_times(records):
    one = next(r for r in records if r["names"]["method"] == "lora" and not r["overrides"])
    early = {**one, "key": "1" * 64, "settings_key": "1" * 64, "finished": "2026-05-01T12:00:00+09:00"}
    late = {**one, "key": "2" * 64, "settings_key": "2" * 64, "finished": "2026-05-01T11:00:00"}
    assert [row.key8 for row in cell_summary([early, late])] == ["2" * 8]


@pytest.mark.parametrize(
    ("typed", "label"),
    [
        (["method.rank=2", "train.lr=1e-3"], "lora (method.rank=2, train.lr=1e-3)"),
        (["jobs=2", "seeds=[0]", "launcher.x=1", "split=validation"], "lora"),
        (["backbone.source.local=/home/somebody/model", "task.source.local='~/rte'"], "lora"),
        (["+method.extra=1", "scale.train_rows=100"], "lora (+method.extra=1, scale.train_rows=100)"),
    ],
)
def test_what_names_a_row(records, typed, label):
    one = next(r for r in records if r["names"]["method"] == "lora")
    assert [row.label for row in cell_summary([{**one, "overrides": typed}])] == [label]


def test_one_key_typed_in_two_ways_is_one_row(records):
    plain = [
        r
        for r in records
        if r["names"]["method"] == "lora" and not r["overrides"] and r["versions"]["engine"] == 2
    ]
    key = max(plain, key=lambda r: r["finished"])["key"]
    seeds = [r for r in plain if r["key"] == key]
    seeds[0] = {**seeds[0], "overrides": ["method.rank=8"]}
    assert [(row.label, row.scores["acc"].n) for row in cell_summary(seeds)] == [("lora", 5)]


def test_settings_cannot_break_the_table(records):
    one = next(r for r in records if r["names"]["method"] == "lora")
    [text] = build_tables([{**one, "overrides": ["method.note='a|b\n<b>'"]}]).values()
    assert "lora (method.note='a\\|b &lt;b>')" in text
