"""Memory for time: a transformer block keeps its input alone and is run again in backward, by transformers' own means.

torch puts the state of the generators back for the second run, so dropout is the same and so is every number. Only a
model in training mode does it: what scores or replays in eval mode does not see it.
"""

from __future__ import annotations

from typing import Any

from adalora_bench.errors import UserError


def check(refusal: str) -> None:
    """Refuse a method that cannot have it.

    Args:
        refusal: why (`Method.no_gradient_checkpointing`); "" where it can.

    Raises:
        UserError: the reason, in one sentence.
    """
    if refusal:
        raise UserError(
            f"backbone.gradient_checkpointing=true is not for this method: {refusal}; use gradient_checkpointing=false."
        )


def enable(body: Any) -> None:
    """Switch it on for every block of a transformers model.

    transformers also makes the embeddings' output require a gradient, for the reentrant kind of checkpoint. Ours does
    not need that, and it would carry gradients where no method wants any.
    """
    # the second is the older name, which warns where the first is there
    switch = getattr(body, "activation_checkpointing_enable", None) or body.gradient_checkpointing_enable
    switch({"use_reentrant": False})
    body.disable_input_require_grads()
    # configurations ask for a cache, encoders' too, and transformers warns in training; `generate` asks by itself
    body.config.use_cache = False
