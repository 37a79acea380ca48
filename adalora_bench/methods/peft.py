"""Any adapter of the library peft as a baseline: its config by name and arguments, put on the layers that roles choose.

peft brings the layers and their initial values; freezing, learning rates, loop, checkpoints and counts are ours. It is
an optional extra: `pip install peft`.
"""

from __future__ import annotations

import importlib.util
import re
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from adalora_bench.errors import PromiseBroken, UserError, unknown
from adalora_bench.methods.base import Facts, Method

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import nn

    from adalora_bench.methods.run import Run

ADAPTER = "default"  # peft's own name for the only adapter of a model
# Names that are an option of another type.
ALIASES: dict[str, tuple[str, dict[str, Any]]] = {
    "DORA": ("LORA", {"use_dora": True}),
    "PISSA": ("LORA", {"init_lora_weights": "pissa"}),
    "OLORA": ("LORA", {"init_lora_weights": "olora"}),
}
# Arguments that would choose layers, or train what is ours: method.targets, the backbone's roles and the head do that.
OURS = (
    "auto_mapping",
    "base_model_name_or_path",
    "exclude_modules",
    "inference_mode",
    "layer_replication",
    "layers_pattern",
    "layers_to_transform",
    "modules_to_save",
    "peft_type",
    "peft_version",
    "revision",
    "target_modules",
    "target_parameters",
    "task_type",
    "trainable_token_indices",
)
# Adapter types that do not fit, each with its reason.
UNFIT: dict[str, str] = {
    "ADALORA": "ranks are only allocated where someone asks for it at every step; take method=peft_adalora",
    "XLORA": "it mixes adapters that were trained before",
    "POLY": "it reads the number of a task from every input",
    "TRAINABLE_TOKENS": "it trains rows of the embeddings, not the layers of method.targets",
    "SHADOW": "it needs peft's own model around ours",
}
# Initial values of LoRA that change the base weights, and those that need data, gradients or a quantised copy.
MOVING_INITS = ("pissa", "olora")
DATA_INITS = ("corda", "eva", "loftq", "lora_ga")


