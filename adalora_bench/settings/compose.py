"""From what the user typed to cells: names and keys are checked here, without torch.

Hydra composes one cell at a time (conf/run.yaml); its override grammar gives the sweep.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, fields, is_dataclass
from difflib import get_close_matches
from itertools import product
from pathlib import Path
from typing import Any

from adalora_bench.errors import UserError, unknown
from adalora_bench.settings.conf_files import (
    at_home,
    conf_dir,
    conf_dirs,
    load_yaml,
    no_environment,
    option_file,
    options,
)
from adalora_bench.settings.config import GROUPS, PATHS, Cell, Steering, class_of, typed
from adalora_bench.settings.key import STEERING
from adalora_bench.store.schema import NAME


def compose_cells(overrides: Sequence[str], *, multirun: bool = False) -> list[Cell]:
    """All cells that a command names, in the order of its sweep.

    Args:
        overrides: Hydra's grammar: "method=lora", "method.rank=4", with `multirun` also "task=rte,mrpc".
        multirun: whether several values for one name are allowed (-m).

    Raises:
        UserError: an unknown name or key, a missing method or task, a sweep without -m.
    """
    usual: dict[tuple[str, ...], dict[str, Any]] = {}
    cells = [_compose(combination, usual) for combination in expanded(overrides, multirun)]
    return merged(cells, all_but_seeds)


def all_but_seeds(cell: Cell) -> object:
    """All of a cell but its seeds."""
    return cell.names, {**cell.config, "seeds": None}, cell.overrides


def merged(cells: Iterable[Cell], identity: Callable[[Cell], object | None]) -> list[Cell]:
    """Cells that are the same but for their seeds as one, with the seeds of all; no unit is lost, none is there twice.

    Args:
        identity: equal for two cells that are the same; None is the same as no other.
    """
    kept: list[tuple[object | None, Cell]] = []
    for cell in cells:
        this = identity(cell)
        at = next((i for i, (other, _) in enumerate(kept) if this is not None and other == this), None)
        if at is None:
            kept.append((this, cell))
            continue
        seeds = tuple(dict.fromkeys((*kept[at][1].seeds, *cell.seeds)))
        kept[at] = (this, kept[at][1].with_seeds(seeds))
    return [cell for _, cell in kept]


def expanded(overrides: Sequence[str], multirun: bool) -> list[list[str]]:
    """The product of all sweeps, as lists of plain overrides. UserError: the grammar is wrong."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    axes: list[list[str]] = []
    typed_names: set[str] = set()
    for text in overrides:
        text = _plain_path(text, multirun)
        try:
            parsed = OverridesParser.create().parse_override(text)
            values = list(parsed.sweep_string_iterator()) if parsed.is_sweep_override() else []
        except HydraException:  # glob() is refused here too: it wants Hydra's own launcher
            parsed, values = None, []
        if parsed is None or not parsed.key_or_group:
            raise UserError(_unreadable(text))
        if parsed.is_add() or parsed.is_force_add() or parsed.is_delete():
            raise UserError(f"{text!r}: settings can be changed, not added or removed; write name=value.")
        name = parsed.key_or_group
        if name in typed_names:
            raise UserError(f"{name} is given twice; give each setting once.")
        typed_names.add(name)
        if parsed.is_sweep_override():
            if not multirun:
                raise UserError(f"{text!r} gives several values; use `bench run -m` to run all of them.")
            if name != "seeds" and name.partition(".")[0] in STEERING:
                raise UserError(f"{text!r}: {name} is one for the whole command; give it one value.")
            axes.append([f"{name}={value}" for value in values])
        else:
            axes.append([text])
    return [list(combination) for combination in product(*axes)]


def _plain_path(text: str, multirun: bool) -> str:
    """An override that names a path, which needs no quotes of its own: characters of Hydra's grammar are quoted."""
    name, equals, value = text.partition("=")
    if not equals or name not in PATHS or value[:1] in ("'", '"') or value in ("", "null"):
        return text
    if re.fullmatch(r"[\w./:,@%+-]*", value, re.ASCII):
        return text
    parts = value.split(",") if multirun else [value]
    return f"{name}={','.join(in_hydra(part) for part in parts)}"


