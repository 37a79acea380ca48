"""An edited record is named and not counted; one damaged or hostile record takes nothing else down."""

from __future__ import annotations

import copy
import gzip
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import report_records
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from test_store import record

from adalora_bench import cli
from adalora_bench.store.records import RecordStore
from adalora_bench.store.schema import misfit

pytestmark = pytest.mark.fault("edited")

TOY = ("method=lora", "task=toy", "scale=smoke", "seeds=[0]", "device=cpu", "jobs=1")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A results folder with one trained unit."""
    place = tmp_path_factory.mktemp("trained")
    assert cli.main(["run", *TOY, f"results_dir={place}"]) == 0
    return place


@pytest.fixture
def results(trained: Path, tmp_path: Path) -> Path:
    shutil.copytree(trained, tmp_path / "results")
    return tmp_path / "results"


def unit(results: Path) -> Path:
    (path,) = (results / "runs").glob("*/*/*/*/seed0/record.json")
    return path.parent


def edited(results: Path, change: Any) -> None:
    path = unit(results) / "record.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def verified(results: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    capsys.readouterr()
    return cli.main(["verify", str(results)]), capsys.readouterr().out


def test_what_was_trained_is_verified_loose_and_packed(
    results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert verified(results, capsys) == (0, "verified: 1 record, 1 with a checksum; 0 misfits\n")
    assert cli.main(["pack", f"results_dir={results}"]) == 0
    assert verified(results, capsys) == (0, "verified: 1 record, 1 with a checksum; 0 misfits\n")


CHANGES = {
    "score": lambda r: r["final"]["scores"].update(acc=0.99),
    "best": lambda r: r["best"]["scores"].update(acc=0.99),
    "seconds": lambda r: r["seconds"].update(total=0.1),
    "settings": lambda r: r["config"]["method"].update(rank=4),
    "status": lambda r: r.update(status="collapsed"),
    "note": lambda r: r["notes"].append("better than all"),
    "subset": lambda r: r.update(subset=None),
    "ranks": lambda r: r["ranks"].update(final_total=1),
    "git": lambda r: r.update(git=None),
}


@pytest.mark.parametrize("change", CHANGES)
def test_an_edited_record_is_named_and_not_counted(change, results, capsys):
    before = json.loads((unit(results) / "record.json").read_text())
    edited(results, CHANGES[change])
    if json.loads((unit(results) / "record.json").read_text()) == before:
        pytest.skip("the record says this already")
    code, said = verified(results, capsys)
    assert code == 1
    assert "its checksum does not fit" in said
    assert (unit(results) / "record.json").exists()
    assert RecordStore(results / "runs").scan().records == []
    assert cli.main(["tables", f"results_dir={results}"]) == 0


@pytest.mark.parametrize("change", ["settings", "score"])
def test_an_edit_without_the_checksum_is_seen_by_the_key_and_the_history(change, results, capsys):
    edited(results, lambda r: (CHANGES[change](r), r.pop("checksum")))
    code, said = verified(results, capsys)
    assert code == 1
    assert ("give the key" if change == "settings" else "not those of its last evaluation") in said


def test_names_that_were_edited_leave_the_record_outside_its_folder(results, capsys):
    edited(results, lambda r: (r["names"].update(method="sora"), r.pop("checksum")))
    code, said = verified(results, capsys)
    assert code == 1
    assert "lies outside its own folder" in said


def test_files_beside_a_record_are_those_that_were_written_with_it(results, capsys):
    folder = unit(results)
    with (folder / "steps.jsonl").open("a") as file:
        file.write('{"step": 99, "loss": 0.0}\n')
    rows = gzip.decompress((folder / "predictions.jsonl.gz").read_bytes())
    (folder / "predictions.jsonl.gz").write_bytes(
        gzip.compress(rows.replace(b'"prediction": 1', b'"prediction": 0'))
    )
    tensors = load_file(folder / "adapter.safetensors")
    save_file({name: tensor * 1.5 for name, tensor in tensors.items()}, folder / "adapter.safetensors")
    code, said = verified(results, capsys)
    assert code == 1
    for name in ("steps.jsonl is not", "predictions.jsonl.gz is not", "adapter.safetensors is not the file"):
        assert name in said


def test_an_adapter_of_other_ranks_is_seen_without_a_checksum(results, capsys):
    edited(results, lambda r: (r.pop("checksum"), r.pop("artefacts")))
    path = unit(results) / "adapter.safetensors"
    tensors = load_file(path)
    save_file({n: t[:1] if n.endswith((".a", ".b")) else t for n, t in tensors.items()}, path)
    code, said = verified(results, capsys)
    assert code == 1
    assert "holds other ranks than it tells" in said


# -- one record takes nothing down -------------------------------------------------------------------------------

WRONG: list[Any] = [
    "x",
    7,
    -1.5,
    1e308,
    10**400,
    [],
    {},
    [[]],
    True,
    None,
    "\ud800",
    "\x1b[2J",
    "a" * 300_000,
]


def places(value: Any, place: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where something stands in a record, down to its leaves (of a list the first item)."""
    found = [place] if place else []
    if isinstance(value, dict):
        for name, part in value.items():
            found += places(part, (*place, name))
    elif isinstance(value, list) and value:
        found += places(value[0], (*place, 0))
    return found


