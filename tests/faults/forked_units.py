"""Units of real trainings in processes that can be killed, each forked from one that has imported torch already.

`Units` is how a test sees it; as a script, this file is the process that forks. A request and its answer are one line
of JSON each: {"start": {...}} gives {"pid": ...}, {"wait": pid} gives {"code": ...}, negative for a signal. What a unit
reported lies in the file `told` of its request.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from bench_process import environment

HERE = Path(__file__).parent


class Units:
    """The process that forks, from the outside.

    Args:
        prefix: a command that the process is started by, such as unshare.
    """

    def __init__(self, *prefix: str) -> None:
        paths = [str(HERE.parent), environment()["PYTHONPATH"]]
        self.process = subprocess.Popen(
            [*prefix, sys.executable, str(Path(__file__))],
            env=environment(PYTHONPATH=os.pathsep.join(paths)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.number = 0
        self.folder = TemporaryDirectory()  # for what units report

    def start(self, results: Path, *overrides: str, seed: int = 0, most_bytes: int | None = None) -> Started:
        """Fork a process that runs one unit; `most_bytes` is the largest file that it may write."""
        self.number += 1
        told = Path(self.folder.name) / f"{self.number}.json"
        request = {"results": str(results), "overrides": overrides, "seed": seed, "most_bytes": most_bytes}
        return Started(self, int(self.ask("start", request | {"told": str(told)})["pid"]), told)

    def run(self, results: Path, *overrides: str, **more: Any) -> dict[str, Any]:
        """`start`, to the end."""
        return self.start(results, *overrides, **more).end()

    def ask(self, what: str, value: object) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps({what: value}) + "\n")
        self.process.stdin.flush()
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        return answer

    def close(self) -> None:
        self.process.communicate(timeout=60)
        self.folder.cleanup()
        assert self.process.returncode == 0


class Started:
    """One forked unit."""

    def __init__(self, units: Units, pid: int, told: Path) -> None:
        self.units, self.pid, self.told = units, pid, told

    def kill(self) -> int:
        """SIGKILL; the exit code is -9, or 0 where the unit was faster."""
        os.kill(self.pid, signal.SIGKILL)
        code = int(self.units.ask("wait", self.pid)["code"])
        self.told.unlink(missing_ok=True)
        return code

    def end(self) -> dict[str, Any]:
        """What the unit reported: {"done": outcome}, {"held": holder} or {"failed": cause, "type": ...}."""
        code = self.units.ask("wait", self.pid)["code"]
        assert code == 0, f"the unit's process ended with {code}"
        said: dict[str, Any] = json.loads(self.told.read_text())
        self.told.unlink()
        return said


# -- the process that forks ------------------------------------------------------------------------------------


@cache
def _cell(overrides: tuple[str, ...]) -> Any:
    from adalora_bench.engine.training import Training
    from adalora_bench.engine.units import Unit
    from adalora_bench.settings import prepare
    from adalora_bench.settings.compose import compose_cells

    (cell,) = compose_cells(overrides)
    (cell,) = prepare.keyed([cell], prepare.assets([cell], prepare.places_of(cell.config)))
    with TemporaryDirectory() as folder:  # built once here: what that imports, the children have
        Training(Unit(cell, 0), Path(folder), lambda event: None, lambda: None)
    return cell


def _run(request: dict[str, Any]) -> dict[str, Any]:
    from adalora_bench.engine.unit import run_unit
    from adalora_bench.engine.units import Unit
    from adalora_bench.store.records import LeaseHeld

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    if request["most_bytes"] is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (request["most_bytes"], hard))
    unit = Unit(_cell(tuple(request["overrides"])), request["seed"])
    try:
        return {"done": run_unit(unit, Path(request["results"]), lambda event: None, lambda: None, {})}
    except LeaseHeld as held:
        return {"held": held.holder}
    except Exception as error:  # whatever it is: the test judges it
        return {"failed": str(error), "type": type(error).__name__}
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def main() -> None:
    for line in sys.stdin:
        request = json.loads(line)
        if "start" in request:
            _cell(tuple(request["start"]["overrides"]))
            pid = os.fork()
            if pid == 0:
                said = _run(request["start"])
                Path(request["start"]["told"]).write_text(json.dumps(said))
                os._exit(0)
            answer = {"pid": pid}
        else:
            _, status = os.waitpid(request["wait"], 0)
            answer = {"code": os.waitstatus_to_exitcode(status)}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
