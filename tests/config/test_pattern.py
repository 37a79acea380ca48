"""`method.pattern_from`: the ranks of a record become settings; the place of the record is no part of the key."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from adalora_bench.errors import UserError
from adalora_bench.methods.svd_pattern import SvdPattern
from adalora_bench.models.backbone import Backbone
from adalora_bench.settings.compose import compose_cells
from adalora_bench.settings.config import Cell
from adalora_bench.settings.key import with_key
from adalora_bench.settings.pattern import public

CELL = ("method=increlora_retrain", "task=toy", "scale=smoke", "backbone=tiny_bert")
KEY = "0123456789abcdef" * 4


def modules() -> list[str]:
    (cell,) = compose_cells(CELL)
    backbone: Backbone = cell.backbone
    return list(backbone.module_roles())


def write_record(folder: Path, given: dict[str, int] | None = None, **changes: Any) -> Path:
    """A record of IncreLoRA on tiny_bert whose k-th module ended with rank k."""
    final = {f"body.{name}": k for k, name in enumerate(modules())} if given is None else given
    record = {
        "schema": 1,
        "key": KEY,
        "settings_key": KEY,
        "names": {"method": "increlora", "task": "toy", "backbone": "tiny_bert", "scale": "smoke"},
        "overrides": [],
        "config": {},
        "seed": 4,
        "versions": {},
        "data_fingerprint": "d",
        "split": "validation",
        "status": "ok",
        "main_metric": "acc",
        "final": {"scores": {"acc": 0.5}},
        "finished": "2026-11-22T05:00:00+00:00",
        "ranks": {"initial_total": 12, "final_total": sum(final.values()), "final": final},
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "record.json"
    path.write_text(json.dumps(record | changes))
    return path


def cell_of(*more: str) -> Cell:
    (cell,) = compose_cells([*CELL, *more])
    return cell


def key_of(cell: Cell) -> str:
    return with_key(cell, data_fingerprint="d", weights="w", engine=1).key


def test_the_ranks_of_a_record_become_settings(tmp_path: Path) -> None:
    path = write_record(tmp_path / "somewhere")
    for place in (path, path.parent):
        cell = cell_of(f"method.pattern_from={place}")
        assert cell.config["method"]["ranks"] == {name: k for k, name in enumerate(modules())}
        method = cell.method
        assert isinstance(method, SvdPattern)
        assert method.ranks_of([f"body.{name}" for name in modules()])[f"body.{modules()[5]}"] == 5


def test_a_record_is_found_in_the_store_by_its_place_alone(tmp_path: Path) -> None:
    place = "toy/tiny_bert/increlora/01234567/seed4"
    write_record(tmp_path / "runs" / place)
    cell = cell_of(f"method.pattern_from={place}", f"results_dir={tmp_path}")
    assert cell.config["method"]["pattern_from"] == place
    assert sum(cell.config["method"]["ranks"].values()) == 66


def test_no_path_of_this_machine_is_left_in_settings_and_overrides(tmp_path: Path) -> None:
    cell = cell_of(f"method.pattern_from={write_record(tmp_path)}", "method.lr=2e-3")
    assert str(tmp_path) not in json.dumps(cell.config["method"])
    assert public(cell.overrides, cell.config) == [
        "method.lr=2e-3",
        "method.pattern_from=toy/tiny_bert/increlora/01234567/seed4",
    ]
    plain = cell_of("method.rank=3")
    assert public(plain.overrides, plain.config) == ["method.rank=3"]


def test_the_content_is_in_the_key_and_the_place_is_not(tmp_path: Path) -> None:
    here = key_of(cell_of(f"method.pattern_from={write_record(tmp_path / 'one')}"))
    there = key_of(cell_of(f"method.pattern_from={write_record(tmp_path / 'two', seed=3)}"))
    even = {f"body.{name}": 2 for name in modules()}
    other = key_of(cell_of(f"method.pattern_from={write_record(tmp_path / 'three', even)}"))
    assert here == there
    assert len({here, other, key_of(cell_of())}) == 3


def test_the_head_of_the_record_does_not_matter(tmp_path: Path) -> None:
    """Its names begin with the way to the body: body. with mean pooling, body.deberta. with the native head."""
    path = write_record(tmp_path, {f"body.bert.{name}": 1 for name in modules()})
    assert set(cell_of(f"method.pattern_from={path}").config["method"]["ranks"].values()) == {1}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"status": "failed", "reason": "broken"}, "that unit is failed"),
        ({"ranks": {"final": {}}}, "a record of increlora has no ranks"),
        ({"ranks": None}, "a record of increlora has no ranks"),
        ({"schema": 7}, "is no record: schema is 7, not 1"),
    ],
)
def test_a_record_that_gives_no_ranks_is_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        cell_of(f"method.pattern_from={write_record(tmp_path, **changes)}")


def test_a_record_of_another_backbone_is_refused_with_both_counts(tmp_path: Path) -> None:
    path = write_record(
        tmp_path,
        {f"body.{name.replace('layer.1', 'layer.7')}": 1 for name in modules()},
        names={"method": "adalora", "task": "toy", "backbone": "minilm_l6", "scale": "cpu"},
    )
    with pytest.raises(UserError) as caught:
        cell_of(f"method.pattern_from={path}")
    for part in ("the record of adalora on minilm_l6 has 12 modules", "the 12 of this backbone", "layer.1"):
        assert part in str(caught.value)


def test_a_record_with_more_modules_than_targets_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has 12 modules and does not fit the 4 .* is not adapted here"):
        cell_of(f"method.pattern_from={write_record(tmp_path)}", "method.targets=[q,v]")


def test_what_is_not_there_or_no_json_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'nowhere': there is no record, neither here nor in"):
        cell_of("method.pattern_from=nowhere")
    (tmp_path / "record.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        cell_of(f"method.pattern_from={tmp_path}")


def test_a_pattern_given_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="give one of them"):
        cell_of(f"method.pattern_from={write_record(tmp_path)}", "method.ranks={x:1}")
