"""Two trainings that must be the same, bit for bit: what is compared, and what may differ."""

from __future__ import annotations

import json
from typing import Any

import torch
from tiny_runs import Course
from torch import Tensor

VOLATILE = ("seconds", "peak_memory_bytes", "finished", "git")  # git: someone may commit meanwhile


def assert_identical(a: Course, b: Course) -> None:
    """Bit for bit: weights, optimizer, generators, scratch, record, log and artefacts."""
    one, other = a.training.run, b.training.run
    assert_close(one.model.state_dict(), other.model.state_dict(), 0)
    assert_close(optimizer_state(a), optimizer_state(b), 0)
    assert a.rng is not None
    assert b.rng is not None
    assert torch.equal(a.rng, b.rng)
    assert torch.equal(one.generator.get_state(), other.generator.get_state())
    assert comparable(one.scratch) == comparable(other.scratch)
    assert steady(a.record) == steady(b.record)
    for name in ("steps.jsonl", "predictions.jsonl.gz", "adapter.safetensors"):
        files = [course.training.folder / name for course in (a, b)]
        assert files[0].exists() == files[1].exists(), name
        if files[0].exists():
            assert files[0].read_bytes() == files[1].read_bytes(), name
    assert (a.training.folder / "steps.jsonl").exists()


def assert_close(a: dict[str, Tensor], b: dict[str, Tensor], tolerance: float) -> None:
    assert list(a) == list(b)
    for name in a:
        assert a[name].dtype == b[name].dtype, name
        if tolerance == 0:
            assert torch.equal(a[name], b[name]), name
        else:
            torch.testing.assert_close(
                a[name], b[name], rtol=0, atol=tolerance, msg=lambda text, name=name: f"{name}: {text}"
            )


def optimizer_state(course: Course) -> dict[str, Tensor]:
    """All that the optimizer holds, as tensors by name; group settings included."""
    run = course.training.run
    assert run.optimizer is not None
    names = {id(p): name for name, p in run.model.named_parameters()}
    out: dict[str, Tensor] = {}
    for number, group in enumerate(run.optimizer.param_groups):
        for p in group["params"]:
            for slot, value in run.optimizer.state.get(p, {}).items():
                out[f"{number}.{names[id(p)]}.{slot}"] = value
        for key in ("peak_lr", "weight_decay", "born", "warmup"):  # the rate itself is set in every step
            out[f"{number}.{group['name']}.{key}"] = torch.tensor(group[key], dtype=torch.float64)
    return dict(sorted(out.items()))


def steady(record: dict[str, Any]) -> dict[str, Any]:
    plain = json.loads(json.dumps(record))
    return {key: value for key, value in plain.items() if key not in VOLATILE}


def comparable(scratch: dict[str, Any]) -> dict[str, Any]:
    return {
        key: (str(value.dtype), value.tolist()) if isinstance(value, Tensor) else value
        for key, value in scratch.items()
    }
