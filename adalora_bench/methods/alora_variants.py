"""ALoRA-DNAS and ALoRA-Sensi, the variants of the paper's ablation (Table 6): the rounds of ALoRA, scored otherwise.

Both keep numbers of every rank in `run.scratch` (rank after rank, matrix after matrix); they follow pruning and growth.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adalora_bench.errors import UserError, unknown
from adalora_bench.methods.alora import Alora, Rows
from adalora_bench.methods.base import require_below_one, require_not_negative, require_positive

if TYPE_CHECKING:
    from torch import Tensor

    from adalora_bench.methods.run import Run


@dataclass(frozen=True, kw_only=True)
class AloraDnas(Alora):
    """Gates 2 sigmoid(a) (Eq. 5) learn on rows of their own, one step of a for one of the weights (Eq. 4).

    The gate is the importance. While rounds are to come it is in the forward pass; afterwards `gates_after` rules.
    See conf/method/alora_dnas.yaml.
    """

    arch_lr: float
    arch_weight_decay: float
    arch_beta1: float
    arch_beta2: float
    arch_share: float
    gates_after: str

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive("method.arch_lr", self.arch_lr)
        require_not_negative("method.arch_weight_decay", self.arch_weight_decay)
        for name in ("arch_beta1", "arch_beta2"):
            require_below_one(f"method.{name}", getattr(self, name))
        if not 0 < self.arch_share < 1:
            raise UserError(f"method.arch_share={self.arch_share} must lie between 0 and 1.")
        if self.gates_after not in ("keep", "one"):
            raise UserError(unknown("value of method.gates_after", self.gates_after, ("keep", "one")))

    def validation_batches(self) -> tuple[int, int]:
        return 0, 0

    def notes(self, run: Run) -> list[str]:
        """What the gates cost; `scorer` is not used."""
        return [
            f"{self.arch_share:.0%} of the training rows train the gates, so the weights see fewer rows in fewer steps"
        ]

    @property
    def architecture_share(self) -> float:
        return self.arch_share

    def setup(self, run: Run) -> None:
        import torch

        super().setup(run)
        like = run.rank_blocks()[0].gate
        # per rank: a, its two moments, its steps; a = 0 is gate 1
        run.scratch["architecture"] = torch.zeros(run.total_rank, 4, dtype=like.dtype, device=like.device)

    def before_forward(self, run: Run) -> None:
        import torch

        super().before_forward(run)
        if self.searching(run):
            self._architecture_step(run)
        elif run.scratch.pop("architecture", None) is not None and self.gates_after == "one":
            with torch.no_grad():
                for block in run.rank_blocks():
                    block.gate.fill_(1)

    def importance(self, run: Run) -> tuple[Rows, Rows]:
        from adalora_bench.lowrank.scores import relaxed_gate

        gates = relaxed_gate(run.scratch["architecture"][:, 0])
        rows = self.rows(run, run.reduce(gates.double().cpu()))
        return rows, rows

    def _architecture_step(self, run: Run) -> None:
        """One AdamW step of a on the other rows. Gradients of the weights are not touched."""
        import torch

        from adalora_bench.lowrank.ablation import gradients, standing_in
        from adalora_bench.lowrank.scores import relaxed_gate

        blocks, rows = run.rank_blocks(), run.scratch["architecture"]
        sizes = [block.rank for block in blocks]
        a = rows[:, 0].clone().requires_grad_()
        gates = relaxed_gate(a)
        leaves = [gate.detach().requires_grad_() for gate in gates.split(sizes)]
        slope = torch.zeros_like(rows[:, 0])
        with standing_in(blocks, leaves):
            for part in run.arch_parts():
                slope += torch.cat(gradients(part(), leaves))
        (grad,) = torch.autograd.grad(gates, a, slope)
        run.scratch["architecture"] = rows = adamw_rows(
            rows,
            run.reduce(grad),
            lr=self.arch_lr,
            betas=(self.arch_beta1, self.arch_beta2),
            eps=run.settings.eps,
            weight_decay=self.arch_weight_decay,
        )
        with torch.no_grad():
            for block, gate in zip(blocks, relaxed_gate(rows[:, 0]).split(sizes), strict=True):
                block.gate.copy_(gate)

    def follow(self, run: Run, pruned: Sequence[Sequence[int]], gained: Mapping[int, int]) -> None:
        rows = run.scratch["architecture"]
        widths = [rows.shape[1]] * len(pruned)
        flat = carry_rows(rows.flatten(), ranks_before(run, pruned, gained), widths, pruned, gained)
        run.scratch["architecture"] = flat.view(-1, rows.shape[1])


@dataclass(frozen=True, kw_only=True)
class AloraSensi(Alora):
    """AdaLoRA's importance of a triplet (its Eq. 7-11), with the hard gate in the place of the singular value.

    See conf/method/alora_sensi.yaml.
    """

    beta1: float
    beta2: float

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("beta1", "beta2"):
            require_below_one(f"method.{name}", getattr(self, name))

    def validation_batches(self) -> tuple[int, int]:
        return 0, 0

    def notes(self, run: Run) -> list[str]:
        return []  # `scorer` is not used

    def setup(self, run: Run) -> None:
        import torch

        super().setup(run)
        like = run.rank_blocks()[0].a
        size = sum(
            layer.rank * width for layer, width in zip(run.adapters.values(), self._widths(run), strict=True)
        )
        zeros = torch.zeros(size, dtype=like.dtype, device=like.device)
        run.scratch |= {"sensitivity": zeros, "uncertainty": zeros.clone()}

    def after_step(self, run: Run) -> None:
        """As AdaLoRA: with the parameters that just moved and the (clipped) gradient that moved them."""
        import torch

        from adalora_bench.lowrank.scores import sensitivity, smooth, uncertainty
        from adalora_bench.methods.run import gradient

        if not self.searching(run):
            return
        pieces = []
        with torch.no_grad():
            for layer in run.adapters.values():
                for block in layer.rank_blocks():
                    grad_a, grad_b = gradient(block.a), gradient(block.b)
                    # the gate multiplies the row of A, so its gradient is sum_j a_ij dL/da_ij (at gate 1)
                    gate = (block.a * grad_a).sum(1, keepdim=True).abs()
                    entries = sensitivity(block.a, grad_a), sensitivity(block.b, grad_b)
                    pieces.append(torch.cat([gate, *entries], dim=1).flatten())
        state, s = run.scratch, torch.cat(pieces)
        state["sensitivity"] = smooth(state["sensitivity"], s, self.beta1)
        state["uncertainty"] = uncertainty(state["uncertainty"], s, state["sensitivity"], self.beta2)

    def importance(self, run: Run) -> tuple[Rows, Rows]:
        import torch

        from adalora_bench.lowrank.scores import triplet

        layers, widths = list(run.adapters.values()), self._widths(run)
        entries = run.scratch["sensitivity"] * run.scratch["uncertainty"]
        scores = []
        for part, layer, width in zip(
            entries.split([layer.rank * w for layer, w in zip(layers, widths, strict=True)]),
            layers,
            widths,
            strict=True,
        ):
            gate, a, b = part.view(-1, width).split([1, layer.in_features, layer.out_features], dim=1)
            scores.append(triplet(gate[:, 0], a, b))
        rows = self.rows(run, run.reduce(torch.cat(scores).double().cpu()))
        return rows, rows

    def follow(self, run: Run, pruned: Sequence[Sequence[int]], gained: Mapping[int, int]) -> None:
        ranks = ranks_before(run, pruned, gained)
        for name in ("sensitivity", "uncertainty"):
            run.scratch[name] = carry_rows(run.scratch[name], ranks, self._widths(run), pruned, gained)

    def _widths(self, run: Run) -> list[int]:
        """Numbers per rank: the gate, a row of A, a row of B."""
        return [1 + layer.in_features + layer.out_features for layer in run.adapters.values()]


def adamw_rows(
    rows: Tensor, grad: Tensor, *, lr: float, betas: tuple[float, float], eps: float, weight_decay: float
) -> Tensor:
    """One AdamW step of numbers that were born at different steps.

    Args:
        rows: (n, 4): the number, mean of its gradients, mean of their squares, steps made.
        grad: (n,).

    Returns:
        rows after the step.
    """
    import torch

    value, mean, square, steps = rows.unbind(1)
    steps = steps + 1
    mean = betas[0] * mean + (1 - betas[0]) * grad
    square = betas[1] * square + (1 - betas[1]) * grad.square()
    step = (mean / (1 - betas[0] ** steps)) / ((square / (1 - betas[1] ** steps)).sqrt() + eps)
    return torch.stack([value * (1 - lr * weight_decay) - lr * step, mean, square, steps], dim=1)


def carry_rows(
    flat: Tensor,
    ranks: Sequence[int],
    widths: Sequence[int],
    pruned: Sequence[Sequence[int]],
    gained: Mapping[int, int],
) -> Tensor:
    """Rows of numbers follow their ranks: pruned ones go, new ones are 0 and come last in their matrix.

    Args:
        flat: of each matrix `ranks` rows of `widths` numbers, laid end to end.
        ranks: before the change.
        pruned: of each matrix the indices of the ranks that went.
        gained: index of a matrix -> new ranks.
    """
    import torch

    pieces = flat.split([rank * width for rank, width in zip(ranks, widths, strict=True)])
    out = []
    for m, (piece, rank, width) in enumerate(zip(pieces, ranks, widths, strict=True)):
        kept = [r for r in range(rank) if r not in set(pruned[m])]
        out += [piece.view(rank, width)[kept].flatten(), flat.new_zeros(gained.get(m, 0) * width)]
    return torch.cat(out)


def ranks_before(run: Run, pruned: Sequence[Sequence[int]], gained: Mapping[int, int]) -> list[int]:
    """Ranks of each matrix before the round that has just been made."""
    layers = enumerate(run.adapters.values())
    return [layer.rank + len(pruned[m]) - gained.get(m, 0) for m, layer in layers]
