"""What is trained is what the key says, and the units of a command are the product of what was typed.

Two cells of one command may ask for other files under one name: folders of weights or data, splits, revisions. A
number under a wrong name is the worst fault of a benchmark.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adalora_bench import cli
from adalora_bench.data.origin import Elsewhere, Source, Wanted, Wheel
from adalora_bench.errors import UserError
from adalora_bench.models.heads import byte_tokenizer, random_model
from adalora_bench.settings import prepare
from adalora_bench.settings.compose import compose_cells
from adalora_bench.settings.config import Cell
from adalora_bench.store.records import RecordStore

pytestmark = pytest.mark.fault("identity")

SMALL = ("method=lora", "task=toy", "scale=smoke", "backbone=roberta_base", "backbone.layers=2")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three folders of weights of one shape; `again` holds the same weights as `one`."""
    from transformers import AutoModel

    (tiny,) = compose_cells(["method=lora", "task=toy", "backbone=tiny_roberta", "scale=smoke"])
    root = tmp_path_factory.mktemp("weights")
    for name, seed in (("one", 1), ("other", 2), ("again", 1)):
        random_model(AutoModel, tiny.backbone._config(None, 2), seed=seed).save_pretrained(root / name)
        byte_tokenizer("roberta").save_pretrained(root / name)
    return {name: root / name for name in ("one", "other", "again")}


def keyed(*typed: str) -> list[Cell]:
    cells = compose_cells(typed, multirun=True)
    return prepare.keyed(cells, prepare.look(cells, prepare.places_of(cells[0].config)))


@pytest.mark.parametrize("order", [("one", "other"), ("other", "one")])
def test_a_sweep_over_folders_of_weights_gives_each_cell_its_own_key(
    folders: dict[str, Path], order: tuple[str, str]
) -> None:
    alone = {name: keyed(*SMALL, f"backbone.source.local={folders[name]}")[0].key for name in order}
    swept = keyed(*SMALL, f"backbone.source.local={','.join(str(folders[name]) for name in order)}")
    assert [cell.key for cell in swept] == [alone[name] for name in order]
    assert len(set(alone.values())) == 2


def test_two_names_of_one_key_stay_two_cells() -> None:
    (cell,) = compose_cells(["method=lora", "task=toy", "scale=smoke"])
    other = replace(cell, names=cell.names | {"method": "preset"}, seeds=(7,))
    found = prepare.look([cell], prepare.places_of(cell.config))
    both = prepare.keyed([cell, other, replace(other, seeds=(8,))], found)
    assert len({one.key for one in both}) == 1
    assert [(one.names["method"], one.seeds) for one in both] == [("lora", cell.seeds), ("preset", (7, 8))]


def test_equal_weights_in_two_folders_are_one_cell(folders: dict[str, Path]) -> None:
    (cell,) = keyed(*SMALL, f"backbone.source.local={folders['one']},{folders['again']}", "seeds=[3]")
    assert cell.seeds == (3,)


