"""A cell and the types of its settings.

YAML holds the values, the dataclasses here and in methods/, data/ and models/ hold the types; `build` joins the
two. compose.py makes cells from what the user typed, key.py gives them their content key.
"""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar, cast

from adalora_bench.errors import UserError, unknown
from adalora_bench.schedule import Phase, phase_steps

if TYPE_CHECKING:
    from adalora_bench.data.tasks import Task
    from adalora_bench.methods.base import Method
    from adalora_bench.models.backbone import Backbone

T = TypeVar("T")

GROUPS = ("method", "task", "backbone", "scale")
PATHS = (
    "results_dir",
    "data_dir",
    "task.source.local",
    "backbone.source.local",
    "method.pattern_from",
)
"""Settings that hold a path; on the command line it needs no quotes but those of the shell."""
LAUNCHERS = ("local", "ray", "slurm")
MOVED = {"adalora_bench.backbones.Backbone": "adalora_bench.models.backbone.Backbone"}
"""Class paths that records and users' YAML files may name, by where the class is now. Keys hash the first name."""


@dataclass(kw_only=True)  # not frozen: OmegaConf could not fill in what is null by default
class EarlyStop:
    """End the training when nothing got better for a while.

    Args:
        patience: evaluations (train.eval_every) without a new best.
        metric: a score of the task, or "loss"; null is the main metric. Of the dev rows where the split has some.
    """

    patience: int
    metric: str | None = None

    def __post_init__(self) -> None:
        if self.patience < 1:
            raise UserError(f"train.early_stop.patience={self.patience} must be at least 1.")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """conf/train/*.yaml; the loop's own settings."""

    epochs: float
    batch_size: int
    micro_batches: int
    warmup: Phase
    schedule: str
    weight_decay: float
    decay_biases: bool
    beta1: float
    beta2: float
    eps: float
    max_grad_norm: float
    eval_every: Phase
    eval_at_start: bool
    early_stop: EarlyStop | None
    log_every: int
    train_rows: int | None
    report_rows: int | None
    precision: str

    def __post_init__(self) -> None:
        for name in ("batch_size", "micro_batches", "log_every"):
            if getattr(self, name) < 1:
                raise UserError(f"train.{name}={getattr(self, name)} must be at least 1.")
        for name in ("epochs", "eps"):
            if not 0 < getattr(self, name) < math.inf:
                raise UserError(f"train.{name}={getattr(self, name)} must be a finite number above 0.")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"train.{name}={getattr(self, name)} must lie in [0, 1).")
        for name in ("train_rows", "report_rows"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"train.{name}={value} must be at least 1, or null for all rows.")
        for name in ("weight_decay", "max_grad_norm"):
            if not getattr(self, name) >= 0:
                raise UserError(f"train.{name}={getattr(self, name)} must not be negative.")
        if self.early_stop is not None and self.eval_every in (0, "0"):
            raise UserError("train.early_stop wants evaluations on the way, but train.eval_every is 0.")
        for name, valid in (("schedule", ("linear", "constant")), ("precision", ("fp32", "bf16"))):
            if getattr(self, name) not in valid:
                raise UserError(unknown(f"value of train.{name}", getattr(self, name), valid))

    def step_counts(self, rows: int, max_steps: int | None) -> tuple[int, int]:
        """(total steps, steps per epoch) for so many training rows; a cap shortens the total."""
        per_epoch = -(-rows // self.batch_size)
        total = max(1, round(self.epochs * per_epoch))
        return (total if max_steps is None else min(total, max_steps)), per_epoch

    def steps(self, name: str, total_steps: int, steps_per_epoch: int) -> int:
        """`warmup` or `eval_every` in steps."""
        value: Phase = getattr(self, name)
        return phase_steps(f"train.{name}", value, total_steps=total_steps, steps_per_epoch=steps_per_epoch)


@dataclass(frozen=True, kw_only=True)
class ScaleConfig:
    """conf/scale/*.yaml: caps on what a cell may take; null caps nothing."""

    name: str
    max_steps: int | None
    max_train_rows: int | None
    max_eval_rows: int | None
    max_length: int | None

    def __post_init__(self) -> None:
        for field in fields(self)[1:]:
            value = getattr(self, field.name)
            if value is not None and value < 1:
                raise UserError(f"scale.{field.name}={value} must be at least 1, or null for no cap.")


@dataclass(kw_only=True)
class LaunchOptions:
    """`launch` of conf/run.yaml: what launcher=ray and launcher=slurm ask of their cluster for each unit."""

    cpus: float
    gpus: float
    memory_gib: float | None
    retries: int
    address: str | None
    cluster: str
    partition: str | None
    account: str | None
    qos: str | None
    minutes: int
    array: int

    def __post_init__(self) -> None:
        for name in ("cpus", "minutes", "array"):
            if not getattr(self, name) > 0:
                raise UserError(f"launch.{name}={getattr(self, name)} must be above 0.")
        for name in ("gpus", "memory_gib", "retries"):
            if (getattr(self, name) or 0) < 0:
                raise UserError(f"launch.{name}={getattr(self, name)} must not be negative.")
        if self.cluster not in ("slurm", "local"):
            raise UserError(unknown("value of launch.cluster", self.cluster, ("slurm", "local")))


@dataclass(frozen=True, kw_only=True)
class Steering:
    """The top-level settings of conf/run.yaml that steer a command.

    None changes a number but `processes`, which above 1 is part of the key.
    """

    results_dir: str
    data_dir: str | None
    device: str
    processes: int
    jobs: int | None
    launcher: str
    on_interrupt: str
    launch: LaunchOptions
    offline: bool
    force: bool
    checkpoint_minutes: float

    def __post_init__(self) -> None:
        if not self.results_dir:
            raise UserError("results_dir='' must name a folder.")
        if self.device not in ("auto", "cpu", "cuda"):
            raise UserError(f"device={self.device!r} must be auto, cpu or cuda.")
        if self.processes < 1:
            raise UserError(f"processes={self.processes} must be at least 1.")
        if self.jobs is not None and self.jobs < 1:
            raise UserError(f"jobs={self.jobs} must be at least 1, or null for one per core.")
        for name, valid in (("launcher", LAUNCHERS), ("on_interrupt", ("cancel", "finish"))):
            if getattr(self, name) not in valid:
                raise UserError(unknown(name, getattr(self, name), valid))
        if self.launcher == "slurm" and not float(self.launch.gpus).is_integer():
            raise UserError(
                f"launch.gpus={self.launch.gpus} must be a whole number with launcher=slurm; ray alone shares a GPU."
            )
        if not self.checkpoint_minutes >= 0:
            raise UserError(f"checkpoint_minutes={self.checkpoint_minutes} must not be negative.")


@dataclass(frozen=True)
class Cell:
    """One method x task x backbone with its settings.

    `config` is resolved and plain; `method`, `task`, `backbone`, `train` and `scale` are its groups, typed and checked
    when they are first read (UserError). `overrides` is what the user typed beyond the four names, less what holds
    anyway, for the row's label and the command that runs it again. `key` is empty until the data is known (`with_key`).
    """

    names: dict[str, str]
    config: dict[str, Any]
    overrides: tuple[str, ...]
    seeds: tuple[int, ...]
    key: str = ""
    settings_key: str = ""

    @cached_property
    def method(self) -> Method:
        return build(self.config["method"], "method")

    @cached_property
    def task(self) -> Task:
        return build(self.config["task"], "task")

    @cached_property
    def backbone(self) -> Backbone:
        return build(self.config["backbone"], "backbone")

    @cached_property
    def train(self) -> TrainConfig:
        return typed(TrainConfig, self.config["train"], "train")

    @cached_property
    def scale(self) -> ScaleConfig:
        return typed(ScaleConfig, self.config["scale"], "scale")

    def with_keys(self, key: str, settings_key: str) -> Cell:
        """The same cell, now that its data is known."""
        return self._typed_alike(replace(self, key=key, settings_key=settings_key))

    def with_seeds(self, seeds: tuple[int, ...]) -> Cell:
        """The same cell under these seeds."""
        return self._typed_alike(replace(self, config=self.config | {"seeds": [*seeds]}, seeds=seeds))

    def _typed_alike(self, other: Cell) -> Cell:
        other.__dict__.update({name: vars(self)[name] for name in TYPED if name in vars(self)})
        return other

    def __getstate__(self) -> dict[str, Any]:
        """For another process: the settings alone, which it types anew."""
        return {name: value for name, value in vars(self).items() if name not in TYPED}


TYPED = ("method", "task", "backbone", "train", "scale")
"""Groups of a cell's settings that have a type."""


# -- types and values ------------------------------------------------------------------------------------------


def build(node: Mapping[str, Any], name: str) -> Any:
    """The dataclass that `_target_` of a node names, filled with its values and checked.

    Only dataclasses derived from Method, Task or Backbone may be named.

    Raises:
        UserError: a wrong type, an unknown or missing key, or what `__post_init__` refuses.
    """
    return typed(class_of(node, name), {key: value for key, value in node.items() if key != "_target_"}, name)


def class_of(node: Mapping[str, Any], name: str) -> Any:
    """The class of a group of settings. UserError: `_target_` names none that may be used."""
    if name in FIXED:
        return FIXED[name]
    from adalora_bench.data.tasks import Task
    from adalora_bench.methods.base import Method  # imports no torch; the method's own module may
    from adalora_bench.models.backbone import Backbone

    target = str(node.get("_target_", ""))
    target = MOVED.get(target, target)
    must_be = "must be a dataclass derived from Method, Task or Backbone."
    if not target:
        raise UserError(f"{name}._target_ is missing; it names the class of these settings.")
    module_name, _, class_name = target.rpartition(".")
    if module_name.partition(".")[0] in sys.stdlib_module_names:  # not even imported: that can do something
        raise UserError(f"{name}._target_={target!r} {must_be}")
    try:
        cls = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"{name}._target_={target!r} cannot be imported: {error}.") from error
    if not (is_dataclass(cls) and isinstance(cls, type) and issubclass(cls, Method | Task | Backbone)):
        raise UserError(f"{name}._target_={target!r} {must_be}")
    return cls


