"""What short trainings of every method leave, against the stored trace: keys, losses and ranks.

Another type of CPU or another torch may round otherwise, so losses are compared to 1e-5 here; `scripts/loss_compare.py
--against REV` compares two checkouts on one machine bit for bit. After a change that is meant: `--write`.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from loaded_script import load

# The five papers' methods and LoRA; the others train the same way in the nightly run.
SOME = ("aflora", "alora", "delta_lora", "increlora", "lora", "sora")


@pytest.fixture(scope="module")
def script() -> Any:
    return load("loss_compare")


@pytest.fixture(scope="module")
def stored(script: Any) -> dict[str, Any]:
    methods: dict[str, Any] = json.loads(script.STORED.read_text())["methods"]
    return methods


def test_every_method_has_a_trace_of_its_own(script: Any, stored: dict[str, Any]) -> None:
    assert list(stored) == script.methods()
    assert all(len(set(unit["losses"])) >= 19 for unit in stored.values())  # of 20: rounded to six digits
    assert len({unit["key"] for unit in stored.values()}) == len(stored)


def test_keys_losses_and_ranks_are_the_stored_ones(script: Any, stored: dict[str, Any]) -> None:
    compare(script.stored_form(SOME)["methods"], {name: stored[name] for name in SOME})


@pytest.mark.nightly
def test_those_of_every_other_method_too(script: Any, stored: dict[str, Any]) -> None:
    others = [name for name in stored if name not in SOME]
    compare(script.stored_form(others)["methods"], {name: stored[name] for name in others})


def compare(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert list(found) == list(expected)
    for name, unit in expected.items():
        assert found[name]["key"] == unit["key"], name
        assert found[name]["ranks"] == unit["ranks"], name
        assert found[name]["losses"] == pytest.approx(unit["losses"], abs=1e-5), name
