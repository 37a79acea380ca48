"""What short trainings of every method leave, to the last bit: a refactoring must not move it.

python scripts/loss_compare.py --against HEAD      this checkout against a commit; exit code 1 where they differ
python scripts/loss_compare.py --write             replace the stored trace of tests/golden
python scripts/loss_compare.py                     print the trace of this checkout as JSON

Each method trains 20 steps with dropout on a random backbone, through the command line. Compared are the key, every
logged step, the adapter file, the predictions (floats with all their bits, so they stand for the weights of methods
that keep no adapter file) and the record but for times and machine. On one machine and one torch the comparison is
exact. Another CPU may round otherwise, so the test compares the losses to 1e-5.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
STORED = ROOT / "tests" / "golden" / "loss_trace.json"
SETTINGS = (
    "task=toy_regression",
    "backbone=tiny_bert",
    "scale=smoke",
    "scale.max_steps=20",
    "seeds=[0]",
    "device=cpu",
    "offline=true",
    "train.train_rows=160",
    "train.batch_size=8",
    "train.micro_batches=2",
    "train.epochs=2",
    "train.log_every=1",
    "backbone.dropout=0.1",
    "backbone.head_dropout=0.1",
    "method.lr=0.01",
)
_SHORT_SEARCH = ("method.rank=2", "method.first_round=4", "method.rounds=2", "method.interval=4")
MORE = {  # what the general settings of a method do not fit into 20 steps
    "alora": _SHORT_SEARCH,
    "alora_sensi": _SHORT_SEARCH,
    "alora_dnas": _SHORT_SEARCH,
    "adalora": ("method.initial_warmup=4", "method.final_phase=6", "method.interval=2"),
    "increlora": ("method.interval=2", "method.growth_warmup=4"),
    "increlora_r8": ("method.interval=1", "method.growth_warmup=4", "method.target_rank=3"),
    "peft_fourierft": ("train.eps=1e-4",),
}
TIMES = ("seconds", "finished", "environment", "git", "peak_memory_bytes", "checksum", "artefacts")

Trace = dict[str, dict[str, Any]]


def main() -> int:
    """Print, store or compare."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--against", metavar="REV", help="a commit, branch or tag of this repository")
    parser.add_argument("--write", action="store_true", help=f"write {STORED.relative_to(ROOT)}")
    arguments = parser.parse_args()
    if arguments.against:
        return compare(arguments.against)
    text = as_text(stored_form())
    if arguments.write:
        STORED.write_text(text)
        print(f"wrote {STORED.relative_to(ROOT)}: read the diff before you keep it")
    else:
        print(text, end="")
    return 0


def methods(code: Path = ROOT) -> list[str]:
    """Every method of a checkout that trains without a record of another one."""
    names = sorted(path.stem for path in (code / "conf" / "method").glob("*.yaml"))
    return [name for name in names if not name.endswith("_retrain")]


def stored_form(chosen: Sequence[str] = ()) -> dict[str, Any]:
    """Key, losses and total ranks of each method, with what the losses depend on."""
    import torch

    found = {
        name: {
            "key": unit["key"],
            "losses": [row["loss"] for row in unit["steps"]],
            "ranks": [row["rank"] for row in unit["steps"]],
        }
        for name, unit in trace(ROOT, chosen).items()
    }
    return {"torch": torch.__version__, "cpu": torch.backends.cpu.get_cpu_capability(), "methods": found}


def as_text(stored: dict[str, Any]) -> str:
    """JSON with one line per list, so that a diff shows which method moved."""
    lines = []
    for name, unit in stored["methods"].items():
        parts = [f'   "{part}": {json.dumps(value)}' for part, value in unit.items()]
        lines.append(f'  "{name}": {{\n' + ",\n".join(parts) + "\n  }")
    head = "".join(f' "{part}": {json.dumps(stored[part])},\n' for part in ("torch", "cpu"))
    return "{\n" + head + ' "methods": {\n' + ",\n".join(lines) + "\n }\n}\n"


def trace(code: Path, chosen: Sequence[str] = ()) -> Trace:
    """method -> key, steps, digests of its files, and its record; of the package in the folder `code`."""
    groups: dict[tuple[str, ...], list[str]] = {}  # methods that share their settings share a command
    for name in chosen or methods(code):
        groups.setdefault(MORE.get(name, ()), []).append(name)
    with tempfile.TemporaryDirectory() as folder:
        for more, names in groups.items():
            sweep = [
                "run",
                "-m",
                f"method={','.join(names)}",
                *SETTINGS,
                *more,
                f"results_dir={folder}/results",
            ]
            command = "import sys; from adalora_bench.cli import main; sys.exit(main(sys.argv[1:]))"
            environment = os.environ | {
                "PYTHONPATH": str(code),
                "OMP_NUM_THREADS": "1",
                "HF_HUB_OFFLINE": "1",
            }
            done = subprocess.run(
                [sys.executable, "-c", command, *sweep],
                cwd=folder,
                env=environment,
                capture_output=True,
                text=True,
            )
            # 1: what a method promises did not happen; its record is compared too
            if done.returncode not in (0, 1):
                raise RuntimeError(
                    f"{', '.join(names)}: exit code {done.returncode}\n{done.stdout}{done.stderr}"
                )
        paths = (Path(folder) / "results" / "runs").glob("*/*/*/*/seed0/record.json")
        units = [_left(path.parent) for path in sorted(paths)]
    # in the order of the paths, so of the names
    return {unit["record"]["names"]["method"]: unit for unit in units}


def _left(unit: Path) -> dict[str, Any]:
    record = json.loads((unit / "record.json").read_text())
    record = {name: value for name, value in record.items() if name not in TIMES}
    record["config"]["backbone"].pop("_target_")  # a class may move to another module
    adapter = unit / "adapter.safetensors"
    return {
        "key": record["key"],
        "steps": [json.loads(line) for line in (unit / "steps.jsonl").read_text().splitlines()],
        "adapter": hashlib.sha256(adapter.read_bytes()).hexdigest() if adapter.exists() else None,
        "predictions": gzip.decompress((unit / "predictions.jsonl.gz").read_bytes()).decode(),
        "record": record,
    }


def compare(revision: str) -> int:
    """Both checkouts on this machine, each in processes of its own."""
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder) / "code.tar"
        subprocess.run(
            ["git", "archive", "--format=tar", f"--output={archive}", revision], cwd=ROOT, check=True
        )
        with tarfile.open(archive) as tar:
            tar.extractall(Path(folder) / "code", filter="data")
        other, ours = trace(Path(folder) / "code"), trace(ROOT)
    status = 0
    for name in sorted(other.keys() | ours.keys()):
        if name not in other or name not in ours:
            print(f"{name}: only {'here' if name in ours else f'in {revision}'}", flush=True)
            continue
        there, here = other[name], ours[name]
        fields = sorted(there["record"].keys() | here["record"].keys())
        differing = [part for part in here if part != "record" and here[part] != there[part]]
        differing += [field for field in fields if here["record"].get(field) != there["record"].get(field)]
        status = 1 if differing else status
        said = f"differs in {', '.join(differing)}" if differing else "identical"
        print(f"{name}: {len(here['steps'])} steps, {said} ({revision} and here)", flush=True)
    return status


if __name__ == "__main__":
    sys.exit(main())
