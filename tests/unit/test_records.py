"""The record schema, the store's folders and files, and what is captured of the environment."""

import gzip
import json
import math
import os
import subprocess
from types import SimpleNamespace

import numpy as np
import pytest

from adalora_bench.store import records as r
from adalora_bench.store.schema import checksum, misfit

NAMES = {"method": "lora", "task": "rte", "backbone": "minilm_l6", "scale": "cpu"}
KEY = "0123456789abcdef" * 4


def record(**changes):
    base = {
        "schema": 1,
        "key": KEY,
        "settings_key": "f" * 64,
        "names": NAMES,
        "overrides": ["method.rank=2"],
        "config": {"backbone": {}},
        "seed": 3,
        "versions": {"task": 1, "method": 1, "engine": 1},
        "data_fingerprint": "d",
        "split": "validation",
        "status": "ok",
        "reason": None,
        "main_metric": "acc",
        "final": {"step": 9, "scores": {"acc": 0.1 + 0.2}},
        "best": None,
        "finished": "2026-01-01T00:00:00+00:00",
    }
    return {**base, **changes}


@pytest.fixture
def store(tmp_path):
    return r.RecordStore(tmp_path / "runs")


def test_folder_layout(store):
    assert store.folder(NAMES, KEY, 3) == store.root / "rte" / "minilm_l6" / "lora" / "01234567" / "seed3"


@pytest.mark.parametrize("part", ["task", "backbone", "method"])
@pytest.mark.parametrize(
    "name",
    ["..", ".", "", "a/b", "../x", "/etc", "~", "a\\b", "a\0b", "a\nb", ".hidden", "-x", "x" * 101, "x\n"],
)
def test_no_name_leaves_the_root(store, part, name):
    with pytest.raises(ValueError, match="is no name for a folder"):
        store.folder({**NAMES, part: name}, KEY, 0)


@pytest.mark.parametrize("key", ["../" + "a" * 61, "A" * 64, "a" * 63, "a" * 64 + "\n", ""])
def test_no_key_leaves_the_root(store, key):
    with pytest.raises(ValueError, match="64 hex"):
        store.folder(NAMES, key, 0)


@pytest.mark.parametrize("seed", [-1, "0", "../1", 1.0, True, None])
def test_no_seed_leaves_the_root(store, seed):
    with pytest.raises(ValueError, match="a seed is a whole number"):
        store.folder(NAMES, KEY, seed)


def test_written_records_read_back_equal_and_canonical(store):
    one = record(final={"step": 9, "scores": {"f1": 0.5, "acc": 0.1 + 0.2}})
    path = store.write(one)
    read = store.read(path.parent)
    assert read.pop("checksum") == checksum(one)
    assert read == one
    first = path.read_bytes()
    store.write(dict(reversed(one.items())))
    assert path.read_bytes() == first
    assert sorted(file.name for file in path.parent.iterdir()) == ["record.json"]
    lines = first.decode().splitlines()
    assert lines[0] == "{"
    assert [json.loads("{" + line.rstrip(",") + "}") for line in lines[1:-1]]
    assert path.stat().st_mode & 0o777 == 0o666 & ~_umask()


def test_numpy_numbers_and_tuples_become_plain(store):
    given = record(final={"step": np.int64(9), "scores": {"acc": np.float32(0.5)}}, overrides=("a=1",))
    path = store.write(given)
    assert store.read(path.parent)["final"] == {"step": 9, "scores": {"acc": 0.5}}
    assert store.read(path.parent)["overrides"] == ["a=1"]


def test_nan_needs_a_status_that_says_so(store):
    broken = {"step": 9, "scores": {"acc": 0.5, "f1": math.nan}}
    with pytest.raises(ValueError, match=r"final.scores.f1 is NaN or infinite, but the status is 'ok'"):
        store.write(record(final=broken))
    history = [{"step": 1, "epoch": 1.0, "scores": {"acc": -math.inf}}]
    path = store.write(record(final=None, history=history, status="diverged", reason="NaN in step 1"))
    assert store.read(path.parent)["history"][0]["scores"] == {"acc": None}


