"""A sweep as real processes: workers, a killed one, records, tables. One sweep is shared by most tests here."""

from __future__ import annotations

import getpass
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from bench_process import bench, environment, facts, finish, records, running, state, wait_for, write_data

from adalora_bench.engine.units import Unit, rerun_command
from adalora_bench.settings.compose import compose_cells

pytestmark = pytest.mark.xdist_group("cli-sweep")  # its fixtures are made once

SWEEP = ("run", "-m", "method=lora,increlora", "task=rte,mrpc", "scale=smoke", "seeds=[0,1]", "jobs=2")
VICTIM = "lora rte seed 0 (tiny_bert)"
# DESIGN.md section 9, and the fields of the record.
# fmt: off
FIELDS = [
    "schema", "key", "settings_key", "names", "overrides", "config", "seed",
    "versions", "data_fingerprint", "split", "status", "reason", "main_metric", "final",
    "best", "history", "baseline", "rows", "subset", "params", "ranks", "cosine", "gates",
    "events", "notes", "seconds", "peak_memory_bytes", "tokens", "flops", "environment", "git",
    "sources", "metrics", "artefacts", "steps", "total_steps", "finished", "checksum",
]
# fmt: on


class Sweep(NamedTuple):
    folder: Path
    data: Path
    broken: subprocess.CompletedProcess[str]  # the sweep, one of its workers killed
    first: dict[Any, dict[str, Any]]  # its records
    mended: subprocess.CompletedProcess[str]  # the command that the summary named
    again: subprocess.CompletedProcess[str]  # the whole sweep once more
    unchanged: bool  # whether that left every file alone


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    """Two cores, four cells, two seeds; the worker of the first unit is killed while it loads."""
    folder = tmp_path_factory.mktemp("sweep")
    data = write_data(tmp_path_factory.mktemp("data"), "rte", "mrpc")
    here = {"ADALORA_BENCH_DATA": str(data)}
    with running(folder, *SWEEP, **here) as process:
        lease = wait_for(
            lambda: next(folder.glob("results/runs/rte/tiny_bert/lora/*/seed0/holder.lease"), None), process
        )
        told = wait_for(lambda: re.match(r"process (\d+) on", lease.read_text()), process)
        os.kill(int(told[1]), signal.SIGKILL)
        broken = finish(process)
    first = records(folder)
    command = next((line for line in broken.stdout.splitlines() if "again: " in line), "again: bench")
    words = shlex.split(command.split("again: ")[1])
    assert words[0] == "bench"
    mended = bench(folder, *words[1:], **here)
    before = state(folder)
    again = bench(folder, *SWEEP, **here)
    return Sweep(folder, data, broken, first, mended, again, state(folder) == before)


@pytest.mark.fault("R7")
def test_a_killed_worker_costs_its_unit_only(sweep: Sweep) -> None:
    assert sweep.broken.returncode == 1, sweep.broken.stderr
    out = sweep.broken.stdout.splitlines()
    assert "units: 7 done, 0 skipped, 1 failed" in out
    failed = [line for line in out if line.startswith("failed: ")]
    assert len(failed) == 1
    assert failed[0].startswith(f"failed: {VICTIM}: worker ended with signal 9 (SIGKILL")
    assert "Traceback" not in sweep.broken.stdout + sweep.broken.stderr
    assert sorted(key[:3] for key in sweep.first) == [
        (task, method, seed)
        for task in ("mrpc", "rte")
        for method in ("increlora", "lora")
        for seed in (0, 1)
        if (task, method, seed) != ("rte", "lora", 0)
    ]
    log = Path(next(line.split("log:")[1].strip() for line in out if line.strip().startswith("log:")))
    assert not log.is_absolute()


def test_the_named_command_mends_it(sweep: Sweep) -> None:
    assert sweep.mended.returncode == 0, sweep.mended.stderr
    assert "units: 1 done, 0 skipped, 0 failed" in sweep.mended.stdout
    assert {key[:3] for key in records(sweep.folder)} - {key[:3] for key in sweep.first} == {
        ("rte", "lora", 0)
    }
    assert not list(sweep.folder.rglob("error.log"))


def test_a_second_call_does_nothing_twice(sweep: Sweep) -> None:
    assert sweep.again.returncode == 0, sweep.again.stderr
    assert "skipped: 8 units already recorded (force=true runs them again)" in sweep.again.stdout
    assert "units: 0 done, 8 skipped, 0 failed" in sweep.again.stdout
    assert sweep.again.stderr == ""  # no progress, so no worker
    assert sweep.unchanged


def test_each_cell_has_its_own_settings(sweep: Sweep) -> None:
    found = records(sweep.folder)
    assert len({key[3] for key in found}) == 4
    for (task, method, seed, _), record in found.items():
        config = record["config"]
        assert config["task"]["source"]["subset"] == task
        assert config["method"]["_target_"].endswith({"lora": "Lora", "increlora": "IncreLora"}[method])
        assert (record["seed"], record["status"] in ("ok", "collapsed")) == (seed, True)
        assert set(record["final"]["scores"]) == ({"acc"} if task == "rte" else {"acc", "f1"})
        assert record["ranks"]["final_total"] == {"lora": 8 * 12, "increlora": 2 * 12}[method]
    logs = [path.read_bytes() for path in sweep.folder.rglob("steps.jsonl")]
    assert len(set(logs)) == len(logs) == 8  # losses differ between cells, and between seeds


