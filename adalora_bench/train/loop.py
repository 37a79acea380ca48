"""THE loop. It knows Method and Run, and no method by name.

method.attach(run); run.start(method.param_groups(run)); method.setup(run)
for step in range(total_steps):
    zero_grad                                   at the top: after_step may still read .grad
    method.before_forward(run)
    for micro in batch:                         length-sorted pieces of one batch
        (sum of its item losses / items of the whole batch).backward()
    several processes: gradients and loss are added up here
    method.penalty(run).backward()              parameters only, once per step
    method.after_backward(run)                  once per step: accumulated, unscaled, unclipped gradients
    clip; learning rates of (step - born); optimizer.step()
    method.after_step(run)
    run.observe()                               the budget
    step += 1; evaluate, checkpoint when due (also where method.milestone(run) says so)
method.finalize(run); evaluate; method.check(run)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from adalora_bench.data.collate import batch_positions, split_by_length
from adalora_bench.errors import Diverged, Interrupted
from adalora_bench.forms.base import Example, Form, MicroBatch
from adalora_bench.methods.base import Method
from adalora_bench.methods.run import Run
from adalora_bench.train.decay import apart, spared
from adalora_bench.train.meter import Meter, count_flops
from adalora_bench.train.team import ALONE, Team


@dataclass(frozen=True, kw_only=True)
class LoopSettings:
    """How the loop cuts, clips and reports; the numbers of train/*.yaml in steps."""

    batch_size: int
    micro_batches: int
    max_grad_norm: float
    eval_every: int  # steps; 0 evaluates at the end only
    eval_at_start: bool  # also before the first step
    patience: int = 0  # evaluations without a new best after which the training ends; 0 never ends it early
    log_every: int
    precision: str


@dataclass(frozen=True, kw_only=True)
class Data:
    """Encoded training rows and how to turn them into tensors."""

    train: list[Example]
    form: Form
    device: torch.device


@dataclass(frozen=True, kw_only=True)
class Callbacks:
    """What the loop tells the world. None of them may change the run."""

    evaluate: Callable[[], dict[str, float]]
    log: Callable[[dict[str, Any]], None]  # one row of steps.jsonl
    evaluated: Callable[
        [dict[str, float]], int
    ]  # keeps history and best; how many evaluations since the best one
    milestone: Callable[[], None]  # the next point of the history gets the scores on the training rows too
    stepped: Callable[[dict[str, Any], bool], None]  # after each step: its row; True: write a checkpoint now
    stop: Callable[[], int | None]  # number of the signal that asks to stop, if any


def begin(method: Method, run: Run) -> None:
    """Everything before the first step."""
    method.attach(run)
    groups = method.param_groups(run)
    run.start(groups if run.settings.decay_biases else apart(groups, spared(run.model)))
    method.setup(run)


def train(
    method: Method,
    run: Run,
    data: Data,
    seed: int,
    settings: LoopSettings,
    meter: Meter,
    call: Callbacks,
    team: Team = ALONE,
) -> None:
    """Run from `run.step` (0, or where a checkpoint left it) to the end.

    Raises:
        Diverged: loss or gradient norm is NaN or infinite.
        Interrupted: `call.stop` named a signal; the checkpoint is written.
    """
    if settings.eval_at_start and run.step == 0:
        call.evaluated(call.evaluate())
    run.model.train()
    while run.step < run.total_steps:
        with meter.phase("train"), count_flops(meter) if run.step == 0 else nullcontext():
            row = training_step(method, run, data, seed, settings, meter, team)
        last = run.step == run.total_steps
        milestone = method.milestone(run)
        if milestone:
            call.milestone()
        if run.step == 1 or last or run.step % settings.log_every == 0:
            call.log(row)
        due = settings.eval_every and run.step % settings.eval_every == 0
        if (due or milestone) and not last:
            since_best = call.evaluated(call.evaluate())
            run.model.train()
            if settings.patience and since_best >= settings.patience:
                return
        signum = call.stop()
        # after the last step too: an evaluation that fails or is killed costs no training
        call.stepped(row, signum is not None or last)
        # after the last step only the evaluation is left: that is finished
        if signum is not None and not last:
            raise Interrupted(signum)


def finish(method: Method, run: Run, call: Callbacks) -> None:
    """After the last step: shrink, evaluate, and ask the method whether it kept its promise.

    A training that stopped early has not run its schedule, so nothing can be asked of it; its record says so.
    """
    method.finalize(run)
    call.evaluated(call.evaluate())
    if run.step == run.total_steps:
        method.check(run)


def training_step(
    method: Method, run: Run, data: Data, seed: int, settings: LoopSettings, meter: Meter, team: Team = ALONE
) -> dict[str, Any]:
    """One optimizer step with every hook in its place. Returns a row for the log."""
    assert run.optimizer is not None
    positions = batch_positions(len(data.train), settings.batch_size, seed, run.step)
    pieces = split_by_length(data.train, positions, settings.micro_batches * team.size)
    items = data.form.items(data.train, positions)

    run.optimizer.zero_grad(set_to_none=True)
    method.before_forward(run)
    losses = []
    for piece in team.share(pieces):
        micro = data.form.collate(data.train, piece)
        meter.count_tokens(micro.real_tokens, micro.processed_tokens)
        part = micro_loss(run, micro.to(data.device), data, items=items, precision=settings.precision)
        part.backward()
        losses.append(part.detach())
    loss = team.add_up(run, losses)
    if not math.isfinite(loss):
        raise Diverged(f"loss is {loss} at step {run.step}")
    penalty = method.penalty(run)
    if penalty is not None:
        penalty.backward()
    method.after_backward(run)

    norm = run.clip(settings.max_grad_norm)
    run.set_learning_rates()
    run.optimizer.step()
    method.after_step(run)
    run.observe()
    row = {
        "step": run.step,
        "loss": round(loss, 6),
        "penalty": None if penalty is None else round(float(penalty.detach()), 6),
        "grad_norm": round(norm, 6),
        "lr": run.lr_of(run.optimizer.param_groups[0]),
        "rank": run.total_rank,
    }
    run.advance()
    return row


def micro_loss(run: Run, micro: MicroBatch, data: Data, *, items: int, precision: str) -> Tensor:
    """The share of one micro-batch, on the device, in the mean loss over the `items` of its whole batch; a scalar."""
    with autocast(data.device, precision):
        logits: Tensor = run.model(**micro.inputs)
    return data.form.losses(logits, micro).sum() / items


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """bf16 autocast where asked for; fp32 leaves everything as it is."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")
