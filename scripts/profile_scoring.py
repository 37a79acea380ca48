"""What AB-LoRA scoring costs: brute, exact (prefix replay) and screened, on a MiniLM-L6-shaped model in training.

python scripts/profile_scoring.py --out profile_scoring.json
python scripts/profile_scoring.py --steps 50 --full "" --sample 12        # a quick look
python scripts/profile_scoring.py --weights minilm_l6                     # real weights, where they were fetched

36 matrices of rank 8, a held-out batch of 32 rows with lengths like RTE's (log-normal, mean 67, at most 256), in one
process and one thread. The task is made up: which of two sets of tokens is in the text. The same adapters are scored
after 50, 150 and 400 steps. Seconds are CPU time of the process.

brute, one batch   two plain passes per rank over the whole batch, padded to its longest row; on a sample of the ranks
brute, parts       the same over the length-sorted parts that the runner gives (scorer=brute); on all ranks with --full
exact, one batch   prefix replay over the padded batch; on the sample
exact, parts       prefix replay over the parts (scorer=exact, the default); all ranks
screened, parts    two backward passes, then exact for the lowest 2 n_A (scorer=screened); all ranks

Where a scorer ran on a sample, its seconds are scaled to all ranks; the sample is every k-th rank, so that all depths
count alike. Errors of the loss, and the pruned set, are against brute over the same rows, padded alike.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

from adalora_bench.data.sources import Found  # noqa: E402
from adalora_bench.lowrank.ablation import first_order_losses, plain_losses, replayed_losses  # noqa: E402
from adalora_bench.lowrank.allocate import prune_lowest  # noqa: E402
from adalora_bench.lowrank.scores import ablation_order  # noqa: E402
from adalora_bench.methods.alora import SCREEN, Alora  # noqa: E402
from adalora_bench.methods.run import OptimizerSettings, Run  # noqa: E402
from adalora_bench.models.backbone import Backbone  # noqa: E402
from adalora_bench.settings.compose import compose_cells  # noqa: E402
from adalora_bench.train.loop import begin  # noqa: E402

SHAPE = {
    "layers": 6,
    "config.vocab_size": 30522,
    "config.hidden_size": 384,
    "config.num_hidden_layers": 6,
    "config.num_attention_heads": 12,
    "config.intermediate_size": 1536,
}
ROWS, PIECES, KEYS = 32, 4, 20  # rows of a batch, parts of it, tokens that tell the classes apart
Batch = list[Callable[[], Tensor]]


def lengths(count: int, draw: torch.Generator) -> list[int]:
    """RTE-like: log-normal with mean 67 and the spread of its pairs, 16 to 256."""
    sigma = 0.55
    numbers = torch.randn(count, generator=draw) * sigma + math.log(67) - sigma**2 / 2
    return [int(n) for n in numbers.exp().round().clamp(16, 256)]


class Corpus:
    """Batches of random tokens; 15 % are keys of the text's class, 10 % of any class."""

    def __init__(self, run: Run, seed: int) -> None:
        self.run, self.draw = run, torch.Generator().manual_seed(seed)

    def rows(self, count: int) -> list[tuple[Tensor, int]]:
        rows = []
        for length in lengths(count, self.draw):
            label = int(torch.randint(2, (1,), generator=self.draw))
            ids = torch.randint(1000, 30000, (length,), generator=self.draw)
            keys = 100 + label * KEYS + torch.randint(KEYS, (length,), generator=self.draw)
            slips = 100 + torch.randint(2 * KEYS, (length,), generator=self.draw)
            chance = torch.rand(length, generator=self.draw)
            rows.append((torch.where(chance < 0.15, keys, torch.where(chance < 0.25, slips, ids)), label))
        return rows

    def batch(self, rows: list[tuple[Tensor, int]], pieces: int) -> Batch:
        """The mean loss on these rows as parts, sorted by length, longest first."""
        ordered = sorted(rows, key=lambda row: -len(row[0]))
        size = -(-len(rows) // pieces)
        return [self._part(ordered[i : i + size], len(rows)) for i in range(0, len(rows), size)]

    def _part(self, rows: list[tuple[Tensor, int]], items: int) -> Callable[[], Tensor]:
        ids = nn.utils.rnn.pad_sequence([row for row, _ in rows], batch_first=True)
        mask, labels = (ids > 0).long(), torch.tensor([label for _, label in rows])

        def loss() -> Tensor:
            logits = self.run.model(input_ids=ids, attention_mask=mask)
            return nn.functional.cross_entropy(logits, labels, reduction="sum") / items

        return loss


def built(weights: str | None, total: int) -> tuple[Alora, Run]:
    """ALoRA on the backbone, before its first step."""
    shape = [] if weights else [f"backbone.{key}={value}" for key, value in SHAPE.items()]
    (cell,) = compose_cells(
        [
            "task=toy",
            "scale=smoke",
            f"backbone={weights or 'tiny_bert'}",
            "method=alora",
            "method.lr=2e-3",
            *shape,
        ]
    )
    backbone: Backbone = cell.backbone
    method: Alora = cell.method
    found = Found(served_by="generated", folder=None, files={}, detail="")
    if weights:
        from adalora_bench.settings import prepare

        found = prepare.assets([cell], prepare.places_of(cell.config)).backbone(cell)
    loaded = backbone.load(found, kind="classification", outputs=2, head_seed=0)
    run = Run(
        loaded.model,
        loaded.modules,
        total_steps=total,
        steps_per_epoch=total,
        settings=OptimizerSettings(warmup=total // 16),
        generator=torch.Generator().manual_seed(0),
        head=loaded.head,
    )
    begin(method, run)
    return method, run


def train(run: Run, corpus: Corpus, steps: int, rows: int) -> float:
    """Some steps without rounds; the mean loss of the last ten."""
    assert run.optimizer is not None
    losses = []
    run.model.train()
    for _ in range(steps):
        run.optimizer.zero_grad(set_to_none=True)
        total = 0.0
        for part in corpus.batch(corpus.rows(rows), PIECES):
            loss = part()
            loss.backward()
            total += float(loss.detach())
        run.clip(1.0)
        run.set_learning_rates()
        run.optimizer.step()
        run.advance()
        losses.append(total)
    return sum(losses[-10:]) / len(losses[-10:])


def timed(call: Callable[[], Tensor]) -> tuple[Tensor, float]:
    start = time.process_time()
    value = call()
    return value, time.process_time() - start


def measure(method: Alora, run: Run, corpus: Corpus, *, sample: int, full: bool, seed: int) -> dict[str, Any]:
    """Seconds and errors of every scorer on the adapters as they are."""
    layers, model = list(run.adapters.values()), run.model
    ranks = [(m, r) for m, layer in enumerate(layers) for r in range(layer.rank)]
    some = list(range(seed % max(1, len(ranks) // sample), len(ranks), max(1, len(ranks) // sample)))
    few = [ranks[k] for k in some]
    rows = corpus.rows(ROWS)
    whole, parts = corpus.batch(rows, 1), corpus.batch(rows, PIECES)
    scale, count = len(ranks) / len(few), len(layers)
    seconds: dict[str, float] = {}

    padded, taken = timed(lambda: plain_losses(model, layers, whole, few))
    seconds["brute, one batch"] = taken * scale
    replayed, taken = timed(lambda: replayed_losses(model, layers, whole, few))
    seconds["exact, one batch"] = taken * scale
    brute, taken = timed(lambda: plain_losses(model, layers, parts, ranks if full else few))
    seconds["brute, parts"] = taken * (1 if full else scale)
    exact, seconds["exact, parts"] = timed(lambda: replayed_losses(model, layers, parts, ranks))
    order = ablation_order(*exact.unbind(1))

    run.validation, run.scratch["n_prune"], run.scratch["done"] = [parts], count, 0
    screened = Alora(**vars(method) | {"scorer": "screened"})
    start = time.process_time()
    _, prunable = screened.importance(run)
    seconds["screened, parts"] = time.process_time() - start
    rough = ablation_order(*first_order_losses(model, layers, parts, ranks).unbind(1))

    def lowest(scores: Tensor, n: int = count) -> set[tuple[int, int]]:
        split = [row.tolist() for row in scores.split([layer.rank for layer in layers])]
        pruned = prune_lowest(split, n, grid=method.score_grid)
        return {(m, r) for m, row in enumerate(pruned) for r in row}

    chosen = prune_lowest(prunable, count, grid=method.score_grid)
    by_exact, by_screened = lowest(order), {(m, r) for m, row in enumerate(chosen) for r in row}
    against = exact if full else exact[some]
    result = {
        "seconds": seconds,
        "passes": 2 * len(ranks),
        "sample": len(few),
        "full": full,
        "pruned": count,
        "error_parts": float((against - brute).abs().max()),
        "error_one_batch": float((replayed - padded).abs().max()),
        "error_parts_and_one_batch": float((exact[some] - padded).abs().max()),
        "median_effect": float((order - order.median()).abs().median()),
        "exact_is_brute": len(by_exact & lowest(ablation_order(*brute.unbind(1)))) if full else None,
        "screened_is_exact": len(by_exact & by_screened),
        "first_order_is_exact": len(by_exact & lowest(rough)),
        "exact_in_screen": len(by_exact & lowest(rough, SCREEN * count)),
        "spearman": float(torch.corrcoef(torch.stack([_places(order), _places(rough)]))[0, 1]),
    }
    return result


def _places(scores: Tensor) -> Tensor:
    return scores.argsort().argsort().double()


def table(results: dict[int, dict[str, Any]]) -> str:
    lines = [
        "| after steps (loss) | scorer | CPU s for all ranks | brute, one batch / it | brute, parts / it |",
        "|---|---|---|---|---|",
    ]
    for step, result in results.items():
        seconds = result["seconds"]
        for name, value in seconds.items():
            whole, parts = (seconds[f"brute, {kind}"] / value for kind in ("one batch", "parts"))
            lines.append(
                f"| {step} ({result['loss']:.2f}) | {name} | {value:.1f} | {whole:.2f} | {parts:.2f} |"
            )
    lines += [
        "",
        "| after steps | error of the loss, parts | one batch | pruned as brute | screened as exact "
        "| first order as exact | exact ones in the screen | Spearman |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for step, result in results.items():
        names = ("exact_is_brute", "screened_is_exact", "first_order_is_exact", "exact_in_screen")
        sets = ["not run" if result[k] is None else f"{result[k]} of {result['pruned']}" for k in names]
        errors = [f"{result[k]:.1e}" for k in ("error_parts", "error_one_batch")]
        cells = [str(step), *errors, *sets, f"{result['spearman']:.4f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def steps_of(text: str) -> list[int]:
    return [int(number) for number in text.split(",") if number]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=steps_of, default=[50, 150, 400], help="score after these steps")
    parser.add_argument(
        "--full", type=steps_of, default=[50, 150, 400], help="brute over all ranks after these"
    )
    parser.add_argument("--sample", type=int, default=12, help="ranks for what is not run on all")
    parser.add_argument("--rows", type=int, default=8, help="rows of a training batch")
    parser.add_argument("--weights", help="a backbone of conf/backbone instead of random weights")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="write all numbers here as JSON")
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(given.seed)
    method, run = built(given.weights, max(given.steps) + 1)
    corpus, held_out = Corpus(run, given.seed + 1), Corpus(run, given.seed + 2)
    print(
        f"{len(run.adapters)} matrices, {run.total_rank} ranks, torch {torch.__version__}, one thread",
        flush=True,
    )
    results: dict[int, dict[str, Any]] = {}
    for step in given.steps:
        start = time.process_time()
        loss = train(run, corpus, step - run.step, given.rows)
        print(f"step {step}: loss {loss:.3f}, trained in {time.process_time() - start:.0f} CPU s", flush=True)
        full = step in given.full
        results[step] = {"loss": loss} | measure(
            method, run, held_out, sample=given.sample, full=full, seed=given.seed
        )
        if given.out:
            given.out.write_text(json.dumps(results, indent=1))
    print(table(results))


if __name__ == "__main__":
    main()
