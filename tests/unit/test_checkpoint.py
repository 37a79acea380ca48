"""Checkpoints: every kind of state comes back as it was; a damaged one gives way to the one before it."""

from __future__ import annotations

import copy
import json
import logging
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from adalora_bench.errors import UserError
from adalora_bench.lowrank.adapter import LowRankLinear, RankBlock
from adalora_bench.methods.run import Group, OptimizerSettings, Run
from adalora_bench.train import checkpoint


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 3)
        self.second = nn.Linear(3, 3)
        self.head = nn.Linear(3, 2)
        self.register_buffer("seen", torch.zeros(2, dtype=torch.int64))


def begun(*, base_dtype: torch.dtype = torch.float32) -> Run:
    """A run as it is right after attach, start and setup: the same every time."""
    torch.manual_seed(0)
    model = Net()
    model.requires_grad_(False)
    model.first.to(base_dtype)
    run = Run(
        model,
        {"first": "q", "second": "v"},
        total_steps=20,
        steps_per_epoch=5,
        settings=OptimizerSettings(
            warmup=2, weight_decay=0.1, betas=(0.9, 0.999), eps=1e-8, schedule="linear"
        ),
        generator=torch.Generator().manual_seed(1),
        head=list(model.head.parameters()),
    )
    for name in ("first", "second"):
        layer = LowRankLinear(getattr(model, name), scale=2.0, role="q")
        layer.append(block(2, layer))
        setattr(model, name, layer)
        run.adapters[name] = layer
    for p in run.head:
        p.requires_grad_(True)
    adapter = [p for p in run.trainable_parameters() if not any(p is h for h in run.head)]
    run.start(
        [
            Group(params=adapter, lr=0.1, name="adapter", warmup=2, weight_decay=0.1),
            Group(params=list(run.head), lr=0.2, name="head", warmup=2, weight_decay=0.0),
        ]
    )
    return run


def block(ranks: int, layer: LowRankLinear, **more: Any) -> RankBlock:
    return RankBlock(
        torch.randn(ranks, layer.in_features),
        torch.randn(ranks, layer.out_features),
        torch.ones(ranks),
        **more,
    )


def step(run: Run) -> None:
    """One optimizer step with made-up gradients."""
    for p in run.trainable_parameters():
        p.grad = torch.randn_like(p)
    run.set_learning_rates()
    assert run.optimizer is not None
    run.optimizer.step()
    run.observe()
    run.advance()


def lived(run: Run) -> Run:
    """All that a method may do to a run."""
    first, second = run.adapters["first"], run.adapters["second"]
    for _ in range(3):
        step(run)
    grown, reserve = (
        first.append(block(3, first, train_gate=True)),
        second.append(block(1, second, reserve=True)),
    )
    reserve.a.requires_grad_(False)
    run.add_params([grown.a, grown.b, grown.gate], lr=0.3, name="grown at step 3")
    run.add_params([reserve.b], lr=0.4, restart_warmup=False, weight_decay=0.0, name="reserve")
    grown.kill(torch.tensor([False, True, False]))
    first.scale = 1 / 3
    second.scale = 0.1
    run.event("grow", "first", 2, 4)
    step(run)
    step(run)
    run.freeze(next(second.rank_blocks()).a)
    for p in run.head:
        run.freeze(p)  # the head's group is empty from now on
    step(run)
    run.model.seen += 7  # type: ignore[operator]
    run.scratch |= {
        "scores": torch.rand(3, dtype=torch.float64),
        "counts": torch.arange(3),
        "mask": torch.tensor([True, False]),
        "scalar": torch.tensor(0.1, dtype=torch.bfloat16),
        "none": torch.zeros(0, 4),
        "interval": 5,
        "share": 0.1 + 0.2,
        "names": ["first"],
        "nested": {"a": [1, None, True]},
    }
    run.normal(3, std=1.0, like=first.weight)
    return run


def state(run: Run) -> dict[str, Any]:
    """Everything that must come back, as plain values; tensors with their types."""

    def plain(value: Any) -> Any:
        return (str(value.dtype), value.tolist()) if isinstance(value, Tensor) else value

    assert run.optimizer is not None
    names = {id(p): name for name, p in run.model.named_parameters()}
    return {
        "model": {name: plain(value) for name, value in run.model.state_dict().items()},
        "trainable": [name for name, p in run.model.named_parameters() if p.requires_grad],
        "blocks": {
            name: [(b.rank, b.alive_ranks, b.reserve) for b in layer.rank_blocks()]
            for name, layer in run.adapters.items()
        },
        "scales": [layer.scale for layer in run.adapters.values()],
        "groups": [
            {
                k: [names[id(p)] for p in v] if k == "params" else v
                for k, v in group.items()
                if k not in ("lr",)  # set anew in every step
            }
            for group in run.optimizer.param_groups
        ],
        "optimizer": {
            names[id(p)]: {slot: plain(value) for slot, value in sorted(slots.items())}
            for p, slots in run.optimizer.state.items()
        },
        "scratch": {key: plain(value) for key, value in run.scratch.items()},
        "events": list(run.events),
        "budget": copy.deepcopy(vars(run.budget)),
        "step": run.step,
        "generators": (run.generator.get_state().tolist(), torch.get_rng_state().tolist()),
    }


def saved(folder: Path, run: Run, extra: dict[str, Any] | None = None) -> Path:
    return checkpoint.save(folder, run, checkpoint.frozen_base_names(run, moves_base=False), extra or {})


def resumed(folder: Path) -> tuple[Run, dict[str, Any]]:
    run = begun()
    torch.manual_seed(77)
    newest = checkpoint.newest(folder)
    assert newest is not None
    return run, checkpoint.restore(run, *newest)