def test_finite_names_the_places():
    assert r.finite({"a": [1.0, math.nan], "b": {"c": math.inf}}) == (
        {"a": [1.0, None], "b": {"c": None}},
        ["a[1]", "b.c"],
    )


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"schema": 2}, "schema is 2, not 1"),
        ({"key": "abc"}, "key is 'abc', not 64 hex characters"),
        ({"seed": True}, "seed is True, not int"),
        ({"seed": -1}, "seed is -1, below 0"),
        ({"names": {"method": "lora"}}, "names.task is None, not str"),
        ({"overrides": [1]}, "overrides\\[0\\] is 1, not a text"),
        ({"status": "done"}, "status is 'done', not one of ok, collapsed, diverged, failed"),
        ({"status": "failed"}, "status is 'failed' without a reason"),
        ({"final": None}, "status is 'ok' without a final score of acc"),
        ({"final": {"scores": {"f1": 0.1}}}, "status is 'ok' without a final score of acc"),
        ({"final": {"scores": {"acc": "0.1"}}}, "final.scores.acc is '0.1', not a number"),
        ({"best": {"step": 1}}, "best.scores is missing"),
        ({"baseline": {"acc": "half"}}, "baseline.acc is 'half', not a number"),
        ({"seconds": {"total": [1]}}, r"seconds.total is \[1\], not a number"),
        ({"history": {}}, "history is {}, not a list"),
        ({"finished": "yesterday"}, "finished is 'yesterday', not an ISO time"),
    ],
)
def test_what_fits_no_schema_is_not_written(store, changes, reason):
    with pytest.raises(ValueError, match=f"the record fits no schema: {reason}"):
        store.write(record(**changes))
    assert not store.root.exists()


@pytest.mark.parametrize("name", sorted(set(record()) - {"reason", "best", "final", "schema"}))
def test_every_identifying_field_is_needed(name):
    one = record()
    del one[name]
    assert misfit(one) == f"{name} is missing"


def test_done_is_ok_collapsed_or_diverged_for_the_same_key(store):
    cell = SimpleNamespace(names=NAMES, key=KEY)
    assert not store.is_done(cell, 3)
    for status, done in (("ok", True), ("collapsed", True), ("diverged", True), ("failed", False)):
        store.write(record(status=status, reason="why"))
        assert store.is_done(cell, 3) is done
    store.write(record())
    assert not store.is_done(cell, 4)
    assert not store.is_done(SimpleNamespace(names=NAMES, key=KEY[:8] + "0" * 56), 3)


def test_two_keys_with_the_same_start_do_not_overwrite_each_other(store):
    store.write(record())
    with pytest.raises(r.UserError, match=f"belongs to the key {KEY}"):
        store.write(record(key=KEY[:8] + "0" * 56))


def test_scan_is_sorted_and_light_drops_the_heavy_parts(store):
    heavy = {"history": [{"step": 1, "scores": {}}], "events": [{}], "environment": {"python": "3"}}
    for seed in (2, 0, 1):
        store.write(
            record(
                seed=seed,
                ranks={"initial_total": 1, "final_total": 2, "final": {"a": 1}, "trace": [[0, 1]]},
                **heavy,
            )
        )
    full = store.scan().records
    assert [one["seed"] for one in full] == [0, 1, 2]
    assert full[0]["events"] == [{}]
    light = store.scan(light=True).records[0]
    assert not set(light) & set(heavy)
    assert light["ranks"] == {"initial_total": 1, "final_total": 2}


