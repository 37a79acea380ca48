"""DyLoRA (Valipour et al., 2022, arXiv 2210.07558): one LoRA that serves at every rank from r_min to r_max.

From memory of the paper; no source was at hand. Each step draws b ~ Uniform{r_min..r_max} and uses the ranks 1..b only,
dW = (alpha / b) B_b A_b; with `frozen` only rank b itself learns. (Scale, truncation and `frozen` agree with copies of
the authors' layer that third parties published.) The gate of the layer is the mask of the step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adalora_bench.errors import PromiseBroken, UserError
from adalora_bench.methods.base import Method, require_at_least_one, require_below_one, require_positive

if TYPE_CHECKING:
    from torch import Tensor, nn

    from adalora_bench.lowrank.adapter import LowRankLinear
    from adalora_bench.methods.run import Run


@dataclass(frozen=True, kw_only=True)
class DyLora(Method):
    """See conf/method/dylora.yaml for what each setting means and where its default comes from."""

    rank_min: int
    rank_max: int
    eval_rank: int | None
    alpha: float
    frozen: bool
    hold_inactive: bool
    dropout: float

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least_one("method.rank_min", self.rank_min)
        require_positive("method.alpha", self.alpha)
        if self.rank_max < self.rank_min:
            raise UserError(f"method.rank_max={self.rank_max} is below method.rank_min={self.rank_min}.")
        if not self.rank_min <= self.final_rank <= self.rank_max:
            raise UserError(
                f"method.eval_rank={self.eval_rank} must lie in [{self.rank_min}, {self.rank_max}], the ranks that "
                "are trained (method.rank_min, method.rank_max)."
            )
        require_below_one("method.dropout", self.dropout)

    @property
    def final_rank(self) -> int:
        """The rank of evaluation."""
        return self.rank_max if self.eval_rank is None else self.eval_rank

    def adapt(self, base: nn.Module, role: str, run: Run) -> nn.Module:
        from adalora_bench.lowrank.adapter import LowRankLinear, RankBlock

        layer = LowRankLinear(base, scale=self.alpha / self.rank_max, role=role, dropout=self.dropout)
        like, r = layer.weight, self.rank_max
        layer.append(
            RankBlock(
                a=run.uniform(r, layer.in_features, bound=1 / math.sqrt(layer.in_features), like=like),
                b=like.new_zeros(r, layer.out_features),
                gate=like.new_ones(r),
            )
        )
        return layer

    def use_rank(self, layer: LowRankLinear, b: int) -> None:
        """Let the layer be the LoRA of rank b, scale alpha / b, until it is told otherwise."""
        import torch

        layer.scale = self.alpha / b
        for block in layer.rank_blocks():
            block.step_gate = (torch.arange(block.rank, device=block.gate.device) < b).to(block.gate.dtype)

    # -- hooks ----------------------------------------------------------------------------------------------

    def setup(self, run: Run) -> None:
        import torch

        run.scratch["drawn"] = torch.zeros(self.rank_max, dtype=torch.int64)  # how often each b was drawn
        self._use_everywhere(run, self.final_rank)

    def before_forward(self, run: Run) -> None:
        """Draw b; it is the same for all layers and all micro-batches of the step."""
        import torch

        b = int(torch.randint(self.rank_min, self.rank_max + 1, (), generator=run.generator))
        run.scratch["active"] = b
        run.scratch["drawn"][b - 1] += 1
        self._use_everywhere(run, b)

    def after_backward(self, run: Run) -> None:
        """Only the rows 1..b learn (`frozen`: row b alone), whatever the optimizer remembers of the others."""
        for param in _factors(run):
            if self.frozen and param.grad is not None:
                param.grad[self._inactive(run, param)] = 0
        if self.hold_inactive:
            run.scratch["held"] = [p.detach()[self._inactive(run, p)] for p in _factors(run)]

    def after_step(self, run: Run) -> None:
        import torch

        if self.hold_inactive:
            with torch.no_grad():
                for param, rows in zip(_factors(run), run.scratch.pop("held"), strict=True):
                    param[self._inactive(run, param)] = rows
        self._use_everywhere(run, self.final_rank)

    def finalize(self, run: Run) -> None:
        """The mask becomes the gate. All rows are kept: any other b can still be cut out of them (`use_rank`)."""
        import torch

        self._use_everywhere(run, self.final_rank)
        for name, layer in run.adapters.items():
            before = layer.rank
            for block in layer.rank_blocks():
                block.kill(torch.arange(block.rank) >= self.final_rank)
                block.step_gate = None
            if layer.rank < before:
                run.event("prune", name, before, layer.rank)

    def notes(self, run: Run) -> list[str]:
        return ["built from memory of its paper; no source was at hand"]

    def check(self, run: Run) -> None:
        drawn: list[int] = run.scratch["drawn"].tolist()
        if sum(drawn) != run.total_steps or any(drawn[: self.rank_min - 1]):
            raise PromiseBroken(f"DyLoRA drew its ranks {drawn} times in {run.total_steps} steps")
        if not any(bool(layer.delta().any()) for layer in run.adapters.values()):
            raise PromiseBroken("no DyLoRA update moved away from 0")

    # -- parts ----------------------------------------------------------------------------------------------

    def _use_everywhere(self, run: Run, b: int) -> None:
        for layer in run.adapters.values():
            self.use_rank(layer, b)

    def _inactive(self, run: Run, param: Tensor) -> Tensor:
        """The rows of A or B that must not move in this step, (r,) of booleans."""
        import torch

        rows, b = torch.arange(param.shape[0], device=param.device), run.scratch["active"]
        return rows != b - 1 if self.frozen else rows >= b


def _factors(run: Run) -> list[nn.Parameter]:
    return [p for block in run.rank_blocks() for p in (block.a, block.b)]
