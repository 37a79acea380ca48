"""The rows and targets of profile_step.py: the shapes, our methods beside their peers, and what a step may cost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import profile_peers as peers

from adalora_bench.methods.base import Method
from adalora_bench.settings.compose import options


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A random backbone and the batch of a step."""

    backbone: str  # of conf/backbone, for the roles
    settings: dict[str, Any]
    batch: int
    length: int


SHAPES = {
    "bert": Shape(
        backbone="tiny_bert",
        settings={
            "layers": 6,
            "config.vocab_size": 30522,
            "config.hidden_size": 384,
            "config.num_hidden_layers": 6,
            "config.num_attention_heads": 12,
            "config.intermediate_size": 1536,
        },
        batch=16,
        length=128,
    ),
    "deberta": Shape(
        backbone="tiny_deberta_v2",
        settings={
            "layers": 12,
            "config.vocab_size": 128100,
            "config.hidden_size": 768,
            "config.num_hidden_layers": 12,
            "config.num_attention_heads": 12,
            "config.intermediate_size": 3072,
            "config.max_position_embeddings": 512,
            "config.position_buckets": 256,
            "config.pooler_hidden_size": 768,
        },
        batch=16,
        length=64,
    ),
}


@dataclass(frozen=True, kw_only=True)
class Contender:
    """One row of the table.

    Args:
        method: settings of the method as typed on the command line, or a peer.
        own_weights: it moves weights of the backbone, which the others share.
        ranks: IncreLoRA: grow to this many ranks per module before the first measured step.
    """

    method: list[str] | Callable[[], Method]
    own_weights: bool = False
    ranks: int = 0


GROWING = ["method=increlora", "method.interval=1", "method.growth_warmup=0", "method.top_h=100%"]
CONTENDERS: dict[str, Contender] = {
    "floor": Contender(method=peers.Floor),
    "full": Contender(method=["method=full"], own_weights=True),
    "peft_lora": Contender(method=lambda: peers.PeftLora(rank=8)),
    "peft_adalora": Contender(method=lambda: peers.PeftAdaLora(rank=12)),
    "peft_vera_256": Contender(method=lambda: peers.PeftVera(rank=256)),
    "peft_vera_1024": Contender(method=lambda: peers.PeftVera(rank=1024)),
    "loralib": Contender(method=lambda: peers.Loralib(rank=8)),
    "lora": Contender(method=["method=lora"]),
    "adalora": Contender(method=["method=adalora", "method.initial_warmup=0", "method.interval=1"]),
    "increlora_scoring": Contender(method=[*GROWING, "method.target_rank=9"], ranks=8),
    "increlora_settled": Contender(method=[*GROWING, "method.target_rank=8"], ranks=8),
    "sora": Contender(method=["method=sora"]),
    "aflora": Contender(method=["method=aflora"]),
    "delta_lora": Contender(
        method=["method=delta_lora", "method.targets=[all]", "method.start=0"], own_weights=True
    ),
    "dylora": Contender(method=["method=dylora"]),
    "salora": Contender(method=["method=salora", "method.init_rank=8", "method.target_rank=4"]),
    "vera_256": Contender(method=["method=vera"]),
    "vera_1024": Contender(method=["method=elora"]),
}
if "alora" in options("method"):  # a step between its rounds
    CONTENDERS["alora"] = Contender(method=["method=alora"])

# shape, contender, reference, largest ratio of their seconds
TARGETS = (
    ("bert", "lora", "peft_lora", 0.88),
    ("bert", "lora", "floor", 1.20),
    ("deberta", "lora", "peft_lora", 1.00),
    ("bert", "adalora", "peft_adalora", 0.85),
    ("deberta", "adalora", "peft_adalora", 1.00),
    *((shape, method, "lora", 1.06) for shape in SHAPES for method in ("sora", "aflora")),
    *((shape, "delta_lora", "lora", 1.10) for shape in SHAPES),
    *((shape, "increlora_scoring", "floor", 1.65) for shape in SHAPES),
    *((shape, "increlora_settled", "floor", 1.25) for shape in SHAPES),
    ("bert", "vera_1024", "peft_vera_1024", 0.65),
    ("bert", "vera_256", "peft_vera_256", 1.05),
    ("deberta", "vera_1024", "peft_vera_1024", 1.05),
    ("deberta", "vera_256", "peft_vera_256", 1.05),
)
