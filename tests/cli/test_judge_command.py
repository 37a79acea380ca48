"""bench judge as a user types it: grades of stored answers, what a second call asks, and what tables show."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_data
from judge_server import KEY, Server, reply, server

from adalora_bench import cli
from adalora_bench.engine.unit import run_unit
from adalora_bench.engine.units import Unit, unit_folder
from adalora_bench.settings import prepare
from adalora_bench.settings.compose import compose_cells

__all__ = ["server"]  # a fixture

TINY = (
    "method=lora", "method.targets=[q,v]", "task=mt_bench", "backbone=tiny_gpt2", "scale=smoke", "scale.max_steps=3",
    "scale.max_length=64", "train.batch_size=4", "train.report_rows=2", "task.generation.beams=1",
    "task.generation.max_new_tokens=4",
)  # fmt: skip


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str]:
    """(results, folder of the unit, data): two conversations, answered."""
    folder = tmp_path_factory.mktemp("judged")
    data = tiny_data.write_all(folder / "data").data_dir
    (cell,) = compose_cells([*TINY, f"data_dir={data}"])
    (cell,) = prepare.keyed([cell], prepare.assets([cell], prepare.places_of(cell.config)))
    unit = Unit(cell, 0)
    run_unit(unit, folder / "results", lambda event: None, lambda: None, {})
    return folder / "results", unit_folder(folder / "results", unit), str(data)


def record_of(unit: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((unit / "record.json").read_text())
    return record


def test_answers_are_graded_once_and_the_tables_show_the_grade(
    recorded: tuple[Path, Path, str],
    server: Server,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    results, unit, data = recorded
    table = results / "tables" / "smoke_tiny_gpt2.md"
    places = [f"results_dir={results}", f"data_dir={data}"]
    command = ["judge", *places, f"judge.url={server.url}", "judge.model=examiner", "judge.key_env=SOME_KEY"]
    before = record_of(unit)
    assert before["status"] in ("ok", "collapsed")
    assert "judge_score" not in before["final"]["scores"]
    assert cli.main(["tables", f"results_dir={results}"]) == 0
    assert "mt_bench: judge_score" in table.read_text()
    assert "| not judged |" in table.read_text().replace("  ", "").replace("not judged|", "not judged |")

    assert cli.main([*command, "offline=true"]) == 2
    assert "4 answers are not judged yet, and this is an offline run" in capsys.readouterr().err
    assert cli.main(command) == 2
    assert "SOME_KEY (judge.key_env) is not set" in capsys.readouterr().err

    monkeypatch.setenv("SOME_KEY", KEY)
    server.script = [(200, {}, reply("[[9]]")), (503, {}, f"no room for {KEY}")]
    assert cli.main([*command, "judge.attempts=1"]) == 3
    shown = "".join(capsys.readouterr())
    assert "1 of 4 answers are judged and kept" in shown
    assert KEY not in shown
    assert record_of(unit) == before

    assert cli.main(command) == 0
    shown = "".join(capsys.readouterr())
    assert f"{unit}: 7.50 of 10" in shown  # (9 + 7 + 7 + 7) / 4
    assert KEY not in shown
    after = record_of(unit)
    assert after["final"]["scores"].pop("judge_score") == 7.5
    assert after["metrics"].pop("judge_score").startswith("judge_score|examiner|our wording")
    assert before["metrics"].pop("judge_score") == "judge_score|not judged"
    assert after.pop("checksum") != before.pop("checksum")
    assert after == before
    assert "7.50 [7.50, 7.50] n=1" in table.read_text()
    assert not any(KEY in path.read_text() for path in unit.iterdir() if path.suffix in (".json", ".jsonl"))

    asked = len(server.asked)
    assert cli.main([command[0], str(unit), *command[1:]]) == 0
    assert len(server.asked) == asked == 5


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ((), "judge.url is missing"),
        (("judge.url=http://127.0.0.1:9/v1",), "judge.model is missing"),
        (("judge.url=ftp://x", "judge.model=m"), "judge.url must be an http or https address"),
        (("judge.urll=x",), "did you mean 'judge.url'"),
        (("judge.url=http://127.0.0.1:9/v1", "judge.model=m"), "no finished record of mt_bench"),
        (("nowhere", "judge.url=http://127.0.0.1:9/v1", "judge.model=m"), "no record in nowhere"),
        (
            ("judge.url=http://127.0.0.1:9/v1", "judge.model=m", "judge.attempts=many"),
            "judge.attempts='many'",
        ),
    ],
)
def test_wrong_commands_are_one_sentence(
    more: tuple[str, ...], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["judge", f"results_dir={tmp_path}", *more]) == 2
    out, err = capsys.readouterr()
    assert sentence in err
    assert (out, err.count("\n")) == ("", 1)


def test_a_record_of_another_task_is_refused(
    recorded: tuple[Path, Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (cell,) = compose_cells(
        ["method=lora", "task=toy", "backbone=tiny_bert", "scale=smoke", "train.epochs=1"]
    )
    (cell,) = prepare.keyed([cell], prepare.assets([cell], prepare.places_of(cell.config)))
    unit = Unit(cell, 0)
    run_unit(unit, tmp_path, lambda event: None, lambda: None, {})
    where = str(unit_folder(tmp_path, unit))
    assert cli.main(["judge", where, "judge.url=http://127.0.0.1:9/v1", "judge.model=m"]) == 2
    assert ": only answers of a finished mt_bench are judged" in capsys.readouterr().err
