"""Write thousands of synthetic records, then time `bench tables` on them: seconds, peak memory, what was written.

python scripts/many_records.py FOLDER [RECORDS]      (default 5000; FOLDER is new, nothing in it is trained)
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from hashlib import sha256
from itertools import product
from pathlib import Path
from typing import Any

from adalora_bench.settings.compose import conf_dir
from adalora_bench.settings.published import load_table, table_names
from adalora_bench.store.records import RecordStore

LIMITS = {"seconds": 10.0, "MiB": 500.0}
MODULES = [f"body.encoder.layer.{i}.{part}" for i in range(12) for part in ("q", "k", "v", "o", "up", "down")]


def cells() -> list[tuple[str, str, str, dict[str, Any], list[str], list[str]]]:
    """(method, task, backbone, settings, overrides, metrics) of every row and column of the papers' tables."""
    found: dict[str, tuple[str, str, str, dict[str, Any], list[str], list[str]]] = {}
    for name in table_names(conf_dir() / "table"):
        table = load_table(conf_dir() / "table", name)
        for row, task in product(table.rows, table.tasks):
            metrics = [metric for column in table.columns if column.task == task for metric in column.metrics]
            settings = {key.partition(".")[2]: value for key, value in row.set.items()}
            typed = [f"{key}={json.dumps(value)}" for key, value in row.set.items()]
            cell = (row.method, task, table.backbone, settings, typed, metrics)
            found[json.dumps(cell[:5], sort_keys=True)] = cell
    return [found[key] for key in sorted(found)]


def record(number: int, seed: int) -> dict[str, Any]:
    """One seed of the cell of that number: beyond the first round, with another learning rate."""
    known = cells_once()
    method, task, backbone, settings, typed, metrics = known[number % len(known)]
    again = number // len(known)
    typed = [*typed, *([f"train.lr={again}e-4"] if again else [])]
    key = sha256(f"{number}".encode()).hexdigest()
    scores = dict.fromkeys(metrics, 0.5 + (number * 31 + seed * 7) % 400 / 1000)
    return {
        "schema": 1,
        "key": key,
        "settings_key": key,
        "names": {"method": method, "task": task, "backbone": backbone, "scale": "paper"},
        "overrides": typed,
        "config": {
            "method": settings,
            "train": {"lr": again * 1e-4},
            "backbone": {"caveat": "", "roles": {}},
        },
        "seed": seed,
        "versions": {"backbone": 1, "engine": 1, "method": 1, "task": 1},
        "data_fingerprint": "synthetic",
        "split": "validation",
        "status": "ok",
        "main_metric": metrics[0],
        "final": {"step": 1000, "epoch": 3.0, "scores": scores},
        "best": {"step": 900, "epoch": 2.7, "scores": scores, "selected_on": "validation"},
        "history": [{"step": 100 * k, "epoch": 0.3 * k, "scores": scores} for k in range(1, 11)],
        "params": {
            "adapter_initial": 300_000,
            "adapter_final": 300_000 - number,
            "trace": [[10 * k, 300_000 - k] for k in range(72)],
        },
        "cosine": {name: 1 - 1e-5 * k for k, name in enumerate(MODULES)},
        "gates": {name: [0.123456, -0.5] for name in MODULES},
        "ranks": {
            "initial_total": 72,
            "final_total": 144,
            "final": dict.fromkeys(MODULES, 2),
            "trace": [[k, 72 + k] for k in range(72)],
        },
        "events": [
            {"step": 10 * k, "kind": "grow", "module": name, "before": 1, "after": 2}
            for k, name in enumerate(MODULES)
        ],
        "seconds": {"train": 100.0, "total": 120.0},
        "peak_memory_bytes": 2**30,
        "metrics": {metric: f"{metric}|synthetic:1.0" for metric in metrics},
        "rows": {"train": 1000, "report": 500},
        "steps": 1000,
        "finished": "2026-01-01T00:00:00+00:00",
    }


_CELLS: list[Any] = []


def cells_once() -> list[Any]:
    if not _CELLS:
        _CELLS.extend(cells())
    return _CELLS


def main() -> int:
    if len(sys.argv) < 2 or Path(sys.argv[1]).exists():
        print(__doc__)
        return 2
    results, wanted = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 5000
    store = RecordStore(results / "runs")
    for unit in range(wanted):
        store.write(record(*divmod(unit, 5)))
    size = sum(path.stat().st_size for path in results.rglob("record.json"))
    print(f"{wanted} records, {size / 2**20:.0f} MiB, {len(cells_once())} places of the papers' tables")
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "adalora_bench.cli", "tables", f"results_dir={results}"],
        check=True,
        stdout=subprocess.DEVNULL,
        env=os.environ,
    )
    seconds = time.perf_counter() - start
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    memory = used.ru_maxrss / 1024
    print(
        f"bench tables: {seconds:.1f} s ({used.ru_utime + used.ru_stime:.1f} s of processor), {memory:.0f} MiB "
        f"at most, {len(list((results / 'tables').rglob('*.*')))} files"
    )
    return int(seconds > LIMITS["seconds"] or memory > LIMITS["MiB"])


if __name__ == "__main__":
    sys.exit(main())
