"""What is known of a cell before it trains: its rows, its assets, its key and its step counts. Imports no torch."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from adalora_bench import forms, metrics
from adalora_bench.data.sources import MODEL, Found, Places, Wanted, ensure, find
from adalora_bench.data.tasks import take
from adalora_bench.errors import UserError, unknown
from adalora_bench.models import four_bit, gradient_checkpointing
from adalora_bench.settings import early
from adalora_bench.settings.compose import accelerators, merged
from adalora_bench.settings.config import Cell
from adalora_bench.settings.key import digest, with_key

if TYPE_CHECKING:
    from adalora_bench.methods.base import Facts

Rows = list[dict[str, Any]]

ENGINE_VERSION = 1
"""Bump it when the loop or the layer changes results; it is part of every key."""


@dataclass(frozen=True, kw_only=True)
class CellRows:
    """The rows that a cell really uses.

    Args:
        train: after the caps.
        report: suffix of the metric ("" where there is one report set) -> rows, after the caps.
        dev: the same for the rows that choose the best evaluation; empty but for split=dev_test.
        counts: "train", "report" and, where official numbers are known, "official_train".
        subset: a sentence where this is less or other than the official data, else None.
    """

    train: Rows
    report: dict[str, Rows]
    dev: dict[str, Rows]
    counts: dict[str, int | None]
    subset: str | None


def places_of(config: dict[str, Any]) -> Places:
    """Folders and the wish to be offline, from a cell's config and the environment."""
    return Places.from_environment(data_dir=config["data_dir"], offline=config["offline"])


@dataclass(frozen=True)
class Assets:
    """Where the data and weights of cells are. They are looked up by what a cell asks for, not by a name.

    Two cells of one command may ask for different folders, splits or revisions under one name.
    """

    found: dict[str, Found] = field(default_factory=dict)  # Wanted.identity -> place

    def task(self, cell: Cell) -> Found:
        """The data of the cell's task. KeyError: it was not found."""
        return self.found[_task(cell).identity]

    def backbone(self, cell: Cell) -> Found:
        """The weights of the cell's backbone. KeyError: they were not found."""
        return self.found[_backbone(cell).identity]

    def has_task(self, cell: Cell) -> bool:
        return _task(cell).identity in self.found

    def has_backbone(self, cell: Cell) -> bool:
        return _backbone(cell).identity in self.found

    def has_all(self, cell: Cell) -> bool:
        return self.has_task(cell) and _backbone(cell).identity in self.found


def _task(cell: Cell) -> Wanted:
    return cell.task.wanted(cell.names["task"], cell.config["split"])


def _backbone(cell: Cell) -> Wanted:
    return Wanted(name=cell.names["backbone"], source=cell.backbone.source, kind=MODEL)


def wanted(cells: Iterable[Cell]) -> list[Wanted]:
    """All data and weights that these cells read, each once."""
    every = [want for cell in cells for want in (_task(cell), _backbone(cell))]
    return list({want.identity: want for want in every}.values())


def assets(cells: Iterable[Cell], places: Places) -> Assets:
    """Everything that these cells read, fetched where it is missing.

    Raises:
        AssetError: names all that is missing and what to do.
    """
    every = wanted(cells)
    found = ensure(every, places)
    return Assets({want.identity: here for want, here in zip(every, found, strict=True)})


def look(cells: Iterable[Cell], places: Places) -> Assets:
    """The part of `assets` that is on this machine already. Opens no socket."""
    found = {}
    for want in wanted(cells):
        here = find(want.source, places, splits=want.splits, kind=want.kind, optional=want.optional)
        if here is not None:
            found[want.identity] = here
    return Assets(found)


def rows_of(cell: Cell, found: Found) -> CellRows:
    """Load, split and cap the rows of a cell."""
    task = cell.task
    split = cell.config["split"]
    train_limit, report_limit = row_limits(cell)
    loaded = task.load(found, split)
    train = take(loaded.train, train_limit)
    report = {suffix: take(rows, report_limit) for suffix, rows in loaded.report.items()}
    dev = {suffix: take(rows, report_limit) for suffix, rows in loaded.dev.items()}
    counts: dict[str, int | None] = {"train": len(train), "report": sum(map(len, report.values()))}
    counts |= {"dev": sum(map(len, dev.values()))} if dev else {}
    less = task.subset_note(task.available(found, split), train_limit=train_limit, report_limit=report_limit)
    return CellRows(
        train=train,
        report=report,
        dev=dev,
        counts=counts | {"official_train": task.official_rows.get(task.train_split)},
        subset=", ".join(filter(None, (less, task.other_note(found, split)))) or None,
    )


