"""Frozen base weights in 4 bits, through bitsandbytes (extra `four_bit`). Not run on a GPU yet, only on a CPU by hand.

Only the layer itself reads its packed weight; adapters add their branch beside it (lowrank/adapter.py).

The rest of the model, adapters and head stay in float32. Torch and transformers are imported inside.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from adalora_bench.errors import UserError

if TYPE_CHECKING:
    from torch import nn

TOO_COARSE = "4 bits are too coarse to hold small moves"  # why no weight that changes can be packed


def check(
    *, moves_base: bool, refusal: str, architecture: str, form: str, random_weights: bool, gpu: bool
) -> None:
    """Refuse where 4 bits cannot be had.

    Args:
        moves_base: the method moves weights of the backbone.
        refusal: why else the method cannot have 4 bits; "" where it can.
        architecture, form: of the backbone.
        random_weights: the backbone has no published ones.
        gpu: the run will have one.

    Raises:
        UserError: the reason, in one sentence.
    """
    wish = "backbone.load_in_4bit=true"
    if moves_base:
        refusal = f"it moves weights of the backbone, and {TOO_COARSE}"
    if refusal:
        raise UserError(f"{wish} is not for this method: {refusal}; use load_in_4bit=false.")
    if form == "encoder":
        raise UserError(
            f"{wish}: {architecture} is an encoder, whose new head would be packed and could not train; "
            "use load_in_4bit=false."
        )
    if architecture == "gpt2":
        raise UserError(
            f"{wish}: gpt2 keeps q, k and v in one matrix, and a packed one cannot be taken apart; "
            "use load_in_4bit=false."
        )
    if random_weights:
        raise UserError(f"{wish} needs published weights, and this backbone has random ones.")
    if not gpu:
        raise UserError(f"{wish} needs a GPU, and this run has none; use load_in_4bit=false.")
    if find_spec("bitsandbytes") is None:
        raise UserError(f"{wish} needs the package bitsandbytes: pip install 'adalora_bench[four_bit]'.")


def loading() -> dict[str, Any]:
    """What `from_pretrained` is told: NormalFloat 4, its constants quantised too, products in bfloat16 (QLoRA)."""
    import torch
    from transformers import BitsAndBytesConfig

    how = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    return {"quantization_config": how, "device_map": {"": torch.cuda.current_device()}}


def hide_constants(model: nn.Module) -> None:
    """Keep the constants of packed weights out of state dicts: like the weights they are never trained or saved."""
    for module in model.modules():
        if hasattr(getattr(module, "weight", None), "quant_state"):
            module.register_state_dict_post_hook(_without_constants)


def _without_constants(_: nn.Module, state: dict[str, Any], prefix: str, __: Any) -> None:
    for name in [name for name in state if name.startswith(f"{prefix}weight.")]:
        del state[name]
