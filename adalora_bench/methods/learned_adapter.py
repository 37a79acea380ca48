"""Learned-Adapter (ours): bottlenecks whose activation and position are searched.

ALoRA names the method; its source was not at hand, and this is our reading. A bottleneck stands behind every target
layer. While the search lasts its activation is a mixture with softmax weights and its output has a gate; then every
adapter takes its likeliest activation, and the share `kept` with the largest gates stays in the whole model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adalora_bench.errors import PromiseBroken, UserError, unknown
from adalora_bench.methods.base import Facts, require_at_least_one, require_positive
from adalora_bench.methods.houlsby import ACTIVATIONS
from adalora_bench.methods.searched import KEPT, Searched, share_of, top
from adalora_bench.schedule import Phase

if TYPE_CHECKING:
    from torch import nn

    from adalora_bench.inserts.bottleneck import AfterLinear
    from adalora_bench.inserts.searched_bottleneck import SearchedBottleneck
    from adalora_bench.methods.run import Run

CHOSEN = "activations"
"""In `run.scratch` once the search is over: the activation of every kept adapter."""


@dataclass(frozen=True, kw_only=True)
class LearnedAdapter(Searched):
    """See conf/method/learned_adapter.yaml for what each setting means and where its default comes from."""

    bottleneck: int
    activations: list[str]
    kept: Phase
    init_std: float

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least_one("method.bottleneck", self.bottleneck)
        require_positive("method.init_std", self.init_std)
        if not self.activations:
            raise UserError(f"method.activations is empty; give some of {', '.join(ACTIVATIONS)}.")
        for name in self.activations:
            if name not in ACTIVATIONS:
                raise UserError(unknown("activation in method.activations", name, ACTIVATIONS))

    def precheck(self, facts: Facts) -> None:
        super().precheck(facts)
        share_of("method.kept", self.kept, facts.modules)

    # -- building -------------------------------------------------------------------------------------------

    def adapt(self, base: nn.Module, role: str, run: Run) -> nn.Module:
        from adalora_bench.inserts.bottleneck import AfterLinear, example_of, width_of
        from adalora_bench.inserts.searched_bottleneck import SearchedBottleneck

        base.requires_grad_(False)
        like = example_of(base)
        width, m = width_of(base, out=True), self.bottleneck
        down = run.normal(m, width, std=self.init_std, like=like)
        adapter = SearchedBottleneck(activations=self.activations, down=down, up=like.new_zeros(width, m))
        return AfterLinear(base, adapter)

    def names(self, run: Run) -> list[str]:
        return [name for name, _ in _candidates(run)]

    def choices(self, run: Run) -> list[nn.Parameter]:
        return [p for _, layer in _candidates(run) for p in (_of(layer).position, _of(layer).mixture)]

    # -- the search -----------------------------------------------------------------------------------------

    def best(self, run: Run) -> list[int]:
        import torch

        gates = run.reduce(torch.stack([_of(layer).position.detach() for _, layer in _candidates(run)]))
        return top(gates.tolist(), share_of("method.kept", self.kept, len(gates)))

    def harden(self, run: Run, kept: Sequence[int]) -> None:
        chosen = []
        for i, (name, layer) in enumerate(_candidates(run)):
            adapter = _of(layer)
            if i in kept:
                chosen.append(self.activations[int(run.reduce(adapter.mixture.detach()).argmax())])
                adapter.fold_gate()
                leaving = [adapter.position, adapter.mixture]
            else:
                leaving = list(adapter.parameters())
                run.event("mask", name, 1, 0)
            for p in leaving:
                run.freeze(p)
        run.scratch[CHOSEN] = chosen
        _settle(run, kept)

    def settle(self, run: Run) -> None:
        _settle(run, run.scratch[KEPT])

    def finalize(self, run: Run) -> None:
        """Plain adapters where they stayed, the bare layer elsewhere."""
        from adalora_bench.inserts.bottleneck import Bottleneck, replace_module

        self.before_forward(run)
        for name, layer in _candidates(run):
            if not layer.enabled:
                replace_module(run.model, name, layer.base)
                continue
            old = _of(layer)
            plain = Bottleneck(activation=old.activation, scale=1.0, down=old.down, up=old.up)
            # the very same parameters: the optimizer holds them
            plain.down, plain.up, plain.down_bias, plain.up_bias = (
                old.down,
                old.up,
                old.down_bias,
                old.up_bias,
            )
            layer.adapter = plain

    def check(self, run: Run) -> None:
        from adalora_bench.methods.houlsby import adapters_of

        super().check(run)
        found = adapters_of(run)
        if len(found) != len(run.scratch[KEPT]):
            raise PromiseBroken(f"{len(found)} adapters are left instead of {len(run.scratch[KEPT])}")
        if not any(bool(adapter.up.any()) for adapter in found):
            raise PromiseBroken("no adapter moved away from 0")


def _candidates(run: Run) -> list[tuple[str, AfterLinear]]:
    """(name, layer) of every layer that carries a searched adapter, in the model's order."""
    from adalora_bench.inserts.bottleneck import AfterLinear
    from adalora_bench.inserts.searched_bottleneck import SearchedBottleneck

    found = ((name, run.model.get_submodule(name)) for name in run.modules)
    return [
        (name, layer)
        for name, layer in found
        if isinstance(layer, AfterLinear) and isinstance(layer.adapter, SearchedBottleneck)
    ]


def _of(layer: AfterLinear) -> SearchedBottleneck:
    adapter: SearchedBottleneck = layer.adapter  # type: ignore[assignment]
    return adapter


def _settle(run: Run, kept: Sequence[int]) -> None:
    """Switch what was dropped off and give the others their activation."""
    chosen = iter(run.scratch[CHOSEN])
    for i, (_, layer) in enumerate(_candidates(run)):
        layer.enabled = i in kept
        if layer.enabled:
            _of(layer).activation = next(chosen)
