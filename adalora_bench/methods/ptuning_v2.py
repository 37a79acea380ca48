"""P-tuning v2 (Liu et al., 2022, arXiv 2110.07602): learned keys and values in front of those of every attention.

No network makes them (the paper's default), and nothing else trains but the head. BART has three attentions in a block
of its decoder and one in a block of its encoder: each has a prefix. The outputs differ from the backbone's from the
start, since every query attends to the prefix.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from adalora_bench.errors import PromiseBroken, UserError
from adalora_bench.methods.base import (
    Facts,
    Method,
    require_at_least_one,
    require_below_one,
    require_positive,
)

if TYPE_CHECKING:
    from adalora_bench.methods.run import Run

ATTENTION = ["k", "v"]


@dataclass(frozen=True, kw_only=True)
class PTuningV2(Method):
    """See conf/method/ptuning_v2.yaml for what each setting means and where its default comes from."""

    tokens: int
    init_std: float
    dropout: float

    starts_unchanged: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require_attention_targets(self.targets)
        require_at_least_one("method.tokens", self.tokens)
        require_positive("method.init_std", self.init_std)
        require_below_one("method.dropout", self.dropout)

    def precheck(self, facts: Facts) -> None:
        super().precheck(facts)
        require_sites(self.targets, facts)

    def attach(self, run: Run) -> None:
        from adalora_bench.inserts.bottleneck import example_of
        from adalora_bench.inserts.prefix import Prefix, attach_prefix, sites

        found = sites(run.model, run.modules)
        super().attach(run)
        for site in found:
            like = example_of(site.key)
            shape = (site.heads, self.tokens, site.width)
            keys = run.normal(*shape, std=self.init_std, like=like)
            values = run.normal(*shape, std=self.init_std, like=like)
            attach_prefix(run.model, site, Prefix(keys, values, dropout=self.dropout))

    def setup(self, run: Run) -> None:
        run.scratch["start"] = _sums(run)

    def check(self, run: Run) -> None:
        """Every prefix moved: each of them was seen by the loss."""
        for number, (before, after) in enumerate(zip(run.scratch["start"], _sums(run), strict=True)):
            if before == after:
                raise PromiseBroken(f"the prefix of attention {number} did not move")


def require_attention_targets(targets: list[str]) -> None:
    """Raises UserError unless the targets are the keys and values of the attentions."""
    if targets != ATTENTION:
        raise UserError(f"method.targets={targets}: prefixes and prompts stand at keys and values, [k, v].")


def require_sites(targets: list[str], facts: Facts) -> int:
    """The number of attentions. Raises UserError where a backbone names none."""
    if facts.modules < len(targets):
        raise UserError(
            f"method.targets={targets} names {facts.modules} layers of this backbone; an attention has two."
        )
    return facts.modules // len(targets)


def _sums(run: Run) -> list[float]:
    from adalora_bench.inserts.prefix import prefixes

    # values, for keys of a prefix of one token and nothing beside it get no gradient
    return [float(prefix.values.detach().double().square().sum()) for prefix in prefixes(run.model)]