def test_a_record_is_whole_and_says_nothing_of_this_machine(sweep: Sweep) -> None:
    for record in records(sweep.folder).values():
        assert sorted(record) == sorted(FIELDS)
        assert (
            record["subset"]
            == {
                "rte": "128 of 2490 training rows, 24 of 277 validation rows",
                "mrpc": "128 of 3668 training rows, 24 of 408 validation rows",
            }[record["names"]["task"]]
        )
        texts = list(_texts(record))
        places = [str(sweep.folder), str(sweep.data), str(Path.home()), str(Path(__file__).parents[2])]
        for text in texts:
            assert not any(place in text for place in places if len(place) > 1), text
            assert not re.match(r"/|[A-Z]:\\|~", text), text
        assert getpass.getuser() not in texts
        assert socket.gethostname() not in texts


def test_nothing_is_left_over(sweep: Sweep) -> None:
    names = {path.name for path in (sweep.folder / "results").rglob("*") if path.is_file()}
    assert names == {
        "adapter.safetensors",
        "predictions.jsonl.gz",
        "record.json",
        "smoke_tiny_bert.md",
        "steps.jsonl",
        "unit.lock",  # empty; the system's lock hangs on it
    }
    assert {path.name for path in sweep.folder.iterdir()} == {"results"}
    assert all(path.stat().st_size == 0 for path in sweep.folder.rglob("unit.lock"))
    assert not list(sweep.folder.rglob("checkpoints"))


def test_a_log_is_plain_lines(sweep: Sweep) -> None:
    for text in (sweep.broken.stdout, sweep.broken.stderr, sweep.mended.stdout, sweep.mended.stderr):
        assert "\x1b" not in text
        assert "\r" not in text
    lines = sweep.broken.stderr.splitlines()
    assert lines[0] == "0:00:00 8 units to run"
    assert all(re.match(r"\d+:\d\d:\d\d \S", line) for line in lines), lines
    assert sum(line.endswith(": started") for line in lines) == 8


def test_tables_come_from_records_alone_and_without_torch(sweep: Sweep) -> None:
    table = sweep.folder / "results" / "tables" / "smoke_tiny_bert.md"
    text = table.read_text()  # `bench run` wrote it
    for name in ("lora", "increlora", "rte", "mrpc"):
        assert name in text
    table.unlink()
    probe = (
        "import sys; from adalora_bench.cli import main; code = main(['tables']); "
        "heavy = {'torch', 'transformers', 'datasets'} & set(sys.modules); assert not heavy, heavy; sys.exit(code)"
    )
    ask: Any = {
        "cwd": sweep.folder,
        "env": environment(),
        "capture_output": True,
        "text": True,
        "check": False,
    }
    first = subprocess.run([sys.executable, "-c", probe], **ask)
    assert (first.returncode, first.stderr) == (0, "")
    assert "smoke_tiny_bert.md" in first.stdout
    assert table.read_text() == text
    before = state(sweep.folder)
    second = subprocess.run([sys.executable, "-c", probe], **ask)
    assert (second.returncode, second.stdout, second.stderr) == (0, "", "")
    assert state(sweep.folder) == before


def test_force_runs_again_and_another_setting_has_another_place(sweep: Sweep) -> None:
    """One forced command with two cells, in one worker: the recorded one, and one with another rank."""
    before = records(sweep.folder)
    one = ("run", "-m", "method=lora", "task=rte", "scale=smoke", "seeds=0", "jobs=1", "force=true")
    done = bench(sweep.folder, *one, "method.rank=8,4", ADALORA_BENCH_DATA=str(sweep.data))
    assert done.returncode == 0, done.stderr
    assert "units: 2 done, 0 skipped, 0 failed" in done.stdout
    after = records(sweep.folder)
    (new,) = after.keys() - before.keys()
    assert new[:3] == ("rte", "lora", 0)
    assert after[new]["config"]["method"]["rank"] == 4
    (old,) = (key for key in before if key[:3] == ("rte", "lora", 0))
    assert after[old]["seconds"] != before[old]["seconds"]
    # The same numbers, also beside other units and in another order.
    drop = ("overrides",)
    assert {k: v for k, v in facts(after[old]).items() if k not in drop} == {
        k: v for k, v in facts(before[old]).items() if k not in drop
    }


@pytest.mark.parametrize("results", ["elsewhere", "it's my results, all = here"])
def test_the_command_to_run_again_says_where(results: str) -> None:
    """A failed unit is run again in the same folder, with the same data, and although another record is there."""
    quoted = results.replace("'", "\\'")
    typed = ["method=lora", "task=rte", "scale=smoke", "method.rank=4", f"results_dir='{quoted}'"]
    (cell,) = compose_cells([*typed, "data_dir=/some/data", "force=true", "jobs=2", "seeds=[0,1]"])
    words = shlex.split(rerun_command(Unit(cell, 1)))
    assert words[:2] == ["bench", "run"]
    (again,) = compose_cells(words[2:])
    assert again.config == cell.config | {"seeds": [1], "jobs": None}
    assert again.names == cell.names


def _texts(node: Any) -> Iterator[str]:
    if isinstance(node, str):
        yield node
    elif isinstance(node, dict):
        for key, value in node.items():
            yield key
            yield from _texts(value)
    elif isinstance(node, list):
        for value in node:
            yield from _texts(value)
