"""AdaLoRA as peft has it, with what peft leaves to the user done: allocation at every step, the penalty in the loss.

peft adds the penalty only where its own model returns a loss, and allocates only where someone calls it (peft#432,
peft#1327). Scores, schedule and masks are peft's `RankAllocator`; its running means live in `run.scratch`, so that
checkpoints hold them. peft's optimizers would also train `ranknum`, the divisor of the scale; it is frozen here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from adalora_bench.errors import PromiseBroken, UserError
from adalora_bench.methods.base import Facts, require_at_least_one
from adalora_bench.methods.peft import ADAPTER, UNFIT, Peft, wrapped
from adalora_bench.schedule import Phase

if TYPE_CHECKING:
    from torch import Tensor, nn

    from adalora_bench.methods.run import Run

MEANS = ("exp_avg_ipt", "exp_avg_unc")  # of peft's allocator: smoothed sensitivity and uncertainty
SCHEDULE = ("tinit", "tfinal", "deltaT", "total_step", "rank_pattern")  # arguments that are settings of ours


@dataclass(frozen=True, kw_only=True)
class PeftAdaLora(Peft):
    """See conf/method/peft_adalora.yaml for what each setting means; the phases follow the length of training."""

    initial_warmup: Phase  # tinit
    final_phase: Phase  # tfinal
    interval: Phase  # deltaT

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.type != "ADALORA":
            raise UserError(
                f"method.type={self.type}: peft_adalora runs ADALORA alone; the others run as method=peft."
            )
        for name in SCHEDULE:
            if name in self._arguments():
                raise UserError(
                    f"method.arguments.{name} follows from method.initial_warmup, final_phase, interval and the run."
                )

    def unfit(self) -> dict[str, str]:
        return {name: reason for name, reason in UNFIT.items() if name != "ADALORA"}

    def precheck(self, facts: Facts) -> None:
        phases = [
            facts.steps(f"method.{name}", getattr(self, name))
            for name in ("initial_warmup", "final_phase", "interval")
        ]
        require_at_least_one("method.final_phase", phases[1])  # its first step meets the target
        require_at_least_one("method.interval", phases[2])
        if phases[0] + phases[1] >= facts.total_steps:
            raise UserError(
                f"AdaLoRA has no step left to prune in: method.initial_warmup={self.initial_warmup} ({phases[0]} "
                f"steps) and method.final_phase={self.final_phase} ({phases[1]} steps) fill the whole training of "
                f"{facts.total_steps} steps. Shorten them or train longer."
            )
        super().precheck(facts)
        config = self.config("a", facts.total_steps)
        if not 1 <= config.target_r < config.init_r:
            raise UserError(
                f"method.arguments.target_r={config.target_r} must be at least 1 and below init_r={config.init_r}: "
                "peft's allocator only shrinks."
            )

    def schedule(self, total_steps: int) -> dict[str, Any]:
        """Without phases: `attach` knows the total alone, and `_allocator` fills them in."""
        return {"total_step": total_steps}

    # -- hooks ----------------------------------------------------------------------------------------------

    def attach(self, run: Run) -> None:
        super().attach(run)
        for layer in wrapped(run).values():
            layer.ranknum.requires_grad_(False)

    def setup(self, run: Run) -> None:
        super().setup(run)
        allocator = self._allocator(run)
        run.scratch["budget"] = allocator.init_bgt

    def penalty(self, run: Run) -> Tensor | None:
        """orth_reg_weight * mean over the 2n matrices of ||A A^T - I||_F and ||B^T B - I||_F, as peft's forward."""
        from adalora_bench.lowrank.scores import mean_orthogonality

        weight = float(self.config("a", run.total_steps).orth_reg_weight)
        if weight == 0:
            return None
        layers = wrapped(run).values()
        matrices = [x for layer in layers for x in (_part(layer, "lora_A"), _part(layer, "lora_B").T)]
        return weight * mean_orthogonality(matrices, squared=False)

    def after_step(self, run: Run) -> None:
        """What peft's `AdaLoraModel.update_and_allocate` does, with 0-based steps as in peft's examples."""
        import torch

        allocator, state, step = self._allocator(run), run.scratch, run.step
        pin = run.total_steps - allocator.peft_config.tfinal
        if step > pin:
            names = [name for name in state if name.startswith("mask.")]
            allocator.mask_using_rank_pattern(
                run.model, {k.removeprefix("mask."): state[k].tolist() for k in names}
            )
            return
        for mean in MEANS:
            prefix = f"{mean}."
            values = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
            setattr(allocator, mean, values)
        allocator.ipt = dict(allocator.exp_avg_ipt)  # the names that were seen; the values are made anew
        budget, pattern = allocator.update_and_allocate(run.model, step, force_mask=step == pin)
        state |= {f"{mean}.{name}": x for mean in MEANS for name, x in getattr(allocator, mean).items()}
        if step == pin:
            budget = allocator.target_bgt
            state |= {f"mask.{name}": torch.tensor(kept) for name, kept in pattern.items()}
            for name in [k for k in state if k.startswith(MEANS)]:
                del state[name]
        if pattern is not None and budget != state["budget"]:
            run.event("mask", "", state["budget"], budget)
            state["budget"] = budget

    def check(self, run: Run) -> None:
        super().check(run)
        wanted = self._allocator(run).target_bgt
        chosen = sum(int(kept.sum()) for name, kept in run.scratch.items() if name.startswith("mask."))
        alive = sum(int((_part(layer, "lora_E") != 0).sum()) for layer in wrapped(run).values())
        if not chosen == alive == wanted:
            raise PromiseBroken(
                f"peft's AdaLoRA ended with {chosen} chosen and {alive} live ranks instead of {wanted}"
            )

    # -- parts ----------------------------------------------------------------------------------------------

    def _allocator(self, run: Run) -> Any:
        """peft's allocator without memory; `after_step` gives it what `run.scratch` keeps."""
        from peft.tuners.adalora.layer import RankAllocator

        phases = {
            "tinit": run.steps("method.initial_warmup", self.initial_warmup),
            "tfinal": run.steps("method.final_phase", self.final_phase),
            "deltaT": run.steps("method.interval", self.interval),
        }
        config = self.config("a", run.total_steps)
        for name, steps in phases.items():
            setattr(config, name, steps)
        return RankAllocator(run.model, config, ADAPTER)


def _part(layer: nn.Module, name: str) -> Tensor:
    tensor: Tensor = getattr(layer, name)[ADAPTER]
    return tensor