def put(whole: dict[str, Any], place: tuple[Any, ...], value: Any) -> dict[str, Any]:
    changed: Any = copy.deepcopy(whole)
    node = changed
    for part in place[:-1]:
        node = node[part]
    node[place[-1]] = value
    return changed


def full(method: str = "increlora") -> dict[str, Any]:
    return report_records.record(method, "rte", 0)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A results folder with whole records of two cells."""
    root = tmp_path_factory.mktemp("records")
    for method in ("lora", "increlora"):
        for seed in range(2):
            RecordStore(root / "runs").write(report_records.record(method, "rte", seed))
    return root


@pytest.fixture(scope="module")
def odd(store: Path) -> Path:
    """The same, and beside it every record that the schema lets through with a value of WRONG at one of its places."""
    seed = 100
    for value in WRONG:
        for place in places(full()):
            one = put(full(), place, value)
            if misfit(one) is None and misfit(one := one | {"seed": seed}) is None:
                folder = RecordStore(store / "runs").folder(one["names"], one["key"], one["seed"])
                folder.mkdir(parents=True)
                (folder / "record.json").write_text(json.dumps(one, allow_nan=True))
                seed += 1
    assert seed > 150
    return store


@pytest.mark.parametrize("command", ["tables", "claims", "report"])
def test_a_value_of_another_kind_anywhere_in_a_record_is_refused_or_harmless(command: str, odd: Path) -> None:
    """Each place of a record in turn; what the schema lets through, every reader must survive."""
    assert cli.main([command, f"results_dir={odd}"]) == 0


def test_such_records_can_be_collected(odd: Path, tmp_path: Path) -> None:
    assert cli.main(["collect", str(odd), f"results_dir={tmp_path}"]) in (0, 1)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@given(value=JSON, at=st.integers(0, 10_000))
def test_the_schema_answers_for_any_value_anywhere(value, at):
    everywhere = places(full())
    reason = misfit(put(full(), everywhere[at % len(everywhere)], value))
    assert reason is None or isinstance(reason, str)


@pytest.mark.parametrize("kind", ["device", "pipe", "folder", "large", "loop", "nothing"])
@pytest.mark.parametrize("name", ["record.json", "steps.jsonl", "predictions.jsonl.gz"])
def test_what_is_no_ordinary_file_is_named_and_not_read(kind, name, tmp_path, monkeypatch):
    store = RecordStore(tmp_path / "runs")
    store.write(record(seed=1))
    folder = store.write(record(seed=0)).parent
    path = folder / name
    path.unlink(missing_ok=True)
    if kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "large":
        with path.open("wb") as file:
            file.truncate(2**40)
    elif kind == "loop":
        path.symlink_to(path)
    else:
        path.symlink_to(tmp_path / "nowhere")
    scan = store.scan()
    assert [one["seed"] for one in scan.records] == ([1] if name == "record.json" else [0, 1])
    if name == "record.json":
        assert store.read(folder) is None
        if kind not in ("nothing",):
            assert len(scan.quarantined) + len(scan.aside) == 1
    elif name == "steps.jsonl":
        assert store.steps(folder) == []
    else:
        assert not store.predictions(folder)


def test_a_file_that_unpacks_without_end_is_not_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr("adalora_bench.store.files.LARGEST", 1000)
    monkeypatch.setattr("adalora_bench.store.files.unzipped.__defaults__", (1000,))
    store = RecordStore(tmp_path / "runs")
    folder = store.write(record()).parent
    (folder / "predictions.jsonl.gz").write_bytes(gzip.compress(bytes(100_000)))
    assert not store.predictions(folder)
