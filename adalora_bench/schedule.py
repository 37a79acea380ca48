"""Learning-rate factor of a parameter group, and lengths of phases. Pure; imports no torch."""

from __future__ import annotations

import math

from adalora_bench.errors import UserError

Phase = int | str
"""A length: an int counts steps, "6%" is a share of all steps, "1ep" or "0.25ep" counts epochs."""


def phase_steps(name: str, value: Phase, *, total_steps: int, steps_per_epoch: int) -> int:
    """A phase in steps, rounded up, so that a share of a short training is never 0.

    Raises:
        UserError: the text is none of the three forms, or the number is negative.
    """
    if isinstance(value, int):
        number, unit = float(value), 1.0
    else:
        text = value.strip()
        suffix, unit = ("%", total_steps / 100) if text.endswith("%") else ("ep", float(steps_per_epoch))
        try:
            if not text.endswith(suffix):
                raise ValueError
            number = float(text.removesuffix(suffix))
        except ValueError:
            raise UserError(
                f"{name}={value!r} is not a length: give steps (100), a share (6%) or epochs (1ep)."
            ) from None
    if number < 0 or not math.isfinite(number):
        raise UserError(f"{name}={value!r} must not be negative.")
    return math.ceil(round(number * unit, 6))  # the rounding undoes 0.06 * 50 = 3.0000000000000004


def lr_factor(age: int, life: int, warmup: int, kind: str = "linear") -> float:
    """f(age): 0 at age 0, 1 at the end of the warm-up, 0 again at `life`.

    Args:
        age: steps since the group was born; negative before that, where f is 0.
        life: steps from birth to the end of training.
        warmup: length of the linear warm-up in steps; 0 starts at 1.
        kind: "linear" decays to 0, "constant" stays at 1 after the warm-up.
    """
    if age < 0 or age >= life:
        return 0.0
    if age < warmup:
        return age / warmup
    if kind == "constant":
        return 1.0
    return (life - age) / max(1, life - warmup)
