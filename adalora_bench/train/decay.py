"""What weight decay leaves alone. The papers do not say; their GLUE scripts build on the Trainer of transformers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

    from adalora_bench.methods.run import Group


def spared(model: nn.Module) -> set[int]:
    """Ids of every bias and of every parameter of a normalisation layer, as transformers' Trainer spares them."""
    return {
        id(parameter)
        for module in model.modules()
        for name, parameter in module.named_parameters(recurse=False)
        if "bias" in name or type(module).__name__.endswith("Norm")
    }


def apart(groups: Sequence[Group], left_alone: set[int]) -> list[Group]:
    """The groups; of one that decays, what is left alone becomes a group beside it with weight decay 0."""
    parts: list[Group] = []
    for group in groups:
        alone = [p for p in group.params if id(p) in left_alone]
        if group.weight_decay == 0 or not alone:
            parts.append(group)
            continue
        decayed = [p for p in group.params if id(p) not in left_alone]
        if decayed:
            parts.append(replace(group, params=decayed))
        parts.append(replace(group, params=alone, weight_decay=0.0, name=f"{group.name}, no decay"))
    return parts
