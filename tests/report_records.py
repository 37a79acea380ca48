"""Synthetic records, complete enough for every claim and figure: numbers come from formulas, nothing was trained."""

from __future__ import annotations

from hashlib import sha256
from typing import Any

ROLES = {
    "q": "encoder.layer.{i}.attention.self.query",
    "k": "encoder.layer.{i}.attention.self.key",
    "v": "encoder.layer.{i}.attention.self.value",
    "o": "encoder.layer.{i}.attention.output.dense",
    "up": "encoder.layer.{i}.intermediate.dense",
    "down": "encoder.layer.{i}.output.dense",
}
LAYERS, STEPS = 6, 100
METRIC = {"rte": "acc", "mrpc": "acc", "sst2": "acc", "cola": "mcc"}
# method -> (score of seed 0, settings, parameters at the end)
METHODS: dict[str, tuple[float, dict[str, Any], int]] = {
    "lora": (0.80, {"rank": 8}, 300_000),
    "increlora": (0.82, {"orthogonality": 0.1}, 80_000),
    "aflora": (0.81, {"score": "grad", "rank": 4}, 30_000),
    "elora": (0.79, {"rank": 1024}, 40_000),
    "sora": (0.815, {"rank": 8}, 150_000),
    "bitfit": (0.75, {}, 20_000),
}


def record(
    method: str, task: str, seed: int, *overrides: str, gain: float = 0.0, **more: Any
) -> dict[str, Any]:
    """One seed of a cell on deberta_v3_base at cpu scale; `overrides` are settings of the method, "rank=2"."""
    score, settings, params = METHODS[method]
    settings = dict(settings)
    for text in overrides:
        name, _, value = text.partition("=")
        settings[name] = int(value) if value.isdigit() else value
        if name == "rank":
            params = params * int(value) // METHODS[method][1]["rank"]
            gain += 0.002 * (int(value) - METHODS[method][1]["rank"]) ** 0 * int(value).bit_length()
    value = score + gain + 0.004 * ((seed * 2 * (len(method) % 4 + 1)) % 5 - 2) + 0.01 * len(task)
    key = sha256(f"{method} {task} {overrides}".encode()).hexdigest()
    metric = METRIC[task]
    fields: dict[str, Any] = {
        "schema": 1,
        "key": key,
        "settings_key": key,
        "names": {"method": method, "task": task, "backbone": "deberta_v3_base", "scale": "cpu"},
        "overrides": [f"method.{text}" for text in overrides],
        "config": {
            "method": settings,
            "backbone": {"layers": LAYERS, "roles": ROLES},
            "train": {"lr": 0.001},
        },
        "seed": seed,
        "versions": {"engine": 1},
        "data_fingerprint": "d",
        "split": "validation",
        "status": "ok",
        "reason": None,
        "main_metric": metric,
        "final": {"step": STEPS, "epoch": 2.0, "scores": {metric: value}},
        "history": [
            {"step": at, "scores": {metric: value - 0.1 * (1 - at / STEPS) ** 2}}
            for at in range(20, STEPS + 1, 20)
        ],
        "params": {
            "adapter_initial": params,
            "adapter_final": params,
            "adapter_average": params,
            "trace": [[0, params]],
        },
        "ranks": {"initial_total": 36, "final_total": 36, "final": {}, "trace": [[0, 36]]},
        "events": [],
        "cosine": {name: 1 - 1e-6 * (n + seed + len(method)) ** 2 for n, name in enumerate(_names())},
        "gates": {},
        "seconds": {"train": 100.0 + 10 * len(method) + seed, "total": 130.0},
        "flops": {"first_step": 10_000 * len(method)},
        "peak_memory_bytes": 2**30,
        "steps": STEPS,
        "finished": f"2026-01-01T00:00:0{seed}+00:00",
    }
    for name, shape in _SHAPES.get(method, lambda *_: {})(value, seed, metric).items():
        fields[name] = fields[name] | shape if name == "params" else shape
    return fields | more


def diverged(one: dict[str, Any]) -> dict[str, Any]:
    """The same seed, stopped by a NaN."""
    return one | {"status": "diverged", "reason": "the loss is NaN", "final": None, "history": []}


def _names() -> list[str]:
    return [f"body.{pattern.format(i=i)}" for i in range(LAYERS) for pattern in ROLES.values()]


def _growing(_: float, seed: int, __: str) -> dict[str, Any]:
    ranks = {name: 1 + (3 * n + seed) % 5 for n, name in enumerate(_names())}
    trace = [[0, 36], [20 + seed, 50], [40, 72], [60, sum(ranks.values())]]
    return {
        "params": {"trace": [[at, 1200 * total] for at, total in trace]},
        "gates": {name: [0.01 * (k + 1) for k in range(rank)] for name, rank in ranks.items()},
        "ranks": {"initial_total": 36, "final_total": sum(ranks.values()), "final": ranks, "trace": trace},
    }


def _freezing(_: float, seed: int, __: str) -> dict[str, Any]:
    names = [f"{name}.{x}" for name in _names() if "intermediate" in name or ".output" in name for x in "AB"]
    names = [name for name in names if "attention" not in name]
    left = len(names)
    steps = sorted((10 + (13 * n + 5 * seed) % 60, n) for n in range(left))
    events = [
        {"step": at, "kind": "freeze", "module": names[n], "before": left - k, "after": left - k - 1}
        for k, (at, n) in enumerate(steps)
    ]
    trace = [[0, 90_000], *([at, 90_000 - 2_500 * (k + 1)] for k, (at, _) in enumerate(steps))]
    return {"events": events, "params": {"trace": trace}}


def _stages(value: float, seed: int, metric: str) -> dict[str, Any]:
    left = [200 - seed, 120, 60 + seed, 10]
    events = [
        {"step": 25 * (k + 1) - 1, "kind": "stage", "module": "lam=1", "before": 288, "after": n}
        for k, n in enumerate(left)
    ]
    history = [
        {
            "step": 25 * (k + 1),
            "scores": {metric: value - 0.02 * k * k},
            "train_scores": {metric: 0.99 - 0.01 * k - 0.001 * seed},
        }
        for k in range(4)
    ]
    ranks = {name: (5 * n + seed) % 9 for n, name in enumerate(_names())}
    return {
        "events": events,
        "history": history,
        "ranks": {
            "initial_total": 288,
            "final_total": sum(ranks.values()),
            "final": ranks,
            "trace": [[0, 288]],
            "nonzero": [[0, 288, 288_000], *([25 * (k + 1) - 1, n, 1000 * n] for k, n in enumerate(left))],
        },
    }


_SHAPES = {"increlora": _growing, "aflora": _freezing, "sora": _stages}


def everything() -> list[dict[str, Any]]:
    """Five seeds of every method on two tasks, with what the figures by setting need. One seed diverged."""
    cells = [(method, task) for method in METHODS for task in ("rte", "mrpc")]
    records = [record(method, task, seed) for method, task in cells for seed in range(5)]
    more = [
        ("lora", "rank=2"),
        ("lora", "rank=4"),
        ("aflora", "score=weight_times_grad"),
        ("aflora", "score=grad_over_weight"),
        ("elora", "rank=4"),
    ]
    records += [record(method, "rte", seed, text, gain=-0.01) for method, text in more for seed in range(5)]
    return [
        diverged(one) if one["names"]["method"] == "bitfit" and one["seed"] == 3 else one for one in records
    ]
