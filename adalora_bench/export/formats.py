"""The two forms of a trained model on disk, each with what loads it again: a PEFT adapter, a merged checkpoint.

Both hold the transformers model inside ours (`body`). Where ours puts a linear layer of its own on top, that layer is
head.safetensors beside it, and README.md says how logits come from it.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import GenerationConfig

from adalora_bench.errors import UserError
from adalora_bench.export.peft_files import Adapter, apply_adapter, write_adapter
from adalora_bench.export.readme import Written
from adalora_bench.export.trained import Trained
from adalora_bench.lowrank.plain import Pair, fuse_slices
from adalora_bench.models import fused, heads

HEAD = "head.safetensors"
BODY = "body."


class Format(Protocol):
    """How one form is written and read back."""

    def write(self, trained: Trained, folder: Path) -> Written:
        """Write the model; this may change it."""

    def reload(self, plain: nn.Module, folder: Path) -> None:
        """Turn a freshly loaded, untrained model into what the folder holds. ValueError: a tensor has no place."""


@dataclass(frozen=True)
class Peft:
    """adapter_config.json and adapter_model.safetensors; the head inside them where transformers has one."""

    def write(self, trained: Trained, folder: Path) -> Written:
        adapter = adapter_of(trained)
        if not adapter.pairs:
            raise UserError(
                "no layer has a rank left, and peft loads no empty adapter; form=merged writes backbone and head."
            )
        write_adapter(folder, adapter)
        _write_head(trained.run.model, folder)
        ranks = [len(a) for a, _ in adapter.pairs.values()]
        numbers = sum(a.numel() + b.numel() for a, b in adapter.pairs.values())
        said = f"a PEFT adapter, {len(ranks)} layers with {sum(ranks):,} ranks, {numbers:,} numbers without the head"
        large = sum(len(a) > min(a.shape[1], len(b)) for a, b in adapter.pairs.values())
        if large:
            said += f"; the rank of {large} layers exceeds their size, so that form=merged is smaller"
        outputs = f", num_labels={trained.form.outputs}" if adapter.task_type == "SEQ_CLS" else ""
        return _written(trained, said, adapter=True, arguments=outputs)

    def reload(self, plain: nn.Module, folder: Path) -> None:
        fused.fuse(plain)
        apply_adapter(plain.get_submodule("body"), folder)
        _read_head(plain, folder)


@dataclass(frozen=True)
class Merged:
    """A transformers checkpoint with its tokenizer, every weight with its update inside."""

    def write(self, trained: Trained, folder: Path) -> Written:
        model = trained.run.model
        for name, layer in trained.run.adapters.items():
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, layer.merge())
        fused.fuse(model)
        body: Any = model.get_submodule("body")
        found = trained.found.backbone(trained.cell)
        if isinstance(model, heads.TextModel):  # ours has forgotten how the published model is decoded
            body.generation_config = _generation_config(body, found.folder)
        if trained.cell.task.labels:
            body.config.id2label = dict(enumerate(trained.cell.task.labels))
            body.config.label2id = {label: number for number, label in enumerate(trained.cell.task.labels)}
        body.save_pretrained(folder)
        trained.cell.backbone.tokenizer(found).save_pretrained(folder)
        _write_head(model, folder)
        said = f"a merged checkpoint of {sum(p.numel() for p in body.parameters()):,} numbers, with its tokenizer"
        arguments = "".join(f", {name}={value}" for name, value in _without_pooler(body).items())
        return _written(trained, said, adapter=False, arguments=arguments)

    def reload(self, plain: nn.Module, folder: Path) -> None:
        old: Any = plain.get_submodule("body")
        body, told = type(old).from_pretrained(
            folder, local_files_only=True, dtype="float32", output_loading_info=True, **_without_pooler(old)
        )
        strange = [name for names in told.values() for name in names]
        if strange:
            raise ValueError(f"{strange[0]} does not fit {type(old).__name__}")
        plain.body = body
        _read_head(plain, folder)


FORMATS: dict[str, Format] = {"peft": Peft(), "merged": Merged()}


def adapter_of(trained: Trained) -> Adapter:
    """The trained model as a LoRA of the transformers model, and the modules that were trained as a whole."""
    model, backbone = trained.run.model, trained.cell.backbone
    pairs = of_transformers(model, trained.pairs())
    modules: dict[str, dict[str, Tensor]] = {}
    for name in trained.trained_beside_adapters():
        if name.startswith(BODY):
            inner = name.removeprefix(BODY)
            head = next((module for module in backbone.head_modules if inner.startswith(f"{module}.")), None)
            whole = head or inner.rpartition(".")[0]
            modules[whole] = model.get_submodule(BODY + whole).state_dict()
    source = backbone.source
    return Adapter(
        pairs=pairs,
        modules=modules,
        task_type=task_type(model),
        base=None if source.local else source.hub,
        revision=None if source.local else source.revision,
        transposed=any(layer.transposed for layer in trained.run.adapters.values()),
    )


def of_transformers(model: nn.Module, pairs: dict[str, Pair]) -> dict[str, Pair]:
    """The pairs under the names of the transformers model; those of layers that it keeps in one become one."""
    pairs = dict(pairs)
    for name, module in model.named_modules():
        if isinstance(module, fused.SplitProjection):
            slices = [pairs.pop(f"{name}.{part}", None) for part in module.names]
            width = next((len(pair[1]) for pair in slices if pair is not None), None)
            if width is not None:
                pairs[name] = fuse_slices(slices, [width] * len(slices))
    return {name.removeprefix(BODY): pair for name, pair in pairs.items()}


def task_type(model: nn.Module) -> str:
    """peft's word for the class of the transformers model inside ours."""
    if isinstance(model, heads.TextModel):
        return "SEQ_2_SEQ_LM" if model.seq2seq else "CAUSAL_LM"
    return "SEQ_CLS" if isinstance(model, heads.LogitsOnly) else "FEATURE_EXTRACTION"


def _written(trained: Trained, said: str, *, adapter: bool, arguments: str) -> Written:
    model = trained.run.model
    return Written(
        said=said,
        adapter=adapter,
        task_type=task_type(model),
        arguments=arguments,
        per_token=isinstance(model, heads.TokenLogits),
        labels=trained.cell.task.labels,
    )


def _without_pooler(body: Any) -> dict[str, bool]:
    """Arguments of `from_pretrained` that leave out the pooler, which our heads do not use."""
    known = inspect.signature(type(body)).parameters
    return {"add_pooling_layer": False} if "add_pooling_layer" in known else {}


def _write_head(model: nn.Module, folder: Path) -> None:
    if isinstance(head := getattr(model, "head", None), nn.Module):
        save_file({name: p.detach().contiguous() for name, p in head.state_dict().items()}, folder / HEAD)


@torch.no_grad()
def _read_head(model: nn.Module, folder: Path) -> None:
    if isinstance(head := getattr(model, "head", None), nn.Module):
        head.load_state_dict(load_file(folder / HEAD))


def _generation_config(body: Any, folder: Path | None) -> GenerationConfig:
    if folder is not None and (folder / "generation_config.json").is_file():
        return GenerationConfig.from_pretrained(folder, local_files_only=True)
    return GenerationConfig.from_model_config(body.config)
