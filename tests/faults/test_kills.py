"""Real trainings that are killed, and that meet on one unit. The store can always be read, and nothing is lost."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bench_process import bench, facts, finish, start, state
from fault_figures import Figure
from forked_units import Started, Units

from adalora_bench.store.records import RecordStore

pytestmark = pytest.mark.xdist_group("forked")

# 20 steps with growths, saved after each of them.
UNIT = (
    "method=increlora", "task=toy", "scale=smoke", "scale.max_steps=null", "train.epochs=4", "train.eval_every=10",
    "train.log_every=1", "device=cpu", "checkpoint_minutes=0",
)  # fmt: skip
KEPT = {"adapter.safetensors", "predictions.jsonl.gz", "record.json", "steps.jsonl", "unit.lock"}


def record_of(results: Path) -> dict[str, Any] | None:
    """The one record of a store that must be readable; None where there is none yet."""
    scan = RecordStore(results / "runs").scan()
    assert scan.quarantined == []
    assert len(scan.records) <= 1
    return scan.records[0] if scan.records else None


def same(results: Path, whole: Path) -> None:
    """Record, log, predictions and adapter of a unit as those of an undisturbed one, and nothing beside them."""
    one, other = record_of(results), record_of(whole)
    assert one is not None
    assert other is not None
    assert facts(one) == facts(other)
    [folder], [expected] = (
        [path.parent for path in place.rglob("record.json")] for place in (results, whole)
    )
    assert {path.name for path in folder.iterdir()} == KEPT
    for name in KEPT - {"record.json", "unit.lock"}:
        assert (folder / name).read_bytes() == (expected / name).read_bytes(), name


class Killings:
    """Kills a unit again and again; a unit that was faster is looked at, and begins anew."""

    def __init__(self, folder: Path) -> None:
        self.results, self.whole = folder / "results", folder / "whole"
        self.kills = self.lives = self.resumed = 0

    def killed(self, *, faster: bool, again: Callable[[], object]) -> None:
        """After each kill: no record, or a whole one that is never touched again (`again` runs the unit once more)."""
        record = record_of(self.results)
        assert not faster or record is not None
        self.kills += not faster
        if record is not None:
            self.lives += 1
            [path] = self.results.rglob("record.json")
            written = path.stat().st_mtime_ns
            again()  # a kill behind the record leaves checkpoints, which go here
            assert path.stat().st_mtime_ns == written
            same(self.results, self.whole)
            shutil.rmtree(self.results)
        else:
            self.resumed += any(self.results.rglob("COMPLETE"))

    def figure(self, tried: int) -> dict[str, Any]:
        said = f"0 corrupt files, {self.resumed} kills left a checkpoint, records as undisturbed"
        return {"tried": tried, "survived": self.kills, "said": said}


def kill_forked(units: Units, folder: Path, kills: int) -> Killings:
    story = Killings(folder)
    running = units.start(story.whole, *UNIT)
    begun = time.monotonic()
    assert "done" in running.end()
    length = time.monotonic() - begun
    draw = random.Random(0)
    while story.kills < kills:
        running = units.start(story.results, *UNIT)
        time.sleep(draw.uniform(0, 0.6 * length))
        faster = running.kill() == 0
        story.killed(faster=faster, again=lambda: units.run(story.results, *UNIT))
    before = None
    for _ in range(2):  # what is finished does not run again
        assert "done" in units.run(story.results, *UNIT)
        after = state(story.results)
        assert before in (None, {name: seen for name, seen in after.items() if "unit.lock" not in name})
        before = {name: seen for name, seen in after.items() if "unit.lock" not in name}
    same(story.results, story.whole)
    return story


@pytest.mark.fault("R1")
def test_a_unit_killed_at_random_moments_ends_as_an_undisturbed_one(
    units: Units, tmp_path: Path, figure: Figure
) -> None:
    figure(**kill_forked(units, tmp_path, 4).figure(4))


@pytest.mark.heavy
@pytest.mark.fault("R1")
def test_a_unit_is_killed_often(
    units: Units, tmp_path: Path, figure: Figure, pytestconfig: pytest.Config
) -> None:
    kills = pytestconfig.getoption("--kills")
    figure(**kill_forked(units, tmp_path, kills).figure(kills))


@pytest.mark.heavy
@pytest.mark.fault("R1")
def test_the_command_and_its_worker_are_killed_often(
    tmp_path: Path, figure: Figure, pytestconfig: pytest.Config
) -> None:
    """From the first import to the tables, with everything that belongs to the command."""
    kills = pytestconfig.getoption("--kills")
    command = ("run", *UNIT, "seeds=[0]", "jobs=1")
    story = Killings(tmp_path)
    begun = time.monotonic()
    assert bench(tmp_path, *command, "results_dir=whole").returncode == 0
    length = time.monotonic() - begun
    draw = random.Random(1)
    while story.kills < kills:
        process = start(tmp_path, *command)
        time.sleep(draw.uniform(0, length))
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        story.killed(faster=process.returncode == 0, again=lambda: bench(tmp_path, *command))
    done = bench(tmp_path, *command)
    assert done.returncode == 0, done.stderr
    figure(**story.figure(kills))
    same(story.results, story.whole)


# -- two on one unit -------------------------------------------------------------------------------------------


def meet(units: Units, folder: Path, times: int) -> tuple[int, list[str]]:
    """Two processes on one unit, so often: how often one worked while the other named it, and who was named."""
    good, named = 0, []
    for number in range(times):
        results = folder / f"results{number}"
        pair = [units.start(results, *UNIT) for _ in range(2)]
        ends = {one.pid: one.end() for one in pair}
        done = [pid for pid, end in ends.items() if "done" in end]
        held = [end["held"] for end in ends.values() if "held" in end]
        assert record_of(results) is not None
        # one may come when the other has finished: then it reads the record
        good += len(done) + len(held) == 2 and all(f"process {done[0]} on " in who for who in held)
        named += held
    return good, named


@pytest.mark.fault("R5")
def test_two_processes_on_one_unit(units: Units, tmp_path: Path, figure: Figure) -> None:
    good, named = meet(units, tmp_path, 1)
    figure(tried=1, survived=good)
    assert good == 1
    assert len(named) <= 1
    for who in named:
        assert re.fullmatch(r"process \d+ on \S+ since \d{4}-\d\d-\d\dT[\d:+]+", who)


@pytest.mark.heavy
@pytest.mark.fault("R5")
def test_two_processes_meet_often(
    units: Units, tmp_path: Path, figure: Figure, pytestconfig: pytest.Config
) -> None:
    times = pytestconfig.getoption("--pairs")
    good, named = meet(units, tmp_path, times)
    figure(tried=times, survived=good, said=f"the holder was named {len(named)} times")
    assert good == times


@pytest.mark.heavy
@pytest.mark.fault("R5")
def test_two_commands_on_one_unit(tmp_path: Path, figure: Figure) -> None:
    """The second says who holds the lease, and that the unit was left to it."""
    command = ("run", *UNIT, "train.epochs=60", "seeds=[0]", "jobs=1")
    command = tuple({text.split("=")[0]: text for text in command}.values())
    ends = [finish(process) for process in [start(tmp_path, *command) for _ in range(2)]]
    codes = sorted(end.returncode for end in ends)
    second = next(end for end in ends if end.returncode == 1)
    figure(tried=1, survived=int(codes == [0, 1]))
    assert codes == [0, 1]
    assert re.search(r"left to process \d+ on \S+ since", second.stderr)
    assert "held: increlora toy seed 0" in second.stdout
    assert "Traceback" not in second.stdout + second.stderr
    assert record_of(tmp_path / "results") is not None


@pytest.mark.fault("R5 lease")
def test_the_lease_of_a_killed_unit_is_taken_over_and_its_training_goes_on(
    units: Units, tmp_path: Path
) -> None:
    results = tmp_path / "results"
    running = units.start(results, *UNIT)
    _wait_for(lambda: any(results.rglob("COMPLETE")), running)
    assert f"process {running.pid} on " in units.run(results, *UNIT)["held"]
    [log] = results.rglob("steps.jsonl")
    assert running.kill() == -signal.SIGKILL
    [holder] = results.rglob("holder.lease")
    assert f"process {running.pid} on " in holder.read_text()  # the dead one has left its name
    rows = [json.loads(line) for line in log.read_text().split("\n")[:-1]]
    rows[0]["marked"] = True
    log.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert "done" in units.run(results, *UNIT)
    assert json.loads(log.read_text().split("\n")[0])["marked"], "it began anew"
    assert not any(results.rglob("holder.lease"))


def _wait_for(what: Any, running: Started) -> None:
    end = time.monotonic() + 60
    while not what():
        assert time.monotonic() < end, "waited in vain"
        assert Path(f"/proc/{running.pid}").exists()
        time.sleep(0.005)