def test_everything_comes_back(tmp_path: Path) -> None:
    run = begun()
    frozen = checkpoint.frozen_base_names(run, moves_base=False)
    lived(run)
    before = state(run)
    checkpoint.save(tmp_path, run, frozen, {"history": [{"acc": 0.1 + 0.2}], "best": None})
    assert state(run) == before, "saving changes nothing"
    again, extra = resumed(tmp_path)
    assert state(again) == before
    assert extra == {"history": [{"acc": 0.1 + 0.2}], "best": None}


def test_goes_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    run = begun()
    frozen = checkpoint.frozen_base_names(run, moves_base=False)
    checkpoint.save(tmp_path, lived(run), frozen, {})
    for _ in range(4):
        step(run)
    again, _ = resumed(tmp_path)
    for _ in range(4):
        step(again)
    assert state(again) == state(run)


def test_factors_keep_their_type_beside_a_base_of_another_type(tmp_path: Path) -> None:
    run = begun(base_dtype=torch.bfloat16)
    saved(tmp_path, run)
    again = begun(base_dtype=torch.bfloat16)
    newest = checkpoint.newest(tmp_path)
    assert newest is not None
    checkpoint.restore(again, *newest)
    assert state(again) == state(run)
    assert next(again.adapters["first"].rank_blocks()).a.dtype == torch.float32


def test_base_weights_are_stored_only_where_they_move(tmp_path: Path) -> None:
    run = begun()
    still, moving = (checkpoint.frozen_base_names(run, moves_base=moves) for moves in (False, True))
    assert still == {"first.base.weight", "first.base.bias", "second.base.weight", "second.base.bias"}
    assert moving == set()
    stored = checkpoint.load_file(saved(tmp_path, run) / "tensors.safetensors")
    assert not [name for name in stored if ".base." in name]
    assert "model.seen" in stored


def test_two_checkpoints_are_kept_and_remains_are_cleared(tmp_path: Path) -> None:
    run = begun()
    (tmp_path / "step00000000").mkdir()
    (tmp_path / "step00000000" / "state.json").write_text("{}")
    for _ in range(4):
        step(run)
        saved(tmp_path, run)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step00000003", "step00000004"]
    saved(tmp_path, run)  # the same step once more
    assert len(checkpoint.whole(tmp_path)) == 2


def test_no_checkpoint(tmp_path: Path) -> None:
    assert checkpoint.newest(tmp_path) is None
    assert checkpoint.newest(tmp_path / "absent") is None
    (tmp_path / "step00000001").mkdir()
    assert checkpoint.newest(tmp_path) is None


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(bytes(content))


def _zero(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


@pytest.mark.fault("R12")
@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json", "COMPLETE"])
@pytest.mark.parametrize("damage", [_truncate, _flip, _zero, Path.unlink])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    tmp_path: Path, name: str, damage: Any, caplog: pytest.LogCaptureFixture
) -> None:
    run = begun()
    step(run)
    saved(tmp_path, run)
    before = state(run)
    step(run)
    damage(saved(tmp_path, run) / name)
    with caplog.at_level(logging.WARNING):
        again, _ = resumed(tmp_path)
    assert again.step == 1
    assert state(again) == before
    if (tmp_path / "step00000002" / "COMPLETE").exists():
        assert "step00000002 is damaged" in caplog.text


@pytest.mark.fault("R12")
def test_both_damaged_starts_anew(tmp_path: Path) -> None:
    run = begun()
    for _ in range(2):
        step(run)
        _truncate(saved(tmp_path, run) / "tensors.safetensors")
    assert checkpoint.newest(tmp_path) is None


def test_the_sums_are_those_of_sha256sum(tmp_path: Path) -> None:
    path = saved(tmp_path, begun())
    subprocess.run(["sha256sum", "--check", "--status", "COMPLETE"], cwd=path, check=True)


def test_a_kill_before_the_end_leaves_the_earlier_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = begun()
    step(run)
    saved(tmp_path, run)
    step(run)

    def killed(path: Path, content: bytes) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "atomic_write", killed)
        with pytest.raises(KeyboardInterrupt):
            saved(tmp_path, run)
    assert resumed(tmp_path)[0].step == 1


def test_contents_are_synced_before_the_mark_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    fsync = os.fsync

    def watch(handle: int) -> None:
        synced.append(Path(os.readlink(f"/proc/self/fd/{handle}")).name.split(".tmp")[0])
        fsync(handle)

    monkeypatch.setattr(os, "fsync", watch)
    saved(tmp_path, begun())
    files = [name.rsplit(".", 1)[0] if name[-1].isdigit() and "." in name else name for name in synced]
    assert files.index("tensors.safetensors") < files.index("state.json") < files.index("COMPLETE")


def test_a_full_disk_is_the_users_to_mend(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        saved(tmp_path / "file", begun())


def test_scratch_holds_tensors_and_json_only(tmp_path: Path) -> None:
    run = begun()
    run.scratch["thing"] = object()
    with pytest.raises(TypeError, match="JSON"):
        saved(tmp_path, run)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["model.head.weight", "model.first.blocks.0.a"])
def test_a_checkpoint_that_lacks_a_tensor_is_refused(tmp_path: Path, name: str) -> None:
    saved(tmp_path, begun())
    newest = checkpoint.newest(tmp_path)
    assert newest is not None
    stored, tensors = newest
    del tensors[name]
    with pytest.raises(ValueError, match="differ"):
        checkpoint.restore(begun(), stored, tensors)


def test_state_is_readable_json(tmp_path: Path) -> None:
    path = saved(tmp_path, lived(begun()))
    assert json.loads((path / "state.json").read_text())["step"] == 6