def in_hydra(text: str) -> str:
    """A text as a value of Hydra's grammar: bare where it can be, else quoted."""
    if re.fullmatch(r"[\w./-]+", text, re.ASCII):
        return text
    # A backslash escapes the quote alone, so those before a quote and at the end are doubled.
    return "'" + re.sub(r"(\\*)('|$)", lambda m: m[1] * 2 + ("\\'" if m[2] else ""), text) + "'"


def _unreadable(text: str) -> str:
    """Why an override cannot be read, and how to write it."""
    name, equals, value = text.partition("=")
    if not equals or not re.fullmatch(r"[A-Za-z_][\w.]*", name, re.ASCII):
        return f"cannot read {text!r}; settings are written name=value, for example task=rte."
    quoted = shlex.quote(f"{name}={in_hydra(value)}")
    return f"cannot read the value of {text!r}; to give it as a text, quote it for the shell and for bench: {quoted}."


def _compose(overrides: list[str], usual: dict[tuple[str, ...], dict[str, Any]]) -> Cell:
    """One cell. `usual` collects the settings of names with nothing typed, for the other cells of the command."""
    given = dict(text.split("=", 1) for text in overrides)
    for group in (*GROUPS, "train"):
        if group in given and given[group] not in options(group):
            raise UserError(unknown(group, given[group], options(group)))
    for group in ("method", "task"):
        if group not in given:
            raise UserError(f"no {group} given; add {group}=NAME. Valid: {', '.join(options(group))}.")
    names = {"method": given["method"], "task": given["task"]}
    names["scale"] = given.get("scale") or usual_scale()
    names["backbone"] = given.get("backbone") or default_backbone(names["task"], names["scale"])

    for group, name in names.items():
        if not NAME.fullmatch(name):
            raise UserError(
                f"{name!r} cannot name a folder of results; rename {option_file(group, name)}: letters, digits, '_', "
                "'.' and '-', at most 100."
            )

    values = [text for text in overrides if text.split("=", 1)[0] not in GROUPS]
    for group in ("pair", "recipe"):
        if group in given:
            raise UserError(
                f"{group} follows from backbone, task and method and cannot be chosen; set single settings."
            )
    groups = [f"{group}={names[group]}" for group in GROUPS]
    config = _hydra(groups, values)
    telling = _telling(groups, values, config, usual)
    for group in (*GROUPS, "train"):
        if not isinstance(config[group], dict):
            raise UserError(
                f"{option_file(group, names.get(group, 'default'))} must hold settings, name: value."
            )
    _expand_home(config)
    config |= _steering(config, [text.split("=", 1)[0].partition(".")[0] for text in values])
    if config["method"].get("pattern_from"):
        from adalora_bench.settings.pattern import resolve

        config["method"] |= resolve(config)
    seeds = _seeds(config["seeds"])
    shown = sorted(
        text for text in telling if text.split("=", 1)[0] not in STEERING and not text.startswith("launch.")
    )
    return Cell(names=names, config=config, overrides=tuple(shown), seeds=seeds)


def _expand_home(config: dict[str, Any]) -> None:
    """`~` of every path, as a shell would; UserError: there is no home."""
    for name in PATHS:
        *groups, last = name.split(".")
        node: Any = config
        for group in groups:
            node = node.get(group) if isinstance(node, dict) else None
        if isinstance(node, dict) and isinstance(node.get(last), str):
            node[last] = at_home(name, node[last])


def _telling(
    groups: list[str],
    values: list[str],
    config: dict[str, Any],
    usual: dict[tuple[str, ...], dict[str, Any]],
) -> list[str]:
    """The values without those that say what holds anyway: with or without them the cell, and its key, is the same."""
    from omegaconf import OmegaConf

    if not any("." in text.split("=", 1)[0] for text in values):
        return values
    if tuple(groups) not in usual:
        usual[tuple(groups)] = _hydra(groups, [])
    general, own = OmegaConf.create(usual[tuple(groups)]), OmegaConf.create(config)

    def repeats(text: str) -> bool:
        name = text.split("=", 1)[0]
        return "." in name and OmegaConf.select(general, name) == OmegaConf.select(own, name)

    telling = [text for text in values if not repeats(text)]
    if len(telling) < len(values) and _hydra(groups, telling) != config:
        return values  # another one that was typed moves what a repeated one holds
    return telling