def test_json_lines_survive_a_cut_line(tmp_path):
    path = tmp_path / "unit" / "steps.jsonl"
    assert r.read_jsonl(path) == ([], 0)
    r.append_jsonl(path, {"step": 1, "loss": math.nan})
    with path.open("ab") as file:
        file.write(b'{"step": 2, "lo')
    r.append_jsonl(path, {"step": 3, "loss": 0.5})
    rows, damaged = r.read_jsonl(path)
    assert rows == [{"step": 1, "loss": None}, {"step": 3, "loss": 0.5}]
    assert damaged == 1
    path.write_bytes(b'[1]\n\n{"a": 1}')
    assert r.read_jsonl(path) == ([{"a": 1}], 1)


def test_predictions_are_reproducible_bytes(tmp_path):
    rows = [
        {"row": 0, "prediction": 1, "scores": [0.1, 0.9]},
        {"row": 1, "prediction": 0, "scores": [math.nan, 0]},
    ]
    r.write_predictions(tmp_path / "a.jsonl.gz", rows)
    r.write_predictions(tmp_path / "b.jsonl.gz", iter(rows))
    assert (tmp_path / "a.jsonl.gz").read_bytes() == (tmp_path / "b.jsonl.gz").read_bytes()
    header = (tmp_path / "a.jsonl.gz").read_bytes()[:8]
    assert header[3] == 0  # no file name
    assert header[4:] == b"\0\0\0\0"  # no time
    back = r.rows_of(r.unzipped(r.read_whole(tmp_path / "a.jsonl.gz")))[0]
    assert back[0] == rows[0]
    assert back[1]["scores"] == [None, 0]
    with gzip.open(tmp_path / "a.jsonl.gz", "rt") as file:
        assert len(file.readlines()) == 2


def test_environment_holds_versions_and_nothing_private(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_do_not_record_me")
    monkeypatch.setenv("HOME", "/home/somebody-private")
    monkeypatch.setenv("USER", "somebody-private")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    found = r.environment()
    text = json.dumps(found)
    assert "hf_do_not" not in text
    assert "private" not in text
    assert os.uname().nodename not in text.split('"')
    assert set(found["packages"]) >= {
        "torch",
        "transformers",
        "datasets",
        "hydra-core",
        "tokenizers",
        "accelerate",
    }
    assert found["threads"]["OMP_NUM_THREADS"] == 1
    assert found["cores"] >= 1
    assert found["cpu"]


def test_git_state(tmp_path):
    assert r.git_state(tmp_path) is None
    work = tmp_path / "work"
    (work / "results").mkdir(parents=True)
    (work / "inner").mkdir()
    (work / "code.py").write_text("1")
    _git(work, "init", "-q")
    assert r.git_state(work) is None  # nothing is tracked
    _git(work, "add", "code.py")
    assert r.git_state(work) == {"commit": None, "dirty": True}
    _git(work, "-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "-q", "-m", "one")
    state = r.git_state(work)
    assert len(state["commit"]) == 40
    assert state["dirty"] is False
    (work / "results" / "record.json").write_text("{}")
    assert r.git_state(work)["dirty"] is False
    (work / "code.py").write_text("2")
    assert r.git_state(work) == {"commit": state["commit"], "dirty": True}
    assert r.git_state(work / "inner") is None


def _git(folder, *arguments):
    subprocess.run(["git", "-C", str(folder), *arguments], check=True, capture_output=True)


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_what_a_kill_left_beside_a_finished_record_is_removed_unless_someone_works_there(tmp_path):
    store = r.RecordStore(tmp_path)
    folder = tmp_path / "unit"
    (folder / "checkpoints" / "step00000001").mkdir(parents=True)
    (folder / "record.json.7.tmp").write_text("half")
    with store.lease(folder):
        store.tidy(folder)
        assert (folder / "checkpoints").is_dir()
    store.tidy(folder)
    assert [path.name for path in folder.iterdir()] == ["unit.lock"]
    store.tidy(tmp_path / "absent")
    assert not (tmp_path / "absent").exists()
