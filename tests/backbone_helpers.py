"""What the tests of the backbones share: a backbone of conf, a method attached to it, and models without numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import yaml

from adalora_bench.data.sources import Found
from adalora_bench.methods.base import Method
from adalora_bench.methods.run import OptimizerSettings, Run
from adalora_bench.models import heads
from adalora_bench.models.backbone import Backbone, Loaded
from adalora_bench.seeds import generator
from adalora_bench.settings.compose import conf_dir
from adalora_bench.settings.config import build
from adalora_bench.train.loop import begin

NOWHERE = Found(served_by="generated", folder=None, files={}, detail="")


def backbone(name: str, **changes: Any) -> Backbone:
    node = yaml.safe_load((conf_dir() / "backbone" / f"{name}.yaml").read_text(encoding="utf-8"))
    built: Backbone = build(node | changes, "backbone")
    return built


def method(name: str, **changes: Any) -> Method:
    node = yaml.safe_load((conf_dir() / "method" / f"{name}.yaml").read_text(encoding="utf-8"))
    node = {key: 2 if "${" in str(value) else value for key, value in node.items()} | changes
    built: Method = build(node, "method")
    return built


def attached(loaded: Loaded, policy: Method) -> Run:
    run = Run(
        loaded.model,
        loaded.modules,
        total_steps=10,
        steps_per_epoch=10,
        settings=OptimizerSettings(),
        generator=generator(0, "adapter"),
        head=loaded.head,
    )
    begin(policy, run)
    return run


def shapes_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on random models are made on the meta device: shapes without numbers."""
    real = heads.random_model

    def on_meta(*args: Any) -> Any:
        with torch.device("meta"):
            return real(*args)

    monkeypatch.setattr(heads, "random_model", on_meta)
