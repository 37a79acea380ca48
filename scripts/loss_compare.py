"""Losses of short trainings, to the last bit: a refactoring must not move them.

python scripts/loss_compare.py --against HEAD      this checkout against a commit; exit code 1 where they differ
python scripts/loss_compare.py --write             replace the stored trace of tests/golden
python scripts/loss_compare.py                     print the trace of this checkout as JSON

On one machine and one torch the comparison is exact. Another CPU may round otherwise, so the test compares to 1e-5.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
STORED = ROOT / "tests" / "golden" / "loss_trace.json"
CODE = "ADALORA_BENCH_COMPARE"  # the checkout whose package is imported; set for the child only
METHODS = ("lora", "increlora")
SETTINGS = (
    "task=toy",
    "backbone=tiny_bert",
    "scale=smoke",
    "train.train_rows=128",
    "train.batch_size=32",
    "train.epochs=3",
    "method.lr=0.01",
)

Trace = dict[str, list[str]]


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
    found = stored_form()
    text = json.dumps(found, indent=1) + "\n"
    if arguments.write:
        STORED.write_text(text)
        print(f"wrote {STORED.relative_to(ROOT)}: read the diff before you keep it")
    else:
        print(text, end="")
    return 0


def stored_form() -> dict[str, Any]:
    """The trace with what it depends on."""
    import torch

    return {"torch": torch.__version__, "cpu": torch.backends.cpu.get_cpu_capability(), "losses": trace()}


def trace() -> Trace:
    """method -> the loss of each step (mean over the rows of its batch), as text that keeps every bit."""
    import torch

    from adalora_bench import prepare
    from adalora_bench.compose import compose_cells
    from adalora_bench.run import Training
    from adalora_bench.train import loop
    from adalora_bench.units import Unit

    torch.set_num_threads(1)
    losses: Trace = {}
    for method in METHODS:
        (cell,) = compose_cells([f"method={method}", *SETTINGS])
        (cell,) = prepare.keyed([cell], prepare.assets([cell], prepare.places_of(cell.config)))
        with tempfile.TemporaryDirectory() as folder:
            training = Training(Unit(cell, 0), Path(folder), lambda event: None, lambda: None)
            steps: list[str] = []
            # commits before forms/ have the losses of a batch in the loop's module
            holder, name = (
                (training.data.form, "losses") if hasattr(training.data, "form") else (loop, "item_losses")
            )
            item_losses = getattr(holder, name)
            for _ in range(training.run.total_steps):
                pieces: list[torch.Tensor] = []

                def watched(
                    *given: Any, pieces: list[torch.Tensor] = pieces, of: Any = item_losses
                ) -> torch.Tensor:
                    pieces.append(of(*given))
                    return pieces[-1]

                setattr(holder, name, watched)
                try:
                    loop.training_step(
                        training.method,
                        training.run,
                        training.data,
                        0,
                        training.loop_settings,
                        training.meter,
                    )
                finally:
                    setattr(holder, name, item_losses)
                steps.append(repr(float(torch.cat(pieces).detach().double().mean())))
        losses[method] = steps
    return losses


def compare(revision: str) -> int:
    """Run both checkouts in processes of their own."""
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder) / "code.tar"
        subprocess.run(
            ["git", "archive", "--format=tar", f"--output={archive}", revision], cwd=ROOT, check=True
        )
        with tarfile.open(archive) as tar:
            tar.extractall(Path(folder) / "code", filter="data")
        other, ours = _child(Path(folder) / "code"), _child(ROOT)
    status = 0
    for method in METHODS:
        pairs = list(zip(other[method], ours[method], strict=False))
        differing = [step for step, (a, b) in enumerate(pairs) if a != b]
        if len(other[method]) != len(ours[method]):
            print(f"{method}: {len(other[method])} steps in {revision}, {len(ours[method])} here")
            status = 1
        elif differing:
            a, b = pairs[differing[0]]
            print(f"{method}: first difference at step {differing[0]}: {a} in {revision}, {b} here")
            status = 1
        else:
            print(f"{method}: {len(pairs)} losses identical to {revision}")
    return status


def _child(code: Path) -> Trace:
    environment = os.environ | {CODE: str(code), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, str(Path(__file__).resolve())],
        env=environment,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    losses: Trace = json.loads(done.stdout)["losses"]
    return losses


if __name__ == "__main__":
    sys.path.insert(0, os.environ.get(CODE, str(ROOT)))
    sys.exit(main())
