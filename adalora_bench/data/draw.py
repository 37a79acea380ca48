"""Fixed draws of rows: which rows are held out, and which are kept under a cap.

They must not depend on the seed of a run, nor on the version of Python: `Random.random()` is the one draw whose
sequence Python promises to keep.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, TypeVar

T = TypeVar("T")
Row = dict[str, Any]

HOLDOUT_ROWS = 1000
HOLDOUT_SHARE = 0.1
# Seeds of the two draws, different so that a cap does not pick what was held out.
HOLD_OUT = 20240
TAKE = 20241
DEV = 20242

DEV_ROWS = 1000
SMALL = 10_000  # training rows below which a data set is small: SoRA's and ALoRA's protocol


def shuffled(items: Sequence[T], constant: int) -> list[T]:
    """The items in a random order that depends on `constant` and their number alone."""
    source = random.Random(constant)
    keyed = [(source.random(), i) for i in range(len(items))]
    return [items[i] for _, i in sorted(keyed)]


def sample(count: int, size: int, constant: int) -> list[int]:
    """`size` of the numbers 0..count-1, ascending; a smaller sample is a part of a larger one."""
    return sorted(shuffled(range(count), constant)[:size])


def holdout_size(rows: int) -> int:
    """A tenth of the rows, at most 1,000, at least 1."""
    return max(1, min(HOLDOUT_ROWS, int(rows * HOLDOUT_SHARE)))


def dev_size(train: int, report: int, *, official: int | None) -> tuple[int, int]:
    """(training rows, report rows) that become the dev rows of split=dev_test.

    Args:
        train, report: rows that are there.
        official: training rows of the published data set; it decides whether it is a small one.
    """
    if (train if official is None else official) < SMALL:
        return 0, report // 2
    return min(DEV_ROWS, train // 2), 0


def split_off(rows: list[T], size: int) -> tuple[list[T], list[T]]:
    """(kept, split off), both in their order; the same `size` rows for every seed and method."""
    chosen = set(sample(len(rows), size, DEV))
    return [row for i, row in enumerate(rows) if i not in chosen], [rows[i] for i in sorted(chosen)]


def hold_out(rows: list[Row], group: str | None) -> tuple[list[Row], list[Row]]:
    """(kept, held out), both in their order.

    With a group column whole groups are held out until there are `holdout_size` rows or a few more.
    """
    size = holdout_size(len(rows))
    if group is None:
        chosen = set(sample(len(rows), size, HOLD_OUT))
    else:
        groups: dict[str, list[int]] = {}
        for i, row in enumerate(rows):
            groups.setdefault(row[group], []).append(i)
        chosen = set()
        for members in shuffled(list(groups.values()), HOLD_OUT):
            if len(chosen) >= size:
                break
            chosen.update(members)
    return [row for i, row in enumerate(rows) if i not in chosen], [rows[i] for i in sorted(chosen)]
