"""The `bench` command as a process of its own, as a user starts it, and small data in the hub's layout."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import adalora_bench
from adalora_bench.report.tables import build_tables
from adalora_bench.store.records import RecordStore

PACKAGE = str(Path(adalora_bench.__file__).parents[1])  # the children run what the tests import
BENCH = [sys.executable, "-m", "adalora_bench.cli"]
PATIENCE = 600.0  # seconds until a test gives up; the usual wait is far shorter, on a busy machine too
WORDS = ["boat", "river", "lamp", "wall", "sun", "ice", "stove", "frost", "road", "hill", "grain", "letter"]
COLUMNS = {"rte": ("sentence1", "sentence2"), "mrpc": ("sentence1", "sentence2")}
# Of a record, what two runs of one unit may differ in.
OF_THE_RUN = ("seconds", "finished", "peak_memory_bytes", "git", "checksum", "artefacts")


def environment(**changes: str | None) -> dict[str, str]:
    """This process's environment without what a terminal says about itself, with `changes` (None: unset)."""
    values = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES", "FORCE_COLOR", "NO_COLOR")}
    values["PYTHONPATH"] = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), PACKAGE]))
    for name, value in changes.items():
        if value is None:
            values.pop(name, None)
        else:
            values[name] = value
    return values


def start(folder: Path, *arguments: str, **changes: str | None) -> subprocess.Popen[str]:
    """`bench ...` in `folder`, as the leader of a process group, as a shell starts it."""
    return subprocess.Popen(
        [*BENCH, *arguments],
        cwd=folder,
        env=environment(**changes),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=_hear_ctrl_c,
    )


def _hear_ctrl_c() -> None:
    """Tests that a shell runs in the background inherit an ignored SIGINT, and so would the command."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextlib.contextmanager
def running(folder: Path, *arguments: str, **changes: str | None) -> Iterator[subprocess.Popen[str]]:
    """`start`, and nothing of it is left when the test is over."""
    process = start(folder, *arguments, **changes)
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


def finish(process: subprocess.Popen[str]) -> subprocess.CompletedProcess[str]:
    out, err = process.communicate(timeout=PATIENCE)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def bench(folder: Path, *arguments: str, **changes: str | None) -> subprocess.CompletedProcess[str]:
    with running(folder, *arguments, **changes) as process:
        return finish(process)


@dataclass(frozen=True)
class Stopped:
    """How a command ended that got a signal; both times begin with the signal."""

    done: subprocess.CompletedProcess[str]
    checkpoint: float  # seconds until the newest checkpoint was whole
    processor: float  # seconds of processor time until the end

    @property
    def in_time(self) -> bool:
        """Two seconds by the clock, or of processor time: other work on the machine stretches the first."""
        return min(self.checkpoint, self.processor) < 2


def stop(process: subprocess.Popen[str], signum: int, unit: Path, *, group: bool) -> Stopped:
    """Send a signal to a command, or to its whole group, and wait for its end; `unit` is where its checkpoints are."""
    before, spent, asked = _waited_for(), _spent_by(process.pid), time.time()
    if group:
        os.killpg(process.pid, signum)
    else:
        process.send_signal(signum)
    done = finish(process)
    newest = max(path.stat().st_mtime for path in unit.rglob("COMPLETE"))
    return Stopped(done, newest - asked, _waited_for() - before - spent)


def _waited_for() -> float:
    """Processor seconds of children that have ended, with their own children."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _spent_by(group: int) -> float:
    """Processor seconds so far of the living processes of a group."""
    ticks = 0
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has just ended
            fields = path.read_text().rpartition(")")[2].split()
            ticks += sum(map(int, fields[11:13])) if int(fields[2]) == group else 0
    return ticks / os.sysconf("SC_CLK_TCK")


def wait_for(what: Callable[[], Any], process: subprocess.Popen[Any]) -> Any:
    """The first true answer of `what`, while the process runs."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        answer = what()
        if answer:
            return answer
        assert process.poll() is None, f"ended with {process.returncode} too early: {process.communicate()}"
        time.sleep(0.02)
    raise AssertionError("waited in vain")


def write_data(root: Path, *tasks: str, rows: int = 128, report_rows: int = 24) -> Path:
    """Made-up pairs as parquet files in the hub's layout; the label hangs on the first word."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    for task in tasks:
        folder = root / "nyu-mll" / "glue" / task
        folder.mkdir(parents=True)
        draw = random.Random(task)
        for split, count in (("train", rows), ("validation", report_rows)):
            pairs = [[" ".join(draw.choices(WORDS, k=5)) for _ in range(2)] for _ in range(count)]
            one, two = COLUMNS[task]
            table = {one: [a for a, _ in pairs], two: [b for _, b in pairs]}
            labels = [WORDS.index(a.split()[0]) % 2 for a, _ in pairs]
            pq.write_table(
                pa.table({**table, "label": labels, "idx": list(range(count))}),
                folder / f"{split}-00000-of-00001.parquet",
            )
    return root


def records(folder: Path) -> dict[tuple[str, str, int, str], dict[str, Any]]:
    """Records below results/: (task, method, seed, key) -> record."""
    found = {}
    for path in (folder / "results" / "runs").glob("*/*/*/*/*/record.json"):
        record = json.loads(path.read_text())
        names = record["names"]
        found[names["task"], names["method"], record["seed"], record["key"][:8]] = record
    return found


def facts(record: dict[str, Any]) -> dict[str, Any]:
    """What must not differ between two runs of one unit on one machine."""
    return {name: value for name, value in record.items() if name not in OF_THE_RUN}


def state(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Every file below a folder: its time and its bytes."""
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def plain(text: str) -> str:
    """Without the escape sequences of a terminal."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "", text)


def is_a_sentence(err: str) -> None:
    """What `bench` says to a wrong command: one line on stderr, no traceback."""
    assert err.startswith("bench: ")
    assert "Traceback" not in err
    assert err.endswith((".\n", "?\n"))
    assert not err.endswith("..\n")
    assert len(err.splitlines()) == 1
    assert len(err) < 700


def tables(folder: Path) -> dict[str, str]:
    """The tables of a store; seconds and memory, which no two runs share, are set to 1 first."""
    scan = RecordStore(folder / "results" / "runs").scan()
    assert scan.quarantined == []
    return build_tables(
        [
            one | {"seconds": dict.fromkeys(one["seconds"], 1.0), "peak_memory_bytes": 1}
            for one in scan.records
        ]
    )
