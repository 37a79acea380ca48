"""Every YAML of conf/ composes, builds and is checked; what none of them may hold is refused."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import MISSING, fields
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from adalora_bench.data.fields import TEXT_SETTINGS
from adalora_bench.data.tasks import Task
from adalora_bench.errors import UserError
from adalora_bench.methods.base import Method
from adalora_bench.models.backbone import Backbone
from adalora_bench.settings import prepare
from adalora_bench.settings.compose import compose_cells, conf_dir, options
from adalora_bench.settings.config import Cell, ScaleConfig, TrainConfig, build

CONF = conf_dir()
RECIPES = sorted(path.relative_to(CONF / "recipe").with_suffix("") for path in CONF.glob("recipe/*/*/*.yaml"))
PAIRS = sorted(path.relative_to(CONF / "pair").with_suffix("") for path in CONF.glob("pair/*/*.yaml"))
FILES_OF_CELLS = sorted([*CONF.glob("pair/*/*.yaml"), *CONF.glob("recipe/*/*/*.yaml")])
# Files that inherit, and tasks. A recipe holds published values, which may say again what its script says again.
DEFAULTS = [
    path
    for path in sorted(CONF.rglob("*.yaml"))
    if path.relative_to(CONF).parts[0] != "recipe"
    and (path.parent.name == "task" or "defaults" in yaml.safe_load(path.read_text()))
]
GROUPS = ("method", "task", "backbone", "train", "scale")
OPTIONS = [(group, name) for group in GROUPS for name in options(group)]
TOP = {"split", "recipe", *GROUPS} | {
    "seeds", "results_dir", "data_dir", "device", "jobs", "offline", "force", "checkpoint_minutes",
    "launcher", "on_interrupt", "launch", "processes",
}  # fmt: skip
# A toy cell that the smallest scale can hold; increlora_r8 needs more growth than 12 steps give.
SMALL = {"method": "lora", "task": "toy", "scale": "smoke"}


@cache
def cell_of(**names: str) -> Cell:
    (cell,) = compose_cells([f"{group}={name}" for group, name in names.items()])
    return cell


def built(cell: Cell) -> dict[str, Any]:
    """All typed parts of a cell."""
    return {
        "method": cell.method,
        "task": cell.task,
        "backbone": cell.backbone,
        "train": cell.train,
        "scale": cell.scale,
    }


def test_everything_is_found() -> None:
    assert {"lora", "increlora", "full"} <= set(options("method"))
    assert {"cola", "sst2", "mrpc", "qqp", "stsb", "mnli", "qnli", "rte", "film_reviews", "boolq"} <= set(
        options("task")
    )
    assert len(RECIPES) >= 16
    stray = {path.parent.relative_to(CONF).parts[0] for path in CONF.rglob("*.yaml") if path.parent != CONF}
    assert stray <= {*GROUPS, "pair", "recipe", "table", "claim", "figure"}


@pytest.mark.parametrize(("group", "name"), OPTIONS)
def test_every_option_composes_and_builds(group: str, name: str) -> None:
    cell = cell_of(**(SMALL | {group: name}))
    parts = built(cell)
    assert isinstance(parts["method"], Method)
    assert isinstance(parts["task"], Task)
    assert isinstance(parts["backbone"], Backbone)
    assert set(cell.config) == TOP
    parts["backbone"].check_targets(parts["method"].targets)


@pytest.mark.parametrize("scale", options("scale"))
@pytest.mark.parametrize("task", options("task"))
def test_every_task_names_a_backbone_for_every_scale(task: str, scale: str) -> None:
    cell = cell_of(method="lora", task=task, scale=scale)
    assert cell.names["backbone"] in options("backbone")
    assert cell.config["task"]["backbone_for"][scale] == cell.names["backbone"]


def _by_night() -> list[Any]:
    """All recipes; in a pull request one for each backbone and method, the others at night."""
    first = {(recipe.parts[0], recipe.parts[2]): recipe for recipe in reversed(RECIPES)}
    return [
        recipe
        if first[recipe.parts[0], recipe.parts[2]] == recipe
        else pytest.param(recipe, marks=pytest.mark.nightly)
        for recipe in RECIPES
    ]


@pytest.mark.parametrize("recipe", RECIPES, ids=str)
def test_every_recipe_is_for_names_that_exist_and_inherits_from_its_own_backbone(recipe: Path) -> None:
    backbone, task, method = recipe.parts
    assert backbone in options("backbone")
    assert task in options("task")
    assert method in options("method")
    text = yaml.safe_load((CONF / "recipe" / f"{recipe}.yaml").read_text())
    for entry in text.get("defaults", []):
        if entry != "_self_":
            _, group, owner, _, _ = entry.split("/")
            assert (group, owner) == ("recipe", backbone)
            assert (CONF / f"{entry.lstrip('/')}.yaml").is_file()


@pytest.mark.parametrize("recipe", _by_night(), ids=str)
def test_every_recipe_composes_builds_and_can_be_run(recipe: Path) -> None:
    backbone, task, method = recipe.parts
    cell = cell_of(method=method, task=task, backbone=backbone, scale=_scale_for(backbone))
    built(cell)
    assert set(cell.config) == TOP
    assert set(cell.config["recipe"]) == {"source", "values"}
    assert cell.config["recipe"]["source"] != cell_of(**SMALL).config["recipe"]["source"]
    for setting in cell.config["recipe"]["values"]:
        group, _, name = setting.partition(".")
        assert name in cell.config[group], f"{setting} has a source but is no setting"
    if method.startswith("increlora_retrain"):  # it wants a record; the even pattern stands in
        cell.config["method"]["rank"] = 2
        cell.__dict__.pop("method")
    prepare.check_late_failures(cell, prepare.Assets())


@pytest.mark.parametrize("pair", PAIRS, ids=str)
def test_every_pair_composes_and_builds(pair: Path) -> None:
    backbone, task = pair.parts
    given = dict(_leaves(_plain(CONF / "pair" / f"{pair}.yaml")))
    # a recipe may say otherwise than its pair
    without = next(m for m in options("method") if not (CONF / "recipe" / pair / f"{m}.yaml").exists())
    cell = cell_of(method=without, task=task, backbone=backbone, scale=_scale_for(backbone))
    built(cell)
    assert set(cell.config) == TOP
    arrived = dict(_leaves(cell.config))
    assert {name: arrived.get(name) for name in given} == given


@pytest.mark.parametrize("path", FILES_OF_CELLS, ids=lambda p: str(p.relative_to(CONF)))
def test_pairs_and_recipes_set_only_settings_that_exist(path: Path) -> None:
    """Hydra merges an unknown key of these files without a word; `build` refuses it, except at the top."""
    assert path.read_text().startswith("# @package _global_\n")
    assert set(_plain(path)) <= {"recipe", *GROUPS}


@pytest.mark.parametrize(("group", "name"), OPTIONS)
def test_an_unknown_key_is_refused_wherever_it_stands(group: str, name: str) -> None:
    cell = cell_of(**(SMALL | {group: name}))
    places = list(_nested(cell.config[group]))
    for place in places:
        config = copy.deepcopy(cell.config)
        node = config[group]
        for key in place:
            node = node[key]
        node["lerning_rate"] = 1
        with pytest.raises(UserError, match="lerning_rate"):
            built(Cell(cell.names, config, (), (0,)))


@pytest.mark.parametrize(("group", "name"), OPTIONS)
def test_no_key_is_missing(group: str, name: str) -> None:
    """A setting without a Python default has to stand in the YAML: taking any away is noticed."""
    cell = cell_of(**(SMALL | {group: name}))
    cls = type(built(cell)[group])
    for field in fields(cls):
        if field.default is MISSING and field.default_factory is MISSING:
            config = copy.deepcopy(cell.config)
            del config[group][field.name]
            with pytest.raises(UserError, match=rf"{group}\.{field.name} is missing"):
                built(Cell(cell.names, config, (), (0,)))


@pytest.mark.parametrize("method", options("method"))
def test_methods_train_and_scale_have_no_default_in_python(method: str) -> None:
    cls = type(cell_of(**(SMALL | {"method": method})).method)
    for kind in (cls, TrainConfig, ScaleConfig, Backbone):
        for field in fields(kind):
            assert field.default is MISSING, f"{kind.__name__}.{field.name} has a default outside conf/"
            assert field.default_factory is MISSING, f"{kind.__name__}.{field.name}"


@pytest.mark.parametrize("path", DEFAULTS, ids=lambda p: str(p.relative_to(CONF)))
def test_no_value_stands_twice(path: Path) -> None:
    """A file repeats neither what it inherits nor, for tasks, the default of the dataclass."""
    text = yaml.safe_load(path.read_text())
    for entry in text.get("defaults", []):
        if not isinstance(entry, str) or entry == "_self_":
            continue
        folder = CONF if entry.startswith("/") else path.parent
        parent = yaml.safe_load((folder / f"{entry.lstrip('/')}.yaml").read_text())
        repeated = set(_leaves(text)) & set(_leaves(parent))
        assert not repeated, f"{path} repeats {sorted(repeated)} of {entry}"
    if path.parent.name == "task":
        for field in fields(Task):
            # what generative backbones read stands in the file, for the command line can change only what stands there
            if field.name in text and field.name not in TEXT_SETTINGS and field.default is not MISSING:
                assert text[field.name] != field.default, f"{path}: {field.name} is the default"


@pytest.mark.parametrize("method", options("method"))
def test_a_wrong_type_is_refused_for_every_number(method: str) -> None:
    cell = cell_of(**(SMALL | {"method": method}))
    for name, value in cell.config["method"].items():
        if isinstance(value, float) or (type(value) is int and name != "version"):
            config = copy.deepcopy(cell.config)
            config["method"][name] = ["abc"]
            with pytest.raises(UserError, match=rf"method\.{name}"):
                build(config["method"], "method")


@pytest.mark.parametrize(
    "target", ["builtins.dict", "adalora_bench.settings.config.Cell", "os.path", "nowhere.X", ""]
)
def test_only_our_dataclasses_may_be_a_target(target: str) -> None:
    with pytest.raises(UserError, match="_target_"):
        build({"_target_": target}, "method")


def _scale_for(backbone: str) -> str:
    """paper for what is published on the hub; the caps of cpu for embedded backbones."""
    source = cell_of(**(SMALL | {"backbone": backbone})).config["backbone"]["source"]
    return "paper" if source.get("hub") else "cpu"


def _plain(path: Path) -> dict[str, Any]:
    values = yaml.safe_load(path.read_text())
    values.pop("defaults", None)
    assert isinstance(values, dict)
    return values


def _nested(node: Any, place: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Places of the mappings that a dataclass types (free mappings hold names of their own)."""
    if not isinstance(node, dict):
        return
    yield place
    for key, value in node.items():
        if key in ("source", "wheel"):
            yield from _nested(value, (*place, key))


def _leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in node.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        elif key != "defaults":
            yield f"{prefix}{key}", repr(value)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["method.orthogonality=0.1", "method.advance_learning=false"], ("method.advance_learning=false",)),
        (["method.target_rank=2", "train.epochs=4", "seeds=[0]"], ()),
        (["train.warmup=6%", "method.interval=6%"], ()),
        # the interval is the warm-up's length unless it is given
        (["train.warmup=10%", "method.interval=6%"], ("method.interval=6%", "train.warmup=10%")),
    ],
)
def test_a_setting_that_repeats_what_holds_anyway_is_no_label(
    given: list[str], told: tuple[str, ...]
) -> None:
    """Else a table of a paper, which goes by what was typed, would not know its own row (IncreLoRA, Table 2)."""
    names = ["method=increlora", "task=stsb", "backbone=minilm_l6", "scale=cpu"]
    (cell,), (short,) = compose_cells([*names, *given]), compose_cells([*names, *told])
    assert cell.overrides == told
    assert cell.config["method"] == short.config["method"]
    assert cell.config["train"] == short.config["train"]
