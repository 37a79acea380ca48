"""Work goes on without its audience, a home, a user's name or a locale; weights can be read as other files can."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from by_night import mostly_by_night

from adalora_bench.store.files import atomic_write, write_tensors
from adalora_bench.store.records import RecordStore

pytestmark = pytest.mark.fault("surroundings")

BENCH = f"{shlex.quote(sys.executable)} -m adalora_bench.cli"
RUN = f"{BENCH} run method=lora task=toy scale=smoke seeds=0 jobs=1 device=cpu results_dir=r"
ROOT = Path(__file__).resolve().parents[2]


def shell(command: str, folder: Path, **more: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": path} | more,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


SHORT = ["ls methods", "--help", "plan method=lora task=toy scale=smoke", "nonsense"]
ENDS = [
    ">&-",
    "2>&-",
    ">&- 2>&-",
    "<&- >&- 2>&-",
    ">/dev/full",
    "2>/dev/full",
    ">/dev/full 2>&1",
    "2>&1 | head -1",
]


@pytest.mark.parametrize("end", mostly_by_night(ENDS, [">&- 2>&-", ">/dev/full 2>&1", "2>&1 | head -1"]))
def test_a_unit_is_trained_though_nobody_listens(end: str, tmp_path: Path) -> None:
    done = shell(f"set -o pipefail; {RUN} {end}", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert "Exception ignored" not in done.stderr
    (record,) = RecordStore(tmp_path / "r" / "runs").scan().records
    assert record["status"] in ("ok", "collapsed")


@pytest.mark.parametrize(
    "command", ["ls methods", "--help", "run --help", "plan method=lora task=toy scale=smoke", "nonsense"]
)
@pytest.mark.parametrize("end", [">&-", "2>&-", ">/dev/full", "2>/dev/full", "| true"])
def test_a_short_command_leaves_no_traceback_where_nobody_listens(
    command: str, end: str, tmp_path: Path
) -> None:
    done = shell(f"{BENCH} {command} {end}", tmp_path)
    assert "Traceback" not in done.stdout + done.stderr
    assert "Exception ignored" not in done.stderr


BARE = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@pytest.mark.parametrize("locale", [BARE, {"PYTHONIOENCODING": "ascii"}])
def test_a_locale_without_a_letter_is_no_reason_to_fail(locale: dict[str, str], tmp_path: Path) -> None:
    plan = f"{BENCH} plan method=lora task=toy scale=smoke results_dir=jürgen 'task.description=größer'"
    done = shell(f"{plan}; {BENCH} tables results_dir=jürgen", tmp_path, **locale)
    assert "Traceback" not in done.stdout + done.stderr


def test_no_home_and_no_name_of_the_user(tmp_path: Path) -> None:
    if not shutil.which("unshare") or shell("unshare --user --map-user=54321 true", tmp_path).returncode:
        pytest.skip("user namespaces are not allowed here")
    tmp_path.chmod(0o777)
    done = shell(f"unshare --user --map-user=54321 env -u HOME -u USER -u LOGNAME {RUN}", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not (tmp_path / "~").exists()


@pytest.mark.parametrize("umask", [0o022, 0o002, 0o077])
def test_every_file_has_the_permissions_of_the_umask(umask: int, tmp_path: Path) -> None:
    import torch

    before = os.umask(umask)
    try:
        write_tensors(tmp_path / "weights.safetensors", {"a": torch.zeros(2)})
        atomic_write(tmp_path / "text.json", b"{}")
    finally:
        os.umask(before)
    for path in tmp_path.iterdir():
        assert path.stat().st_mode & 0o777 == 0o666 & ~umask, path.name
