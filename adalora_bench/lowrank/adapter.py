"""RankBlock and LowRankLinear: the one adapter that every low-rank method is a policy over.

    y = W0 x + bias + s * diag(out_gate) B^T diag(gate) A x

            in                      r                       out
      x ---------> [ A (r, in) ] ------> [gate (r,)] ----> [ B (r, out) ] --- [out_gate] --(+)--> y
       \\---------------------------- [ W0 (out, in), frozen ] -----------------------------/

The rank axis is a list of RankBlocks. Growing appends a block, pruning flips `alive`, `compact` removes dead ranks.
A and B are rank-major, so all of that is row work. Rank 0 is legal everywhere.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from adalora_bench.lowrank.function import LowRankFunction, cheapest_path, delta


class RankBlock(nn.Module):
    """r ranks that were born together: A (r, in), B (r, out), gate (r,), alive (r,) of booleans.

    `reserve` marks ranks that learn but are not counted yet (IncreLoRA's advance learning).

    `step_gate` (r,) stands in for `gate` while it is set: a method whose gate is drawn or computed anew in every step
    (SaLoRA, DyLoRA) sets it in `before_forward` and again after the step, for evaluation. It is no state: checkpoints
    do not hold it. A leaf that requires a gradient collects it over the micro-batches, and `after_backward` carries
    it on to what the gate was computed from.
    """

    a: nn.Parameter
    b: nn.Parameter
    gate: nn.Parameter
    alive: Tensor

    def __init__(
        self, a: Tensor, b: Tensor, gate: Tensor, *, train_gate: bool = False, reserve: bool = False
    ) -> None:
        super().__init__()
        if not a.shape[0] == b.shape[0] == gate.shape[0]:
            raise ValueError(f"ranks of A, B and gate differ: {a.shape[0]}, {b.shape[0]}, {gate.shape[0]}")
        self.a = nn.Parameter(a)
        self.b = nn.Parameter(b)
        self.gate = nn.Parameter(gate, requires_grad=train_gate)
        self.register_buffer("alive", torch.ones_like(gate, dtype=torch.bool))
        self.alive_ranks = self.rank  # counted when it changes, so that no step waits for a device
        self.reserve = reserve
        self.step_gate: Tensor | None = None

    @property
    def rank(self) -> int:
        """Stored ranks, dead ones included."""
        return self.a.shape[0]

    def kill(self, dead: Tensor) -> None:
        """Prune: the ranks where `dead` (r,) is true count no more and have gate 0 from now on."""
        self.alive &= ~dead.to(self.alive.device)
        self.recount()

    def recount(self) -> None:
        """Read `alive` again, after a checkpoint was loaded into it."""
        self.alive_ranks = int(self.alive.sum())

    def effective_gate(self) -> Tensor:
        """`step_gate` or else gate, with dead ranks at exactly 0, (r,)."""
        gate = self.gate if self.step_gate is None else self.step_gate
        if self.alive_ranks == self.rank:
            return gate
        return torch.where(self.alive, gate, torch.zeros_like(gate))


@dataclass(frozen=True)
class Factors:
    """The concatenated factors of all blocks: a (r, in), b (r, out), gate (r,)."""

    a: Tensor
    b: Tensor
    gate: Tensor


class LowRankLinear(nn.Module):
    """A frozen linear layer with a low-rank update on its side.

    Args:
        base: `nn.Linear` (weight (out, in)), a transformers `Conv1D` (weight (in, out)), or a 4-bit layer of
            bitsandbytes (weight packed; see four_bit.py).
        scale: s in the formula above; a plain number that a method may change.
        role: q, k, v, o, gate, up or down.
        dropout: probability on the input of the branch. It costs a second copy of the input; 0 is free.
    """

    def __init__(self, base: nn.Module, *, scale: float, role: str, dropout: float = 0.0) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.transposed = not isinstance(base, nn.Linear)  # Conv1D stores (in, out)
        stored: Any = base.weight
        self.packed = not stored.is_floating_point()  # only the layer itself reads it, product by product
        self.role = role
        self.scale = scale
        self.dropout = nn.Dropout(dropout) if dropout > 0 else None
        self.blocks = nn.ModuleList()
        self.out_gate: nn.Parameter | None = None
        self.want_delta_grad = False
        self.delta_grad: Tensor | None = None
        self.shared: tuple[Tensor, Tensor] | None = None  # see append_shared

    # -- shapes and counts ----------------------------------------------------------------------------------

    @property
    def weight(self) -> Tensor:
        """The base weight as (out, in), a view of the stored one; of a packed one an unpacked copy."""
        stored: Any = self.base.weight
        weight: Tensor = stored
        if self.packed:
            from bitsandbytes.functional import dequantize_4bit

            weight = dequantize_4bit(stored.data, stored.quant_state)
        return weight.T if self.transposed else weight

    @property
    def dtype(self) -> torch.dtype:
        """Of the numbers that the layer computes with; packed weights stand for float32 ones."""
        return torch.float32 if self.packed else self.weight.dtype

    @property
    def out_features(self) -> int:
        return int(self.base.out_features if self.packed else self.weight.shape[0])  # type: ignore[arg-type]

    @property
    def in_features(self) -> int:
        return int(self.base.in_features if self.packed else self.weight.shape[1])  # type: ignore[arg-type]

    def rank_blocks(self) -> Iterator[RankBlock]:
        for block in self.blocks:
            assert isinstance(block, RankBlock)
            yield block

    @property
    def rank(self) -> int:
        """Ranks that count: alive and not in reserve."""
        return sum(block.alive_ranks for block in self.rank_blocks() if not block.reserve)

    @property
    def stored_rank(self) -> int:
        """Rows that A and B hold, dead ranks and the reserve included."""
        return sum(block.rank for block in self.rank_blocks())

    # -- structure ------------------------------------------------------------------------------------------

    def append(self, block: RankBlock) -> RankBlock:
        """Grow: put a block at the end of the rank axis."""
        self.blocks.append(block)
        return block

    def append_shared(self, block: RankBlock) -> RankBlock:
        """Grow an empty layer by a block whose A and B are views of tensors that many layers read (VeRA).

        They are frozen and no state of this layer: `state_dict` leaves them out, and a load, before which a
        checkpoint may have rebuilt the block, ties them again. The method makes them anew in every run.
        """
        assert not self.blocks, "shared factors are the only block of their layer"
        self.shared = (block.a.detach(), block.b.detach())
        self.register_state_dict_post_hook(_leave_out_shared)
        self.append(block)
        self._tie_shared()
        return block

    def _tie_shared(self) -> None:
        assert self.shared is not None
        (block,) = self.rank_blocks()
        block.a, block.b = (
            nn.Parameter(view.to(old.device, old.dtype), requires_grad=False)  # no copy where nothing differs
            for view, old in zip(self.shared, (block.a, block.b), strict=True)
        )

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Called before the blocks are loaded: the shared factors are tied, and not missed."""
        if self.shared is not None:
            self._tie_shared()
            (block,) = self.rank_blocks()
            state_dict |= {f"{prefix}blocks.0.a": block.a, f"{prefix}blocks.0.b": block.b}
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def remove(self, block: RankBlock) -> None:
        """Take a block away, with its parameters."""
        self.blocks = nn.ModuleList(kept for kept in self.blocks if kept is not block)

    def factors(self, *, reserve: bool = True) -> Factors:
        """All blocks (with `reserve=False` those that count) along the rank axis; dead ranks have gate 0."""
        blocks = [block for block in self.rank_blocks() if reserve or not block.reserve]
        if not blocks:
            like: Tensor = self.base.weight.new_empty(0, dtype=self.dtype)  # type: ignore[operator]
            return Factors(
                like.new_zeros(0, self.in_features), like.new_zeros(0, self.out_features), like.new_zeros(0)
            )
        if len(blocks) == 1:
            return Factors(blocks[0].a, blocks[0].b, blocks[0].effective_gate())
        return Factors(
            torch.cat([block.a for block in blocks]),
            torch.cat([block.b for block in blocks]),
            torch.cat([block.effective_gate() for block in blocks]),
        )

    def _parts(self) -> tuple[list[Tensor], Tensor]:
        """For the autograd function: A of every block, then B of every block; and the joined gate (r,)."""
        blocks = list(self.rank_blocks())
        if not blocks:
            empty = self.factors()
            return [empty.a, empty.b], empty.gate
        gates = [block.effective_gate() for block in blocks]
        gate = gates[0] if len(gates) == 1 else torch.cat(gates)
        return [*(block.a for block in blocks), *(block.b for block in blocks)], gate

    @torch.no_grad()
    def compact(self) -> dict[nn.Parameter, tuple[nn.Parameter, Tensor]]:
        """Remove dead ranks for good.

        Returns:
            old parameter -> (new parameter, kept row indices), so that the optimizer state can follow
            (`Run.compact` does that). Blocks that lose every rank vanish; their parameters map to empty ones.
        """
        moved: dict[nn.Parameter, tuple[nn.Parameter, Tensor]] = {}
        for block in list(self.rank_blocks()):
            if block.alive_ranks == block.rank:
                continue
            keep = block.alive.nonzero().flatten()
            for name in ("a", "b", "gate"):
                old: nn.Parameter = getattr(block, name)
                new = nn.Parameter(old[keep].clone(), requires_grad=old.requires_grad)
                new.grad = None if old.grad is None else old.grad[keep].clone()
                moved[old] = (new, keep)
                setattr(block, name, new)
            if block.step_gate is not None:
                block.step_gate = block.step_gate[keep]
            block.alive = torch.ones_like(block.gate, dtype=torch.bool)
            block.recount()
            if block.rank == 0:
                self.remove(block)
        return moved

    # -- numbers --------------------------------------------------------------------------------------------

    def delta(self) -> Tensor:
        """dW (out, in): the only definition of the update; merge, export and tests derive from it."""
        factors = self.factors()
        return delta(factors.a, factors.b, factors.gate, self.out_gate, self.scale)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        bias: Tensor | None = getattr(self.base, "bias", None)
        weight = None if self.packed else self.weight
        receive = self._receive if self.want_delta_grad and torch.is_grad_enabled() else None
        rank = self.stored_rank
        if rank == 0 and receive is None:
            return self._base(x, weight, bias)
        out_gate: Tensor | None = self.out_gate
        factors, gate = self._parts()
        if receive is not None and not any(t.requires_grad for t in (x, gate, *factors)):
            gate = gate.detach().requires_grad_()  # nothing else makes autograd come by, and G is wanted
        out_features, in_features = self.out_features, self.in_features
        half = torch.is_autocast_enabled(x.device.type)
        dropout = self.dropout if self.training else None
        path = cheapest_path(
            x.numel() // in_features,
            out_features,
            in_features,
            rank,
            gates_only=out_gate is not None and not any(t.requires_grad for t in factors),
            # W + dW in half precision would round a small dW away
            merge=dropout is None and not half and weight is not None,
            scores=receive is not None,
        )
        if not torch.is_grad_enabled():
            factors, gate = [t.detach() for t in factors], gate.detach()  # nothing is kept for a backward
        if half:
            dtype = torch.get_autocast_dtype(x.device.type)
            x, gate, *factors = (t.to(dtype) for t in (x, gate, *factors))
            bias = None if bias is None else bias.to(dtype)
            out_gate = None if out_gate is None else out_gate.to(dtype)
        shape = (*x.shape[:-1], out_features)
        x = x.reshape(-1, in_features)
        rest = gate, out_gate, self.scale, path, receive, *factors
        if dropout is not None or weight is None:
            base = self._base(x, weight, bias)
            branch: Tensor = LowRankFunction.apply(x if dropout is None else dropout(x), None, None, *rest)
            return (base + branch).reshape(shape)
        y: Tensor = LowRankFunction.apply(x, weight, bias, *rest)
        return y.reshape(shape)

    def _base(self, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        """The base layer alone; `weight` is None where it is packed."""
        if weight is None:
            y: Tensor = self.base(x)
            return y
        return nn.functional.linear(x, weight.to(x.dtype), bias)

    @torch.no_grad()
    def merge(self) -> nn.Module:
        """The base layer with dW added to its weight, as a new module; this one is left as it is.

        A packed layer becomes a dense one, for 4 bits would round a small dW away.
        """
        if self.packed:
            dense = nn.Linear(self.in_features, self.out_features, bias=False, device="meta")
            dense.weight = nn.Parameter(self.weight + self.delta(), requires_grad=False)
            bias: Tensor | None = getattr(self.base, "bias", None)
            if bias is not None:  # which bitsandbytes turns into its own type of products
                dense.bias = nn.Parameter(bias.to(self.dtype), requires_grad=False)
            return dense
        merged = copy.deepcopy(self.base)
        update = self.delta()
        weight: Tensor = merged.weight  # type: ignore[assignment]
        weight += (update.T if self.transposed else update).to(weight.dtype)
        return merged

    def _receive(self, big: Tensor) -> None:
        """Backward hands over G = dL/d(dW): summed over micro-batches, kept until the method takes it."""
        if self.delta_grad is None:
            self.delta_grad = big.to(self.dtype)
        else:
            self.delta_grad += big


def _leave_out_shared(layer: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
    """Hook of `state_dict`, see LowRankLinear.append_shared."""
    for part in ("a", "b"):
        state.pop(f"{prefix}blocks.0.{part}", None)
