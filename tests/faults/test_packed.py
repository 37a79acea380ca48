"""Packed records are read as loose ones are, in every place that reads records; no kill, damage or race loses one."""

import gzip
import hashlib
import json
import shutil
from pathlib import Path

import pytest
from test_store import NAMES, record

from adalora_bench.cli.parser import main
from adalora_bench.errors import UserError
from adalora_bench.settings.recorded import locate
from adalora_bench.store import pack as packing
from adalora_bench.store import packed
from adalora_bench.store.collect import collect
from adalora_bench.store.pack import pack, unpack
from adalora_bench.store.records import RecordStore, append_jsonl, content_of, write_predictions

pytestmark = pytest.mark.fault("packed")

GOLDEN = Path(__file__).parents[1] / "golden" / "store"
ROWS = [{"index": index, "set": "", "prediction": f"größer {index}"} for index in range(3)]


def fill(store: RecordStore, seeds=range(3), task="rte", **changes) -> list[Path]:
    """Units with all three files, as a training leaves them; their folders."""
    folders = []
    for seed in seeds:
        notes = [hashlib.sha512(bytes([seed])).hexdigest() * 2]  # no two units compress as one
        one = record(seed=seed, names=NAMES | {"task": task}, notes=notes, **changes)
        folder = store.folder(one["names"], one["key"], seed)
        append_jsonl(folder / "steps.jsonl", {"step": 1, "loss": 0.1 * seed})
        write_predictions(folder / "predictions.jsonl.gz", [row | {"seed": seed} for row in ROWS])
        store.write(one)
        folders.append(folder)
    return folders


def contents(root: Path) -> dict[str, bytes]:
    """The units' files below a root, with their content."""
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.name in packed.PACKED
    }


def parts(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir() if path.name.endswith(".gz"))


@pytest.fixture
def store(tmp_path):
    return RecordStore(tmp_path / "results" / "runs")


def test_packing_and_unpacking_gives_back_every_byte_and_no_empty_folder(store):
    for task in ("rte", "mrpc"):
        fill(store, task=task)
    before, scan = contents(store.root), store.scan()
    done = pack(store.root)
    assert (len(done.units), done.left) == (6, [])
    assert [path.name for path in sorted(store.root.iterdir())] == [
        "README.md",
        "mrpc+predictions.jsonl.gz",
        "mrpc.jsonl.gz",
        "rte+predictions.jsonl.gz",
        "rte.jsonl.gz",
    ]
    assert store.scan() == scan
    again = contents(store.root), parts(store.root)
    assert pack(store.root).units == []
    assert (contents(store.root), parts(store.root)) == again
    assert len(unpack(store.root).units) == 6
    assert contents(store.root) == before
    assert parts(store.root) == []
    assert not (store.root / "README.md").exists()


def test_one_task_is_packed_alone_and_a_misspelt_one_is_refused(store):
    fill(store)
    fill(store, task="mrpc")
    assert len(pack(store.root, ["mrpc"]).units) == 3
    assert parts(store.root) == ["mrpc+predictions.jsonl.gz", "mrpc.jsonl.gz"]
    with pytest.raises(UserError, match="did you mean 'mrpc'"):
        pack(store.root, ["mprc"])


def test_the_golden_store_gives_the_same_scan_packed(tmp_path):
    root = tmp_path / "runs"
    shutil.copytree(GOLDEN, root)
    for light in (False, True):
        loose = RecordStore(root).scan(light=light)
        pack(root)
        assert RecordStore(root).scan(light=light) == loose
        unpack(root)


def test_every_reader_finds_a_packed_unit(store, tmp_path):
    folder = fill(store)[1]
    path = folder / "record.json"
    before = path.read_bytes(), store.read(folder), store.steps(folder), store.predictions(folder)
    pack(store.root)
    assert not folder.exists()
    assert (content_of(path), store.read(folder), store.steps(folder), store.predictions(folder)) == before
    for named in (folder, path):
        assert locate(str(named)) == path
    cell = type("Cell", (), {"names": before[1]["names"], "key": before[1]["key"]})()
    assert store.is_done(cell, 1)
    assert not store.is_done(cell, 7)
    found = collect([store.root.parent], tmp_path / "other")
    assert len(found.copied) == 3
    assert RecordStore(tmp_path / "other" / "runs").scan() == store.scan()
    assert len(collect([tmp_path / "other"], store.root.parent).same) == 3
    assert not path.exists()


def test_a_loose_record_stands_before_a_packed_one_with_its_own_files(store):
    (folder,) = fill(store, seeds=[0])
    pack(store.root)
    store.write(record(status="failed", reason="forced and failed", final=None))
    assert store.read(folder)["status"] == "failed"
    assert store.scan().records == [store.read(folder)]
    assert store.predictions(folder) is None
    assert store.steps(folder) == []
    # packed again: what the later unit left no file of is gone with it
    assert pack(store.root).left == []
    assert store.read(folder)["status"] == "failed"
    assert store.predictions(folder) is None
    unpack(store.root)
    assert [path.name for path in folder.iterdir() if path.name in packed.PACKED] == ["record.json"]


def test_files_of_a_unit_that_is_being_trained_again_do_not_mix_with_the_packed_record(store):
    (folder,) = fill(store, seeds=[0])
    steps = store.steps(folder)
    pack(store.root)
    append_jsonl(folder / "steps.jsonl", {"step": 1, "loss": 99.0})
    assert store.steps(folder) == steps


def test_a_unit_that_is_held_stays_loose_and_is_named(store):
    folders = fill(store)
    with store.lease(folders[1]):
        done = pack(store.root)
        assert len(done.units) == 2
        assert len(done.left) == 1
        assert str(folders[1]) in done.left[0]
        assert (folders[1] / "record.json").is_file()
    assert len(store.scan().records) == 3


