"""Trainings that are interrupted at awkward moments and go on: bit for bit as if nothing had happened.

A kill is an exception that nothing catches, raised where the moment is; what a real kill leaves half-written is tried
in test_kills.py. After each of them the training is built anew, in the state of the last whole checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from fault_figures import Figure
from identical import assert_identical
from tiny_runs import FIRST, METHODS, begin, dropout, finish

from adalora_bench.train import checkpoint, evaluate, loop

pytestmark = pytest.mark.fault("R3")

TOTAL = 15
SETTINGS = ("train.epochs=5", "checkpoint_minutes=0")  # saved after every step: a kill costs less than one
# Changes that the contract's settings leave out, or make once.
MORE: dict[str, tuple[str, ...]] = {
    "sora": ("method.stages=[0.5,1.0]",),
    "adalora": ("method.interval=3",),
}
# Also in `make test`: growth, pruning by mask and by ablation, stages, freezing, a base that moves, and none of it.
FAST = ("lora", "increlora", "alora", "sora", "aflora", "delta_lora", "adalora")


class Killed(BaseException):
    """What no `except` of the package catches."""


Moment = tuple[str, int]  # a place, and the count of steps that were made when it is met
BEHIND_A_STEP = ("evaluation", "evaluation made", "checkpoint tensors", "checkpoint state", "checkpoint mark")


def patches(place: str, step: int, run: Callable[[], Any], patch: pytest.MonkeyPatch) -> None:
    """Raise Killed when the training of `run()` comes to this place in this step."""

    def here() -> bool:
        return bool(run().step == step)

    def before(owner: Any, name: str, when: Callable[[], bool] = here) -> None:
        old = getattr(owner, name)

        def kill(*arguments: Any, **more: Any) -> Any:
            if when():
                raise Killed(place)
            return old(*arguments, **more)

        patch.setattr(owner, name, kill)

    pieces = iter(range(1000))
    if place == "second micro-batch":
        before(loop, "micro_loss", lambda: here() and next(pieces) == 1)
    elif place == "optimizer":  # after the method's decisions, before its weights move
        before(type(run()), "set_learning_rates")
    elif place == "end of the step":
        before(type(run()), "observe")
    elif place == "evaluation":
        before(evaluate, "predict")
    elif place == "evaluation made":
        before(evaluate.Scoring, "keep")
    elif place == "checkpoint tensors":
        before(checkpoint, "write_tensors")
    elif place in ("checkpoint state", "checkpoint mark"):
        wanted = int(place == "checkpoint mark")
        before(checkpoint, "atomic_write", lambda: here() and next(pieces) == wanted)
    else:
        raise ValueError(place)


def moments(events: Iterable[dict[str, Any]], evaluations: Iterable[int]) -> list[Moment]:
    """Where a training with these events is killed, in the order of its steps.

    The step of a change: half-way through its batch, when it has just been made, and in the checkpoint behind it; of
    every kind of change the first and the last. Then evaluations, and the last step.
    """
    kinds: dict[str, list[int]] = {}
    for event in events:
        kinds.setdefault(event["kind"], []).append(event["step"])
    steps = sorted({step for met in kinds.values() for step in (met[0], met[-1])} & set(range(1, TOTAL))) or [
        10
    ]
    found: list[Moment] = [("end of the step", TOTAL - 1), ("evaluation", TOTAL), ("evaluation made", TOTAL)]
    for number, step in enumerate(steps):
        found += [("second micro-batch", step), ("optimizer", step)]
        parts = ("checkpoint tensors", "checkpoint state", "checkpoint mark")
        found += [(parts[number % 3], step + 1)] if step + 1 < TOTAL else []
        found += [("second micro-batch", step + 1)] if step + 1 < TOTAL else []
    found += [(place, step) for step in evaluations for place in ("evaluation", "evaluation made")]
    order = [*BEHIND_A_STEP, "second micro-batch", "optimizer", "end of the step"]
    return sorted(set(found), key=lambda moment: (moment[1], order.index(moment[0])))


def interrupted_everywhere(method: str, folder: Path) -> tuple[int, list[str]]:
    """Kill a training at each of its moments, one after another, and compare it with an undisturbed one.

    Returns the number of kills, and the kinds of changes.
    """
    settings = (*dropout(FIRST), *MORE.get(method, ()), *SETTINGS)
    whole = finish(begin(method, FIRST, folder / "whole", *settings))
    evaluations = [point["step"] for point in whole.record["history"]]
    wanted = moments(whole.record["events"], evaluations)
    saved = {0}
    for place, step in wanted:
        course = begin(method, FIRST, folder / "parts", *settings)
        assert course.training.run.step in saved
        with pytest.MonkeyPatch.context() as patch:
            patches(place, step, lambda course=course: course.training.run, patch)
            with pytest.raises(Killed, match=place):
                finish(course)
        saved = {step - 1} if place in BEHIND_A_STEP else {step}
        if step == TOTAL:  # saved before the last evaluation, unless a stage ends there and is scored first
            saved |= {step}
    parts = finish(begin(method, FIRST, folder / "parts", *settings))
    assert_identical(parts, whole)
    return len(wanted), sorted({event["kind"] for event in whole.record["events"]})


@pytest.mark.parametrize(
    "method",
    [pytest.param(method, marks=[] if method in FAST else pytest.mark.heavy) for method in METHODS],
)
def test_a_training_interrupted_at_awkward_moments(method: str, tmp_path: Path, figure: Figure) -> None:
    tried, kinds = interrupted_everywhere(method, tmp_path)
    figure(tried=tried, survived=tried, said="largest difference 0")
    assert kinds or method not in FAST[1:]
    assert method != "sora" or "stage" in kinds
