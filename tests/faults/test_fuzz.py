"""Nothing that is typed and no file that is read ends in a traceback. Runs at night, in a bounded time."""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import report_records
from fault_figures import Figure
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adalora_bench import cli
from adalora_bench.errors import UserError
from adalora_bench.settings.compose import compose_cells, options
from adalora_bench.store.records import RecordStore

pytestmark = [pytest.mark.nightly, pytest.mark.fault("fuzz")]
SECONDS = float(os.environ.get("FUZZ_SECONDS", "90"))  # of each test here
EXAMPLES = 2000
CODES = (0, 1, 2, 3)

# -- what is typed -----------------------------------------------------------------------------------------------

(TOY,) = compose_cells(["method=increlora", "task=toy", "scale=smoke"])


def _keys(node: Any, prefix: str = "") -> list[str]:
    found = []
    for name, value in node.items() if isinstance(node, dict) else ():
        found += [f"{prefix}{name}", *_keys(value, f"{prefix}{name}.")]
    return found


KEYS = [key for key in _keys(TOY.config) if not key.endswith("_target_")]
NASTY = list("=,:'\"[]{}()$~#!&;|<>*?\\/%@^`\n\t \u00fc\u65e5\u202e\ud7ff")
WORDS = [
    "",
    "null",
    "true",
    "nan",
    "inf",
    "-1",
    "0",
    "1e9",
    "1" * 400,
    "[]",
    "{}",
    "[1,2]",
    "{a: 1}",
    "6%",
    "1ep",
]
WORDS += [
    "0.06",
    "${x}",
    "${oc.env:HOME}",
    "???",
    "a,b",
    "range(3)",
    "choice(1,2)",
    "glob(*)",
    "sort(1)",
    "\\",
    "'",
]
WORDS += ["x" * 5000]
TEXTS = st.one_of(
    st.text(max_size=12).filter(lambda text: "\0" not in text),  # no shell passes it on
    st.text(st.sampled_from([*NASTY, "a", "1", ".", "-"]), max_size=10),
    st.sampled_from(WORDS),
    st.integers().map(str),
    st.floats().map(str),
)
NAMES = st.one_of(
    st.sampled_from(
        [*KEYS, "method", "task", "backbone", "scale", "table", "seeds", "split", "train", "pair", "recipe"]
    ),
    st.sampled_from(KEYS).flatmap(lambda key: st.text(max_size=3).map(lambda more: key + more)),
    TEXTS,
)
GROUPS = {group: options(group) for group in ("method", "task", "backbone", "scale")}
OVERRIDES = st.one_of(
    st.sampled_from(sorted(GROUPS)).flatmap(
        lambda group: st.sampled_from(GROUPS[group]).map(lambda name: f"{group}={name}")
    ),
    st.tuples(NAMES, TEXTS).map("=".join),
    TEXTS,
)
COMMANDS = st.sampled_from(
    ["plan", "show", "tables", "claims", "export", "judge", "collect", "verify", "pack", "unpack", "ls"]
)


class Clock:
    """Ends a test quietly when its time is over; says how many inputs it tried."""

    def __init__(self) -> None:
        self.end = time.monotonic() + SECONDS
        self.tried = 0

    def over(self) -> bool:
        self.tried += 1
        return time.monotonic() > self.end


def answered(arguments: list[str]) -> int:
    """The exit code of a command that ends as it should: with a code, not with an exception."""
    try:
        return cli.main(arguments)
    except SystemExit as error:  # argparse
        return int(error.code or 0)


def test_any_command_line_is_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, figure: Figure
) -> None:
    monkeypatch.chdir(tmp_path)
    clock = Clock()

    @settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck), database=None)
    @given(command=COMMANDS, toy=st.booleans(), many=st.booleans(), typed=st.lists(OVERRIDES, max_size=4))
    def check(command: str, toy: bool, many: bool, typed: list[str]) -> None:
        if clock.over():
            return
        base = (
            ["method=lora", "task=toy", "scale=smoke", "offline=true"]
            if toy and command in ("plan", "show")
            else []
        )
        flags = ["-m"] if many and command == "plan" else []
        assert answered([command, *flags, *base, *typed]) in CODES

    check()
    figure(tried=clock.tried, survived=clock.tried, said=f"{clock.tried:,} command lines")
    assert clock.tried > 5


# -- what is read ------------------------------------------------------------------------------------------------


def damaged(content: bytes, draw: random.Random) -> bytes:
    """Content with a few bytes flipped, cut, doubled or put in."""
    data = bytearray(content)
    for _ in range(draw.randint(1, 6)):
        at = draw.randrange(len(data) + 1)
        kind = draw.randrange(5)
        if kind == 0 and data:
            data[at % len(data)] = draw.randrange(256)
        elif kind == 1:
            del data[at:]
        elif kind == 2:
            data[at:at] = data[: draw.randrange(1, 64)]
        elif kind == 3:
            data[at:at] = draw.randbytes(draw.randrange(1, 16))
        else:
            data[at : at + draw.randrange(1, 32)] = b""
    return bytes(data)