def method_settings(name: str, changes: Mapping[str, Any], **train: Any) -> dict[str, Any]:
    """The settings of one method without a cell around it.

    Args:
        name: of conf/method.
        changes: values in place of those of the YAML.
        train: settings of `train` that the method's YAML may refer to.

    Raises:
        UserError: an unknown name or setting.
    """
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    if name not in options("method"):
        raise UserError(unknown("method", name, options("method")))
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        node = compose(f"method/{name}", _search_path()).method
    for key in changes:
        if key not in node:
            raise UserError(
                unknown("setting", f"method.{key}", [f"method.{k}" for k in node if k != "_target_"])
            )
    OmegaConf.set_struct(node, False)
    whole = OmegaConf.create({"method": OmegaConf.merge(node, dict(changes)), "train": train})
    resolved: dict[str, Any] = OmegaConf.to_container(whole, resolve=True)["method"]  # type: ignore[index,call-overload,assignment]
    return resolved


def _hydra(groups: list[str], values: list[str]) -> dict[str, Any]:
    """Compose and resolve; a key that does not exist is answered with the nearest one that does."""
    from hydra import compose, initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf import DictConfig, OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    def run(overrides: list[str]) -> DictConfig:
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            return compose("run", [*overrides, *_search_path()])

    try:
        config = run([*groups, *values])
        # Hydra's own launcher is not used, so its settings would be accepted and do nothing
        if any(text.startswith("hydra.") for text in values):
            raise HydraException("hydra")
    except (HydraException, OmegaConfBaseException, YAMLError, ValueError) as error:
        for folder in conf_dirs()[1:]:  # a damaged file of the user's own says so itself
            for path in sorted(folder.rglob("*.yaml")):
                load_yaml(path)
        said = f"the settings do not fit together: {str(error).splitlines()[0].rstrip('.')}."
        try:
            known = _dotted(OmegaConf.to_container(run(groups), resolve=False))
        except (HydraException, OmegaConfBaseException):
            raise UserError(said) from None
        declared = _declared(run(groups), known)
        typed_out = [text for text in values if text.split("=", 1)[0] in declared]
        if typed_out:  # a setting that the file leaves out, since its class has a default
            new = [f"+{text}" for text in typed_out if not _is_default(text, declared)]
            return _hydra(groups, [*(text for text in values if text not in typed_out), *new])
        known += declared
        for text in values:
            key = text.split("=", 1)[0].lstrip("+")
            if key != "train" and key not in known:
                raise UserError(unknown("setting", key, _relatives(key, known))) from None
        raise UserError(said) from None
    try:
        with no_environment():
            plain = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise UserError(f"{error.full_key} does not resolve: {str(error).splitlines()[0]}.") from None
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def _search_path() -> list[str]:
    """The user's own folders, as Hydra wants to be told of them."""
    folders = ", ".join(in_hydra(f"file://{folder}") for folder in conf_dirs()[1:])
    return [f"hydra.searchpath=[{folders}]"] if folders else []


def _dotted(node: Any, prefix: str = "") -> list[str]:
    """All keys of a nested mapping, dotted, inner nodes included."""
    if not isinstance(node, dict):
        return []
    keys = []
    for key, value in node.items():
        name = f"{prefix}{key}"
        keys += [name, *_dotted(value, f"{name}.")]
    return [key for key in keys if not key.endswith("_target_")]


def _declared(config: Any, known: Sequence[str]) -> dict[str, Any]:
    """Settings that a group's class has and its file leaves out, dotted -> default (None where there is none)."""
    from omegaconf import OmegaConf

    found: dict[str, Any] = {}
    for group in (*GROUPS, "train"):
        with suppress(UserError):
            cls = class_of(config[group], group)
            schema = OmegaConf.structured(cls)
            for name in schema:
                node = schema._get_node(name)
                inner = node._metadata.ref_type
                if f"{group}.{name}" not in known:
                    found[f"{group}.{name}"] = (
                        None if node._is_missing() else OmegaConf.to_container(schema)[name]  # type: ignore[index]
                    )
                if is_dataclass(inner):
                    places = [f"{group}.{name}.{field.name}" for field in fields(inner)]
                    found |= {place: None for place in places if place not in known}
    return found


