"""Files that others made: nothing in them runs, and nothing secret goes into ours."""

from __future__ import annotations

import ast
import hashlib
import json
import logging
import pickle
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from payload import Payload
from report_records import record
from tiny_runs import FIRST, begin, finish

from adalora_bench import cli
from adalora_bench.data.sources import Found
from adalora_bench.errors import Interrupted, UserError
from adalora_bench.settings.compose import compose_cells
from adalora_bench.store.records import RecordStore
from adalora_bench.train import checkpoint

ROOT = Path(__file__).parents[2]
SHORT = "train.epochs=2"


# -- weights ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny BERT as its makers would put it on the hub."""
    folder = tmp_path_factory.mktemp("published")
    backbone, found = _backbone(), Found("generated", None, {}, "generated")
    backbone.tokenizer(found).save_pretrained(folder)
    backbone._body(found, "classification", 2).save_pretrained(folder)
    return folder


def _backbone() -> Any:
    (cell,) = compose_cells([f"backbone={FIRST}", "method=lora", "task=toy", "scale=smoke"])
    return cell.backbone


def _change(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def pickled_weights(folder: Path, payload: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"weight": torch.zeros(1), "more": Payload(payload)}, folder / "pytorch_model.bin")


def pickle_as_safetensors(folder: Path, payload: Path) -> None:
    (folder / "model.safetensors").write_bytes(pickle.dumps(Payload(payload)))


def own_architecture(folder: Path, payload: Path) -> None:
    (folder / "own.py").write_text(f"open({str(payload)!r}, 'w')\nclass Config: ...\nclass Model: ...\n")
    own = {"AutoConfig": "own.Config", "AutoModelForSequenceClassification": "own.Model"}
    _change(folder / "config.json", model_type="ours", auto_map=own)


