"""Prefix replay: run a model again with one rank taken away, or alone, and only what lies behind that rank runs.

A reference pass records inputs and output of every module call. In a variant pass a module whose inputs are those of
the reference pass gives its recorded output, unless the target layer is inside it. The target layer gives its recorded
output less (or plus) s * out_gate o (gate_i (x . a_i) b_i); what is behind it runs anew. So all that is in front of the
target, and its siblings, is skipped, whatever the model looks like.

* Inputs are the same when their tensors are the recorded objects or, in front of the target, have the same numbers
  (masks and positions are made anew in every pass), and all else is equal. An object of an unknown kind never is.
* Behind the target only the same object counts: comparing numbers there would wait for the device and gain nothing.
* A tensor that was changed in place after it was recorded is not given back; its module runs again.
* A module with forward hooks somewhere inside runs, so that they do: transformers collects hidden states with hooks.
* A module that is called several times has several records.

While a `Replay` is open, every adapter is folded into a copy of its weight (leave-one-out) or left out (keep-only); in
half precision it runs as it is, because W + dW would round a small dW away. The weights are not touched. The outputs of
all modules are held for one batch: give it small batches one after the other.

The model must be in eval mode, run without grad, and be free of state between calls. `verify` finds out if it is not.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from torch import Tensor, nn

from adalora_bench.errors import UserError
from adalora_bench.lowrank.adapter import LowRankLinear

ATOMS = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, Enum)


class Flat:
    """A value taken apart: its tensors, and a `shape` of all the rest that can be compared by ==.

    `known` is false where it holds an object that this file cannot compare or copy (a cache, say).
    """

    def __init__(self, value: Any) -> None:
        self.tensors: list[Tensor] = []
        self.known = True
        self.shape = self._visit(value)

    def _visit(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            self.tensors.append(value)
            return Tensor
        if isinstance(value, ATOMS):
            return type(value), value
        if isinstance(value, (tuple, list)):
            return type(value), tuple(self._visit(item) for item in value)
        if isinstance(value, Mapping):
            return type(value), tuple((key, self._visit(item)) for key, item in value.items())
        self.known = False
        return None

    def versions(self) -> list[int]:
        """How often each tensor, or one that shares its memory, was changed in place."""
        return [tensor._version for tensor in self.tensors]


@dataclass(frozen=True)
class Call:
    """One module call of the reference pass: inputs as they were when it began, the output as it was when it ended."""

    inputs: Flat
    before: list[int]
    output: Any
    outputs: Flat
    after: list[int]

    def fits(self, given: Flat, *, by_value: bool) -> bool:
        """Whether a call with these inputs gives this output, and the output is still what it was."""
        if not given.known or given.shape != self.inputs.shape:
            return False
        pairs = zip(self.inputs.tensors, given.tensors, strict=True)
        if not all(old is new or (by_value and _equal(old, new)) for old, new in pairs):
            return False
        return self.inputs.versions() == self.before and self.outputs.versions() == self.after


class Replay:
    """Variants of one model under replay; a context manager, for the time of which the modules' `forward` is wrapped.

    Args:
        model: in eval mode.
        layers: its adapted layers.
    """

    def __init__(self, model: nn.Module, layers: Sequence[LowRankLinear]) -> None:
        self.model, self.layers = model, list(layers)
        self.factors = {id(layer): layer.factors() for layer in layers}
        # what is inside a module, itself included: a container of the target never gives its output back
        self.inside = {id(m): {id(inner) for inner in m.modules()} for m in model.modules()}
        self.folded: dict[int, Tensor] = {}  # W + dW (out, in)
        self.calls: dict[int, list[Call]] = {}
        self.hooked: set[int] = set()
        self.called: set[int] = set()  # adapted layers, by the reference pass
        self.recording = self.only = self.reached = False
        self.skipping = True
        self.target: LowRankLinear | None = None
        self.rank = 0
        self.undo: list[Callable[[], None]] = []
        self.gates = [(b, b.step_gate) for layer in layers for b in layer.rank_blocks()]

    # -- the context ----------------------------------------------------------------------------------------

    def __enter__(self) -> Replay:
        for layer in self.layers:
            if not layer.packed and layer.dtype in (torch.float32, torch.float64):
                self.folded[id(layer)] = layer.weight + layer.delta()
        adapted = {id(layer) for layer in self.layers}
        for module in self.model.modules():
            self._wrap(module, self._layer if id(module) in adapted else self._module)
        return self

    def __exit__(self, *error: object) -> None:
        for undo in self.undo:
            undo()
        self._close_gates(False)
        self.undo, self.calls, self.folded = [], {}, {}

    def _wrap(self, module: nn.Module, run: Callable[..., Any]) -> None:
        """Put an instance attribute `forward` over the method of the class: hooks of the module still run around it."""
        own = module.__dict__.get("forward")
        original: Callable[..., Any] = module.forward

        @functools.wraps(original)
        def forward(*args: Any, **kwargs: Any) -> Any:
            return run(module, original, args, kwargs)

        def undo() -> None:
            del module.__dict__["forward"]
            if own is not None:
                module.__dict__["forward"] = own

        module.__dict__["forward"] = forward
        self.undo.append(undo)

    def _close_gates(self, closed: bool) -> None:
        """All gates 0, or as they are: for layers that run as they are because they are not folded."""
        for block, gate in self.gates:
            block.step_gate = torch.zeros_like(block.gate) if closed else gate

    # -- passes ---------------------------------------------------------------------------------------------

    def reference(self, part: Callable[[], Tensor], *, only: bool) -> float:
        """The loss of one part with all ranks (`only`: with none), recorded for the variants that follow."""
        self.calls, self.called, self.only, self.target = {}, set(), only, None
        self._close_gates(only)
        self.recording = True
        loss = float(part())
        self.recording = False
        hooks = {id(m) for m in self.model.modules() if m._forward_hooks or m._forward_pre_hooks}
        self.hooked = {module for module, inner in self.inside.items() if (inner - {module}) & hooks}
        return loss

    def variant(self, part: Callable[[], Tensor], layer: int, rank: int, *, skip: bool = True) -> float:
        """The loss of the part of the last `reference` without one rank, or (`only`) with it alone.

        Args:
            part: that part.
            layer: index of the adapted layer.
            rank: index on its rank axis, dead ranks counted.
            skip: False runs every module.
        """
        self.target, self.rank, self.reached, self.skipping = self.layers[layer], rank, False, skip
        loss = float(part())
        if not self.reached and self.uses(layer):
            raise RuntimeError(
                "an adapted layer was not called as a module, so that replay cannot change its output"
            )
        return loss

    def uses(self, layer: int) -> bool:
        """Whether the reference pass called this adapted layer; the ranks of one that it left out change nothing."""
        return id(self.layers[layer]) in self.called

    def verify(self, part: Callable[[], Tensor], layer: int, rank: int) -> None:
        """Raises UserError if skipping changes the loss of a variant: the model is no function of its inputs then."""
        replayed, plain = (self.variant(part, layer, rank, skip=skip) for skip in (True, False))
        if abs(replayed - plain) > 1e-5 * max(1.0, abs(plain)):
            raise UserError(
                f"replay of the model gives the loss {replayed:.8g} and a plain pass {plain:.8g}: it keeps state from "
                "call to call, or draws random numbers. Score with plain passes (method.scorer=brute)."
            )

    # -- module calls ---------------------------------------------------------------------------------------

    def _module(self, module: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if self.recording:
            return self._record(module, forward, args, kwargs)
        call = None
        if id(self.target) not in self.inside[id(module)] and id(module) not in self.hooked:
            call = self._find(module, args, kwargs)
        return forward(*args, **kwargs) if call is None else _copied(call.output)

    def _layer(self, layer: LowRankLinear, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """An adapted layer: as any module, but for the rank that is taken away or left alone."""
        linear = functools.partial(self._linear, layer, forward)
        if self.recording:
            self.called.add(id(layer))
            return self._record(layer, linear, args, kwargs)
        call = self._find(layer, args, kwargs)
        y: Tensor = linear(*args, **kwargs) if call is None else call.output
        if layer is not self.target:
            return y
        self.reached = True
        return self._changed(layer, y, *args, **kwargs)

    def _linear(self, layer: LowRankLinear, forward: Callable[..., Any], x: Tensor) -> Tensor:
        """y with all ranks, or with none."""
        if id(layer) not in self.folded or torch.is_autocast_enabled(x.device.type):
            y: Tensor = forward(x)
            return y
        weight = layer.weight if self.only else self.folded[id(layer)]
        return nn.functional.linear(x, weight, getattr(layer.base, "bias", None))

    def _changed(self, layer: LowRankLinear, y: Tensor, x: Tensor) -> Tensor:
        """y -/+ s * out_gate o (gate_i (x . a_i) b_i), as a new tensor."""
        factors = self.factors[id(layer)]
        a, b, gate = factors.a[self.rank], factors.b[self.rank], factors.gate[self.rank]
        if layer.out_gate is not None:
            b = b * layer.out_gate
        strength = gate * (layer.scale if self.only else -layer.scale)
        h = x.reshape(-1, x.shape[-1]) @ (strength * a).to(x.dtype)
        return torch.addr(y.reshape(-1, y.shape[-1]), h.to(y.dtype), b.to(y.dtype)).reshape(y.shape)

    # -- records --------------------------------------------------------------------------------------------

    def _record(self, module: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        inputs = Flat((args, kwargs))
        before = inputs.versions()
        output = forward(*args, **kwargs)
        outputs = Flat(output)
        if inputs.known and outputs.known:
            call = Call(inputs, before, _copied(output), outputs, outputs.versions())
            self.calls.setdefault(id(module), []).append(call)
        return output

    def _find(self, module: nn.Module, args: Any, kwargs: Any) -> Call | None:
        calls = self.calls.get(id(module))
        if not calls or not self.skipping:
            return None
        given = Flat((args, kwargs))
        return next((call for call in calls if call.fits(given, by_value=not self.reached)), None)


def _equal(one: Tensor, other: Tensor) -> bool:
    if (one.shape, one.dtype, one.device) != (other.shape, other.dtype, other.device):
        return False
    return torch.equal(one, other)


def _copied(value: Any) -> Any:
    """The same tensors in containers of their own, so that a caller who appends to them does not change the record."""
    if type(value) in (list, tuple):
        return type(value)(_copied(item) for item in value)
    if type(value) is dict:
        return {key: _copied(item) for key, item in value.items()}
    return copy.copy(value) if isinstance(value, Mapping) else value
