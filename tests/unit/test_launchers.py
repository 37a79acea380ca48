"""What the launchers' classes are found by, ask for and refuse, without a cluster."""

from __future__ import annotations

import importlib.util
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from adalora_bench import cli
from adalora_bench.cli import run
from adalora_bench.engine import launch
from adalora_bench.engine.launch import check, launcher_class
from adalora_bench.engine.launcher import SECOND_SIGNAL_SECONDS, Launcher
from adalora_bench.engine.progress import Progress
from adalora_bench.engine.ray import ASK_SECONDS, Board, BoardMailbox
from adalora_bench.engine.slurm import parameters
from adalora_bench.engine.unit_task import unit_tasks
from adalora_bench.engine.units import Summary, Unit
from adalora_bench.errors import UserError
from adalora_bench.settings.compose import compose_cells
from adalora_bench.settings.config import LAUNCHERS

COMMAND = ("method=lora", "task=toy", "scale=smoke")


def chosen(*more: str) -> dict[str, Any]:
    (cell,) = compose_cells([*COMMAND, *more])
    return dict(cell.config["launch"])


def test_every_launcher_has_its_class() -> None:
    assert tuple(launch.CLASSES) == LAUNCHERS
    assert issubclass(launcher_class("local"), Launcher)
    with pytest.raises(UserError, match="unknown launcher 'slrum'; did you mean 'slurm'"):
        check("slrum")


@pytest.mark.parametrize(("name", "package"), [("ray", "ray"), ("slurm", "submitit")])
def test_a_missing_extra_is_a_sentence_with_the_command(
    name: str,
    package: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda wanted, *more: None if wanted == package else real(wanted, *more)
    )
    monkeypatch.chdir(tmp_path)
    assert cli.main(["run", *COMMAND, f"launcher={name}"]) == 2
    said = f"bench: launcher={name} needs {package}; pip install 'adalora_bench[{name}]' brings it.\n"
    assert capsys.readouterr().err == said
    assert list(tmp_path.iterdir()) == []


def test_a_machine_without_slurm_is_a_sentence(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("submitit", reason="launcher=slurm needs submitit: pip install '.[slurm]'")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("SUBMITIT_PREEMPT_SIGNAL", "USR1")
    assert cli.main(["run", *COMMAND, "launcher=slurm"]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("bench: SLURM took no jobs: ")
    assert "srun" in said


def test_launchers_import_neither_torch_nor_their_package() -> None:
    code = (
        "import sys, adalora_bench.engine.ray, adalora_bench.engine.slurm; "
        "sys.exit(bool({'torch', 'ray', 'submitit', 'numpy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_what_is_asked_of_slurm() -> None:
    assert parameters(chosen(), None) == {
        "name": "bench",
        "timeout_min": 60,
        "cpus_per_task": 1,
        "slurm_signal_delay_s": 90,
    }
    typed = (
        "launch.partition=gpu",
        "launch.account=me",
        "launch.gpus=1",
        "launch.memory_gib=7",
        "launch.minutes=5",
    )
    asked = parameters(chosen(*typed), 8)
    assert (asked["slurm_partition"], asked["slurm_account"], asked["slurm_array_parallelism"]) == (
        "gpu",
        "me",
        8,
    )
    assert (asked["gpus_per_node"], asked["mem_gb"], asked["timeout_min"]) == (1, 7, 5)
    assert asked["slurm_signal_delay_s"] == 30
    whole = ("cpus_per_task", "gpus_per_node", "timeout_min")  # submitit asserts that they are int
    assert [type(asked[name]) for name in whole] == [int, int, int]


def test_slurm_has_no_part_of_a_gpu() -> None:
    assert chosen("launch.gpus=0.5", "launcher=ray")["gpus"] == 0.5
    with pytest.raises(UserError, match=r"launch\.gpus=0\.5 must be a whole number with launcher=slurm"):
        chosen("launch.gpus=0.5", "launcher=slurm")


def test_a_unit_of_two_processes_asks_for_two_cpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: dict[str, Any] = {}
    monkeypatch.setattr(launch, "launch", lambda _, **more: asked.update(more["options"]))
    (cell,) = compose_cells([*COMMAND, "launcher=slurm", "device=cpu", "processes=2"])
    run._train([Unit(cell, 0)], [], cell.config, tmp_path)
    assert parameters(asked["launch"], None)["cpus_per_task"] == 2
    assert "gib" not in asked  # of ray alone


def test_settings_of_the_launcher_are_no_part_of_a_unit() -> None:
    (one,), (other,) = (
        compose_cells([*COMMAND, *more]) for more in ((), ("launch.cpus=2", "launcher=slurm"))
    )
    assert one.overrides == other.overrides == ()


def test_the_board_starts_nothing_after_the_end_was_called() -> None:
    board = Board()
    assert board.begin(3)
    board.tell(3, {"step": 1})
    assert board.asked() is None
    assert board.close(None) == [3]  # Ctrl-C with on_interrupt=finish: what runs is not asked to stop
    assert not board.begin(4)
    assert board.asked() is None
    assert board.close(signal.SIGTERM) == [3]
    assert board.asked() == signal.SIGTERM
    assert board.heard() == [(3, {"phase": "start"}), (3, {"step": 1})]
    assert board.heard() == []


def test_a_unit_without_its_board_stops_as_after_sigterm(monkeypatch: pytest.MonkeyPatch) -> None:
    class RayActorError(Exception):
        """Stands in for Ray's."""

    def get(_: object) -> None:
        raise RayActorError

    ray = ModuleType("ray")
    vars(ray).update(get=get, exceptions=SimpleNamespace(RayActorError=RayActorError))
    monkeypatch.setitem(sys.modules, "ray", ray)
    mailbox = BoardMailbox(SimpleNamespace(asked=SimpleNamespace(remote=lambda: None)), 0)
    assert mailbox.stop() is None  # not asked yet
    mailbox.asked_at -= ASK_SECONDS
    assert mailbox.stop() == signal.SIGTERM


class Idle(Launcher):
    """Runs nothing."""

    def run(self, jobs: int | None, skipped: list[Unit]) -> Summary:
        return self.summary(skipped)


def test_a_unit_takes_along_what_decides_where_its_assets_are(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (cell,) = compose_cells(COMMAND)
    for name in (
        "HF_TOKEN",
        "HF_HUB_CACHE",
        "XDG_CACHE_HOME",
        "TRANSFORMERS_OFFLINE",
        "ADALORA_BENCH_DATA",
        "OTHER",
    ):
        monkeypatch.setenv(name, "/here")
    launcher = Idle([Unit(cell, 0)], tmp_path, {}, Progress(), "module:function", 0)
    (unit_task,) = unit_tasks(launcher)
    carried = {name for name, value in unit_task.environment.items() if value == "/here"}
    assert carried == {"HF_HUB_CACHE", "XDG_CACHE_HOME", "TRANSFORMERS_OFFLINE", "ADALORA_BENCH_DATA"}


@pytest.mark.parametrize(
    ("how", "wishes"),
    [("finish", ["finish", "checkpoint", "end"]), ("cancel", ["checkpoint", "end", "end"])],
)
def test_signals_that_come_together_are_one(how: str, wishes: list[str], tmp_path: Path) -> None:
    launcher = Idle([], tmp_path, {"on_interrupt": how}, Progress(), "module:function", 0)
    found = []
    for _ in range(3):
        found.append(launcher.wish(signal.SIGINT))
        assert launcher.wish(signal.SIGTERM) is None
        launcher.asked_at -= SECOND_SIGNAL_SECONDS
    assert found == wishes
    assert launcher.signum == signal.SIGINT
