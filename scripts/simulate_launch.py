"""10,000 units on 1, 8 and 64 workers: how long by recorded durations, and what the local launcher costs by itself.

python scripts/simulate_launch.py [RESULTS]        (default results; nothing is trained, no torch is loaded)

Durations are drawn from the records with a fixed seed. The cost is measured with units that do nothing: seconds from
the end of one to the start of the next on the same worker, and the peak memory of the parent, each in a new process.
"""

from __future__ import annotations

import io
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from rich.console import Console

from adalora_bench.engine.launch import launch
from adalora_bench.engine.plan import duration, makespan
from adalora_bench.engine.progress import PlainProgress
from adalora_bench.engine.units import Unit
from adalora_bench.store.records import RecordStore
from adalora_bench.store.schema import DONE

UNITS = 10_000
WORKERS = (1, 8, 64)
MEASURED = ((100, 1), (1_000, 1), (10_000, 1), (10_000, 8), (10_000, 64))  # units, workers


def nothing(unit: Unit, store_root: Path, notify: Any, stop: Any, options: dict[str, Any]) -> dict[str, Any]:
    """The quickest unit: one event, no record."""
    notify({"phase": "train", "step": 1, "total_steps": 1})
    return {"status": "ok", "reason": None, "scores": {"acc": 0.5}, "seconds": 1.0}


def measure(count: int, workers: int) -> dict[str, float]:
    """Seconds per unit and worker, and MiB of this process, for `count` units that do nothing."""
    names = {"method": "lora", "task": "rte", "backbone": "tiny", "scale": "smoke"}
    config = {"filler": {str(i): float(i) for i in range(150)}}  # as many settings as a real cell
    cells: list[Any] = [
        SimpleNamespace(
            names=names, overrides=(f"method.rank={i}",), key=f"{i:064x}", config=config, seeds=(0,)
        )
        for i in range(-(-count // 5))
    ]
    units = [Unit(cell, seed) for cell in cells for seed in range(5)][:count]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        summary = launch(
            units,
            store_root=Path(folder),
            jobs=workers,
            progress=PlainProgress(Console(file=io.StringIO())),
            worker="simulate_launch:nothing",
        )
        seconds = time.perf_counter() - start
    assert len(summary.done) == count
    after = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "seconds": seconds,
        "parent_cpu": after.ru_utime + after.ru_stime,
        "mib": after.ru_maxrss / 1024,
        "mib_before": before / 1024,
    }


def main() -> int:
    if sys.argv[1:2] == ["--measure"]:
        print(json.dumps(measure(int(sys.argv[2]), int(sys.argv[3]))))
        return 0
    results = Path(sys.argv[1] if len(sys.argv) > 1 else "results")
    records = RecordStore(results / "runs").scan(light=True).records
    recorded = [r["seconds"]["total"] for r in records if r["status"] in DONE and r.get("seconds")]
    if not recorded:
        print(f"no records in {results}")
        return 1
    drawn = random.Random(0).choices(recorded, k=UNITS)
    print(
        f"{UNITS:,} units, drawn from {len(recorded)} records of {min(recorded):.0f} to {max(recorded):.0f} s each"
    )
    for workers in WORKERS:
        whole, best = makespan(drawn, workers), sum(drawn) / workers
        print(f"  {workers:3} workers: {duration(whole)}, {100 * best / whole:.2f} % of it busy")
    print("the local launcher, with units that do nothing:")
    for count, workers in MEASURED:
        command = [sys.executable, __file__, "--measure", str(count), str(workers)]
        told = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        print(
            f"  {count:6,} units on {workers:2} workers: {told['seconds']:6.1f} s, "
            f"{1e3 * told['seconds'] / count:.2f} ms a unit, parent {1e3 * told['parent_cpu'] / count:.2f} ms of "
            f"processor a unit, {told['mib']:.0f} MiB ({told['mib_before']:.0f} before the launch)"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
