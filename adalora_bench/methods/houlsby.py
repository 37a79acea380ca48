"""Houlsby adapters (Houlsby et al., 2019, arXiv 1902.00751): a bottleneck behind attention and one behind the FFN.

h + U act(D h) on the output of each sublayer's last linear layer, before the residual sum (and before the dropout that
transformers puts there). Pfeiffer's single adapter behind the FFN is the same with targets [down].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from adalora_bench.errors import PromiseBroken, UserError, unknown
from adalora_bench.methods.base import Method, require_at_least_one, require_not_negative, require_positive

if TYPE_CHECKING:
    from torch import nn

    from adalora_bench.inserts.bottleneck import Bottleneck
    from adalora_bench.methods.run import Run

ENDS = ("o", "down")  # last linear layers of attention and of the feed-forward network
UP_INITS = ("zero", "normal")
ACTIVATIONS = ("relu", "gelu", "silu", "tanh")


@dataclass(frozen=True, kw_only=True)
class Houlsby(Method):
    """See conf/method/houlsby.yaml for what each setting means and where its default comes from."""

    bottleneck: int
    activation: str
    scale: float
    init_std: float
    up_init: str
    layer_norms: bool

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_targets()
        require_at_least_one("method.bottleneck", self.bottleneck)
        require_positive("method.scale", self.scale)
        require_not_negative("method.init_std", self.init_std)
        for name, valid in (("activation", ACTIVATIONS), ("up_init", UP_INITS)):
            if getattr(self, name) not in valid:
                raise UserError(unknown(f"value of method.{name}", getattr(self, name), valid))

    def _check_targets(self) -> None:
        for role in self.targets:
            if role not in ENDS:
                raise UserError(
                    f"method.targets={self.targets}: adapters stand behind o (attention) and down (FFN), not {role}."
                )

    def attach(self, run: Run) -> None:
        super().attach(run)
        if self.layer_norms:
            self.train_layer_norms(run)

    def adapt(self, base: nn.Module, role: str, run: Run) -> nn.Module:
        from adalora_bench.inserts.bottleneck import AfterLinear, width_of

        base.requires_grad_(False)
        return AfterLinear(base, self.make(base, width_of(base, out=True), run))

    def make(self, like: nn.Module, width: int, run: Run) -> Bottleneck:
        """One adapter for hidden vectors of `width`, on the device and in the dtype of a layer."""
        from adalora_bench.inserts.bottleneck import Bottleneck, example_of

        example = example_of(like)
        m = self.bottleneck
        down = run.normal(m, width, std=self.init_std, like=example)
        up = (
            run.normal(width, m, std=self.init_std, like=example)
            if self.up_init == "normal"
            else example.new_zeros(width, m)
        )
        return Bottleneck(activation=self.activation, scale=self.scale, down=down, up=up)

    def check(self, run: Run) -> None:
        found = adapters_of(run)
        if not found:
            raise PromiseBroken("no adapter was put into the model")
        if not any(bool(adapter.up.any()) for adapter in found):
            raise PromiseBroken("no adapter moved away from 0")


def adapters_of(run: Run) -> list[Bottleneck]:
    """Every bottleneck of the model, in its order."""
    from adalora_bench.inserts.bottleneck import Bottleneck

    return [module for module in run.model.modules() if isinstance(module, Bottleneck)]
