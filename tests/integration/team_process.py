"""One process of a team that trains cells: RANK SIZE FOLDER METHOD[+SETTING]... writes FOLDER/<method>-<rank>.json."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

from adalora_bench.engine.outcome import record_of
from adalora_bench.engine.training import Training
from adalora_bench.engine.units import Unit
from adalora_bench.settings import prepare
from adalora_bench.settings.compose import compose_cells
from adalora_bench.train.team import Team

STEPS = 30
SETTINGS = (
    "task=toy",
    "backbone=tiny_bert",
    "scale=smoke",
    f"scale.max_steps={STEPS}",
    "train.train_rows=96",
    "train.report_rows=8",
    "train.batch_size=16",
    "train.epochs=5",
    "train.eval_every=0",
    "train.log_every=1",
    "method.lr=0.01",
    "backbone.dropout=0",
    "backbone.head_dropout=0",
)
# The search of ALoRA is cut short: every rank is scored by two passes.
ALORA = ("method.rank=2", "method.first_round=4", "method.rounds=2", "method.interval=4")
HALF = ("train.train_rows=160", "train.epochs=10")  # half of the rows are kept for gates
METHOD_SETTINGS = {
    "alora": (*ALORA, "method.validation_rows=4", "train.train_rows=100"),
    "alora_sensi": ALORA,
    "alora_dnas": (*ALORA, *HALF),
    "learned_adapter": HALF,
    "spt": HALF,
    "ssp": HALF,
}


def train(method: str, team: Team, folder: Path) -> dict[str, Any]:
    """The course of one short training: losses, events, ranks and frozen parameters after every step."""
    name, *more = method.split("+")
    settings = (*SETTINGS, *METHOD_SETTINGS.get(name, ()), *more)
    chosen = {text.split("=")[0]: text for text in settings}
    (cell,) = compose_cells([f"method={name}", *chosen.values()])
    (cell,) = prepare.keyed([cell], prepare.assets([cell], prepare.places_of(cell.config)))
    place = folder / f"unit-{method}-{team.rank}"
    training = Training(Unit(cell, 0), place, lambda event: None, lambda: None, team)
    now = training.run
    structure: list[Any] = []
    observe = now.observe

    def observed() -> None:
        observe()
        frozen = [name for name, p in now.model.named_parameters() if not p.requires_grad]
        masks = [
            (block.alive.tolist(), (block.effective_gate() == 0).tolist()) for block in now.rank_blocks()
        ]
        structure.append([{name: layer.rank for name, layer in now.adapters.items()}, masks, hash_of(frozen)])

    now.observe = observed  # type: ignore[method-assign]
    record = record_of(training)
    rows = [json.loads(line) for line in (place / "steps.jsonl").read_text().splitlines()]
    total = sum(float(p.detach().double().abs().sum()) for p in now.model.parameters())
    return {
        "losses": [row["loss"] for row in rows],
        "events": [[e.step, e.kind, e.module, e.before, e.after] for e in now.events],
        "structure": structure,
        "status": [record["status"], record["reason"]],
        "scores": record["final"]["scores"],
        "weights": repr(total),
    }


def hash_of(names: list[str]) -> str:
    import hashlib

    return hashlib.sha256("\n".join(names).encode()).hexdigest()[:16]


def main() -> None:
    torch.set_num_threads(1)
    rank, size, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    if size > 1:
        import torch.distributed as dist

        dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=size)
    for method in sys.argv[4:]:
        told = train(method, Team(rank, size), folder)
        (folder / f"{method}-{rank}.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main()
