"""What every method promises, for every conf/method/*.yaml on every tiny backbone (DESIGN section 12)."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from identical import assert_close, assert_identical
from tiny_runs import (
    PAIRS,
    REPEATED,
    SEED,
    TEXT,
    begin,
    dropout,
    finish,
    interrupted,
    is_thorough,
    logits_of,
    training_loss,
    watched,
)
from torch import nn

from adalora_bench.methods import peft
from adalora_bench.models import fused
from adalora_bench.train import loop


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    once = metafunc.function is test_two_runs_of_one_seed_are_identical
    metafunc.parametrize(("method", "backbone"), REPEATED if once else PAIRS)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of the trainings that several checks share."""
    yield tmp_path_factory.mktemp("contract")
    watched.cache_clear()


def test_output_is_unchanged_at_the_start(method: str, backbone: str, shared: Path) -> None:
    # A reserve contributes about scale * 1e-5 * 0.02^2 of the input from the start.
    run = watched(method, backbone, shared)
    bare = logits_of(run.course.training, run.bare)
    if not run.course.training.method.starts_unchanged:
        assert not torch.allclose(run.logits, bare, rtol=0, atol=1e-6), (
            "the method promises less than it keeps"
        )
        return
    torch.testing.assert_close(
        run.logits, bare, rtol=0, atol=1e-5 * float(bare.abs().max()) if backbone in TEXT else 1e-6
    )


def test_only_declared_parameters_move(method: str, backbone: str, shared: Path) -> None:
    run = watched(method, backbone, shared)
    state = run.course.training.run
    declared = {id(p) for step in (run.start, *run.course.steps) for p in step.grouped}
    if run.course.training.method.moves_base:
        declared |= {id(layer.base.weight) for layer in state.adapters.values()}
    if run.course.training.method.architecture_share:  # gates that learn from rows of their own
        declared |= {id(p) for name, p, _ in run.before if name.endswith(".gate")}
    for name, p, before in run.before:
        if id(p) not in declared:
            assert torch.equal(p, before), f"{name} moved"


def test_adapter_methods_leave_the_backbone_bit_identical(method: str, backbone: str, shared: Path) -> None:
    run = watched(method, backbone, shared)
    state, training = run.course.training.run, run.course.training
    if not state.adapters or training.method.moves_base:
        assert training.method.moves_base or any(
            not torch.equal(p, before) for _, p, before in run.before if not _is_in(p, state.head)
        ), "neither an adapter nor the backbone moves"
        return
    inside = [p for layer in state.adapters.values() for p in layer.blocks.parameters()]
    inside += [layer.out_gate for layer in state.adapters.values() if layer.out_gate is not None]
    known = {id(p) for p in [*inside, *state.head]}
    start_blocks = {name for name, p, _ in run.before if ".blocks." in name}
    for name, p, before in run.before:
        if id(p) not in known and name not in start_blocks:
            assert torch.equal(p, before), f"{name} moved"
            assert not p.requires_grad, f"{name} trains"


def test_head_moves(method: str, backbone: str, shared: Path) -> None:
    run = watched(method, backbone, shared)
    before = {id(p): value for _, p, value in run.before}
    assert bool(run.course.training.run.head) == (backbone not in TEXT)  # text needs no head
    for p in run.course.training.run.head:
        assert not torch.equal(p, before[id(p)])


def test_optimizer_holds_exactly_what_trains(method: str, backbone: str, shared: Path) -> None:
    run = watched(method, backbone, shared)
    for number, step in enumerate([run.start, *run.course.steps]):
        held = [id(p) for p in step.grouped]
        assert len(held) == len(set(held)), f"a parameter is held twice after step {number}"
        assert set(held) == {id(p) for p in step.trainable}, f"after step {number}"


def test_budget_holds_at_every_step(method: str, backbone: str, shared: Path) -> None:
    run = watched(method, backbone, shared)
    totals = [sum(step.ranks.values()) for step in run.course.steps]
    assert len(totals) == run.course.record["total_steps"] == run.course.record["steps"] == 30
    assert max(totals) <= max(sum(run.start.ranks.values()), totals[-1])


def test_record_counts_what_is_there(method: str, backbone: str, shared: Path) -> None:
    run = watched(method, backbone, shared)
    record, steps, state = run.course.record, run.course.steps, run.course.training.run
    end = run.course.end
    assert end is not None
    bare = dict(run.bare.named_parameters())
    # the wrapped layer stands below `base`, in peft's wrappers below `base_layer`
    kept = [
        p
        for name, p in state.model.named_parameters()
        if name.replace(".base_layer.", ".").replace(".base.", ".") not in bare
    ]
    # every storage once, in full: VeRA's layers share theirs
    storages = {
        p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() // p.itemsize for p in kept if p.numel()
    }
    stored = sum(storages.values())
    assert record["params"] == {
        "total": sum(p.numel() for p in run.bare.parameters()),
        "head": sum(p.numel() for p in state.head),
        "adapter_initial": run.start.trained_numbers,
        "adapter_final": end.trained_numbers,
        "adapter_average": round(sum(s.trained_numbers for s in steps) / len(steps), 1),
        "stored_final": stored,
        "trace": changes([step.trained_numbers for step in steps]),
    }
    adapted = bool(state.adapters)
    assert {name: value for name, value in record["ranks"].items() if name != "nonzero"} == {
        "initial_total": sum(run.start.ranks.values()) if adapted else None,
        "final_total": sum(end.ranks.values()) if adapted else None,
        "final": end.ranks,
        "trace": changes([sum(step.ranks.values()) for step in steps]),
    }