def _is_default(text: str, declared: Mapping[str, Any]) -> bool:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parsed = OverridesParser.create().parse_override(text)
    default = declared[parsed.key_or_group]
    return default is not None and parsed.value() == default


def _relatives(key: str, known: list[str]) -> list[str]:
    """The keys worth listing beside a wrong one: its siblings, and equal last words elsewhere."""
    parent, _, last = key.rpartition(".")
    siblings = [k for k in known if k.rpartition(".")[0] == parent]
    namesakes = [k for k in known if k.rpartition(".")[2] == last]
    likely, distant = (
        [k for k in keys if get_close_matches(last, [k.rpartition(".")[2]], cutoff=0.75)]
        for keys in (siblings, known)
    )
    return namesakes or (siblings if likely else distant) or siblings or [k for k in known if "." not in k]


def _steering(config: dict[str, Any], given: Sequence[str]) -> dict[str, Any]:
    """What steers the command, typed and checked; only the command line may change it (`given`: its names)."""
    names = [field.name for field in fields(Steering)]
    usual = load_yaml(conf_dir() / "run.yaml")
    for name in names:
        if name not in given and config[name] != usual[name]:
            raise UserError(
                f"{name}={config[name]!r} stands in a file of settings, but may only be given on the command line: "
                f"bench run ... {name}=VALUE."
            )
    steering = typed(Steering, {name: config[name] for name in names}, "")
    here = steering.launcher == "local"  # a cluster's nodes have what the command's machine may lack
    gpus = [] if steering.device == "cpu" or not here else accelerators()
    if steering.device == "cuda" and here and not gpus:
        raise UserError("device=cuda, but no GPU was found; use device=cpu or device=auto.")
    if gpus and len(gpus) < steering.processes:
        raise UserError(
            f"processes={steering.processes} takes a GPU for each, but there are {len(gpus)}; use device=cpu."
        )
    return asdict(steering)


def default_backbone(task: str, scale: str) -> str:
    """`backbone_for[scale]` of the task's YAML."""
    from omegaconf import OmegaConf

    node = load_yaml(option_file("task", task))
    name = OmegaConf.select(node, f"backbone_for.{scale}")
    if name is None and "defaults" in node:  # a variant that inherits from another task
        parent = next(str(entry) for entry in node.defaults if entry != "_self_")
        return default_backbone(parent, scale)
    if name is None:
        raise UserError(f"task {task!r} names no backbone for scale={scale}; add backbone=NAME.")
    return str(name)


def accelerators() -> list[str]:
    """Numbers of the GPUs that a process may use, from device files and the environment, without torch."""
    there = devices()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return [str(number) for number in range(there)]
    found: list[str] = []
    for name in (part.strip() for part in visible.split(",")):
        known = (name.isdecimal() and int(name) < there) or (there and name.startswith(("GPU-", "MIG-")))
        if not known or name in found:  # as CUDA: what comes after a wrong name is not seen
            break
        found.append(name)
    return found


def usual_scale() -> str:
    """The scale of a command that names none: `paper` where there is an accelerator, else `cpu`."""
    return "paper" if accelerators() else "cpu"


def devices() -> int:
    """How many GPUs the system shows, by their device files."""
    found = list(Path("/dev").glob("nvidia[0-9]*"))
    return len(found) or int(any(Path("/dev", name).exists() for name in ("dxg", "nvhost-gpu")))


def _seeds(value: Any) -> tuple[int, ...]:
    seeds = [value] if isinstance(value, int) and not isinstance(value, bool) else value
    if not isinstance(seeds, list) or not seeds or not all(type(s) is int and s >= 0 for s in seeds):
        raise UserError(f"seeds={value!r} must be a list of whole numbers, for example 'seeds=[0,1,2]'.")
    if len(set(seeds)) != len(seeds):
        raise UserError(f"seeds={value!r} names a seed twice.")
    return tuple(seeds)
