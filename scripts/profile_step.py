"""What one training step costs: every method beside its peers, a floor and full fine-tuning.

python scripts/profile_step.py --shape both --rounds 7 --out profile.json
python scripts/profile_step.py --shape bert --methods lora,peft_lora --rounds 3

All contenders run interleaved in one process with one thread: in each round each makes one step, in the opposite order
in every other round. A step is that of adalora_bench/train/loop.py with every hook of the method; peers go through the
same loop, with fused AdamW and dropout 0 for everybody. Seconds are CPU time of the process. Ratios are paired (divided
by the reference's step of the same round), their median over the rounds counts; below 5 % no difference is a finding.

floor         the frozen model with one trainable vector on the output of the embeddings, and the head
FLOPs         matrix products and attention of one step, as torch counts them, also inside custom autograd functions
saved MB      unique storages that wait for backward; parameters and buffers, which are there anyway, not counted
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import platform
import sys
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

from profile_contenders import CONTENDERS, SHAPES, TARGETS, Contender, Shape  # noqa: E402

from adalora_bench import forms  # noqa: E402
from adalora_bench.data.sources import Found  # noqa: E402
from adalora_bench.methods.base import Method  # noqa: E402
from adalora_bench.methods.run import OptimizerSettings, Run  # noqa: E402
from adalora_bench.settings.compose import compose_cells  # noqa: E402
from adalora_bench.settings.config import build  # noqa: E402
from adalora_bench.train import loop  # noqa: E402
from adalora_bench.train.meter import Meter, count_flops  # noqa: E402

MARGIN = 1.05  # a miss counts beyond 5 %


@dataclass
class Entry:
    """A contender that is built, and what was measured of it."""

    method: Method
    run: Run
    data: loop.Data
    settings: loop.LoopSettings
    meter: Meter = field(default_factory=Meter)
    seconds: list[float] = field(default_factory=list)
    flops: int = 0
    saved: int = 0

    def step(self) -> None:
        loop.training_step(self.method, self.run, self.data, 0, self.settings, self.meter)

    def timed_step(self) -> None:
        start = time.process_time()
        self.step()
        self.seconds.append(time.process_time() - start)

    def count(self) -> int:
        """Operations of one more step."""
        with count_flops(self.meter):
            self.step()
        return self.meter.flops["first_step"]

    def forward(self) -> Tensor:
        """The logits of one batch, with what backward needs; nothing else happens at that time."""
        self.method.before_forward(self.run)
        micro = self.data.form.collate(self.data.train, range(self.settings.batch_size))
        logits: Tensor = self.run.model(**micro.inputs)
        return logits


def saved_bytes(forward: Callable[[], Tensor], model: nn.Module) -> int:
    """Bytes of the storages that wait for backward after a forward pass; what is kept twice counts once."""
    there = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    kept: dict[int, Tensor] = {}  # holds the tensors, so that no address is used again

    def pack(tensor: Tensor) -> Tensor:
        address = tensor.untyped_storage().data_ptr()
        tensor = tensor.detach()  # an output that led back to its own node would never be freed
        if address not in there:
            kept.setdefault(address, tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        forward()
    return sum(t.untyped_storage().nbytes() for t in kept.values())


class Bench:
    """The contenders of one shape. What is frozen is in memory once."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self.entries: dict[str, Entry] = {}
        found = Found(served_by="generated", folder=None, files={}, detail="")
        self.backbone = self._composed(["method=lora"], "backbone")
        tokenizer = self.backbone.tokenizer(found)  # read for its padding alone
        self.form = forms.make(self._composed(["method=lora"], "task"), self.backbone, tokenizer)
        self.loaded = self.backbone.load(found, kind=self.form.kind, outputs=self.form.outputs, head_seed=0)

    def _composed(self, overrides: list[str], part: str) -> Any:
        shape = [f"backbone.{key}={value}" for key, value in self.shape.settings.items()]
        (cell,) = compose_cells(
            ["task=toy", "scale=smoke", f"backbone={self.shape.backbone}", *shape, *overrides]
        )
        return build(cell.config[part], part)

    def _model(self, *, own_weights: bool) -> tuple[nn.Module, list[nn.Parameter]]:
        """A copy of the model and its head; what is not the head's is shared unless `own_weights`."""
        head = {id(p) for p in self.loaded.head}
        copies: dict[int, Any] = {}
        if not own_weights:
            copies = {
                id(p): nn.Parameter(p.data) for p in self.loaded.model.parameters() if id(p) not in head
            }
        model = deepcopy(self.loaded.model, copies)
        return model, [copies[id(p)] for p in self.loaded.head]

    def build(self, contender: Contender) -> Entry:
        """A model of its own, begun as the runner begins it."""
        model, head = self._model(own_weights=contender.own_weights)
        given = contender.method
        method: Method = self._composed(given, "method") if isinstance(given, list) else given()
        run = Run(
            model,
            self.loaded.modules,
            total_steps=10_000,
            steps_per_epoch=100,
            settings=OptimizerSettings(),
            generator=torch.Generator().manual_seed(0),
            head=head,
        )
        loop.begin(method, run)
        run.model.train()
        if contender.ranks:
            self._grow(method, run, contender.ranks)
        return Entry(
            method, run, self._data(16 * self.shape.batch, self.shape.length), settings(self.shape.batch)
        )

    def _grow(self, method: Method, run: Run, ranks: int) -> None:
        """Steps on tiny batches until every module has `ranks` ranks, then no growth any more."""
        entry = Entry(method, run, self._data(2, 4), settings(1))
        while run.total_rank < ranks * len(run.adapters):
            entry.step()
        run.scratch["interval"] = run.total_steps

    def _data(self, rows: int, length: int) -> loop.Data:
        draw = torch.Generator().manual_seed(0)
        vocabulary = self.shape.settings["config.vocab_size"]
        ids = torch.randint(5, vocabulary, (rows, length), generator=draw).tolist()
        train = [{"input_ids": row, "label": i % 2, "length": length} for i, row in enumerate(ids)]
        return loop.Data(train=train, form=self.form, device=torch.device("cpu"))

    def measure(self, rounds: int) -> None:
        """What is counted, in a first step of each that warms up; then the rounds."""
        entries = list(self.entries.values())
        for entry in entries:
            entry.flops, entry.saved = entry.count(), saved_bytes(entry.forward, entry.run.model)
        for number in range(rounds):
            gc.collect()
            for entry in entries if number % 2 == 0 else entries[::-1]:
                entry.timed_step()
            print(f"round {number + 1} of {rounds}", file=sys.stderr, flush=True)

    def ratio(self, name: str, reference: str) -> float:
        """Median of the paired ratios."""
        pairs = zip(self.entries[name].seconds, self.entries[reference].seconds, strict=True)
        return median(a / b for a, b in pairs)

    def rows(self) -> dict[str, dict[str, Any]]:
        floor = self.entries["floor"]
        return {
            name: {
                "seconds": median(entry.seconds),
                "to_floor": self.ratio(name, "floor"),
                "flops": entry.flops,
                "flops_to_floor": entry.flops / floor.flops,
                "saved_bytes": entry.saved,
                "all_seconds": entry.seconds,
            }
            for name, entry in self.entries.items()
        }


