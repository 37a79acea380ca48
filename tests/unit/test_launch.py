"""What launch.py says and decides without starting a process."""

from __future__ import annotations

import pickle
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from adalora_bench.engine import local
from adalora_bench.engine.launch import launch
from adalora_bench.engine.local import worker_count
from adalora_bench.engine.progress import Progress
from adalora_bench.engine.units import (
    Done,
    Failure,
    Summary,
    Unit,
    labels,
    rerun_command,
    unit_folder,
    write_error_log,
)
from adalora_bench.engine.worker import in_one_line, resolve, signal_name, worker_environment
from adalora_bench.errors import UserError
from adalora_bench.store.environment import usable_cores


def unit(seed: int = 3, *overrides: str, key: str = "ab" * 32, scale: str = "cpu") -> Unit:
    names = {"method": "increlora", "task": "rte", "backbone": "minilm_l6", "scale": scale}
    cell: Any = SimpleNamespace(names=names, overrides=overrides, key=key, config={}, seeds=(0, 1, 2, 3, 4))
    return Unit(cell, seed)


def test_name_and_folder() -> None:
    assert unit().name == "increlora rte seed 3 (minilm_l6)"
    assert unit(0, "method.rank=2").name == "increlora rte seed 0 (minilm_l6, method.rank=2)"
    assert unit_folder(Path("results"), unit()) == Path("results/runs/rte/minilm_l6/increlora/abababab/seed3")


def test_units_that_differ_elsewhere_get_the_key_into_their_label() -> None:
    alike = [unit(0), unit(0, key="cd" * 32, scale="smoke"), unit(1)]
    assert labels(alike) == [
        "increlora rte seed 0 (minilm_l6) abababab",
        "increlora rte seed 0 (minilm_l6) cdcdcdcd",
        "increlora rte seed 1 (minilm_l6)",
    ]


def test_rerun_command_survives_a_shell() -> None:
    plain = "bench run method=increlora task=rte backbone=minilm_l6 scale=cpu 'seeds=[3]'"
    assert rerun_command(unit()) == plain
    typed = ("method.targets=[q, v]", "seeds=[1,3]", "task.prompt='it''s $HOME'")
    words = shlex.split(rerun_command(unit(3, *typed)))
    assert words[:2] == ["bench", "run"]
    assert words[6:] == ["method.targets=[q, v]", "task.prompt='it''s $HOME'", "seeds=[3]"]


def test_number_of_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    assert usable_cores() >= 1
    monkeypatch.setattr(local, "usable_cores", lambda: 4)
    assert worker_count(None, 10, {}) == 4
    assert worker_count(None, 3, {}) == 3
    assert worker_count(8, 10, {}) == 8
    assert [worker_count(None, 10, {"gpus_each": each}) for each in (2, 3, 8)] == [2, 1, 1]
    assert worker_count(8, 0, {}) == 1
    assert worker_count(None, 10, {"gpus": ["0", "1"]}) == 2
    assert worker_count(3, 10, {"gpus": [0, 1]}) == 2
    assert worker_count(1, 10, {"gpus": [0, 1]}) == 1
    assert worker_count(None, 10, {"gpus": [0, 1, 2, 3, 4], "gpus_each": 2}) == 2
    with pytest.raises(UserError, match="jobs must be at least 1, got 0"):
        worker_count(0, 10, {})


def test_threads_do_not_depend_on_the_number_of_workers() -> None:
    environment = worker_environment(0, {})
    assert environment["OMP_NUM_THREADS"] == environment["MKL_NUM_THREADS"] == "1"
    assert environment["OMP_WAIT_POLICY"] == "PASSIVE"
    assert environment["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] == "64"
    assert "CUDA_VISIBLE_DEVICES" not in environment
    assert worker_environment(0, {"threads": 2})["OMP_NUM_THREADS"] == "2"
    assert [worker_environment(slot, {"gpus": [4, 5]})["CUDA_VISIBLE_DEVICES"] for slot in (0, 1, 2)] == [
        "4",
        "5",
        "4",
    ]
    pairs = {"gpus": [4, 5, 6, 7], "gpus_each": 2}
    assert [worker_environment(slot, pairs)["CUDA_VISIBLE_DEVICES"] for slot in (0, 1)] == ["4,5", "6,7"]


def test_exit_codes() -> None:
    done, failed = [Done(unit(), {})], [Failure(unit(), "why", None)]
    assert Summary().exit_code == 0
    assert Summary(done=done, held=[unit()], skipped=[unit()]).exit_code == 1
    assert Summary(done=done, failed=failed).exit_code == 1
    assert Summary(failed=failed, interrupted=signal.SIGINT).exit_code == 130
    assert Summary(done=done, interrupted=signal.SIGTERM).exit_code == 143
    assert Summary(interrupted=signal.SIGUSR1).exit_code == 143


def test_nothing_to_do_starts_nothing(tmp_path: Path) -> None:
    summary = launch([], store_root=tmp_path, progress=Progress(), worker="no.such:thing", skipped=[unit()])
    assert (summary.done, summary.failed, summary.left) == ([], [], [])
    assert summary.skipped == [unit()]
    assert list(tmp_path.iterdir()) == []


def test_error_log_says_all(tmp_path: Path) -> None:
    path = write_error_log(tmp_path / "a/b", unit(), "ValueError: no", "Traceback ...\n", "warned\n\n")
    assert path == tmp_path / "a/b/error.log"
    assert path.read_text() == (
        "increlora rte seed 3 (minilm_l6)\nValueError: no\n"
        f"again: {rerun_command(unit())}\n\nTraceback ...\n\n-- last output of the worker --\nwarned\n"
    )


def test_small_words() -> None:
    assert signal_name(9) == "SIGKILL"
    assert signal_name(63) == "signal 63"
    assert in_one_line(ValueError("first\nsecond")) == "ValueError: first"
    assert in_one_line(MemoryError()) == "MemoryError"
    assert resolve("shlex:quote") is shlex.quote
    assert pickle.loads(pickle.dumps(unit())).name == unit().name


def test_launch_and_progress_import_no_torch() -> None:
    code = (
        "import sys, adalora_bench.engine.launch, adalora_bench.engine.progress, adalora_bench.store.records; "
        "sys.exit(bool({'torch', 'transformers', 'datasets', 'numpy', 'hydra'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