def test_each_unit_of_such_a_sweep_trains_the_weights_that_its_key_names(
    folders: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    places = {name: folders[name] for name in ("other", "one")}
    local = f"backbone.source.local={','.join(map(str, places.values()))}"
    assert (
        cli.main(["run", "-m", *SMALL, "seeds=[0]", "jobs=1", "device=cpu", "method.targets=[q]", local]) == 0
    )
    assert "2 done" in capsys.readouterr().out
    store, trained = RecordStore(tmp_path / "results" / "runs"), {}
    for name, place in places.items():
        (cell,) = keyed(*SMALL, "method.targets=[q]", f"backbone.source.local={place}")
        unit = store.folder(cell.names, cell.key, 0)
        record = json.loads((unit / "record.json").read_text())
        assert record["key"] == cell.key, name
        assert record["sources"]["backbone"]["detail"] == f"folder {place.name}"
        assert (
            cli.main(["plan", *SMALL, "seeds=[0]", "method.targets=[q]", f"backbone.source.local={place}"])
            == 0
        )
        assert "1 done; 0 to train" in capsys.readouterr().out
        alone = ["seeds=[0]", "jobs=1", "device=cpu", "method.targets=[q]", f"backbone.source.local={place}"]
        assert cli.main(["run", *SMALL, *alone, f"results_dir=alone-{name}"]) == 0
        capsys.readouterr()
        (same,) = Path(f"alone-{name}").glob("runs/*/*/*/*/seed0")
        assert (same / "predictions.jsonl.gz").read_bytes() == (unit / "predictions.jsonl.gz").read_bytes()
        trained[name] = (unit / "steps.jsonl").read_text()
    assert len(set(trained.values())) == 2


@pytest.mark.parametrize("order", [("one", "other"), ("other", "one")])
def test_a_sweep_over_folders_of_data_gives_each_cell_its_own_rows(
    order: tuple[str, str], tmp_path: Path
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    for name in order:
        (tmp_path / name).mkdir()
        for split, rows in (("train", 8), ("validation", 4)):
            texts = [f"{name} {split} {i}" for i in range(rows)]
            table = pa.table({"sentence1": texts, "sentence2": texts, "label": [i % 2 for i in range(rows)]})
            pq.write_table(table, tmp_path / name / f"{split}-00000-of-00001.parquet")
    names = ("method=lora", "task=rte", "backbone=tiny_bert", "scale=smoke")
    alone = {name: keyed(*names, f"task.source.local={tmp_path / name}")[0].key for name in order}
    swept = keyed(*names, f"task.source.local={','.join(str(tmp_path / name) for name in order)}")
    assert [cell.key for cell in swept] == [alone[name] for name in order]
    assert len(set(alone.values())) == 2


def asked(**changes: Any) -> Wanted:
    usual: dict[str, Any] = {"name": "x", "source": Source(hub="a/b"), "kind": "dataset", "splits": ["train"]}
    return Wanted(**(usual | changes))


WHEEL = Wheel(package="a==1", sha256="0" * 64, folder="data")
OTHERS = [
    asked(kind="model"),
    asked(splits=["train", "validation"]),
    asked(optional=["validation"]),
    asked(splits=[], optional=["train"]),
    *(
        asked(source=source)
        for source in (
            Source(hub="a/c"),
            Source(local="b"),
            Source(hub="a/b", local="b"),
            Source(hub="a/b", subset="s"),
            Source(hub="a/b", hub_folder="s"),
            Source(hub="a/b", revision="1"),
            Source(hub="a/b", wheel=WHEEL),
            Source(hub="a/b", elsewhere={"train": Elsewhere(hub="a/d")}),
            Source(generated=True),
        )
    ),
]


def test_what_differs_in_any_field_is_another_asset_and_a_name_is_none() -> None:
    found = [asked().identity, *(other.identity for other in OTHERS)]
    assert len(set(found)) == len(found)
    assert asked(name="y").identity == asked().identity


def test_one_name_and_two_splits_find_the_files_of_both() -> None:
    cells = compose_cells(
        ["method=lora", "task=toy", "scale=smoke", "split=validation,holdout"], multirun=True
    )
    found = prepare.look(cells, prepare.places_of(cells[0].config))
    assert len({cell.key for cell in prepare.keyed(cells, found)}) == 2


# -- nothing is lost ---------------------------------------------------------------------------------------------

TOY = ("method=lora", "task=toy", "scale=smoke")


@pytest.mark.parametrize(
    "typed, seeds",
    [
        (["seeds=0,1,2"], (0, 1, 2)),
        (["seeds=[0],[1]"], (0, 1)),
        (["seeds=[0,1],[1,2]"], (0, 1, 2)),
        (["seeds=2,0,2"], (2, 0)),
        (["seeds=[0,1,2]"], (0, 1, 2)),
        (["seeds=range(0,3)"], (0, 1, 2)),
        (["seeds=1,2", "method.lr=1e-3,0.001"], (1, 2)),
    ],
)
def test_every_way_to_say_seeds_trains_each_of_them_once(typed: list[str], seeds: tuple[int, ...]) -> None:
    (composed,) = compose_cells([*TOY, *typed], multirun=True)
    assert composed.seeds == seeds
    assert composed.config["seeds"] == list(seeds)
    (cell,) = keyed(*TOY, *typed)
    assert cell.seeds == seeds


VALUES = {
    "method": ["lora", "bitfit"],
    "task": ["toy", "toy_regression"],
    "seeds": ["0", "1", "[0]", "[1,2]"],
    "train.epochs": ["1", "2"],
    "train.log_every": ["1", "2"],
    "split": ["validation", "holdout"],
}


@settings(max_examples=8, deadline=None)
@given(
    st.fixed_dictionaries(
        {},
        optional={
            name: st.lists(st.sampled_from(v), min_size=1, max_size=2, unique=True)
            for name, v in VALUES.items()
        },
    )
)
def test_units_are_the_product_of_what_was_typed(chosen: dict[str, list[str]]) -> None:
    chosen = {"method": ["lora"], "task": ["toy"], "seeds": ["0"]} | chosen
    cells = keyed("scale=smoke", *(f"{name}={','.join(values)}" for name, values in chosen.items()))
    units = [(cell.key, seed) for cell in cells for seed in cell.seeds]
    assert len(set(units)) == len(units)
    assert len(units) == len(expected(chosen))


def expected(chosen: dict[str, list[str]]) -> set[tuple[str, ...]]:
    """Of the product, what can differ in a number: not how often a step is logged."""
    found = set()
    for values in product(*chosen.values()):
        said = dict(zip(chosen, values, strict=True))
        said.pop("train.log_every", None)
        for seed in said.pop("seeds").strip("[]").split(","):
            found.add((seed, *(f"{name}={value}" for name, value in said.items())))
    return found


@pytest.mark.parametrize(
    "text",
    [
        "results_dir=a,b",
        "data_dir=a,b",
        "device=cpu,auto",
        "jobs=1,2",
        "offline=true,false",
        "launch.cpus=1,2",
    ],
)
def test_what_steers_the_whole_command_cannot_be_swept(text: str) -> None:
    with pytest.raises(UserError, match="is one for the whole command; give it one value"):
        compose_cells([*TOY, text], multirun=True)


def test_what_is_wrong_for_every_row_of_a_table_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", "-m", "table=increlora_3", "scale=smoke", "jobs=1,2"]) == 2
    assert capsys.readouterr().err.count("is one for the whole command") == 1


@pytest.mark.parametrize("command", ["plan", "run"])
@pytest.mark.parametrize("seeds", ["seeds=0,1,2", "seeds=[0],[1],[2]"])
def test_plan_and_run_count_all_seeds_of_a_sweep(
    command: str,
    seeds: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("adalora_bench.engine.launch.launch", launched := Launched())
    assert cli.main([command, "-m", *TOY, "device=cpu", seeds]) == 0
    if command == "plan":
        assert "1 cell, 3 units: 3 missing; 3 to train" in capsys.readouterr().out
    else:
        assert launched.seeds == [0, 1, 2]


class Launched:
    """In place of `launch`: only what it was asked for."""

    def __init__(self) -> None:
        self.seeds: list[int] = []

    def __call__(self, units: Sequence[Any], **_: object) -> Any:
        from adalora_bench.engine.units import Summary

        self.seeds = [unit.seed for unit in units]
        return Summary()
