"""Where the files of the hub are: its own layouts, several data sets for one task, pinned revisions."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest
import tiny_data
import yaml
from tiny_data import CONF, FILES, NEW, OLD, task_of

from adalora_bench.data import hub, prompts
from adalora_bench.data.sources import DATASET, Places, Source, ensure, fetch
from adalora_bench.data.tasks import Task
from adalora_bench.errors import AssetError, UserError
from adalora_bench.settings.config import build


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Places:
    return tiny_data.write_all(tmp_path_factory.mktemp("data"))


def test_the_conversion_of_the_hub_is_read_as_its_own_files_are(tmp_path: Path, places: Places) -> None:
    task = task_of("e2e")
    assert task.source.revision == "refs/convert/parquet"
    root = tmp_path / "hub" / "datasets--tuetschek--e2e_nlg"
    for split, rows in FILES["tuetschek/e2e_nlg"].items():
        half = len(rows) // 2
        for shard, part in enumerate((rows[:half], rows[half:])):
            tiny_data.write(part, root / "snapshots" / "abc123" / "default" / split / f"{shard:04}.parquet")
    (root / "refs/refs/convert").mkdir(parents=True)
    (root / "refs/refs/convert/parquet").write_text("abc123")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
        found = tiny_data.found(task, "e2e", Places(data_dir=None, cache_dir=tmp_path, offline=True))
    assert (found.served_by, found.detail) == ("hub", "tuetschek/e2e_nlg@abc123")
    assert [path.name for path in found.files["train"]] == ["0000.parquet", "0001.parquet"]
    here = tiny_data.found(task, "e2e", places)
    assert task.fingerprint(found, "validation") == task.fingerprint(here, "validation")


def test_a_folder_of_the_hub_is_found_below_a_local_one_too(tmp_path: Path, places: Places) -> None:
    task = task_of("squad")
    for split, rows in FILES["rajpurkar/squad"].items():
        tiny_data.write(rows, tmp_path / f"rajpurkar/squad/plain_text/{split}-00000-of-00001.parquet")
    found = tiny_data.found(task, "squad", Places(data_dir=tmp_path, cache_dir=tmp_path, offline=True))
    here = tiny_data.found(task, "squad", places)
    assert task.fingerprint(found, "validation") == task.fingerprint(here, "validation")


def test_patterns_of_a_download_know_both_layouts() -> None:
    assert hub.dataset_patterns("default", ["train"]) == [
        "default/train-*.parquet",
        "default/train/*.parquet",
    ]
    assert hub.dataset_patterns(None, ["test"]) == ["test-*.parquet", "test/*.parquet"]


def test_each_data_set_of_a_task_is_fetched_from_its_own_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = task_of("mt_bench")
    asked: list[tuple[str, str | None, list[str]]] = []

    def download(
        repository: str, kind: str, revision: str, *, patterns: list[str], gated: str | None
    ) -> None:
        asked.append((repository, revision, patterns))
        (rows,) = FILES[repository].values()
        folder = tmp_path / "hub" / f"datasets--{repository.replace('/', '--')}" / "snapshots" / revision
        tiny_data.write(rows, folder / "data" / "train-00000-of-00001-a09b74b3ef9c3b56.parquet")

    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(hub, "download", download)
    wanted = task.wanted("mt_bench", "validation")
    online = Places(data_dir=None, cache_dir=tmp_path, offline=False)
    found = fetch(wanted.source, online, splits=wanted.splits, kind=DATASET)
    both = ["data/train-*.parquet", "data/train/*.parquet"]
    assert asked == [
        ("tatsu-lab/alpaca", "dce01c9b08f87459cf36a430d809084718273017", both),
        ("HuggingFaceH4/mt_bench_prompts", "e3a795c5e9a82ee40611c416b8a7786c73198991", both),
    ]
    assert set(found.files) == {"train", "questions"}
    assert found.served_by == "hub"
    assert len(task.load(found, "validation").report[""]) == 3


def test_a_split_that_is_missing_beside_others_is_named(tmp_path: Path) -> None:
    tiny_data.write(
        FILES["EdinburghNLP/xsum"]["validation"],
        tmp_path / "EdinburghNLP/xsum/validation-00000-of-00001.parquet",
    )
    places = Places(data_dir=tmp_path, cache_dir=tmp_path, offline=True)
    with pytest.raises(
        AssetError, match="EdinburghNLP/xsum has validation, but no train, and this is an offline run"
    ):
        ensure([task_of("xsum").wanted("xsum", "validation")], places)


def test_a_wheel_cannot_be_joined_with_another_data_set() -> None:
    with pytest.raises(UserError, match="source.elsewhere"):
        Source(generated=True, elsewhere=task_of("mt_bench").source.elsewhere)


def test_pinned_revisions_are_commits_or_said_to_be_none() -> None:
    for name in NEW:
        source = task_of(name).source
        pins = [source.revision, *(other.revision for other in source.elsewhere.values())]
        for pin in pins:
            text = (CONF / f"{name}.yaml").read_text()
            assert len(pin) == 40 or (pin == "refs/convert/parquet" and "could not be looked up" in text), (
                name
            )


def test_the_task_of_the_page_builds_and_loads(tmp_path: Path) -> None:
    page = (CONF.parents[1] / "docs" / "adding_a_task.md").read_text()
    block = page[page.index("    # my_settings/task/spam.yaml") : page.index("Without the hub:")]
    task: Task = build(yaml.safe_load(textwrap.dedent(block)), "task")
    for split, labels in (("train", [0, 1, 1]), ("test", [1, 0])):
        rows = [{"text": f"message {i}", "label": label} for i, label in enumerate(labels)]
        tiny_data.write(rows, tmp_path / "me" / "spam" / f"{split}-00000-of-00001.parquet")
    found = tiny_data.found(task, "spam", Places(data_dir=tmp_path, cache_dir=tmp_path, offline=True))
    assert len(task.load(found, "validation").report[""]) == 2
    assert (
        task.subset_note(task.available(found, "validation")) == "3 of 5000 training rows, 2 of 574 test rows"
    )
    assert prompts.answer_of(task, {"text": "", "label": 1}) == "yes"


def test_these_tests_know_every_task() -> None:
    made_up = {path.stem for path in CONF.glob("toy*.yaml")} | {"film_reviews"}  # rows by code, or of a wheel
    assert {path.stem for path in CONF.glob("*.yaml")} == {*NEW, *OLD} | made_up
