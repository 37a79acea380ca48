"""SPT (ours): which layers get prompts is searched.

ALoRA names the method; its source was not at hand, and this is our reading. Every attention has a prompt made by a
bottleneck (inserts/prompt.py) and a gate on it. After the search phase the prompts with the largest gates stay, and
their gates become 1. A prompt does not depend on the example: in a causal decoder a prompt made of the whole
input would know the answer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from adalora_bench.errors import PromiseBroken
from adalora_bench.methods.base import Facts, require_at_least_one, require_positive
from adalora_bench.methods.ptuning_v2 import require_attention_targets, require_sites
from adalora_bench.methods.searched import KEPT, Searched, share_of, top
from adalora_bench.schedule import Phase

if TYPE_CHECKING:
    from torch import nn

    from adalora_bench.inserts.prefix import Site
    from adalora_bench.inserts.prompt import Prompt
    from adalora_bench.methods.run import Run


@dataclass(frozen=True, kw_only=True)
class Spt(Searched):
    """See conf/method/spt.yaml for what each setting means and where its default comes from."""

    tokens: int
    bottleneck: int
    prompt_layers: Phase
    init_std: float

    starts_unchanged: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require_attention_targets(self.targets)
        require_at_least_one("method.tokens", self.tokens)
        require_at_least_one("method.bottleneck", self.bottleneck)
        require_positive("method.init_std", self.init_std)

    def precheck(self, facts: Facts) -> None:
        super().precheck(facts)
        share_of("method.prompt_layers", self.prompt_layers, require_sites(self.targets, facts))

    # -- building -------------------------------------------------------------------------------------------

    def attach(self, run: Run) -> None:
        from adalora_bench.inserts.bottleneck import example_of, width_of
        from adalora_bench.inserts.prefix import attach_prefix, sites
        from adalora_bench.inserts.prompt import Prompt

        found = sites(run.model, run.modules)
        super().attach(run)
        for site in found:
            like = example_of(site.key)
            d, m = width_of(site.key, out=False), self.bottleneck
            prompt = Prompt(
                seeds=run.normal(self.tokens, d, std=1.0, like=like),
                down=run.uniform(m, d, bound=1 / math.sqrt(d), like=like),
                up=run.normal(d, m, std=self.init_std, like=like),
                site=site,
            )
            attach_prefix(run.model, site, prompt)

    def names(self, run: Run) -> list[str]:
        return [prompt.__dict__["site"].name for prompt in _prompts(run)]

    def choices(self, run: Run) -> list[nn.Parameter]:
        return [prompt.position for prompt in _prompts(run)]

    # -- the search -----------------------------------------------------------------------------------------

    def best(self, run: Run) -> list[int]:
        import torch

        gates = run.reduce(torch.stack([prompt.position.detach() for prompt in _prompts(run)]))
        return top(gates.tolist(), share_of("method.prompt_layers", self.prompt_layers, len(gates)))

    def harden(self, run: Run, kept: Sequence[int]) -> None:
        for i, prompt in enumerate(_prompts(run)):
            if i not in kept:
                run.event("mask", prompt.__dict__["site"].name, 1, 0)
            for p in [prompt.position] if i in kept else list(prompt.parameters()):
                run.freeze(p)
        _settle(run, kept)

    def settle(self, run: Run) -> None:
        _settle(run, run.scratch[KEPT])

    def finalize(self, run: Run) -> None:
        """Prompts that were dropped leave the model, and so do the gates of the others."""
        from adalora_bench.inserts.prefix import remove_prefix

        self.before_forward(run)
        for prompt in _prompts(run):
            site: Site = prompt.__dict__["site"]
            if not prompt.enabled:
                remove_prefix(run.model, site)
            else:
                del prompt.position

    def check(self, run: Run) -> None:
        super().check(run)
        found = _prompts(run)
        if len(found) != len(run.scratch[KEPT]):
            raise PromiseBroken(f"{len(found)} layers have prompts instead of {len(run.scratch[KEPT])}")
        if not any(bool(prompt.up_bias.any()) for prompt in found):
            raise PromiseBroken("no prompt moved")


def _prompts(run: Run) -> list[Prompt]:
    from adalora_bench.inserts.prompt import Prompt

    return [module for module in run.model.modules() if isinstance(module, Prompt)]


def _settle(run: Run, kept: Sequence[int]) -> None:
    for i, prompt in enumerate(_prompts(run)):
        prompt.enabled = i in kept
        prompt.gated = False
