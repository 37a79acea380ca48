"""Files of settings and data files that are wrong: one sentence, exit code 2, nothing written, nothing run."""

from __future__ import annotations

import pickle
import re
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bench_process import bench, is_a_sentence, write_data
from fault_figures import Figure
from payload import Payload

from adalora_bench import cli
from adalora_bench.settings.conf_files import CONF_VARIABLE

pytestmark = pytest.mark.xdist_group("cli-wrong")

MINE = "method=mine task=toy scale=smoke"
LORA = "defaults: [lora]\n"
# The user's own files, a command, and what its message must hold. "X" in a file is a path that a payload would write.
CONFIGS: dict[str, tuple[dict[str, str], str, list[str]]] = {
    "constructor": (
        {"method/mine": f"{LORA}rank: !!python/object/apply:os.system ['touch X']\n"},
        MINE,
        ["method/mine.yaml, line 2", "python/object/apply:os.system"],
    ),
    "object": (
        {"method/mine": f"{LORA}rank: !!python/object:subprocess.Popen {{}}\n"},
        MINE,
        ["mine.yaml, line 2", "python/object:subprocess.Popen"],
    ),
    "brackets": ({"method/mine": "defaults: [lora\nrank: 3\n"}, MINE, ["mine.yaml, line 2", "expected ','"]),
    "tabs": ({"method/mine": f"{LORA}\trank: 3\n"}, MINE, ["mine.yaml, line 2"]),
    "twice": (
        {"method/mine": f"{LORA}rank: 3\nrank: 4\n"},
        MINE,
        ["mine.yaml, line 3", "duplicate key rank"],
    ),
    "binary": ({"method/mine": "\x00\x01\xff"}, MINE, ["mine.yaml", "is no file of settings"]),
    "empty": ({"method/mine": ""}, MINE, ["method._target_ is missing"]),
    "list": ({"method/mine": "- a\n- b\n"}, MINE, ["mine.yaml", "must hold settings"]),
    "text": ({"method/mine": "just words\n"}, MINE, ["method._target_ is missing"]),
    "no such parent": ({"method/mine": "defaults: [lroa]\n"}, MINE, ["Could not load 'method/lroa'"]),
    "circle": (
        {"method/mine": f"{LORA}rank: ${{method.alpha}}\nalpha: ${{method.rank}}\n"},
        MINE,
        ["method.rank"],
    ),
    "no such reference": ({"method/mine": f"{LORA}rank: ${{nowhere}}\n"}, MINE, ["method.rank", "'nowhere'"]),
    "environment": ({"method/mine": f"{LORA}rank: ${{oc.env:HOME}}\n"}, MINE, ["method.rank", "environment"]),
    "unknown key": (
        {"method/mine": f"{LORA}rnk: 3\n"},
        MINE,
        ["'method.rnk'", "did you mean 'method.rank'?"],
    ),
    "wrong type": ({"method/mine": f"{LORA}rank: many\n"}, MINE, ["method.rank='many'", "whole number"]),
    "wrong value": ({"method/mine": f"{LORA}rank: 0\n"}, MINE, ["method.rank=0 must be at least 1"]),
    "standard library": (
        {"method/mine": f"{LORA}_target_: this.s\n"},
        MINE,
        ["'this.s'", "derived from Method"],
    ),
    "function": (
        {"method/mine": f"{LORA}_target_: os.system\n"},
        MINE,
        ["'os.system'", "derived from Method"],
    ),
    "no class": (
        {"method/mine": f"{LORA}_target_: adalora_bench.methods.lora.Nothing\n"},
        MINE,
        ["lora.Nothing", "imported"],
    ),
    "other class": (
        {"method/mine": f"{LORA}_target_: adalora_bench.store.records.RecordStore\n"},
        MINE,
        ["must be a dataclass derived"],
    ),
    "builtin": (
        {"method/mine": f"{LORA}_target_: builtins.exec\n"},
        MINE,
        ["'builtins.exec'", "derived from Method"],
    ),
    "list as target": ({"method/mine": f"{LORA}_target_: [a, b]\n"}, MINE, ["_target_"]),
    "task without backbone": (
        {"task/mine": "_target_: adalora_bench.data.tasks.Task\nversion: 1\n"},
        "task=mine method=lora scale=smoke",
        ["'mine'", "scale=smoke", "backbone=NAME"],
    ),
    "task without settings": (
        {"task/mine": "_target_: adalora_bench.data.tasks.Task\nversion: 1\n"},
        "task=mine method=lora scale=smoke backbone=tiny_bert",
        ["task."],
    ),
    "task of an unknown kind": (
        {"task/mine": "defaults: [toy]\nkind: clasification\n"},
        "task=mine method=lora scale=smoke",
        ["'clasification'", "did you mean 'classification'?"],
    ),
    "task with an unknown metric": (
        {"task/mine": "defaults: [toy]\nmetrics: [acc, f2]\n"},
        "task=mine method=lora scale=smoke",
        ["'f2'", "'f1'"],
    ),
    "backbone without layers": (
        {"backbone/mine": "defaults: [tiny_bert]\nlayers: 0\n"},
        "backbone=mine task=toy method=lora scale=smoke",
        ["backbone.layers=0"],
    ),
    "backbone of an unknown form": (
        {"backbone/mine": "defaults: [tiny_bert]\nform: encodr\n"},
        "backbone=mine task=toy method=lora scale=smoke",
        ["'encodr'", "did you mean 'encoder'?"],
    ),
    "scale with a typo": (
        {"scale/mine": "defaults: [smoke]\nmax_step: 3\n"},
        "scale=mine task=toy method=lora backbone=tiny_bert",
        ["'scale.max_step'", "did you mean 'scale.max_steps'?"],
    ),
    "recipe that steers": (
        {"recipe/tiny_bert/toy/lora": "# @package _global_\nresults_dir: ../elsewhere\n"},
        "method=lora task=toy scale=smoke",
        ["results_dir='../elsewhere'", "file of settings", "bench run ... results_dir=VALUE"],
    ),
    "recipe that forces": (
        {"recipe/tiny_bert/toy/lora": "# @package _global_\nforce: true\n"},
        "method=lora task=toy scale=smoke",
        ["force=True", "file of settings"],
    ),
    "a name for no folder": (
        {"method/my own": LORA},
        "method='my own' task=toy scale=smoke",
        ["'my own'", "rename"],
    ),
    "no folder": ({}, MINE, ["a folder of settings", "is not there"]),
}


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty working folder, which must stay empty."""
    folder = tmp_path / "empty"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv(CONF_VARIABLE, "")
    return folder


def write_settings(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = folder / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.replace("touch X", f"touch {folder / 'payload'}").encode("latin-1"))
    return folder


def words(command: str) -> list[str]:
    return [part.replace("'", "") for part in re.findall(r"(?:[^\s']|'[^']*')+", command)]


@pytest.mark.fault("R14")
@pytest.mark.parametrize("case", CONFIGS)
def test_a_wrong_file_of_settings_is_answered_in_a_sentence(
    case: str, elsewhere: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files, command, parts = CONFIGS[case]
    folder = write_settings(tmp_path / "mine", files)
    assert cli.main(["run", "--config-dir", str(folder), *words(command)]) == 2
    out, err = capsys.readouterr()
    is_a_sentence(err)
    for part in parts:
        assert part in err
    assert "Beautiful is better" not in out  # `import this` speaks
    assert not (folder / "payload").exists()
    assert list(elsewhere.iterdir()) == []


# -- data ------------------------------------------------------------------------------------------------------


def table(change: Callable[[dict[str, list[Any]]], None]) -> Callable[[Path], None]:
    """A parquet file with its columns changed."""

    def damage(path: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        columns = pq.read_table(path).to_pydict()
        change(columns)
        pq.write_table(pa.table(columns), path)

    return damage


def content(make: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(make(path.read_bytes())) and None


def labels(value: Any) -> Callable[[Path], None]:
    return table(lambda columns: columns.update(label=[value] * len(columns["label"])))


def put(column: str, row: int, value: Any) -> Callable[[Path], None]:
    return table(lambda columns: columns[column].__setitem__(row, value))


def as_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


TRAIN, VALIDATION = "train-00000-of-00001.parquet", "validation-00000-of-00001.parquet"
DATA: dict[str, tuple[str, Callable[[Path], object], int, list[str]]] = {
    "cut": (TRAIN, content(lambda whole: whole[:-20]), 2, [f"{TRAIN} cannot be read as parquet"]),
    "half": (TRAIN, content(lambda whole: whole[: len(whole) // 2]), 2, ["cannot be read as parquet"]),
    "empty": (TRAIN, content(lambda whole: b""), 2, ["cannot be read as parquet"]),
    "text": (TRAIN, content(lambda whole: b"sentence1,sentence2,label\n"), 2, ["cannot be read as parquet"]),
    "zeros": (TRAIN, content(lambda whole: bytes(len(whole))), 2, ["cannot be read as parquet"]),
    "middle": (TRAIN, content(lambda whole: whole[:40] + bytes(400) + whole[440:]), 2, [TRAIN]),
    "pickle": (
        TRAIN,
        lambda path: path.write_bytes(pickle.dumps(Payload(path.with_name("payload")))),
        2,
        ["cannot be read as parquet"],
    ),
    "folder": (TRAIN, as_folder, 3, ["rte"]),
    "gone": (VALIDATION, Path.unlink, 3, ["rte"]),
    "no rows": (VALIDATION, table(lambda c: [column.clear() for column in c.values()]), 2, ["has no rows"]),
    "no label": (TRAIN, table(lambda c: c.pop("label")), 2, ["column 'label' is missing", "sentence1"]),
    "no text": (TRAIN, table(lambda c: c.pop("sentence2")), 2, ["column 'sentence2' is missing"]),
    "label too large": (TRAIN, put("label", 5, 7), 2, [f"{TRAIN}, row 5", "'label' is 7"]),
    "hidden label": (VALIDATION, put("label", 3, -1), 2, [f"{VALIDATION}, row 3", "-1 marks a hidden label"]),
    "no value": (TRAIN, put("label", 2, None), 2, [f"{TRAIN}, row 2", "None"]),
    "no words": (TRAIN, put("sentence1", 4, None), 2, [f"{TRAIN}, row 4", "'sentence1' is None"]),
    "label of text": (TRAIN, labels("yes"), 2, ["column 'label' holds string", "entailment"]),
    "label of fractions": (TRAIN, labels(0.5), 2, ["column 'label' holds double"]),
    "label of NaN": (TRAIN, labels(float("nan")), 2, ["column 'label' holds double"]),
    "text of numbers": (TRAIN, table(lambda c: c.update(sentence1=[1] * len(c["label"]))), 2, ["sentence1"]),
}  # fmt: skip


def damaged(folder: Path, case: str) -> Path:
    name, damage, _, _ = DATA[case]
    data = write_data(folder, "rte")
    damage(data / "nyu-mll" / "glue" / "rte" / name)
    return data


@pytest.mark.fault("R14 data")
@pytest.mark.parametrize("case", DATA)
def test_a_wrong_data_file_is_named(
    case: str,
    elsewhere: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    _, _, code, parts = DATA[case]
    data = damaged(tmp_path / "data", case)
    monkeypatch.setenv("ADALORA_BENCH_DATA", str(data))
    assert cli.main(["run", "method=lora", "task=rte", "scale=smoke"]) == code
    err = capsys.readouterr().err
    if code == 2:
        is_a_sentence(err)
    for part in parts:
        assert part in err
    assert not list(data.rglob("payload"))
    assert list(elsewhere.iterdir()) == []


@pytest.mark.fault("R13")
@pytest.mark.parametrize(
    "case", ["circle", "standard library", "recipe that steers", "cut", "label too large"]
)
def test_in_a_process_of_its_own_it_takes_no_time(
    case: str, elsewhere: Path, tmp_path: Path, figure: Figure
) -> None:
    """At most 4 s; counted in processor time, which other work on the machine does not stretch."""
    if case in CONFIGS:
        files, command, parts = CONFIGS[case]
        folder = write_settings(tmp_path / "mine", files)
        arguments, here = ["run", "--config-dir", str(folder), *words(command)], {}
    else:
        parts = DATA[case][3]
        arguments = ["run", "method=lora", "task=rte", "scale=smoke"]
        here = {"ADALORA_BENCH_DATA": str(damaged(tmp_path / "data", case))}
    before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    done = bench(elsewhere, *arguments, **here)
    after, wall = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic() - begun
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    figure(tried=1, survived=1, said=f"{case}: {seconds:.1f} s of processor time ({wall:.1f} s)")
    assert done.returncode == 2
    is_a_sentence(done.stderr)
    for part in parts:
        assert part in done.stderr
    assert seconds < 4
    assert list(elsewhere.iterdir()) == []