def half(folder: Path, payload: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def without_a_layer(folder: Path, payload: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = folder / "model.safetensors"
    tensors = {name: value for name, value in load_file(path).items() if "layer.1.output" not in name}
    save_file(tensors, path, metadata={"format": "pt"})


def no_json(folder: Path, payload: Path) -> None:
    (folder / "config.json").write_text("{")


def no_object(folder: Path, payload: Path) -> None:
    (folder / "config.json").write_text("[]")


def damaged_tokenizer(folder: Path, payload: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")


REFUSED: dict[Callable[[Path, Path], None], str] = {
    pickled_weights: r"the weights in mine cannot be opened \(UnpicklingError: it holds a pickle of more than tensors",
    pickle_as_safetensors: r"the weights in mine cannot be opened \(SafetensorError",
    own_architecture: "of architecture 'ours' and bring code of their own, which is never run, but .* is 'bert'",
    half: r"the weights in mine cannot be opened \(SafetensorError",
    without_a_layer: r"the weights in mine lack 4 tensors of their architecture, among them .*layer\.1\.output",
    no_json: "mine/config.json cannot be read",
    no_object: "of architecture None",
    damaged_tokenizer: "the tokenizer in mine cannot be opened",
}


@pytest.fixture
def nobody_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers asks at the terminal whether to run foreign code; here nobody may be asked."""

    def ask(text: str = "") -> str:
        raise AssertionError(f"asked: {text}")

    monkeypatch.setattr("builtins.input", ask)


@pytest.mark.fault("R16")
@pytest.mark.usefixtures("nobody_is_asked")
@pytest.mark.parametrize("damage", REFUSED, ids=lambda damage: damage.__name__)
def test_weights_that_are_more_or_less_than_weights_are_refused(
    damage: Callable[[Path, Path], None], published: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(published, tmp_path / "mine"))
    damage(folder, tmp_path / "payload")
    found = Found("local", folder, {}, "mine")

    def load() -> None:
        _backbone().tokenizer(found)
        _backbone().load(found, outputs=2, head_seed=0)

    with pytest.raises(UserError, match=REFUSED[damage]) as told:
        load()
    assert len(str(told.value).splitlines()) == 1
    assert not (tmp_path / "payload").exists()


@pytest.mark.fault("R17")
@pytest.mark.usefixtures("nobody_is_asked")
@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_code_beside_weights_of_a_known_architecture_is_left_alone(
    file: str, published: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(published, tmp_path / "mine"))
    (folder / "own.py").write_text(f"open({str(tmp_path / 'payload')!r}, 'w')\nclass Own: ...\n")
    names = ("AutoConfig", "AutoModel", "AutoModelForSequenceClassification")
    own: dict[str, Any] = {"AutoTokenizer": ["own.Own", None], **dict.fromkeys(names, "own.Own")}
    _change(folder / file, auto_map=own)
    if file == "tokenizer_config.json":
        _change(folder / file, tokenizer_class="Own")
    found = Found("local", folder, {}, "mine")
    backbone = _backbone()
    assert backbone.tokenizer(found)("one", "two")["input_ids"]
    assert backbone.load(found, outputs=2, head_seed=0).modules
    assert not (tmp_path / "payload").exists()


# -- our own files, exchanged ----------------------------------------------------------------------------------


@pytest.mark.fault("R16")
@pytest.mark.parametrize("name", [checkpoint.TENSORS, checkpoint.STATE])
def test_a_checkpoint_with_a_payload_gives_way_to_the_one_before(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its sums are valid: whoever exchanged the file has seen to that."""
    folder = tmp_path / "unit"
    for stop in (1, 2):
        with pytest.raises(Interrupted):
            finish(begin("lora", FIRST, folder, SHORT, stop_at=[stop]))
    newest = folder / "checkpoints" / "step00000002"
    (newest / name).write_bytes(pickle.dumps(Payload(tmp_path / "payload")))
    sums = [
        f"{hashlib.sha256((newest / one).read_bytes()).hexdigest()}  {one}\n"
        for one in (checkpoint.TENSORS, checkpoint.STATE)
    ]
    (newest / checkpoint.COMPLETE).write_text("".join(sums))
    with caplog.at_level(logging.WARNING):
        course = begin("lora", FIRST, folder, SHORT)
    assert course.training.run.step == 1
    assert "step00000002 is damaged" in caplog.text
    assert not (tmp_path / "payload").exists()


@pytest.mark.fault("R16")
def test_an_adapter_with_a_payload_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    course = finish(begin("lora", FIRST, tmp_path / "unit", SHORT))
    path = RecordStore(tmp_path / "runs").write(course.record)
    (path.parent / "adapter.safetensors").write_bytes(pickle.dumps(Payload(tmp_path / "payload")))
    assert cli.main(["export", str(path.parent)]) == 2
    err = capsys.readouterr().err
    assert "adapter.safetensors does not fit the model of its record" in err
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "payload").exists()
    assert sorted(one.name for one in path.parent.iterdir()) == ["adapter.safetensors", "record.json"]


@pytest.mark.fault("R16")
def test_a_record_with_a_payload_is_set_aside(tmp_path: Path) -> None:
    store = RecordStore(tmp_path / "runs")
    path = store.write(record("lora", "rte", 0))
    path.write_bytes(pickle.dumps(Payload(tmp_path / "payload")))
    assert [one.path.name for one in store.scan().quarantined] == ["record.json.bad-1"]
    assert not (tmp_path / "payload").exists()


@pytest.mark.fault("R8")
@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("scale", "../../../outside"),
        ("scale", "/etc"),
        ("split", "../.."),
        ("method", ".."),
        ("backbone", "a/b"),
    ],
)
def test_a_record_cannot_lead_what_is_made_of_it_out_of_results(
    place: str, value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tables and pictures are named after scale, backbone, split and task."""
    results = tmp_path / "deep" / "results"
    one = record("lora", "rte", 0)
    path = RecordStore(results / "runs").write(one)
    changed = one | {"split": value} if place == "split" else one | {"names": one["names"] | {place: value}}
    path.write_text(json.dumps(changed))
    [refused] = RecordStore(results / "runs").scan().quarantined
    assert "is no name for a folder" in refused.reason
    for command in ("tables", "figures"):
        assert cli.main([command, f"results_dir={results}"]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"deep"}
    assert {path.name for path in (tmp_path / "deep").iterdir()} == {"results"}


# -- what the package itself does ------------------------------------------------------------------------------

FORBIDDEN_CALLS = {
    "eval",
    "exec",
    "yaml.load",
    "yaml.unsafe_load",
    "yaml.full_load",
    "torch.load",
    "torch.save",
}
FORBIDDEN_CALLS |= {"os.system", "numpy.load", "np.load", "joblib.load", "torch.hub.load", "evaluate.load"}
FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}


@pytest.mark.fault("R17")
def test_no_source_reads_pickles_or_trusts_foreign_code() -> None:
    files = [*(ROOT / "adalora_bench").rglob("*.py"), *(ROOT / "scripts").glob("*.py")]
    assert len(files) > 100
    for path in files:
        for node in ast.walk(ast.parse(path.read_text())):
            where = f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.Import):
                assert not {one.name.partition(".")[0] for one in node.names} & FORBIDDEN_MODULES, where
            elif isinstance(node, ast.ImportFrom):
                assert (node.module or "").partition(".")[0] not in FORBIDDEN_MODULES, where
            elif isinstance(node, ast.Call):
                assert ast.unparse(node.func) not in FORBIDDEN_CALLS, where
                assert "shell" not in {word.arg for word in node.keywords}, where
            elif isinstance(node, ast.keyword):
                assert node.arg not in ("trust_remote_code", "weights_only"), where
    for path in (ROOT / "conf").rglob("*.yaml"):
        assert "trust_remote_code" not in path.read_text()


_heard: list[str] = []
_listening = [False]


def _listen(event: str, arguments: tuple[Any, ...]) -> None:
    if _listening[0] and event == "pickle.find_class":
        _heard.append(f"{arguments[0]}.{arguments[1]}")


@pytest.fixture
def pickled() -> Iterator[list[str]]:
    """The classes that anything unpickles while a test runs. Python offers no way to take such a hook off again."""
    if not _heard and not _listening[0]:
        sys.addaudithook(_listen)
    _heard.clear()
    _listening[0] = True
    yield _heard
    _listening[0] = False


@pytest.mark.fault("R17")
def test_a_unit_from_weights_to_record_and_back_unpickles_nothing(
    published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pickled: list[str]
) -> None:
    from transformers import dynamic_module_utils

    trusted, loaded = [], []
    resolve, load = dynamic_module_utils.resolve_trust_remote_code, torch.load
    monkeypatch.setattr(
        dynamic_module_utils,
        "resolve_trust_remote_code",
        lambda trust, *more, **rest: trusted.append(trust) or resolve(trust, *more, **rest),
    )
    monkeypatch.setattr(
        torch, "load", lambda *a, **k: loaded.append(k.get("weights_only", True)) or load(*a, **k)
    )
    found = Found("local", published, {}, "published")
    _backbone().tokenizer(found)
    _backbone().load(found, outputs=2, head_seed=0)
    with pytest.raises(Interrupted):
        finish(begin("increlora", FIRST, tmp_path / "unit", stop_at=[6]))
    course = finish(begin("increlora", FIRST, tmp_path / "unit"))
    path = RecordStore(tmp_path / "runs").write(course.record)
    for name in ("adapter.safetensors", "predictions.jsonl.gz"):
        shutil.copy(tmp_path / "unit" / name, path.parent)
    assert cli.main(["export", str(path.parent)]) == 0
    assert pickled == []
    assert not any(trusted)
    assert all(loaded)
    pickle.loads(pickle.dumps(Payload(tmp_path / "payload")))
    assert pickled[0] == "pathlib.Path.write_text"  # the hook hears what there is to hear
