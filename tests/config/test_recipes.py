"""IncreLoRA's recipes against the values of the released scripts, typed again, and the growth they imply."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

CONF = Path(__file__).parents[2] / "conf"
BACKBONE = "deberta_v3_base"
MODULES = 72  # six matrices in each of twelve blocks; each starts at rank 1
START_RANK = 1
SNAPSHOT = "FeiyuZhang98/IncreLoRA@51a2d734af78"


class Shared(NamedTuple):
    """What both ranks of a task have in common."""

    train_rows: int
    max_length: int
    interval: int  # also the warm-up and the steps between evaluations
    alpha: int
    orthogonality: float
    weight_decay: float
    head_dropout: float


class Own(NamedTuple):
    """What a script sets for its rank."""

    lr: float
    epochs: int
    dropout: float
    top_h: int
    ranks_per_growth: int


SHARED = {
    "cola": Shared(8551, 64, 100, 32, 0.1, 0.0, 0.1),
    "sst2": Shared(67349, 128, 1000, 16, 0.1, 0.01, 0.0),
    "mrpc": Shared(3668, 320, 100, 32, 0.1, 0.01, 0.0),
    "qqp": Shared(363846, 320, 1000, 16, 0.1, 0.01, 0.15),
    "stsb": Shared(5749, 128, 100, 32, 0.3, 0.1, 0.2),
    "mnli": Shared(392702, 256, 1000, 16, 0.1, 0.0, 0.15),
    "qnli": Shared(104743, 512, 500, 32, 0.1, 0.01, 0.1),
    "rte": Shared(2490, 320, 100, 32, 0.3, 0.01, 0.2),
}
OWN = {
    ("cola", 2): Own(0.0008, 25, 0.0, 3, 1),
    ("cola", 8): Own(0.0010, 25, 0.0, 3, 4),
    ("sst2", 2): Own(0.0008, 24, 0.1, 5, 1),
    ("sst2", 8): Own(0.0008, 24, 0.3, 6, 4),
    ("mrpc", 2): Own(0.0010, 30, 0.3, 6, 1),
    ("mrpc", 8): Own(0.0010, 30, 0.3, 10, 4),
    ("qqp", 2): Own(0.0004, 7, 0.0, 3, 1),
    ("qqp", 8): Own(0.0006, 7, 0.0, 3, 4),
    ("stsb", 2): Own(0.0022, 25, 0.0, 4, 1),
    ("stsb", 8): Own(0.0022, 25, 0.0, 4, 4),
    ("mnli", 2): Own(0.00035, 9, 0.2, 2, 1),
    ("mnli", 8): Own(0.0005, 7, 0.0, 18, 1),
    ("qnli", 2): Own(0.0007, 5, 0.0, 12, 1),
    ("qnli", 8): Own(0.0009, 5, 0.0, 22, 4),
    ("rte", 2): Own(0.0012, 50, 0.0, 5, 1),
    ("rte", 8): Own(0.0012, 50, 0.0, 9, 4),
}
METHODS = {2: "increlora", 8: "increlora_r8"}
CASES = sorted(OWN)


@pytest.fixture(scope="module", autouse=True)
def hydra_here() -> Iterator[None]:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield


def composed(task: str, rank: int) -> dict[str, Any]:
    """The pair and the recipe alone, as Hydra merges them in a cell."""
    pair, recipe = f"{BACKBONE}/{task}", f"{BACKBONE}/{task}/{METHODS[rank]}"
    node = OmegaConf.to_container(compose(None, [f"+pair={pair}", f"+recipe={recipe}"]), resolve=True)
    assert isinstance(node, dict)
    return {str(key): value for key, value in node.items()}


def growth_events(total_steps: int, own: Own, interval: int, warmup: int, target: int) -> list[int]:
    """Steps at which modules grow, by the exact-target rule; fails if training ends before the target."""
    events, total = [], MODULES * START_RANK
    for step in range(total_steps):
        if total == target:
            break
        if step > warmup and step % interval == 0:
            total += min(own.top_h * own.ranks_per_growth, target - total)
            events.append(step)
    assert total == target, f"reaches {total} of {target}"
    return events


def test_every_task_has_a_pair_and_both_recipes() -> None:
    found = {
        path.relative_to(CONF).as_posix()
        for method in METHODS.values()
        for path in (CONF / "recipe" / BACKBONE).rglob(f"{method}.yaml")
    }
    assert found == {f"recipe/{BACKBONE}/{task}/{METHODS[rank]}.yaml" for task, rank in CASES}
    assert {task for task, _ in CASES} == set(SHARED)
    pairs = {path.stem for path in (CONF / "pair" / BACKBONE).glob("*.yaml")}
    assert pairs >= set(SHARED)


@pytest.mark.parametrize(("task", "rank"), CASES)
def test_recipe_equals_the_script(task: str, rank: int) -> None:
    shared, own, got = SHARED[task], OWN[task, rank], composed(task, rank)
    del got["recipe"]
    assert got == {
        "method": {
            "lr": own.lr,
            "alpha": shared.alpha,
            "dropout": own.dropout,
            "top_h": own.top_h,
            "ranks_per_growth": own.ranks_per_growth,
            "interval": shared.interval,
            "growth_warmup": shared.interval,
            "orthogonality": shared.orthogonality,
        },
        "train": {
            "batch_size": 32,
            "epochs": own.epochs,
            "warmup": shared.interval,
            "weight_decay": shared.weight_decay,
            "max_grad_norm": 1.0,
            "eval_every": shared.interval,
        },
        "task": {"max_length": shared.max_length},
        "backbone": {"head_dropout": shared.head_dropout},
    }


@pytest.mark.parametrize(("task", "rank"), CASES)
def test_recipe_names_its_source(task: str, rank: int) -> None:
    recipe = composed(task, rank)["recipe"]
    script = f"{SNAPSHOT} NLU/scripts/rank={rank}/run_{task}.sh"
    assert recipe["source"] == script
    text = (CONF / "recipe" / BACKBONE / task / f"{METHODS[rank]}.yaml").read_text(encoding="utf-8")
    assert f"# {script}" in text.splitlines()
    assert recipe["values"].keys() >= {"method.ranks_per_growth", "train.max_grad_norm"}
    assert all(isinstance(value, str) and value for value in recipe["values"].values())


def test_only_the_changed_values_of_stsb_are_ours() -> None:
    ours = {
        (task, rank, name)
        for task, rank in CASES
        for name, value in composed(task, rank)["recipe"]["values"].items()
        if re.match(r"ours\b", value)
    }
    assert ours == {("stsb", 8, "method.target_rank"), ("stsb", 8, "method.ranks_per_growth")}


@pytest.mark.parametrize(("task", "rank"), CASES)
def test_growth_reaches_the_target_before_the_end(task: str, rank: int) -> None:
    shared, own, got = SHARED[task], OWN[task, rank], composed(task, rank)
    train, method = got["train"], got["method"]
    total_steps = math.ceil(shared.train_rows / train["batch_size"]) * train["epochs"]
    events = growth_events(total_steps, own, method["interval"], method["growth_warmup"], MODULES * rank)
    needed = math.ceil(MODULES * (rank - START_RANK) / (own.top_h * own.ranks_per_growth))
    assert len(events) == needed
    # The first growth is one interval after the end of the warm-up: t > warmup is strict.
    assert events[0] == 2 * method["interval"]
    assert events[-1] == (needed + 1) * method["interval"] < total_steps - train["warmup"]


def test_a_growth_that_does_not_fit_is_noticed() -> None:
    with pytest.raises(AssertionError, match="reaches 82 of 144"):
        growth_events(401, Own(1.0, 1, 0.0, 5, 1), 200, 100, 144)
