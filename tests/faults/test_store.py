"""The store under faults: full and read-only disks, kills, damaged files, two writers, two holders."""

import errno
import json
import logging
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from adalora_bench.errors import UserError
from adalora_bench.store import files
from adalora_bench.store.records import LeaseHeld, RecordStore, append_jsonl, read_jsonl

NAMES = {"method": "lora", "task": "rte", "backbone": "minilm_l6", "scale": "cpu"}
KEY = "a" * 64


def record(seed=0, **changes):
    base = {
        "schema": 1,
        "key": KEY,
        "settings_key": "b" * 64,
        "names": NAMES,
        "overrides": [],
        "config": {"backbone": {}},
        "seed": seed,
        "versions": {"engine": 1},
        "data_fingerprint": "d",
        "split": "validation",
        "status": "ok",
        "main_metric": "acc",
        "final": {"step": 1, "scores": {"acc": 0.5}},
        "finished": "2026-01-01T00:00:00+00:00",
    }
    return {**base, **changes}


@pytest.fixture
def store(tmp_path):
    return RecordStore(tmp_path / "runs")


def run(code, *arguments, **options):
    """A child process that knows `store`, `record` and `sys`."""
    head = "import sys; from pathlib import Path; from test_store import *; store = RecordStore(Path(sys.argv[1]))\n"
    paths = os.pathsep.join([str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-c", head + textwrap.dedent(code), *map(str, arguments)]
    return subprocess.Popen(
        command, env={**os.environ, "PYTHONPATH": paths}, stdout=subprocess.PIPE, text=True, **options
    )


def answer(process):
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    return out


# -- the disk refuses ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["replace", "fsync"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
def test_a_refused_write_leaves_the_earlier_record_and_no_rest(store, monkeypatch, call, code):
    path = store.write(record())
    before = path.read_bytes()

    def refuse(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(files.os, call, refuse)
    with pytest.raises(
        UserError, match=f"cannot write .*record.json: {os.strerror(code)}.*; what was there before is intact"
    ):
        store.write(record(final={"step": 2, "scores": {"acc": 0.9}}))
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_an_interrupt_during_the_write_leaves_no_rest(store, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(files.os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        store.write(record())
    assert list(store.folder(NAMES, KEY, 0).iterdir()) == []


@pytest.mark.fault("R9")
def test_a_full_disk(store):
    path = store.write(record())
    append_jsonl(path.parent / "steps.jsonl", {"step": 1})
    before = path.read_bytes()
    child = run(
        """
        import resource
        from adalora_bench.store.files import write_predictions
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        folder = store.folder(NAMES, KEY, 0)
        big = {"text": "x" * 8000}
        noise = [{"row": index, "hash": str(hash((index, "x")) ** 3)} for index in range(3000)]
        for attempt in (
            lambda: store.write(record(config=big)),
            lambda: append_jsonl(folder / "steps.jsonl", big),
            lambda: write_predictions(folder / "predictions.jsonl.gz", noise),
        ):
            try:
                attempt()
            except UserError as error:
                print(error)
        """,
        store.root,
    )
    lines = answer(child).splitlines()
    assert len(lines) == 3
    for line, name in zip(lines, ["record.json", "steps.jsonl", "predictions.jsonl.gz"], strict=True):
        assert line.startswith(f"cannot write {path.parent / name}: ")
    assert path.read_bytes() == before
    assert read_jsonl(path.parent / "steps.jsonl")[0] == [{"step": 1}]
    append_jsonl(path.parent / "steps.jsonl", {"step": 2})
    assert read_jsonl(path.parent / "steps.jsonl")[0] == [{"step": 1}, {"step": 2}]
    assert sorted(file.name for file in path.parent.iterdir()) == ["record.json", "steps.jsonl"]


@pytest.mark.fault("R9 read")
def test_a_store_that_cannot_be_written_is_refused_first(store, tmp_path, monkeypatch):
    store.check_writable()
    assert list(store.root.iterdir()) == []
    (tmp_path / "file").write_text("")
    for root in (tmp_path / "file", tmp_path / "file" / "runs"):
        with pytest.raises(UserError, match=f"cannot write {root}: "):
            RecordStore(root).check_writable()

    def refuse(*_):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "write_bytes", refuse)
    with pytest.raises(UserError, match="Read-only file system"):
        store.check_writable()


# -- kills and two writers -------------------------------------------------------------------------------------


def test_killed_writers_leave_whole_records_only(store):
    """SIGKILL at 10 instants of a process that writes without pause; then the store must be whole."""
    child_code = """
        print("ready", flush=True)
        number = 0
        while True:
            number += 1
            store.write(record(config={"filler": ["x" * 50] * 2000, "number": number}))
    """
    for trial in range(10):
        child = run(child_code, store.root)
        assert child.stdout.readline() == "ready\n"
        time.sleep(0.01 + 0.007 * trial)
        child.send_signal(signal.SIGKILL)
        child.communicate()
        scan = store.scan()
        assert not scan.quarantined
        assert len(scan.records) <= 1
    assert len(store.scan().records) == 1
    folder = store.folder(NAMES, KEY, 0)
    with store.lease(folder):
        assert not list(folder.glob("*.tmp"))


def test_two_writers_of_one_record(store):
    code = """
        for number in range(150):
            store.write(record(config={"filler": sys.argv[2] * 20000, "number": number}))
    """
    children = [run(code, store.root, letter) for letter in "xy"]
    folder = store.folder(NAMES, KEY, 0)
    while any(child.poll() is None for child in children):
        if (found := store.read(folder)) is not None:
            assert len(set(found["config"]["filler"])) == 1
    for child in children:
        answer(child)
    assert [path.name for path in folder.iterdir()] == ["record.json"]


# -- damaged files ---------------------------------------------------------------------------------------------

WHOLE = json.dumps(record(seed=1))
DAMAGES = {
    "truncated": (WHOLE[: len(WHOLE) // 2].encode(), "does not parse"),
    "empty": (b"", "does not parse"),
    "binary": (b"\xff\xfe\x00", "does not parse"),
    "deep": (b"[" * 200_000, "does not parse"),
    "nan": (WHOLE.replace("0.5", "NaN").encode(), "does not parse: NaN is no JSON"),
    "overflow": (WHOLE.replace("0.5", "1e999").encode(), "fits no schema: final.scores.acc is inf"),
    "list": (b"[]", "fits no schema: it is no object but list"),
    "other schema": (json.dumps(record(seed=1, schema=99)).encode(), "fits no schema: schema is 99, not 1"),
    "bad name": (
        json.dumps(record(seed=1, names={**NAMES, "task": "../../x"})).encode(),
        "fits no schema: '../../x' is no name",
    ),
}


@pytest.mark.fault("R8")
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_set_aside_and_named(store, caplog, damage):
    content, reason = DAMAGES[damage]
    store.write(record(seed=0))
    path = store.write(record(seed=1))
    path.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        scan = store.scan()
    assert [one["seed"] for one in scan.records] == [0]
    [refused] = scan.quarantined
    assert refused.path == path.with_name("record.json.bad-1")
    assert refused.reason.startswith(reason)
    assert str(refused.path) in caplog.text
    assert refused.path.read_bytes() == content
    assert store.scan().quarantined == []
    # The unit runs again, and the next damage does not overwrite the first.
    assert store.read(path.parent) is None
    path.write_bytes(content)
    assert store.read(path.parent) is None
    assert path.with_name("record.json.bad-2").exists()


@pytest.mark.fault("R8")
def test_a_record_in_a_foreign_folder_is_named_and_not_counted(store):
    path = store.write(record())
    copy = path.parent.with_name("seed0_old")
    copy.mkdir()
    (copy / "record.json").write_bytes(path.read_bytes())
    scan = store.scan()
    assert len(scan.records) == 1
    assert [(one.path, one.reason) for one in scan.quarantined] == [
        (copy / "record.json", f"lies outside its own folder {path.parent.relative_to(store.root)}")
    ]
    assert (copy / "record.json").exists()


def test_a_damaged_file_in_a_read_only_store_is_still_named(store, monkeypatch):
    path = store.write(record())
    path.write_text("{")

    def refuse(*_):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "rename", refuse)
    [refused] = store.scan().quarantined
    assert refused.path == path
    assert refused.reason.endswith("(left in place: Read-only file system)")


# -- the lease -------------------------------------------------------------------------------------------------

HOLD = """
    with store.lease(store.folder(NAMES, KEY, 0)):
        print("held", flush=True)
        sys.stdin.read()
"""


@pytest.mark.fault("R5")
def test_one_holder_at_a_time_across_processes(store):
    folder = store.folder(NAMES, KEY, 0)
    child = run(HOLD, store.root, stdin=subprocess.PIPE)
    assert child.stdout.readline() == "held\n"
    with pytest.raises(LeaseHeld, match=f"process {child.pid} on ") as held, store.lease(folder):
        pass
    assert held.value.holder.startswith(f"process {child.pid} on ")
    with store.lease(store.folder(NAMES, KEY, 1)):
        pass
    child.communicate("", timeout=60)
    assert child.returncode == 0
    with store.lease(folder):
        assert (folder / "holder.lease").read_text().startswith(f"process {os.getpid()} on ")
        with pytest.raises(LeaseHeld), store.lease(folder):
            pass
    assert [path.name for path in folder.iterdir()] == ["unit.lock"]


@pytest.mark.fault("R5 lease")
def test_the_lease_of_a_dead_holder_is_free_at_once(store):
    folder = store.folder(NAMES, KEY, 0)
    child = run(HOLD, store.root, stdin=subprocess.PIPE)
    assert child.stdout.readline() == "held\n"
    (folder / "record.json.123.tmp").write_text("half")
    child.kill()
    child.communicate()
    with store.lease(folder):
        assert sorted(path.name for path in folder.iterdir()) == ["holder.lease", "unit.lock"]


def test_the_lease_is_freed_when_the_work_raises(store):
    folder = store.folder(NAMES, KEY, 0)
    with pytest.raises(ZeroDivisionError), store.lease(folder):
        raise ZeroDivisionError
    with store.lease(folder):
        pass


def test_a_lease_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    store = RecordStore(tmp_path / "file")
    with (
        pytest.raises(UserError, match="cannot write .*unit.lock: Not a directory"),
        store.lease(store.folder(NAMES, KEY, 0)),
    ):
        pass
