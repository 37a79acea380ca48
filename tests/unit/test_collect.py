"""Record folders brought together: copied once, kept twice where they differ, and named."""

import json
from pathlib import Path

import pytest
from report_records import record

from adalora_bench import cli
from adalora_bench.errors import UserError
from adalora_bench.store.collect import collect, difference
from adalora_bench.store.records import RecordStore

FIRST = record("lora", "rte", 0)
NAMES, KEY = FIRST["names"], FIRST["key"]


def write(results: Path, seed: int = 0, score: float = 0.5, **changes: object) -> Path:
    one = record("lora", "rte", seed) | {"final": {"step": 1, "scores": {"acc": score}}}
    path = RecordStore(results / "runs").write(one | changes)
    (path.parent / "steps.jsonl").write_text(f"{results.name}\n")
    return path


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_units_of_two_machines_come_together_once(tmp_path: Path) -> None:
    one, two, here = tmp_path / "one", tmp_path / "two", tmp_path / "here"
    write(one, 0), write(two, 1), write(two, 2)
    home = write(one, 3).parent
    (home / "checkpoints").mkdir()
    (home / "checkpoints" / "step").write_text("large")
    (home / "holder.lease").write_text("process 1 on elsewhere")
    found = collect([one, two], here)
    assert (len(found.copied), found.same, found.both, found.held, found.refused) == (4, [], [], [], [])
    assert [r["seed"] for r in RecordStore(here / "runs").scan().records] == [0, 1, 2, 3]
    for path in found.copied:
        assert {p.name for p in path.iterdir()} == {"record.json", "steps.jsonl", "unit.lock"}
    before = files(here)
    assert (len(again := collect([one, two], here).same), again) == (4, again)
    assert files(here) == before


def test_the_same_unit_with_another_content_is_kept_twice_and_named(tmp_path: Path) -> None:
    one, here = tmp_path / "one", tmp_path / "here"
    mine, theirs = write(here, score=0.5), write(one, score=0.6)
    kept = mine.read_bytes()
    found = collect([one], here)
    [(aside, words)] = found.both
    assert words == "differs in final"
    assert mine.read_bytes() == kept
    assert aside.parent == mine.parent
    assert (aside / "record.json").read_bytes() == theirs.read_bytes()
    assert (aside / "steps.jsonl").read_text() == "one\n"
    assert len(RecordStore(here / "runs").scan().records) == 1  # a table sees one of them
    assert len(collect([one], here).same) == 1
    # what was set aside travels on: nothing is lost in a chain of collections
    third = tmp_path / "third"
    assert (len(collect([here], third).copied), len(list(third.rglob("record.json")))) == (1, 2)


def test_a_result_takes_the_place_of_a_failure(tmp_path: Path) -> None:
    one, here = tmp_path / "one", tmp_path / "here"
    path = write(here, status="failed", reason="no memory", final=None)
    write(one)
    [(aside, _)] = collect([one], here).both
    assert json.loads(path.read_text())["status"] == "ok"
    assert json.loads((aside / "record.json").read_text())["status"] == "failed"
    assert (path.parent / "steps.jsonl").read_text() == "one\n"


def test_another_key_with_the_same_first_letters_is_kept_too(tmp_path: Path) -> None:
    one, here = tmp_path / "one", tmp_path / "here"
    mine = write(here)
    write(one, key=KEY[:8] + "c" * 56)
    [(_, words)] = collect([one], here).both
    assert words == "differs in key"
    assert json.loads(mine.read_text())["key"] == KEY


def test_what_is_no_record_or_is_being_trained_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, here = tmp_path / "one", tmp_path / "here"
    write(one, 0)
    write(one, 1).write_text("{")
    store = RecordStore(here / "runs")
    with store.lease(store.folder(NAMES, KEY, 0)):
        assert cli.main(["collect", str(one), f"results_dir={here}"]) == 1
    said = capsys.readouterr().out
    assert "0 units copied" in said
    assert said.count("left out: ") == 2
    assert "works on it here" in said
    assert "does not parse" in said
    assert cli.main(["collect", str(one), f"results_dir={here}"]) == 0
    assert "1 unit copied" in capsys.readouterr().out


def test_wrong_folders_are_refused_in_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "one")
    with pytest.raises(UserError, match=r"holds no runs/; name a results folder"):
        collect([tmp_path], tmp_path / "here")
    with pytest.raises(UserError, match="is the folder to collect into"):
        collect([tmp_path / "one"], tmp_path / "one")
    assert cli.main(["collect", "results_dir=here"]) == 2
    assert cli.main(["collect", str(tmp_path / "one"), "result_dir=here"]) == 2
    assert "did you mean 'results_dir'" in capsys.readouterr().err


def test_difference_in_words() -> None:
    assert difference({"seconds": 1, "a": 1}, {"seconds": 2, "a": 1}) == "the same result of another run"
    assert difference({"a": 1}, {"b": 1}) == "differs in a, b"
