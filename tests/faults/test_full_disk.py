"""Disks that are full or read-only under real trainings: what was there is intact, the message says path and need."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bench_process import BENCH, environment, state
from forked_units import Units

from adalora_bench.store.records import RecordStore

pytestmark = [pytest.mark.fault("R9"), pytest.mark.xdist_group("forked")]

UNIT = (
    "method=lora", "task=toy", "scale=smoke", "scale.max_steps=6", "train.eval_every=0", "train.log_every=1",
    "device=cpu",
)  # fmt: skip
NEED = r"\d+ (?:bytes|KiB) are needed"
# What is written first, next and last, and the largest file that is allowed while it is: bitfit keeps no adapter.
LIMITS = {
    "log": (("method=lora",), 300, "steps.jsonl"),
    "checkpoint": (("method=lora", "checkpoint_minutes=0"), 20_000, "step00000001/tensors.safetensors"),
    "adapter": (("method=lora",), 20_000, "adapter.safetensors"),
    "record": (("method=bitfit",), 2_500, "record.json"),
}


def unit(*changes: str) -> list[str]:
    return list({text.split("=")[0]: text for text in (*UNIT, *changes)}.values())


def untouched(before: dict[str, Any], results: Path) -> bool:
    after = state(results)
    return all(after.get(name) == seen for name, seen in before.items() if "unit.lock" not in name)


@pytest.mark.parametrize(
    "place",
    ["checkpoint", "record", *(pytest.param(name, marks=pytest.mark.heavy) for name in ("log", "adapter"))],
)
def test_a_file_that_may_not_grow(units: Units, tmp_path: Path, place: str) -> None:
    changes, limit, name = LIMITS[place]
    results = tmp_path / "results"
    assert "done" in units.run(results, *unit(*changes), seed=1)  # of an earlier time
    before = state(results)
    end = units.run(results, *unit(*changes), most_bytes=limit)
    assert end["type"] == "UserError", end
    assert re.search(
        rf"cannot write \S+{name}: File too large \({NEED}; .*\); what was there before is intact\.$",
        end["failed"],
    )
    assert untouched(before, results)
    assert not list(results.rglob("*.tmp"))
    assert [record["seed"] for record in RecordStore(results / "runs").scan().records] == [1]
    # with room again, the same unit goes on to its record
    assert "done" in units.run(results, *unit(*changes))
    assert [record["seed"] for record in RecordStore(results / "runs").scan().records] == [0, 1]
    assert untouched(before, results)


@pytest.mark.heavy
def test_a_second_checkpoint_that_finds_no_room_leaves_the_first(units: Units, tmp_path: Path) -> None:
    """Every growth makes the checkpoints larger: from about 69 to 135 kB."""
    results = tmp_path / "results"
    grows = unit(
        "method=increlora", "checkpoint_minutes=0", "scale.max_steps=12", "method.target_rank=4", "method.top_h=100%"
    )  # fmt: skip
    whole = units.run(tmp_path / "whole", *grows)["done"]
    end = units.run(results, *grows, most_bytes=90_000)
    assert end["type"] == "UserError", end
    assert re.search(rf"tensors.safetensors: File too large \({NEED}", end["failed"])
    assert len(list(results.rglob("COMPLETE"))) == 2
    again = units.run(results, *grows)["done"]
    assert again["scores"] == whole["scores"]


# -- a file system of its own ----------------------------------------------------------------------------------


def unshared(*command: str) -> list[str]:
    """A command in a mount namespace of its own: what it mounts nobody else sees. Skips where that is not allowed."""
    prefix = ["unshare", "--map-root-user", "--mount"]
    if (
        shutil.which("unshare") is None
        or subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode
    ):
        pytest.skip("this system allows no mount namespace (unshare --map-root-user --mount)")
    return [*prefix, *command]


@pytest.fixture
def on_a_small_disk(tmp_path: Path) -> Iterator[tuple[Units, Path]]:
    """Units whose results lie on a tmpfs of 200 KiB, and its folder, empty for everyone else."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = 'mount -t tmpfs -o size=200k none "$0" && exec "$@"'
    units = Units(*unshared("sh", "-c", mount, str(disk)))
    yield units, disk
    units.close()


@pytest.mark.heavy
def test_a_disk_without_room(on_a_small_disk: tuple[Units, Path], tmp_path: Path) -> None:
    """Nothing free, then 60 KiB, then enough: the unit that was recorded before is always as it was."""
    units, disk = on_a_small_disk
    results = disk / "results"
    assert "done" in units.run(results, *unit(), seed=1)
    seen = Path(f"/proc/{units.process.pid}/root{results}")  # the same files, from outside
    before = state(seen)
    assert any(name.endswith("record.json") for name in before)
    filler = Path(f"/proc/{units.process.pid}/root{disk}/filler")
    with pytest.raises(OSError, match="No space left"):
        filler.write_bytes(bytes(400 * 1024))
    end = units.run(results, *unit())
    assert re.search(r"cannot write \S+: No space left on device", end["failed"]), end
    assert untouched(before, seen)
    os.truncate(filler, filler.stat().st_size - 60 * 1024)
    end = units.run(results, *unit("checkpoint_minutes=0"))
    wanted = rf"cannot write \S+tensors.safetensors: No space left on device \({NEED}, \d+ KiB are free\)"
    assert re.search(wanted, end["failed"]), end
    assert untouched(before, seen)
    filler.unlink()
    assert "done" in units.run(results, *unit())
    assert untouched(before, seen)


@pytest.mark.fault("R9 read")
def test_a_read_only_results_folder_is_said_before_any_training(tmp_path: Path) -> None:
    """A read-only bind mount holds for root too."""
    results = tmp_path / "results"
    results.mkdir()
    mount = 'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && exec "$@"'
    command = ["run", "method=lora", "task=toy", "scale=smoke", "seeds=[0]", f"results_dir={results}"]
    done = subprocess.run(
        unshared("sh", "-c", mount, str(results), *BENCH, *command),
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr == (
        f"bench: cannot write {results}/runs: Read-only file system; what was there before is intact.\n"
    )
    assert "started" not in done.stdout
    assert list(results.iterdir()) == []
