"""One unit in two processes that share nothing, not even the seed of Python's hashes: the same record."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

MAY_DIFFER = ("finished", "seconds", "peak_memory_bytes", "environment", "git", "checksum")
PROGRAM = """
import sys
from pathlib import Path
from adalora_bench.settings import prepare
from adalora_bench.settings.compose import compose_cells
from adalora_bench.engine.unit import run_unit
from adalora_bench.engine.units import Unit

(cell,) = compose_cells(
    ["method=increlora", "task=toy", "backbone=tiny_bert", "scale=smoke", "backbone.dropout=0.1", "device=cpu"]
)
(cell,) = prepare.keyed([cell], prepare.assets([cell], prepare.places_of(cell.config)))
print(run_unit(Unit(cell, 0), Path(sys.argv[1]), lambda event: None, lambda: None, {})["status"])
"""


@pytest.mark.fault("R4")
def test_the_same_seed_gives_the_same_record(tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[2]
    for number in (1, 2):
        path = os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])
        environment = os.environ | {"PYTHONPATH": path, "PYTHONHASHSEED": str(number)}
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, str(tmp_path / str(number))],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() in ("ok", "collapsed")
    one, two = (_results(tmp_path / str(number)) for number in (1, 2))
    assert list(one) == list(two)
    assert {Path(name).name for name in one} >= {"record.json", "steps.jsonl", "predictions.jsonl.gz"}
    for name in one:
        assert one[name] == two[name], name


def _results(folder: Path) -> dict[str, Any]:
    """Relative path -> content of every file; of the record what must not differ."""
    results: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != "unit.lock":
            content: Any = path.read_bytes()
            if path.name == "record.json":
                record = json.loads(content)
                content = {key: value for key, value in record.items() if key not in MAY_DIFFER}
            results[path.relative_to(folder).as_posix()] = content
    return results