def test_other_files_of_a_unit_stay_where_they_are(store):
    (folder,) = fill(store, seeds=[0])
    (folder / "adapter.safetensors").write_bytes(b"weights")
    pack(store.root)
    assert [path.name for path in folder.iterdir() if path.name != "unit.lock"] == ["adapter.safetensors"]
    unpack(store.root)
    assert (folder / "adapter.safetensors").read_bytes() == b"weights"


class Kill(BaseException):
    """The process ends here."""


@pytest.mark.parametrize("convert", [pack, unpack])
def test_a_kill_at_any_write_or_removal_loses_nothing(store, monkeypatch, convert):
    fill(store, seeds=range(4))
    monkeypatch.setattr(packing, "PART_BYTES", 600)  # several parts
    if convert is unpack:
        pack(store.root)
        assert len(parts(store.root)) >= 3
    seen = {folder.name: store.predictions(folder) for folder in map(store_folder(store), range(4))}
    scan, start = store.scan(), store.root.with_name("start")
    shutil.copytree(store.root, start)
    unlink, replace = Path.unlink, packing.os.replace
    moment = 0
    while True:
        shutil.rmtree(store.root)
        shutil.copytree(start, store.root)
        left = moment

        def count(original):
            def call(*arguments, **named):
                nonlocal left
                if left == 0:
                    raise Kill
                left -= 1
                return original(*arguments, **named)

            return call

        with monkeypatch.context() as patched:
            patched.setattr(Path, "unlink", count(unlink))
            patched.setattr("os.replace", count(replace))
            try:
                convert(store.root)
                break
            except Kill:
                pass
        assert store.scan() == scan, moment
        assert {f.name: store.predictions(f) for f in map(store_folder(store), range(4))} == seen, moment
        moment += 1
    assert moment > 10
    assert store.scan() == scan


def store_folder(store):
    return lambda seed: store.folder(NAMES, "a" * 64, seed)


@pytest.mark.parametrize("predictions", [False, True])
@pytest.mark.parametrize("damage", ["cut", "flipped", "no gzip", "no json", "no object", "no text"])
def test_a_damaged_part_is_named_and_kept_and_what_can_be_read_counts(store, damage, predictions):
    fill(store, seeds=range(8))
    pack(store.root)
    path = store.root / ("rte+predictions.jsonl.gz" if predictions else "rte.jsonl.gz")
    whole = path.read_bytes()
    lines = gzip.decompress(whole).splitlines(keepends=True)
    other = {"no json": b"{", "no object": b"[1]\n", "no text": b'{"unit": "a", "file": "b", "text": 3}\n'}
    path.write_bytes(
        {
            "cut": whole[: len(whole) // 2],
            "flipped": whole[:-8] + bytes(8),
            "no gzip": b"no gzip at all",
        }.get(damage)
        or gzip.compress(b"".join([*lines[:8], other[damage], *lines[8:]]))
    )
    bad = path.read_bytes()
    scan = store.scan()
    assert len(scan.records) == 8 or not predictions
    assert [(one.path, "damaged" in one.reason) for one in scan.quarantined] == (
        [] if predictions else [(path, True)]
    )
    # a new unit is packed into a part of its own
    fill(store, seeds=[9])
    pack(store.root)
    assert path.read_bytes() == bad
    assert store.read(store_folder(store)(9))["seed"] == 9
    assert len(store.predictions(store_folder(store)(9))) == 3
    done = unpack(store.root)
    assert path.read_bytes() == bad
    assert any(str(path) in sentence for sentence in done.left)


def test_a_packed_record_that_is_none_is_named_and_the_others_count(store):
    fill(store)
    pack(store.root)
    path = store.root / "rte.jsonl.gz"
    rows = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
    for row in rows:
        if row["unit"].endswith("seed1") and row["file"] == "record.json":
            row["text"] = row["text"].replace('"ok"', '"fine"')
        if row["unit"].endswith("seed2"):
            row["unit"] = row["unit"].replace("seed2", "seed3")
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    scan = store.scan()
    assert [one["seed"] for one in scan.records] == [0]
    assert ["fits no schema" in scan.quarantined[0].reason, "outside" in scan.quarantined[1].reason] == [
        True
    ] * 2
    assert path.exists()


def test_a_part_holds_at_most_its_size_and_a_unit_that_comes_later_is_added(store, monkeypatch):
    monkeypatch.setattr(packing, "PART_BYTES", 1500)
    fill(store, seeds=range(6))
    pack(store.root)
    fill(store, seeds=range(6, 12))
    pack(store.root)
    sizes = [path.stat().st_size for path in packed.parts(store.root)]
    assert len(sizes) > 1
    assert max(sizes) <= 1500
    assert [one["seed"] for one in store.scan().records] == [0, 1, 10, 11, *range(2, 10)]
    assert len(packed.parts(store.root)) < 8


def test_the_commands_say_what_they_did(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    fill(RecordStore(Path("results/runs")))
    assert main(["pack"]) == 0
    assert capsys.readouterr().out == "packed: 3 units, 2 packed files\n"
    summary = Path("results/runs/README.md").read_text()
    assert "| rte | minilm_l6 | lora | cpu | aaaaaaaa | 0 1 2 |  | acc | 0.5000 |" in summary
    assert main(["unpack", "task=rte"]) == 0
    assert capsys.readouterr().out == "unpacked: 3 units, 2 packed files\n"
    assert main(["pack", "results_dir=nowhere"]) == 2
    assert "unknown results folder 'nowhere'" in capsys.readouterr().err
    assert not Path("nowhere").exists()
