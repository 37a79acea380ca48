"""The side network of ladder side-tuning: it reads the backbone's hidden states and never writes into them.

    h_0 = D_0 e                                   e: input of the first block, (n, length, d)
    h_i = block_i(m_i h_{i-1} + (1 - m_i) D_i b_i)   b_i: output of block i, m_i = sigmoid(p_i / T)
    y   = b_last + U LN(h_last)                   b_last: the backbone's last hidden state, behind its last norm

All backbone states are detached, and nothing in front of them trains, so autograd keeps none of the backbone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn


class Rung(nn.Module):
    """One level of the ladder: mix the backbone's state in, then a small block, h + W2 gelu(W1 LN(h)).

    Args:
        down: D (side, d).
        first, second: W1 (inner, side) and W2 (side, inner).
        gate: p at the start.
        temperature: T.
    """

    def __init__(
        self, *, down: Tensor, first: Tensor, second: Tensor, gate: float, temperature: float
    ) -> None:
        super().__init__()
        self.down = nn.Parameter(down)
        self.gate = nn.Parameter(down.new_full((), gate))
        self.norm = nn.LayerNorm(down.shape[0], device=down.device, dtype=down.dtype)
        self.first = nn.Parameter(first)
        self.second = nn.Parameter(second)
        self.temperature = temperature

    def mix(self) -> Tensor:
        """m = sigmoid(p / T): the share of the ladder's own state."""
        return torch.sigmoid(self.gate / self.temperature)

    def forward(self, side: Tensor, state: Tensor) -> Tensor:
        """side (n, length, side) and the backbone's state (n, length, d) -> (n, length, side)."""
        m = self.mix()
        h = m * side + (1 - m) * nn.functional.linear(state, self.down)
        inner = nn.functional.gelu(nn.functional.linear(self.norm(h), self.first))
        return h + nn.functional.linear(inner, self.second)


class Ladder(nn.Module):
    """The whole side network; `watch` ties it to a backbone.

    Args:
        entry: D_0 (side, d).
        rungs: one for each block, in order.
        up: U (d, side).
        replace: give U LN(h) alone instead of adding it to the backbone's last state.
    """

    def __init__(self, *, entry: Tensor, rungs: Sequence[Rung], up: Tensor, replace: bool) -> None:
        super().__init__()
        self.entry = nn.Parameter(entry)
        self.rungs = nn.ModuleList(rungs)
        self.norm = nn.LayerNorm(entry.shape[0], device=entry.device, dtype=entry.dtype)
        self.up = nn.Parameter(up)
        self.replace = replace
        self.seen: list[
            Tensor
        ] = []  # of the pass that is being made: input of the first block, output of every block

    def forward(self, states: Sequence[Tensor]) -> Tensor:
        """States (n, length, d), one more than rungs -> what is added to the last one, (n, length, d)."""
        side = nn.functional.linear(states[0], self.entry)
        for rung, state in zip(self.rungs, states[1:], strict=True):
            side = rung(side, state)
        return nn.functional.linear(self.norm(side), self.up)

    # -- on a backbone --------------------------------------------------------------------------------------

    def watch(self, blocks: Sequence[nn.Module], stack: nn.Module) -> None:
        """Read these blocks, and change the last hidden state of the model that holds them.

        Hooks, since blocks and model are transformers' own and are asked for their attributes.
        """
        blocks[0].register_forward_pre_hook(self._begin, with_kwargs=True)
        for block in blocks:
            block.register_forward_hook(self._saw)
        stack.register_forward_hook(self._end)

    def _begin(self, block: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        state: Tensor = args[0] if args else named["hidden_states"]
        self.seen = [state.detach()]

    def _saw(self, block: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        state: Tensor = output if isinstance(output, Tensor) else output[0]
        self.seen.append(state.detach())

    def _end(self, stack: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        states, self.seen = self.seen, []
        update = self(states)
        last = output.last_hidden_state.detach()
        output.last_hidden_state = update if self.replace else last + update
        return output


def blocks_with_names(model: nn.Module, modules: Mapping[str, str]) -> list[tuple[str, nn.Module]]:
    """The transformer blocks: the longest common path of a block's layers. Of an encoder-decoder the decoder's."""
    from adalora_bench.inserts.bottleneck import blocks_of

    paths: dict[int, list[str]] = {}
    for name, block in blocks_of(modules).items():
        parts = name.split(".")
        known = paths.setdefault(block, parts)
        same = [a == b for a, b in zip(known, parts, strict=False)] + [False]
        paths[block] = parts[: same.index(False)] if known is not parts else parts
    names = [".".join(parts) for parts in paths.values()]
    if model.body.config.is_encoder_decoder:  # type: ignore[union-attr]
        names = [name for name in names if ".decoder." in name]
    return [(name, model.get_submodule(name)) for name in names]