def settings(batch: int) -> loop.LoopSettings:
    return loop.LoopSettings(
        batch_size=batch,
        micro_batches=1,
        max_grad_norm=1.0,
        eval_every=0,
        eval_at_start=False,
        log_every=1,
        precision="fp32",
    )


def verdicts(name: str, bench: Bench) -> list[dict[str, Any]]:
    """The targets of this shape whose two sides were measured."""
    found = []
    for shape, method, reference, limit in TARGETS:
        if shape == name and {method, reference} <= set(bench.entries):
            ratio = bench.ratio(method, reference)
            over = ratio / limit
            verdict = "met" if over <= 1 else f"missed by {100 * (over - 1):.1f} %"
            if 1 < over <= MARGIN:
                verdict += " (within the 5 %)"
            found.append(
                {"method": method, "reference": reference, "ratio": ratio, "limit": limit, "verdict": verdict}
            )
    return found


def report(name: str, bench: Bench, targets: list[dict[str, Any]]) -> str:
    shape = bench.shape
    lines = [
        f"{name}: {shape.batch} x {shape.length} tokens",
        f"{'':18} {'CPU s':>7} {'x floor':>8} {'FLOPs x':>8} {'saved MB':>9}",
    ]
    for row, m in bench.rows().items():
        lines.append(
            f"{row:18} {m['seconds']:7.3f} {m['to_floor']:8.3f} {m['flops_to_floor']:8.3f} "
            f"{m['saved_bytes'] / 1e6:9.1f}"
        )
    for t in targets:
        lines.append(
            f"{t['method']} / {t['reference']}: {t['ratio']:.3f}, at most {t['limit']:.2f}: {t['verdict']}"
        )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=[*SHAPES, "both"], default="bert")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--methods", help=f"some of {', '.join(CONTENDERS)} (the floor always runs)")
    parser.add_argument("--out", type=Path, help="write the measurements as JSON")
    arguments = parser.parse_args()
    names = list(CONTENDERS) if arguments.methods is None else ["floor", *arguments.methods.split(",")]
    unknown = [name for name in names if name not in CONTENDERS]
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)}; valid: {', '.join(CONTENDERS)}")
    names = list(dict.fromkeys(names))
    if importlib.util.find_spec("loralib") is None and "loralib" in names:
        print("loralib is not installed, so its row is missing (pip install loralib==0.1.2)", file=sys.stderr)
        names.remove("loralib")

    torch.set_num_threads(1)
    results = {}
    for name in SHAPES if arguments.shape == "both" else [arguments.shape]:
        bench = Bench(SHAPES[name])
        bench.entries = {row: bench.build(CONTENDERS[row]) for row in names}
        bench.measure(arguments.rounds)
        targets = verdicts(name, bench)
        print(report(name, bench, targets), flush=True)
        results[name] = {"rows": bench.rows(), "targets": targets}
    if arguments.out:
        about = {"torch": torch.__version__, "machine": platform.machine(), "rounds": arguments.rounds}
        arguments.out.write_text(json.dumps(about | {"shapes": results}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