@dataclass(frozen=True, kw_only=True)
class Peft(Method):
    """See conf/method/peft.yaml for what each setting means.

    Args:
        type: of peft, such as LORA, OFT, IA3, or one of ALIASES.
        preset: arguments of the type's config that a YAML brings; what is not given has peft's default.
        arguments: of the same config, over the preset: one mapping of any names on the command line.
    """

    type: str
    preset: dict[str, Any] | None
    arguments: dict[str, Any] | None

    @property
    def moves_base(self) -> bool:  # type: ignore[override]
        """PiSSA and OLoRA take the start of the adapter out of the base weights, once; no step moves them."""
        return str(self._arguments().get("init_lora_weights")).lower().startswith(MOVING_INITS)

    def precheck(self, facts: Facts) -> None:
        super().precheck(facts)
        self.config("a", facts.total_steps)

    # -- the config -----------------------------------------------------------------------------------------

    def _name(self) -> str:
        return ALIASES.get(self.type.upper(), (self.type.upper(), {}))[0]

    def _arguments(self) -> dict[str, Any]:
        return ALIASES.get(self.type.upper(), ("", {}))[1] | (self.preset or {}) | (self.arguments or {})

    def schedule(self, total_steps: int) -> dict[str, Any]:
        """Arguments that follow from the length of training."""
        return {}

    def unfit(self) -> dict[str, str]:
        return UNFIT

    def config(self, target_modules: str, total_steps: int, **more: Any) -> Any:
        """peft's config of this type.

        Args:
            target_modules: a regular expression of whole names.
            more: arguments that the layers decide.

        Raises:
            UserError: peft is missing, an unknown type or argument, or a value that peft refuses.
        """
        if importlib.util.find_spec("peft") is None:
            raise UserError(
                "method.type needs the library peft, which is not installed: pip install 'adalora_bench[peft]'."
            )
        cls = self._config_class()
        known = [f.name for f in fields(cls) if f.init and f.name not in OURS]
        arguments = self._arguments()
        for name in arguments:
            if name in OURS:
                raise UserError(f"method.arguments.{name} is not offered: method.targets chooses the layers.")
            if name not in known:
                raise UserError(unknown(f"argument of peft's {cls.__name__}", name, known))
        start = str(arguments.get("init_lora_weights"))
        if start.lower() in DATA_INITS:
            raise UserError(
                f"method.arguments.init_lora_weights={start} needs more than the model: not offered."
            )
        more = {name: value for name, value in more.items() if name in known}
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # advice for peft's own trainer
                return cls(target_modules=target_modules, **more, **arguments | self.schedule(total_steps))
        except (TypeError, ValueError) as error:
            raise UserError(f"peft refuses method.arguments={arguments}: {_one_line(error)}") from error

    def _config_class(self) -> Any:
        from peft import PromptLearningConfig
        from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING

        configs = {kind.value: cls for kind, cls in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
        tuners = {kind.value for kind in PEFT_TYPE_TO_TUNER_MAPPING}
        name, unfit = self._name(), self.unfit()
        prompts = {k for k, cls in configs.items() if issubclass(cls, PromptLearningConfig)}
        prompts.add("ADAPTION_PROMPT")
        adapters = [k for k in configs if k in tuners and k not in prompts and k not in unfit]
        if name in prompts:
            raise UserError(
                f"method.type={self.type} puts trained vectors beside the tokens, which needs peft's own model around "
                f"ours; adapters fit: {', '.join(sorted([*adapters, *ALIASES]))}."
            )
        if name in unfit:
            raise UserError(f"method.type={self.type} does not fit: {unfit[name]}.")
        if name not in adapters:
            raise UserError(unknown("value of method.type", self.type, [*adapters, *ALIASES]))
        return configs[name]

    # -- building -------------------------------------------------------------------------------------------

    def attach(self, run: Run) -> None:
        """Let peft wrap the layers, with its global generator seeded from ours and put back afterwards."""
        import torch
        from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING

        layers = self.layers(run)
        down = [name for name, role in layers.items() if role == "down"]
        config = self.config(_exactly(layers), run.total_steps, feedforward_modules=_exactly(down))
        self._check_patterns(config, layers)
        seed = int(torch.randint(2**31, (1,), generator=run.generator))
        run.model.requires_grad_(False)
        base = list(run.model.parameters())
        numbers = _checksum(base)
        devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
        with torch.random.fork_rng(devices=devices), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Conv1D beside Linear, CUDA kernels that are not there
            torch.manual_seed(seed)
            try:  # what `inject_adapter_in_model` does; it leaves out the types whose layers share tensors
                tuner = PEFT_TYPE_TO_TUNER_MAPPING[config.peft_type](run.model, config, ADAPTER)
            except (TypeError, ValueError, NotImplementedError, RuntimeError) as error:
                raise UserError(
                    f"method.type={self.type} does not fit this backbone: {_one_line(error)}"
                ) from error
        inside = {id(p) for p in run.model.parameters()}
        if any(id(p) not in inside for p in (*tuner.parameters(), *base)):
            raise UserError(
                f"method.type={self.type} keeps or puts weights outside of the model: not offered."
            )
        if odd := sorted(wrapped(run).keys() ^ layers.keys()):
            raise UserError(
                f"peft's {self.type} and method.targets differ in the layers {', '.join(odd[:3])}."
            )
        run.scratch["base_changed"] = _checksum(base) != numbers
        for param in run.head:
            param.requires_grad_(True)

    def _check_patterns(self, config: Any, layers: Iterable[str]) -> None:
        """UserError: a pattern of ranks or scales that names no layer, so that nothing would follow it."""
        for argument in ("rank_pattern", "alpha_pattern"):
            for pattern in getattr(config, argument, None) or {}:
                try:  # as peft compares them
                    hit = any(re.match(rf"(.*\.)?({pattern})$", layer) for layer in layers)
                except re.error as error:
                    raise UserError(f"method.arguments.{argument} names {pattern!r}: {error}.") from error
                if not hit:
                    raise UserError(unknown(f"layer in method.arguments.{argument}", pattern, layers))

    def layers(self, run: Run) -> dict[str, str]:
        """Name -> role of the layers to wrap. LN_TUNING takes every layer norm of the body instead."""
        if self._name() == "LN_TUNING":
            return {
                name: "norm"
                for name, part in run.model.named_modules()
                if type(part).__name__.endswith("Norm")
            }
        return {name: r for name, r in run.modules.items() if "all" in self.targets or r in self.targets}

    # -- hooks ----------------------------------------------------------------------------------------------

    def setup(self, run: Run) -> None:
        found = wrapped(run)
        run.scratch["start"] = {name: _checksum(_trained(layer)) for name, layer in found.items()}
        run.scratch["base"] = _base_checksum(run)

    def check(self, run: Run) -> None:
        if _base_checksum(run) != run.scratch["base"]:
            raise PromiseBroken("frozen weights of the backbone are not those of the start")
        found, start = wrapped(run), run.scratch["start"]
        if not found or found.keys() != start.keys():
            raise PromiseBroken("peft's layers are not those of the start")
        still = [name for name, layer in found.items() if _checksum(_trained(layer)) == start[name]]
        if still:
            raise PromiseBroken(f"{len(still)} of {len(found)} adapters did not move, {still[0]} among them")

    def notes(self, run: Run) -> list[str]:
        import peft

        found = [f"{self.type} is that of peft {peft.__version__}"]
        if run.scratch["base_changed"]:
            found.append("its initial values changed base weights of the backbone")
        return found


def wrapped(run: Run) -> dict[str, nn.Module]:
    """Every layer of peft's in the model, by the name of the layer that it wraps."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return {name: module for name, module in run.model.named_modules() if isinstance(module, BaseTunerLayer)}


def merge(model: nn.Module) -> None:
    """Replace every layer of peft's by the plain one with the update in its weight, in place.

    Raises:
        ValueError: a type that cannot be merged.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, layer in list(model.named_modules()):
        if isinstance(layer, BaseTunerLayer):
            layer.merge()
            if not layer.merged:
                raise ValueError(f"{name} does not merge")
            owner, _, child = name.rpartition(".")
            setattr(model.get_submodule(owner), child, layer.get_base_layer())


def _exactly(names: Iterable[str]) -> str:
    """A regular expression that matches these names and no other (`(?!)` matches nothing)."""
    import re

    return "|".join(map(re.escape, names)) or "(?!)"


def _trained(layer: nn.Module) -> list[nn.Parameter]:
    return [p for p in layer.parameters() if p.requires_grad]


def _base_checksum(run: Run) -> int:
    added = {id(p) for p in run.added()}
    frozen = [p for p in run.model.parameters() if not p.requires_grad and id(p) not in added]
    return _checksum(frozen)


def _checksum(params: list[nn.Parameter]) -> int:
    """The sum of all bit patterns as integers: any order of summation gives it, and one changed bit another one."""
    import torch

    integers = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    total = 0
    for p in params:
        if not p.is_floating_point() or p.device.type == "meta":
            continue
        flat = p.detach().contiguous().view(integers[p.element_size()])
        total += int(flat.sum(dtype=torch.int64))
    return total


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".") + "."
