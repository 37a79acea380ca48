"""A PEFT LoRA adapter folder, written and read as plain files; peft itself is not needed.

`adapter_config.json` and `adapter_model.safetensors` are those that peft.PeftModel.from_pretrained reads (0.21). Its
update is dW = (alpha / r) B A, so alpha = r for every layer: `alpha_pattern` repeats `rank_pattern`, and dW = B A.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from adalora_bench.lowrank.plain import Pair

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """What a folder holds. Names are those of modules in the transformers model.

    Args:
        pairs: layer -> (A', B'); no rank is 0.
        modules: module that is replaced as a whole (the head) -> its state dict.
        task_type: peft's word for the transformers class: SEQ_CLS, FEATURE_EXTRACTION, CAUSAL_LM, SEQ_2_SEQ_LM.
        base: hub name of the backbone, None where it has none; `revision` of it.
        transposed: whether the adapted layers store their weight as (in, out), as GPT-2's Conv1D does.
    """

    pairs: Mapping[str, Pair]
    modules: Mapping[str, Mapping[str, Tensor]]
    task_type: str
    base: str | None
    revision: str | None
    transposed: bool


def config_of(adapter: Adapter) -> dict[str, Any]:
    """The content of adapter_config.json. The most frequent rank is `r`, the others stand in the patterns."""
    ranks = {name: int(a.shape[0]) for name, (a, _) in adapter.pairs.items()}
    counted = Counter(ranks.values())
    usual = min(counted, key=lambda rank: (-counted[rank], rank))
    unusual = {name: rank for name, rank in ranks.items() if rank != usual}
    return {
        "peft_type": "LORA",
        "task_type": adapter.task_type,
        "base_model_name_or_path": adapter.base,
        "revision": adapter.revision,
        "inference_mode": True,
        "r": usual,
        "lora_alpha": usual,
        "rank_pattern": unusual,
        "alpha_pattern": unusual,
        "target_modules": list(ranks),
        "modules_to_save": list(adapter.modules) or None,
        "fan_in_fan_out": adapter.transposed,
        "bias": "none",
        "lora_dropout": 0.0,
        "use_rslora": False,
        "use_dora": False,
        "init_lora_weights": True,
    }


def write_adapter(folder: Path, adapter: Adapter) -> None:
    """Write both files. ValueError: there is no pair, and peft loads no adapter without one."""
    if not adapter.pairs:
        raise ValueError("an adapter has at least one layer")
    tensors = {f"{PREFIX}{name}.lora_A.weight": a for name, (a, _) in adapter.pairs.items()}
    tensors |= {f"{PREFIX}{name}.lora_B.weight": b for name, (_, b) in adapter.pairs.items()}
    for name, state in adapter.modules.items():
        tensors |= {f"{PREFIX}{name}.{key}": value for key, value in state.items()}
    plain = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    save_file(plain, folder / TENSORS, metadata={"format": "pt"})
    text = json.dumps(config_of(adapter), indent=2, sort_keys=True)
    (folder / CONFIG).write_text(text + "\n", encoding="utf-8")


@torch.no_grad()
def apply_adapter(model: nn.Module, folder: Path) -> None:
    """Merge the adapter of a folder into a transformers model, in place: the files are read as peft reads them.

    Raises:
        ValueError: a tensor has no place in the model, or a layer of the configuration has no tensors.
    """
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    tensors = {key.removeprefix(PREFIX): value for key, value in load_file(folder / TENSORS).items()}
    layers = dict(model.named_modules())
    for name in config["target_modules"]:
        if name not in layers or f"{name}.lora_A.weight" not in tensors:
            raise ValueError(
                f"{name} is a layer of the configuration, but not of the model or of the tensors"
            )
        a, b = (tensors.pop(f"{name}.lora_{letter}.weight") for letter in "AB")
        rank = _by_pattern(config["rank_pattern"], name, config["r"])
        if rank != a.shape[0]:
            raise ValueError(f"{name} has rank {a.shape[0]}, and {rank} in the configuration")
        update = _by_pattern(config["alpha_pattern"], name, config["lora_alpha"]) / rank * (b @ a)
        weight: Tensor = layers[name].weight
        weight += (update.T if config["fan_in_fan_out"] else update).to(weight)
    for name in config["modules_to_save"] or ():
        state = {key: tensors.pop(f"{name}.{key}") for key in layers[name].state_dict()}
        layers[name].load_state_dict(state)
    if tensors:
        raise ValueError(f"{min(tensors)} has no place in the model")


def _by_pattern(pattern: Mapping[str, int], name: str, usual: int) -> int:
    """peft reads the keys of its patterns as regular expressions for the end of a name, and takes the first hit."""
    return next((value for key, value in pattern.items() if re.match(rf"(.*\.)?({key})$", name)), usual)