def test_record_tells_how_far_the_weights_turned(method: str, backbone: str, shared: Path) -> None:
    run = watched(method, backbone, shared)
    state, found, turned = run.course.training.run, run.course.record["cosine"], {}
    for name in state.modules:
        module = state.model.get_submodule(name)
        own = dict(module.named_parameters(recurse=False))
        after = module.merge().weight if name in state.adapters else own.get("weight")
        if name in state.adapters or (after is not None and after.requires_grad):
            flat = [p.detach().double().flatten() for p in (run.bare.get_submodule(name).weight, after)]
            turned[name] = 1 - float(torch.nn.functional.cosine_similarity(*flat, dim=0))
    assert {name: 1 - value for name, value in found.items()} == pytest.approx(turned, rel=1e-3, abs=1e-10)
    assert not turned or max(turned.values()) > 1e-7


def changes(values: list[int]) -> list[list[int]]:
    """[index, value] wherever a value differs from the one before."""
    return [[i, value] for i, value in enumerate(values) if i == 0 or value != values[i - 1]]


def test_every_change_of_structure_is_an_event(method: str, backbone: str, shared: Path) -> None:
    run = watched(method, backbone, shared)
    events = run.course.record["events"]
    before = run.start
    for number, step in enumerate(run.course.steps):
        here = [event for event in events if event["step"] == number]
        changed = {
            (name, before.ranks[name], rank)
            for name, rank in step.ranks.items()
            if rank != before.ranks[name]
        }
        logged = {(e["module"], e["before"], e["after"]) for e in here if e["kind"] in ("grow", "prune")}
        assert logged == changed, f"step {number}"
        if step.trained_tensors != before.trained_tensors:
            assert here, f"what trains changed in step {number} and no event says so"
        before = step


def test_loss_falls(method: str, backbone: str, shared: Path) -> None:
    run = watched(method, backbone, shared)
    # what a random model says of the next byte hangs on its frozen output layer; a head learns its offset at once
    least = 0.95 if backbone in TEXT else 0.7
    assert training_loss(run.course.training) < least * run.loss


def test_promise_is_kept(method: str, backbone: str, shared: Path) -> None:
    run = watched(method, backbone, shared)
    if (
        run.course.record["status"] != "collapsed" or backbone not in TEXT
    ):  # a random model may say one thing alone
        assert (run.course.record["status"], run.course.record["reason"]) == ("ok", None)
    run.course.training.method.check(run.course.training.run)


def test_merged_model_gives_the_same_logits(method: str, backbone: str, shared: Path) -> None:
    training = watched(method, backbone, shared).course.training
    merged = copy.deepcopy(training.run.model)
    for name, layer in training.run.adapters.items():
        parent, _, child = name.rpartition(".")
        setattr(merged.get_submodule(parent), child, layer.merge())
        assert layer.rank == 0 or bool(layer.delta().any()), f"{name} did not move"
    if isinstance(training.method, peft.Peft):
        peft.merge(merged)
    fused.fuse(merged)  # GPT-2's q, k and v are one matrix again
    assert not any(isinstance(module, fused.SplitProjection) for module in merged.modules())
    adapted = logits_of(training, training.run.model)
    torch.testing.assert_close(logits_of(training, merged), adapted, rtol=1e-5, atol=1e-5)


def test_resumed_equals_uninterrupted(method: str, backbone: str, shared: Path, tmp_path: Path) -> None:
    whole = watched(method, backbone, shared).course
    total = whole.record["total_steps"]
    changes = sorted({event["step"] for event in whole.record["events"]})
    stops = {total - 1} | ({10} if not changes else {changes[-1] + 1})
    for step in changes[:1]:
        stops |= {step, step + 1, step + 2}  # with the change ahead, just made, and one step old
    if not is_thorough(method, backbone):
        stops = {min(changes[0] + 1, total - 1) if changes else 10}
    resumed = interrupted(method, backbone, tmp_path, sorted(stops & set(range(1, total))))
    assert_identical(resumed, whole)


def test_two_runs_of_one_seed_are_identical(method: str, backbone: str, shared: Path, tmp_path: Path) -> None:
    assert_identical(
        finish(begin(method, backbone, tmp_path, *dropout(backbone))),
        watched(method, backbone, shared).course,
    )


def test_four_micro_batches_equal_one(method: str, backbone: str, tmp_path: Path) -> None:
    """In float64, for Adam turns the rounding of a tiny gradient into a step of full length."""
    models = []
    for pieces in (1, 4):
        training = begin(
            method, backbone, tmp_path / str(pieces), f"train.micro_batches={pieces}", "scale.max_length=48"
        ).training
        training.run.model.double()
        for _ in range(8 if is_thorough(method, backbone) else 4):
            loop.training_step(
                training.method, training.run, training.data, SEED, training.loop_settings, training.meter
            )
        models.append(training.run.model.state_dict())
    assert_close(models[0], models[1], 1e-6)


def _is_in(p: nn.Parameter, params: list[nn.Parameter]) -> bool:
    return any(p is other for other in params)
