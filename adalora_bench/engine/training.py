"""The parts of one unit, built from its config, and its course."""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from adalora_bench.engine.units import Unit
from adalora_bench.errors import Diverged, PromiseBroken, UserError
from adalora_bench.methods.run import adapter_parameters
from adalora_bench.models.backbone import Loaded
from adalora_bench.seeds import derive
from adalora_bench.settings import early, prepare
from adalora_bench.settings.assemble import assemble, form_of, load_backbone
from adalora_bench.store.files import write_tensors
from adalora_bench.store.records import (
    ADAPTER,
    CHECKPOINTS,
    FINISHED,
    PREDICTIONS,
    STEPS,
    append_jsonl,
    atomic_write,
    read_jsonl,
    write_predictions,
)
from adalora_bench.train import checkpoint, loop, parts
from adalora_bench.train.device import check_precision, choose_device
from adalora_bench.train.evaluate import Scoring, is_collapsed
from adalora_bench.train.meter import Meter
from adalora_bench.train.team import ALONE, Team

log = logging.getLogger(__name__)

Notify = Callable[[dict[str, Any]], None]


Stop = Callable[[], int | None]


def with_room(checkpoints: Path, write: Callable[[], object]) -> None:
    """Write what a finished training leaves; where the disk is full, its checkpoint makes room for it."""
    try:
        write()
    except UserError:
        if not checkpoints.exists():
            raise
        shutil.rmtree(checkpoints, ignore_errors=True)
        write()