FIXED: dict[str, type] = {"train": TrainConfig, "scale": ScaleConfig}
"""Groups whose class is always the same."""


def typed(cls: type[T], values: Mapping[str, Any], name: str) -> T:
    """`values` as an instance of the dataclass `cls`; every error names the dotted key and what was received."""
    from omegaconf import OmegaConf
    from omegaconf.errors import ConfigKeyError, MissingMandatoryValue, OmegaConfBaseException

    schema = OmegaConf.structured(cls)
    _unlock(schema)
    try:
        made = OmegaConf.merge(schema, dict(values))
        _refuse_yes_and_no(values, OmegaConf.to_container(made), name)
        return cast(T, OmegaConf.to_object(made))
    except ConfigKeyError as error:
        raise UserError(
            unknown(
                "setting", f"{name}.{error.full_key}", [f"{name}.{f.name}" for f in fields(cast(Any, cls))]
            )
        ) from None
    except MissingMandatoryValue as error:
        raise UserError(f"{name}.{error.full_key} is missing.") from None
    except OmegaConfBaseException as error:
        key, said = str(error.full_key or error.key), str(error).splitlines()[0].rstrip(".")
        value: Any = values
        for part in key.split("."):
            value = value.get(part) if isinstance(value, Mapping) else value
        must = next((words for sign, words in _KINDS.items() if sign in said), None)
        text = f"={value!r} must be {must}" if must else f"={value!r}: {said}"
        raise UserError(f"{name}.{key}{text}.".lstrip(".")) from None


