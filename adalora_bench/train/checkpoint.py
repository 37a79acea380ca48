"""Exact save and resume of one unit: weights, ranks, optimizer, generators, method state, clock.

A checkpoint is a folder `step<k>` with tensors.safetensors, state.json and, written last, an empty COMPLETE. The
newest whole one is used; two are kept. Base weights that no one moved are not stored: they come from the backbone
again. The sampler has no state (data/collate.py: the order is a function of seed and epoch).
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from adalora_bench.lowrank.adapter import LowRankLinear, RankBlock
from adalora_bench.lowrank.budget import Budget, RankEvent
from adalora_bench.train.state import Group, Run

KEEP = 2


def frozen_base_names(run: Run, *, moves_base: bool) -> set[str]:
    """Names of parameters that stay as the backbone had them; call after `attach`."""
    adapted = (
        {id(p) for layer in run.adapters.values() for p in layer.base.parameters()} if moves_base else set()
    )
    blocks = {id(p) for layer in run.adapters.values() for p in layer.blocks.parameters()}
    extra = {id(layer.out_gate) for layer in run.adapters.values() if layer.out_gate is not None}
    return {
        name
        for name, p in run.model.named_parameters()
        if not p.requires_grad and id(p) not in adapted | blocks | extra
    }


def save(folder: Path, run: Run, frozen: set[str], extra: dict[str, Any]) -> Path:
    """Write `folder/step<k>` and delete all but the newest two.

    Args:
        folder: the unit's checkpoint folder.
        frozen: what `frozen_base_names` gave.
        extra: JSON of the caller (history, best, meter), returned by `load`.
    """
    assert run.optimizer is not None
    names = {id(p): name for name, p in run.model.named_parameters()}
    tensors = {f"model.{k}": v for k, v in run.model.state_dict(keep_vars=False).items() if k not in frozen}
    optimizer: list[dict[str, Any]] = []
    for group in run.optimizer.param_groups:
        params = [names[id(p)] for p in group["params"]]
        optimizer.append(
            {"params": params} | {k: group[k] for k in ("peak_lr", "weight_decay", "born", "warmup", "name")}
        )
        for p, name in zip(group["params"], params, strict=True):
            for key, value in run.optimizer.state.get(p, {}).items():
                tensors[f"optimizer.{key}.{name}"] = value
    scratch: dict[str, Any] = {}
    for key, value in run.scratch.items():
        if isinstance(value, Tensor):
            tensors[f"scratch.{key}"] = value
        else:
            scratch[key] = value
    tensors["rng.method"] = run.generator.get_state()
    tensors["rng.torch"] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors["rng.cuda"] = torch.cuda.get_rng_state()
    state = {
        "step": run.step,
        "optimizer": optimizer,
        "adapters": {name: _structure(layer) for name, layer in run.adapters.items()},
        "trainable": [name for name, p in run.model.named_parameters() if p.requires_grad],
        "scratch": scratch,
        "events": [event.as_dict() for event in run.events],
        "budget": vars(run.budget),
        "extra": extra,
    }
    target = folder / f"step{run.step:08d}"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    save_file(
        {k: v.detach().contiguous().clone() for k, v in tensors.items()}, target / "tensors.safetensors"
    )
    (target / "state.json").write_text(json.dumps(state))
    for name in ("tensors.safetensors", "state.json"):
        with (target / name).open("rb") as file:
            os.fsync(file.fileno())
    (target / "COMPLETE").touch()
    for old in whole(folder)[:-KEEP]:
        shutil.rmtree(old)
    return target


def whole(folder: Path) -> list[Path]:
    """Checkpoints that were written to the end, oldest first."""
    return sorted(path.parent for path in folder.glob("step*/COMPLETE"))


def newest(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
    """State and tensors of the newest checkpoint that can be read, or None."""
    for path in reversed(whole(folder)):
        try:
            return json.loads((path / "state.json").read_text()), load_file(path / "tensors.safetensors")
        except (OSError, json.JSONDecodeError, SafetensorError):
            continue  # a damaged checkpoint: the one before it serves
    return None


def restore(run: Run, state: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Put a run that was just begun (attach, start, setup) where the checkpoint left it. Returns `extra`."""
    for name, structure in state["adapters"].items():
        _rebuild(run.adapters[name], structure)
    loaded = {k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")}
    missing, unexpected = run.model.load_state_dict(loaded, strict=False)
    if unexpected:
        raise ValueError(f"the checkpoint holds tensors that the model lacks: {unexpected[:3]}")
    for layer in run.adapters.values():
        for block in layer.rank_blocks():
            block.recount()
    trainable = set(state["trainable"])
    params = dict(run.model.named_parameters())
    for name, p in params.items():
        p.requires_grad_(name in trainable)

    run.start(
        [
            Group(
                params=[params[name] for name in group["params"]],
                lr=group["peak_lr"],
                **{k: group[k] for k in ("weight_decay", "born", "warmup", "name")},
            )
            for group in state["optimizer"]
        ]
    )
    assert run.optimizer is not None
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            _, slot, name = key.split(".", 2)
            run.optimizer.state[params[name]][slot] = (
                value.to(params[name].device) if slot != "step" else value
            )
    run.scratch = dict(state["scratch"])
    run.scratch |= {k.removeprefix("scratch."): v for k, v in tensors.items() if k.startswith("scratch.")}
    run.events = [RankEvent(**event) for event in state["events"]]
    run.budget = Budget(**state["budget"])
    run.generator.set_state(tensors["rng.method"])
    torch.set_rng_state(tensors["rng.torch"])
    if "rng.cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["rng.cuda"])
    run.seek(state["step"])
    extra: dict[str, Any] = state["extra"]
    return extra


def _structure(layer: LowRankLinear) -> dict[str, Any]:
    return {
        "scale": layer.scale,
        "blocks": [
            {"rank": b.rank, "reserve": b.reserve, "dtype": str(b.a.dtype)} for b in layer.rank_blocks()
        ],
    }


def _rebuild(layer: LowRankLinear, structure: dict[str, Any]) -> None:
    """The same blocks with empty tensors; their numbers come with the state dict."""
    layer.scale = structure["scale"]
    like = layer.weight
    layer.blocks = nn.ModuleList(
        RankBlock(
            a=like.new_empty(block["rank"], layer.in_features),
            b=like.new_empty(block["rank"], layer.out_features),
            gate=like.new_empty(block["rank"]),
            reserve=block["reserve"],
        )
        for block in structure["blocks"]
    )
