"""What the fault tests count: a marker names the fault, a fixture takes the numbers, the end of the run prints them.

`@pytest.mark.fault("R1")` alone counts a test as one try; `figure(tried=50, survived=50, said=...)` gives its numbers.
With --figures FILE every such test leaves a line of JSON there; scripts/reliability.py makes docs/reliability.md of it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest


class Fault(NamedTuple):
    """One row of the page."""

    what: str
    how: str


# In the order of the page. The names are those of the list that the tests were written from.
FAULTS = {
    "R1": Fault("a unit is killed", "SIGKILL of its command, or of its process alone, at a random moment"),
    "R2": Fault("a sweep of 12 cells is killed", "SIGKILL of the command and its workers at random moments"),
    "R3": Fault(
        "a training is interrupted",
        "at growths, prunings, freezings and stages, between micro-batches, in evaluations, in the last step, while a "
        "checkpoint is written; every method",
    ),
    "R4": Fault("the same seed again", "in a fresh process with another PYTHONHASHSEED"),
    "R5": Fault("two processes, one unit", "started together on one store"),
    "R5 lease": Fault("the holder of a lease is dead", "SIGKILL of the process that holds it"),
    "R6": Fault("four commands, one store", "the same 24 units, started together"),
    "R7": Fault(
        "a unit dies in a sweep",
        "os._exit, sys.exit, exceptions, no memory, SIGKILL, SIGSEGV in its worker",
    ),
    "R8": Fault("a damaged record", "cut, empty, binary, NaN, another schema, names that lead elsewhere"),
    "R9": Fault(
        "a full disk",
        "RLIMIT_FSIZE, and a tmpfs of 200 KiB, at record, checkpoint, adapter and log",
    ),
    "R9 read": Fault("a results folder that cannot be written", "a read-only mount, a file in its place"),
    "R10": Fault(
        "numbers gone bad", "NaN or infinity in loss, gradient, weight, score or prediction at a chosen step"
    ),
    "R10 one": Fault("one predicted class", "a training that learns nothing; tables of such seeds"),
    "R11": Fault("SIGINT, SIGTERM, SIGUSR1", "to the command or its whole group in the middle of a training"),
    "R12": Fault("a damaged checkpoint", "cut, changed, zeroed or removed files; pickles under valid sums"),
    "R13": Fault("a wrong command", "wrong names, keys, types, values and grammar, without data"),
    "R14": Fault(
        "a wrong file of settings", "damaged YAML, constructors, wrong keys and targets, in --config-dir"
    ),
    "R14 data": Fault(
        "a wrong data file", "cut, empty, foreign and pickled files, missing columns, bad values"
    ),
    "R15": Fault("no network", "a socket guard in every process"),
    "R16": Fault("a payload in a file", "pickles as weights, checkpoint, adapter, record and data"),
    "R17": Fault(
        "code beside weights", "auto_map in config.json and tokenizer_config.json; sources searched"
    ),
    "secrets": Fault(
        "a secret in the environment", "HF_TOKEN and a judge's key, through good and failing units"
    ),
    "sha256": Fault("an asset that is not the pinned one", "another wheel under the pinned name"),
    "R18": Fault("a metric", "against the official tools and libraries, on tens of outputs each"),
    "R19": Fault("a method", "against numbers worked out from the equations of its paper (the five papers)"),
    "R20": Fault(
        "a promise over budgets and schedules", "properties, 200 to 300 made-up examples each (hypothesis)"
    ),
    "R21": Fault(
        "another cut of a batch", "four micro-batches against one, in float64; eight prompts against one"
    ),
    "R22": Fault(
        "an export", "loaded by peft and by transformers: the same logits, and not those of the base"
    ),
    "R23": Fault(
        "order, workers, hash seed", "the 12 cells reversed, 1, 2 and 3 workers, other PYTHONHASHSEED"
    ),
    "R24": Fault("5,000 records", "bench tables over them"),
    "R25": Fault("leaks", "20 units in one command; memory of the parent, processes and files afterwards"),
    "identity": Fault(
        "two cells that share a name",
        "sweeps over folders of weights and data, splits, seeds; alone, in any order",
    ),
    "packed": Fault(
        "packed records", "a kill at every write and removal; cut, flipped and foreign packed files"
    ),
    "paths": Fault(
        "names of folders and settings", "each special character; settings that stand in no file; GPUs"
    ),
    "early": Fault(
        "what does not depend on the training",
        "lengths, blocks, tokens, heads, roles, references, labels, rows",
    ),
    "own loops": Fault(
        "any net", "layers that are left out, optimizers that exist, another default dtype, few ranks"
    ),
    "edited": Fault(
        "an edited or hostile record", "each field, and each place of a record with values of other kinds"
    ),
    "surroundings": Fault(
        "no audience, home, name or locale", "closed, full and broken streams; unshare; LC_ALL=C"
    ),
    "hostile": Fault(
        "what a foreign record says", "escapes, LaTeX, HTML, Markdown, formulas in every free field"
    ),
    "fuzz": Fault(
        "anything that is typed or read", "hypothesis over command lines; flipped, cut and doubled files"
    ),
}
Figure = Callable[..., None]
_PROPERTY = "fault"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("faults")
    group.addoption("--kills", type=int, default=50, help="SIGKILLs of one unit in the heavy fault tests")
    group.addoption("--pairs", type=int, default=20, help="how often two processes meet on one unit")
    group.addoption(
        "--figures", type=Path, metavar="FILE", help="append what fault tests counted, as JSON lines"
    )


PAPERS = [f"paper/test_{name}.py" for name in ("alora", "increlora", "aflora", "sora", "delta_lora")]
# Tests that were there for another reason: a part of the path, the start of the name.
ELSEWHERE = {
    "R18": [("unit/test_metrics", "test_parity")],
    "R19": [(path, "test_") for path in PAPERS],
    "R21": [("contract/", "test_four_micro_batches"), ("unit/test_generate.py", "test_a_batch_of_eight")],
    "R22": [("unit/test_export.py", "test_peft_loads"), ("unit/test_export.py", "test_transformers_loads")],
}


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for name, places in ELSEWHERE.items():
            if any(path in item.path.as_posix() and item.name.startswith(start) for path, start in places):
                by_examples = getattr(getattr(item, "obj", None), "is_hypothesis_test", False)
                item.add_marker(pytest.mark.fault("R20" if by_examples else name))
        for marker in item.iter_markers("fault"):
            assert marker.args[0] in FAULTS, (
                f"{item.nodeid}: no fault {marker.args[0]!r} in {__name__}.FAULTS"
            )


@pytest.fixture
def figure(request: pytest.FixtureRequest, record_property: Callable[[str, object], None]) -> Figure:
    """`figure(tried=50, survived=50, said="0 corrupt")`: the numbers of this test, given before it judges them."""

    def figure(*, tried: int, survived: int, said: str = "") -> None:
        record_property(_PROPERTY, json.dumps({"tried": tried, "survived": survived, "said": said}))

    return figure


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    report = yield
    marker = item.get_closest_marker("fault")
    if marker is not None:
        report.user_properties.append((f"{_PROPERTY} id", marker.args[0]))
    return report


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Runs once, in the process that the user started, also under xdist."""
    lines = [
        line
        for outcome in ("passed", "failed", "error", "skipped")
        for report in terminalreporter.stats.get(outcome, [])
        if (line := _line(report, outcome)) is not None
    ]
    if not lines:
        return
    path = config.getoption("--figures")
    if path is not None:
        with path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)
    terminalreporter.section("survived / tried")
    for name in FAULTS:
        mine = [line for line in lines if line["id"] == name]
        if mine:
            said = "; ".join(dict.fromkeys(line["said"] for line in mine if line["said"]))
            numbers = [sum(line[k] for line in mine) for k in ("survived", "tried")]
            terminalreporter.write_line(
                f"{name}: {numbers[0]} / {numbers[1]}  {FAULTS[name].what}  {said}".rstrip()
            )


def _line(report: Any, outcome: str) -> dict[str, Any] | None:
    """What one test says; None for one that is about no fault, and for the phases beside its call."""
    properties = dict(getattr(report, "user_properties", ()))
    name = properties.get(f"{_PROPERTY} id")
    if name is None or (outcome == "passed" and report.when != "call"):
        return None
    line = {"id": name, "test": report.nodeid, "outcome": outcome} | FAULTS[name]._asdict()
    if outcome == "skipped":
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else ""
        return line | {"tried": 0, "survived": 0, "said": reason}
    own = json.loads(properties.get(_PROPERTY, '{"tried": 1, "survived": 1, "said": ""}'))
    if outcome != "passed":
        own["survived"] = min(own["survived"], own["tried"] - 1)
    return line | own