# How OmegaConf says which type it wanted -> how we say it.
_KINDS = {
    "Union[int, str]": "steps (100), a share (6%) or epochs (1ep)",
    "to Integer": "a whole number",
    "to Float": "a number",
    "valid bool": "true or false",
    "not a ListConfig": "a list, such as [q,v]",
    "not a subclass of 'DictConfig'": "a group of settings",
    "not Optional": "something else than null",
    "None is invalid": "something else than null",
}


def _refuse_yes_and_no(given: Any, made: Any, name: str) -> None:
    """UserError: a text, or the name of one, that YAML has read as true or false."""
    if isinstance(given, bool) and isinstance(made, str):
        raise UserError(f"{name}={str(given).lower()} must be a text; {QUOTE}.")
    if isinstance(given, Mapping) and isinstance(made, Mapping):
        for key, value in given.items():
            if isinstance(key, bool):
                raise UserError(f"{name} has the name {str(key).lower()}; {QUOTE}.")
            _refuse_yes_and_no(value, made.get(key), f"{name}.{key}")
    elif isinstance(given, (list, tuple)) and isinstance(made, list):
        for number, (one, other) in enumerate(zip(given, made, strict=False)):
            _refuse_yes_and_no(one, other, f"{name}[{number}]")


QUOTE = "YAML reads yes, no, on and off so unless they are quoted, as in 'no'"


def _unlock(node: Any) -> None:
    """Frozen dataclasses make read-only nodes; values have to come in once."""
    from omegaconf import DictConfig, OmegaConf

    OmegaConf.set_readonly(node, False)
    for key in node:
        child = node._get_node(key)
        if isinstance(child, DictConfig) and not child._is_none() and not child._is_missing():
            _unlock(child)
