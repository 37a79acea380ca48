"""Exact save and resume of one unit: weights, ranks, optimizer, generators, method state, clock.

A checkpoint is a folder `step<k>` with tensors.safetensors, state.json and, written last, COMPLETE: the sha256 of the
other two (`sha256sum -c COMPLETE` reads it). The newest whole one is used; two are kept. Base weights that no one moved
are not stored: they come from the backbone again. The sampler has no state (data/collate.py: the order is a function of
seed and epoch).
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from adalora_bench.lowrank.adapter import LowRankLinear, RankBlock
from adalora_bench.lowrank.budget import Budget, RankEvent
from adalora_bench.methods.run import Group, Run
from adalora_bench.store.files import atomic_write, write_tensors

log = logging.getLogger(__name__)

KEEP = 2
TENSORS, STATE, COMPLETE = "tensors.safetensors", "state.json", "COMPLETE"
GROUP_FIELDS = ("weight_decay", "born", "warmup", "name")


def frozen_base_names(run: Run, *, moves_base: bool) -> set[str]:
    """Names of parameters that stay as the backbone had them; call after `attach`, before the first step.

    Of a parameter that two modules share (token embeddings and output layer) the later names are among them: what is
    saved holds it once.
    """
    adapted = (
        {id(p) for layer in run.adapters.values() for p in layer.base.parameters()} if moves_base else set()
    )
    blocks = {id(p) for layer in run.adapters.values() for p in layer.blocks.parameters()}
    extra = {id(layer.out_gate) for layer in run.adapters.values() if layer.out_gate is not None}
    first = {name for name, _ in run.model.named_parameters()}
    return {
        name
        for name, p in run.model.named_parameters(remove_duplicate=False)
        if name not in first or (not p.requires_grad and id(p) not in adapted | blocks | extra)
    }


def save(folder: Path, run: Run, frozen: set[str], extra: dict[str, Any]) -> Path:
    """Write `folder/step<k>` and delete all but the newest two.

    Args:
        folder: the unit's checkpoint folder.
        frozen: what `frozen_base_names` gave.
        extra: JSON of the caller (history, best, meter), returned by `restore`.

    Raises:
        UserError: the file system refuses; earlier checkpoints are intact.
        TypeError: `run.scratch` holds what is neither a tensor nor JSON.
    """
    assert run.optimizer is not None
    names = {id(p): name for name, p in run.model.named_parameters()}
    tensors = {f"model.{k}": v for k, v in run.model.state_dict(keep_vars=False).items() if k not in frozen}
    optimizer: list[dict[str, Any]] = []
    for group in run.optimizer.param_groups:
        params = [names[id(p)] for p in group["params"]]
        optimizer.append({"params": params, "lr": group["peak_lr"]} | {k: group[k] for k in GROUP_FIELDS})
        for p, name in zip(group["params"], params, strict=True):
            for key, value in run.optimizer.state.get(p, {}).items():
                tensors[f"optimizer.{key}.{name}"] = value
    scratch: dict[str, Any] = {}
    on_device = []  # scratch tensors that live beside the model; the others stay in main memory
    for key, value in run.scratch.items():
        if isinstance(value, Tensor):
            tensors[f"scratch.{key}"] = value
            if value.device.type != "cpu":
                on_device.append(key)
        else:
            scratch[key] = value
    tensors["rng.method"] = run.generator.get_state()
    tensors["rng.torch"] = torch.get_rng_state()
    if torch.cuda.is_initialized():
        tensors["rng.cuda"] = torch.cuda.get_rng_state()
    state = {
        "step": run.step,
        "optimizer": optimizer,
        "adapters": {name: _structure(layer) for name, layer in run.adapters.items()},
        "frozen": sorted(frozen),
        "trainable": [name for name, p in run.model.named_parameters() if p.requires_grad],
        "scratch": scratch,
        "scratch_on_device": on_device,
        "events": [event.as_dict() for event in run.events],
        "budget": vars(run.budget),
        "extra": extra,
    }
    text = json.dumps(state)
    target = folder / f"step{run.step:08d}"
    shutil.rmtree(target, ignore_errors=True)
    write_tensors(target / TENSORS, {k: v.detach().contiguous().clone() for k, v in tensors.items()})
    atomic_write(target / STATE, text.encode())
    sums = "".join(f"{_sha256(target / name)}  {name}\n" for name in (TENSORS, STATE))
    atomic_write(target / COMPLETE, sums.encode())  # syncs the folder too, so the sums are never there alone
    kept = whole(folder)[-KEEP:]
    for old in folder.glob("step*"):
        if old not in kept:  # an older one, or one that a kill cut short
            shutil.rmtree(old)
    return target


def whole(folder: Path) -> list[Path]:
    """Checkpoints that were written to the end, oldest first."""
    return sorted(path.parent for path in folder.glob(f"step*/{COMPLETE}"))


def newest(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
    """State and tensors of the newest undamaged checkpoint, or None. A damaged one is logged and passed over."""
    for path in reversed(whole(folder)):
        try:
            sums = [line.partition("  ") for line in (path / COMPLETE).read_text().splitlines()]
            expected = {name: digest for digest, _, name in sums}
            for name in (TENSORS, STATE):
                if _sha256(path / name) != expected.get(name):
                    raise ValueError(f"{name} does not have the sum that {COMPLETE} says")
            return json.loads((path / STATE).read_text()), load_file(path / TENSORS)
        except (OSError, ValueError, SafetensorError) as error:
            log.warning("checkpoint %s is damaged (%s); the one before it serves.", path, error)
    return None


def restore(run: Run, state: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Put a run that was just begun (attach, start, setup) where the checkpoint left it. Returns `extra`."""
    loaded = {k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")}
    put_weights(run, state["adapters"], loaded, frozen=set(state["frozen"]))
    trainable = set(state["trainable"])
    params = dict(run.model.named_parameters())
    for name, p in params.items():
        p.requires_grad_(name in trainable)

    run.start(
        [
            Group(
                params=[params[name] for name in group["params"]],
                lr=group["lr"],
                **{k: group[k] for k in GROUP_FIELDS},
            )
            for group in state["optimizer"]
        ]
    )
    assert run.optimizer is not None
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            _, slot, name = key.split(".", 2)
            # `step` too: the fused optimizer counts on the device
            run.optimizer.state[params[name]][slot] = value.to(params[name].device)
    run.scratch = dict(state["scratch"])
    device = next(run.model.parameters()).device
    for key, value in tensors.items():
        if key.startswith("scratch."):
            name = key.removeprefix("scratch.")
            run.scratch[name] = value.to(device) if name in state["scratch_on_device"] else value
    run.events = [RankEvent(**event) for event in state["events"]]
    run.budget = Budget(**state["budget"])
    run.generator.set_state(tensors["rng.method"])
    torch.set_rng_state(tensors["rng.torch"])
    if "rng.cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["rng.cuda"])
    run.seek(state["step"])
    extra: dict[str, Any] = state["extra"]
    return extra


def put_weights(
    run: Run, structures: Mapping[str, Any], tensors: Mapping[str, Tensor], *, frozen: set[str]
) -> None:
    """Fill the model of a run whose method was just attached.

    Args:
        structures: adapter name -> scale and blocks, of a checkpoint's state or of `structures_in`.
        tensors: a state dict of the model without the parameters that `frozen` names.

    Raises:
        ValueError: the tensors do not fit the model.
    """
    if structures.keys() != run.adapters.keys():
        raise ValueError(
            f"the adapted layers differ in {sorted(structures.keys() ^ run.adapters.keys())[:3]}"
        )
    for name, structure in structures.items():
        _rebuild(run.adapters[name], structure)
    missing, unexpected = run.model.load_state_dict(dict(tensors), strict=False)
    strange = [*unexpected, *(set(missing) - frozen)]
    if strange:
        raise ValueError(f"the file and the model differ in {sorted(strange)[:3]}")
    for layer in run.adapters.values():
        for block in layer.rank_blocks():
            block.recount()


def structures_in(tensors: Mapping[str, Tensor], scales: Mapping[str, float]) -> dict[str, Any]:
    """The structures for `put_weights` of an adapter file, read off the names and shapes of its tensors.

    What the file cannot say is whether a block is a reserve; that changes counts, and no output.
    """
    structures: dict[str, Any] = {name: {"scale": scale, "blocks": []} for name, scale in scales.items()}
    for name, structure in structures.items():
        while (gate := tensors.get(f"{name}.blocks.{len(structure['blocks'])}.gate")) is not None:
            prefix = f"{name}.blocks.{len(structure['blocks'])}"
            parts = {part: tensors.get(f"{prefix}.{part}", gate) for part in ("a", "b", "gate")}
            structure["blocks"].append(_block(gate.shape[0], reserve=False, parts=parts))
    return structures


def _structure(layer: LowRankLinear) -> dict[str, Any]:
    return {
        "scale": layer.scale,
        "blocks": [
            _block(b.rank, reserve=b.reserve, parts={"a": b.a, "b": b.b, "gate": b.gate})
            for b in layer.rank_blocks()
        ],
    }


def _block(rank: int, *, reserve: bool, parts: Mapping[str, Tensor]) -> dict[str, Any]:
    """Size and dtypes of one block, in JSON."""
    dtypes = {part: str(tensor.dtype).removeprefix("torch.") for part, tensor in parts.items()}
    return {"rank": rank, "reserve": reserve} | dtypes


def _rebuild(layer: LowRankLinear, structure: dict[str, Any]) -> None:
    """The same blocks with empty tensors; their numbers come with the state dict."""
    layer.scale = structure["scale"]
    device = next(layer.base.parameters()).device

    def empty(block: dict[str, Any], part: str, *shape: int) -> Tensor:
        return torch.empty(*shape, dtype=getattr(torch, block[part]), device=device)

    layer.blocks = nn.ModuleList(
        RankBlock(
            a=empty(block, "a", block["rank"], layer.in_features),
            b=empty(block, "b", block["rank"], layer.out_features),
            gate=empty(block, "gate", block["rank"]),
            reserve=block["reserve"],
        )
        for block in structure["blocks"]
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
