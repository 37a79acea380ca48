"""Every row of every paper's table is a cell that can be run: it composes at paper scale, and nothing refuses it."""

from __future__ import annotations

import pytest
import yaml
from by_night import mostly_by_night

from adalora_bench.errors import UserError
from adalora_bench.settings.cells import _places
from adalora_bench.settings.compose import compose_cells, conf_dir
from adalora_bench.settings.prepare import Assets, check_late_failures
from adalora_bench.settings.published import load_table, table_names


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


@pytest.mark.parametrize("name", table_names(conf_dir() / "table"))
def test_the_backbone_is_the_tables_own_at_paper_scale_however_that_scale_came_about(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`scale=paper` typed, or found because there is an accelerator: the same cells."""
    typed = [chosen for _, _, chosen in _places(name, {"scale": "paper"})]
    monkeypatch.setattr("adalora_bench.settings.compose.devices", lambda: 1)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    found = [chosen for _, _, chosen in _places(name, {})]
    assert found == typed
    own = f"backbone={load_table(conf_dir() / 'table', name).backbone}"
    assert all(own in chosen for chosen in found)


def test_a_claim_asks_for_the_settings_of_the_tables_row() -> None:
    """Of one label and method in ALoRA's Table 1: the same settings in conf/table and conf/claim."""
    table = load_table(conf_dir() / "table", "alora_1")
    rows = {(row.label, row.method): row.set for row in table.rows}
    text = yaml.safe_load((conf_dir() / "claim" / "alora.yaml").read_text())
    seen = 0
    for row in text["rows"]:
        place = (row["label"], row["method"])
        if place in rows:
            seen += 1
            assert row.get("set", {}) == rows[place], place
    assert seen > 5
