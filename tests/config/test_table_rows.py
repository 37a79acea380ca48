"""Every row of every paper's table is a cell that can be run: it composes at paper scale, and nothing refuses it."""

from __future__ import annotations

import pytest
from by_night import mostly_by_night

from adalora_bench.errors import UserError
from adalora_bench.settings.cells import _places
from adalora_bench.settings.compose import compose_cells, conf_dir
from adalora_bench.settings.prepare import Assets, check_late_failures
from adalora_bench.settings.published import table_names


def rows() -> list[tuple[str, ...]]:
    """The overrides of each row on its first task; rows that say the same on the same backbone stand once."""
    found: dict[tuple[str, ...], None] = {}
    for name in table_names(conf_dir() / "table"):
        seen: set[str] = set()
        for row, _, chosen in _places(name, {"scale": "paper"}):
            if row.label not in seen:
                seen.add(row.label)
                found[tuple(sorted(chosen))] = None
    return list(found)


@pytest.mark.parametrize("chosen", mostly_by_night(rows(), rows()[::4]), ids=" ".join)
def test_a_row_is_refused_by_nothing(chosen: tuple[str, ...]) -> None:
    retrains = any(text.startswith("method=increlora_retrain") for text in chosen)
    for cell in compose_cells([*chosen, "scale=paper"]):
        if not retrains:
            check_late_failures(cell, Assets())
            continue
        with pytest.raises(UserError, match="pattern_from"):  # the even pattern is not what the row says
            check_late_failures(cell, Assets())
    if retrains:
        for cell in compose_cells([*chosen, "scale=paper", "method.rank=2"]):  # and nothing else is wrong
            check_late_failures(cell, Assets())
