"""Parameters of a test of which a pull request tries a few and `make test-nightly` the rest."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import pytest


def mostly_by_night(values: Sequence[Any], by_day: Collection[Any]) -> list[Any]:
    """All of `values`; those that are not in `by_day` are marked as nightly."""
    missing = [value for value in by_day if value not in values]
    assert not missing, missing
    return [value if value in by_day else pytest.param(value, marks=pytest.mark.nightly) for value in values]
