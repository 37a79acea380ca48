"""Two processes against one with the same global batch: the same decisions at every step, losses to 1e-5."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parent / "team_process.py"
# Every method that decides while it trains, and one that does not; tests/cli/test_processes.py has two in `make test`.
METHODS = (
    "lora", "increlora", "increlora_authors", "adalora", "aflora", "alora", "alora_dnas", "alora_sensi", "sora",
    "sora_authors", "salora", "dylora", "delta_lora", "adapterdrop", "learned_adapter", "spt", "ssp",
)  # fmt: skip


def courses(folder: Path, size: int, methods: Sequence[str]) -> list[dict[str, Any]]:
    """What each process of a team of that size saw: method -> course."""
    folder.mkdir()
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(SCRIPT.parents[2]), os.environ.get("PYTHONPATH", "")]),
    }
    team = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(rank), str(size), str(folder), *methods],
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(size)
    ]
    said = [process.communicate(timeout=600)[0] for process in team]
    assert [process.returncode for process in team] == [0] * size, said
    return [
        {m: json.loads((folder / f"{m}-{rank}.json").read_text()) for m in methods} for rank in range(size)
    ]


def compare(folder: Path, methods: Sequence[str]) -> None:
    (alone,) = courses(folder / "one", 1, methods)
    first, second = courses(folder / "two", 2, methods)
    for method in methods:
        one, two = alone[method], first[method]
        assert two == second[method], f"{method}: the processes differ from each other"
        assert len(one["losses"]) == len(two["losses"]) == 30, method
        assert two["losses"] == pytest.approx(one["losses"], abs=1e-5), method
        assert two["events"] == one["events"], method
        assert two["structure"] == one["structure"], method
        assert two["status"] == one["status"], method


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_alike_in_two_processes(tmp_path: Path, method: str) -> None:
    compare(tmp_path, [method])