class Training:
    """The parts of one unit, built from its config, and its course."""

    def __init__(self, unit: Unit, folder: Path, notify: Notify, stop: Stop, team: Team = ALONE) -> None:
        self.unit, self.folder, self.notify, self.stop, self.team = unit, folder, notify, stop, team
        config = unit.cell.config
        self.meter = Meter()
        self.saved_at = time.monotonic()
        self.checkpoints = folder / CHECKPOINTS
        notify({"phase": "load", "step": 0, "total_steps": None})
        with self.meter.phase("load"):
            self.method = unit.cell.method
            self.settings = unit.cell.train
            self.device = choose_device(config["device"])
            check_precision(self.settings.precision, self.device)
            self.found = prepare.assets([unit.cell], prepare.places_of(config))
            self.rows = prepare.rows_of(unit.cell, self.found.task(unit.cell))
            self._encode()
            self.notes = early.check_references(self.unit.cell.task, self.rows.report, self.form.variant)
            self._build()

    # -- building -------------------------------------------------------------------------------------------

    def _encode(self) -> None:
        self.form = form_of(self.unit.cell, self.found)
        self.all_data = loop.Data(
            train=self.form.encode(self.rows.train, train=True), form=self.form, device=self.device
        )
        self.division = parts.divide(len(self.all_data.train), self.method, self.unit.seed)
        self.data = self._only(self.division.weights)

    def _only(self, positions: Sequence[int]) -> loop.Data:
        return replace(self.all_data, train=[self.all_data.train[i] for i in positions])

    def load_backbone(self) -> Loaded:
        """The model as it is before the method is attached."""
        return load_backbone(self.unit.cell, self.unit.seed, self.found, self.form)

    def _build(self) -> None:
        seed, train = self.unit.seed, self.settings
        self.run = assemble(
            self.unit.cell,
            seed,
            self.found,
            self.form,
            rows=len(self.data.train),
            device=self.device,
            reduce=self.team.mean,
        )
        total, per_epoch = self.run.total_steps, self.run.steps_per_epoch
        self.scoring = Scoring(
            form=self.form,
            run=self.run,
            report=self.rows.report,
            dev=self.rows.dev,
            train=self.rows.train,
            split=self.unit.cell.config["split"],
            metric=train.early_stop.metric if train.early_stop else None,
            device=self.device,
            precision=train.precision,
        )
        self.loop_settings = loop.LoopSettings(
            batch_size=train.batch_size,
            micro_batches=train.micro_batches,
            max_grad_norm=train.max_grad_norm,
            eval_every=train.steps("eval_every", total, per_epoch),
            eval_at_start=train.eval_at_start,
            patience=train.early_stop.patience if train.early_stop else 0,
            log_every=train.log_every,
            precision=train.precision,
        )
        self.run.validation = [
            parts.loss_parts(self.run, self.all_data, batch, self.loop_settings)
            for batch in self.division.validation
        ]
        if self.division.architecture:
            kept = self._only(self.division.architecture)
            self.run.arch_parts = parts.architecture_batches(self.run, kept, self.loop_settings, seed)
        torch.manual_seed(derive(seed, "dropout"))
        loop.begin(self.method, self.run)
        self.frozen = checkpoint.frozen_base_names(self.run, moves_base=self.method.moves_base)
        self.initial = {"adapter": adapter_parameters(self.run), "rank": self.run.total_rank}
        newest = checkpoint.newest(self.checkpoints)
        extra = None if newest is None else checkpoint.restore(self.run, *newest)
        if self.team.rank > 0:  # a helper trains along and writes nothing; its dropout is its own
            torch.manual_seed(derive(seed, "dropout", self.team.rank, self.run.step))
            return
        steps = self.folder / STEPS
        if extra is None:
            steps.unlink(missing_ok=True)
            return
        self.scoring.load(extra)
        self.meter.load(extra["meter"])
        rows = [row for row in read_jsonl(steps)[0] if row["step"] < self.run.step]
        atomic_write(steps, "".join(json.dumps(row) + "\n" for row in rows).encode())

    # -- the course -----------------------------------------------------------------------------------------

    def course(self) -> tuple[str, str | None]:
        """Train to the end; the status that a record has, and its reason: a diverged or broken run has one too."""
        call = loop.Callbacks(
            evaluate=self._evaluate,
            log=lambda row: append_jsonl(self.folder / STEPS, row),
            evaluated=self._evaluated,
            milestone=self._milestone,
            stepped=self._stepped,
            stop=self.stop,
        )
        status: str = "ok"
        reason: str | None = None
        try:
            seed, settings = self.unit.seed, self.loop_settings
            loop.train(self.method, self.run, self.data, seed, settings, self.meter, call, self.team)
            self.run.reduce = ALONE.mean  # the others hold the same numbers and have done their part
            loop.finish(self.method, self.run, call)
            if is_collapsed(self.scoring.predicted, self.scoring.labels):
                status, reason = "collapsed", "one and the same answer to every report row"
        except Diverged as error:
            status, reason = "diverged", str(error)
        except PromiseBroken as error:
            status, reason = "failed", str(error)
        if status in FINISHED:
            with_room(self.checkpoints, self._keep_artefacts)
        return status, reason

    def _evaluate(self) -> dict[str, float]:
        self.notify({"phase": "evaluate", "step": self.run.step, "total_steps": self.run.total_steps})
        with self.meter.phase("evaluate"):
            return self.scoring.scores()

    def _milestone(self) -> None:
        with self.meter.phase("evaluate"):
            self.scoring.milestone()

    def _evaluated(self, scores: dict[str, float]) -> int:
        since_best = self.scoring.keep(scores)
        self._progress("train", scores[self.form.main_metric])
        return since_best

    def _stepped(self, row: dict[str, Any], must_save: bool) -> None:
        if self.run.step % max(1, self.run.total_steps // 50) == 0:
            self._progress("train", None, row["loss"])
        due = time.monotonic() - self.saved_at > 60 * self.unit.cell.config["checkpoint_minutes"]
        if must_save or due:
            extra = self.scoring.state() | {"meter": self.meter.state()}
            try:
                checkpoint.save(self.checkpoints, self.run, self.frozen, extra)
            except UserError as error:
                if self.run.step < self.run.total_steps:
                    raise
                log.warning(
                    "no checkpoint before the last evaluation: %s", error
                )  # the training itself is done
            self.saved_at = time.monotonic()

    def _progress(self, phase: str, score: float | None, loss: float | None = None) -> None:
        event = {
            "phase": phase,
            "step": self.run.step,
            "total_steps": self.run.total_steps,
            "metric": self.form.main_metric,
            "rank": self.run.total_rank if self.run.adapters else None,
        }
        self.notify(event | {k: v for k, v in (("score", score), ("loss", loss)) if v is not None})

    # -- what is left of it ---------------------------------------------------------------------------------

    def _keep_artefacts(self) -> None:
        rows = [
            {"set": suffix, "row": i, "prediction": value, "label": label}
            for suffix, values in self.scoring.predicted.items()
            for i, (value, label) in enumerate(zip(values, self.scoring.labels[suffix], strict=True))
        ]
        write_predictions(self.folder / PREDICTIONS, rows)
        tensors = {
            k: v.detach().cpu().contiguous()
            for k, v in self.run.model.state_dict().items()
            if k not in self.frozen
        }
        scales = json.dumps({name: layer.scale for name, layer in self.run.adapters.items()})
        if self.run.adapters:  # a fully trained model is as large as its backbone: not kept
            write_tensors(self.folder / ADAPTER, tensors, {"scales": scales})
