"""bench run on bad data: one sentence that names file and row, exit code 2, and nothing is written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import tiny_data

from adalora_bench import cli

GLUE = "nyu-mll/glue/rte"


def _row(label: int, idx: int) -> dict[str, object]:
    return {"sentence1": f"Row {idx}.", "sentence2": "A row.", "label": label, "idx": idx}


ROWS = [_row(i % 2, i) for i in range(8)]


def _rewritten(rows: list[dict[str, object]]) -> Callable[[Path], None]:
    return lambda path: tiny_data.write(rows, path)


@pytest.mark.parametrize(
    ("split", "damage", "sentence"),
    [
        (
            "train",
            _rewritten([{k: v for k, v in row.items() if k != "sentence2"} for row in ROWS]),
            "column 'sentence2' is missing; the file has",
        ),
        (
            "train",
            _rewritten([*ROWS[:5], _row(7, 5), *ROWS[6:]]),
            ", row 5 (from 0): 'label' is 7; it must be",
        ),
        ("validation", lambda path: path.write_bytes(path.read_bytes()[:-9]), "cannot be read as parquet"),
        (
            "test",  # as GLUE has it, asked for as the report set
            _rewritten([_row(-1, i) for i in range(4)]),
            ", row 0 (from 0): 'label' is -1 (-1 marks a hidden label)",
        ),
        ("test", lambda path: pq.write_table(pq.read_table(path).slice(0, 0), path), "has no rows"),
    ],
    ids=["missing column", "label outside the set", "truncated", "hidden labels", "empty split"],
)
def test_bad_data_is_named_and_nothing_is_written(
    split: str,
    damage: Callable[[Path], None],
    sentence: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data, results = tmp_path / "data", tmp_path / "results"
    files = {one: data / GLUE / f"{one}-00000-of-00001.parquet" for one in ("train", "validation", "test")}
    for path in files.values():
        tiny_data.write(ROWS, path)
    damage(files[split])
    own = tmp_path / "own" / "task" / "rte_test.yaml"  # the report set that GLUE hides the labels of
    own.parent.mkdir(parents=True)
    own.write_text('defaults: [rte, _self_]\nreport_splits: {"": test}\n')
    monkeypatch.setenv("ADALORA_BENCH_CONF", str(tmp_path / "own"))
    task = "rte_test" if split == "test" else "rte"
    names = ["method=lora", f"task={task}", "backbone=tiny_bert", "scale=smoke", "seeds=[0]"]
    assert cli.main(["run", *names, f"data_dir={data}", f"results_dir={results}"]) == 2
    err = capsys.readouterr().err
    assert f"{GLUE}/{split}-00000-of-00001.parquet" in err
    assert sentence in err
    assert err.count("\n") == 1
    assert not results.exists()
