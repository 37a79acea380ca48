"""What the command makes of its arguments before anything is composed."""

from __future__ import annotations

import pytest

from adalora_bench.cli.parser import _with_own_settings, parser


@pytest.mark.parametrize("place", range(3))
def test_the_flag_of_a_sweep_may_stand_anywhere(place: int) -> None:
    settings = ["method=lora", "task=rte,mrpc"]
    argv = ["run", *settings[:place], "-m", *settings[place:]]
    arguments = parser().parse_args(_with_own_settings(argv))
    assert arguments.multirun
    assert arguments.overrides == settings