def tried(change: Callable[[bytes], object], content: bytes, check: Callable[[], None]) -> int:
    clock, draw = Clock(), random.Random(7)
    while not clock.over() and clock.tried < EXAMPLES:
        change(damaged(content, draw))
        check()
    print(f"tried {clock.tried} damaged files")
    return clock.tried


def test_any_parquet_file_is_read_or_refused(tmp_path: Path) -> None:
    rows = [{"sentence1": f"a {i}", "sentence2": f"b {i}", "label": i % 2, "idx": i} for i in range(40)]
    for split in ("train", "validation"):
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / f"{split}-00000-of-00001.parquet")
    path = tmp_path / "train-00000-of-00001.parquet"
    typed = [
        "plan",
        "method=lora",
        "task=rte",
        "scale=smoke",
        f"task.source.local={tmp_path}",
        "offline=true",
    ]
    assert tried(path.write_bytes, path.read_bytes(), lambda: _in(typed)) > 5


def _in(typed: list[str]) -> None:
    assert answered(typed) in CODES


@pytest.mark.parametrize("group", ["task", "method", "backbone", "scale"])
def test_any_file_of_settings_is_read_or_refused(
    group: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from adalora_bench.settings.conf_files import conf_dir

    monkeypatch.setenv("ADALORA_BENCH_CONF", str(tmp_path))
    (tmp_path / group).mkdir()
    name = {"task": "toy", "method": "increlora", "backbone": "tiny_bert", "scale": "smoke"}[group]
    content = (conf_dir() / group / f"{name}.yaml").read_bytes()
    path = tmp_path / group / "mine.yaml"
    given = {"method": "lora", "task": "toy", "scale": "smoke", "backbone": "tiny_bert"} | {group: "mine"}
    typed = ["plan", *(f"{key}={value}" for key, value in given.items())]
    assert tried(path.write_bytes, content, lambda: _in(typed)) > 5


def test_any_record_is_counted_or_set_aside(tmp_path: Path) -> None:
    store = RecordStore(tmp_path / "runs")
    path = store.write(report_records.record("increlora", "rte", 0))
    store.write(report_records.record("increlora", "rte", 1))
    content = path.read_bytes()

    def check() -> None:
        assert answered(["tables", f"results_dir={tmp_path}"]) in CODES
        assert answered(["claims", f"results_dir={tmp_path}"]) in CODES
        for aside in path.parent.glob("record.json.bad-*"):
            aside.unlink()

    assert tried(path.write_bytes, content, check) > 5


def test_any_packed_file_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    from adalora_bench.store.pack import pack

    store = RecordStore(tmp_path / "runs")
    for seed in range(4):
        store.write(report_records.record("increlora", "rte", seed))
    pack(store.root)
    (path,) = store.root.glob("*.jsonl.gz")
    content = path.read_bytes()
    (tmp_path / "copy").mkdir()

    def check() -> None:
        scan = store.scan()
        assert len(scan.records) <= 4
        assert len(scan.records) == 4 or scan.quarantined

    assert tried(path.write_bytes, content, check) > 5


@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
)
def test_any_file_beside_weights_is_read_or_refused(name: str, tmp_path: Path) -> None:
    from adalora_bench.models.heads import byte_tokenizer, random_model
    from adalora_bench.settings import prepare

    (tiny,) = compose_cells(["method=lora", "task=toy", "backbone=tiny_roberta", "scale=smoke"])
    import transformers

    random_model(transformers.AutoModel, tiny.backbone._config(None, 2)).save_pretrained(tmp_path)
    byte_tokenizer("roberta").save_pretrained(tmp_path)
    path = tmp_path / name
    typed = ["method=lora", "task=toy", "scale=smoke", "backbone=roberta_base", "backbone.layers=2"]
    (cell,) = compose_cells([*typed, f"backbone.source.local={tmp_path}"])

    def check() -> None:
        try:
            found = prepare.look([cell], prepare.places_of(cell.config))
            prepare.keyed([cell], found)
            if not found.has_all(cell):
                return
            prepare.check_late_failures(cell, found)
            cell.backbone.tokenizer(found.backbone(cell))
            cell.backbone.load(found.backbone(cell), outputs=2, head_seed=0)
        except UserError:
            pass

    assert tried(path.write_bytes, path.read_bytes(), check) > 5


def test_any_json_of_a_judge_or_a_checkpoint_state_is_answered(tmp_path: Path) -> None:
    """Steps of a unit, as figures read them."""
    store = RecordStore(tmp_path / "runs")
    folder = store.write(report_records.record("increlora", "rte", 0)).parent
    path = folder / "steps.jsonl"
    content = "".join(json.dumps({"step": i, "loss": 0.5}) + "\n" for i in range(20)).encode()
    assert tried(path.write_bytes, content, lambda: list(store.steps(folder))) > 5
    assert os.path.exists(path)