def row_limits(cell: Cell) -> tuple[int | None, int | None]:
    """Caps on the training and on the report rows; None is no cap."""
    train, scale = cell.train, cell.scale
    return _least(train.train_rows, scale.max_train_rows), _least(train.report_rows, scale.max_eval_rows)


def _least(*caps: int | None) -> int | None:
    given = [cap for cap in caps if cap is not None]
    return min(given) if given else None


def keyed(cells: Iterable[Cell], found: Assets) -> list[Cell]:
    """The cells with their content keys, each once with all its seeds; without a key where the assets are missing.

    The caps stand in the settings, so rows are fingerprinted without them. Two names of one key, such as a method and
    its preset, stay two cells: their records lie in folders of their own.
    """
    prints: dict[str, str] = {}
    weights: dict[str, str] = {}
    done: list[Cell] = []
    for cell in cells:
        _ = (cell.method, cell.train, cell.scale)  # a file without a setting says so before it is hashed
        if not found.has_all(cell):
            done.append(cell)
            continue
        same_rows = digest([cell.config["task"], cell.config["split"]])
        if same_rows not in prints:
            prints[same_rows] = cell.task.fingerprint(found.task(cell), cell.config["split"])
        same_weights = _backbone(cell).identity
        if same_weights not in weights:
            weights[same_weights] = weights_identity(found.backbone(cell))
        done.append(
            with_key(
                cell,
                data_fingerprint=prints[same_rows],
                weights=weights[same_weights],
                engine=ENGINE_VERSION,
            )
        )
    return merged(done, lambda cell: (cell.names, cell.key) if cell.key else None)


def weights_identity(found: Found) -> str:
    """What tells these weights from others: the pin of hub or wheel, or the hash of a local folder's model files."""
    if found.served_by != "local" or found.folder is None:
        return found.detail
    hashes = hashlib.sha256()
    for path in sorted(found.folder.iterdir()):  # weights, configuration and tokenizer
        if path.suffix in (".safetensors", ".bin", ".json", ".model", ".txt"):
            with path.open("rb") as file:
                hashes.update(path.name.encode() + hashlib.file_digest(file, "sha256").digest())
    return hashes.hexdigest()


def check_late_failures(cell: Cell, found: Assets) -> Facts | None:
    """Refuse what can only fail late; returns `facts_of` the cell.

    Args:
        found: what is on this machine; without the task's data the official row count is taken.

    Raises:
        UserError: with the numbers.
        AssetError: a metric needs what pip alone does not bring.
    """
    task, backbone, method = cell.task, cell.backbone, cell.method
    forms.check_fit(task, backbone)
    backbone.check_targets(method.targets)
    if backbone.load_in_4bit:
        gpu = cell.config["device"] != "cpu" and bool(accelerators())
        four_bit.check(
            moves_base=method.moves_base,
            refusal=method.no_four_bit,
            architecture=backbone.architecture,
            form=backbone.form,
            random_weights=backbone.source.generated,
            gpu=gpu,
        )
    if backbone.gradient_checkpointing:
        gradient_checkpointing.check(method.no_gradient_checkpointing)
    metrics.require(task.metrics)
    if backbone.source.generated or found.has_backbone(cell):
        early.check_weights(cell, found.backbone(cell).folder if found.has_backbone(cell) else None)
    early_stop = cell.train.early_stop
    chosen = early_stop.metric if early_stop else None
    names = [*task.score_names(forms.variant_on(task, backbone)), "loss"]
    if chosen is not None and chosen not in names:
        raise UserError(unknown("metric in train.early_stop.metric", chosen, names))
    facts = facts_of(cell, found)
    if facts is not None:
        cell.train.steps("eval_every", facts.total_steps, facts.steps_per_epoch)
        method.precheck(facts)
    return facts


def facts_of(cell: Cell, found: Assets) -> Facts | None:
    """Steps and adapted matrices of a cell; None where the number of training rows is not known."""
    from adalora_bench.methods.base import Facts

    task, method, train = cell.task, cell.method, cell.train
    if found.has_task(cell):
        rows = task.counts(found.task(cell), cell.config["split"])["train"]
    elif task.train_split in task.official_rows:
        rows = task.official_rows[task.train_split]
    else:
        return None
    limit, _ = row_limits(cell)
    rows = method.rows_for_weights(rows if limit is None else min(rows, limit))
    total, per_epoch = train.step_counts(rows, cell.scale.max_steps)
    return Facts(
        total_steps=total,
        steps_per_epoch=per_epoch,
        warmup=train.steps("warmup", total, per_epoch),
        modules=cell.backbone.count_modules(method.targets),
    )
