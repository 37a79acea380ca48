"""The losses of two short trainings against the stored ones.

Another type of CPU or another torch may round otherwise, so they are compared to 1e-5 here; `scripts/loss_compare.py
--against REV` compares two checkouts on one machine bit for bit. After a change that is meant: `--write`.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from loaded_script import load


@pytest.fixture(scope="module")
def script() -> Any:
    return load("loss_compare")


def test_losses_are_the_stored_ones(script: Any) -> None:
    stored = json.loads(script.STORED.read_text())["losses"]
    found = script.trace()
    assert list(found) == list(stored) == ["lora", "increlora"]
    for method, losses in stored.items():
        assert len(losses) == len(found[method]) == 12
        expected = [float(loss) for loss in losses]
        assert [float(loss) for loss in found[method]] == pytest.approx(expected, abs=1e-5), method
        assert len(set(losses)) == 12


def test_the_trace_is_deterministic_and_tells_methods_apart(script: Any) -> None:
    one = script.trace()
    assert one == script.trace()
    assert one["lora"] != one["increlora"]
