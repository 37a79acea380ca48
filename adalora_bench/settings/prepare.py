"""What is known of a cell before it trains: its rows, its assets, its key and its step counts. Imports no torch."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from adalora_bench import forms, metrics
from adalora_bench.data.sources import MODEL, Found, Places, Wanted, ensure, find
from adalora_bench.data.tasks import take
from adalora_bench.errors import UserError, unknown
from adalora_bench.models import four_bit, gradient_checkpointing
from adalora_bench.settings.compose import accelerators
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
        subset: a sentence where this is less than the official data, else None.
    """

    train: Rows
    report: dict[str, Rows]
    dev: dict[str, Rows]
    counts: dict[str, int | None]
    subset: str | None


def places_of(config: dict[str, Any]) -> Places:
    """Folders and the wish to be offline, from a cell's config and the environment."""
    return Places.from_environment(data_dir=config["data_dir"], offline=config["offline"])


def assets(cells: Iterable[Cell], places: Places) -> dict[str, Found]:
    """Everything that these cells read, fetched where it is missing, by name of task or backbone.

    Raises:
        AssetError: names all that is missing and what to do.
    """
    return ensure(list(_wanted(cells)), places)


def look(cells: Iterable[Cell], places: Places) -> dict[str, Found]:
    """The part of `assets` that is on this machine already. Opens no socket."""
    found = {}
    for want in _wanted(cells):
        here = find(want.source, places, splits=want.splits, kind=want.kind, optional=want.optional)
        if here is not None:
            found[want.name] = here
    return found


def _wanted(cells: Iterable[Cell]) -> Iterable[Wanted]:
    wanted: dict[str, Wanted] = {}
    for cell in cells:
        wanted[cell.names["task"]] = cell.task.wanted(cell.names["task"], cell.config["split"])
        wanted[cell.names["backbone"]] = Wanted(
            name=cell.names["backbone"], source=cell.backbone.source, kind=MODEL
        )
    return wanted.values()


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
    return CellRows(
        train=train,
        report=report,
        dev=dev,
        counts=counts | {"official_train": task.official_rows.get(task.train_split)},
        subset=task.subset_note(
            task.available(found, split), train_limit=train_limit, report_limit=report_limit
        ),
    )


def row_limits(cell: Cell) -> tuple[int | None, int | None]:
    """Caps on the training and on the report rows; None is no cap."""
    train, scale = cell.train, cell.scale
    return _least(train.train_rows, scale.max_train_rows), _least(train.report_rows, scale.max_eval_rows)


def _least(*caps: int | None) -> int | None:
    given = [cap for cap in caps if cap is not None]
    return min(given) if given else None


def keyed(cells: Iterable[Cell], found: dict[str, Found]) -> list[Cell]:
    """The cells with their content keys. The caps stand in the settings, so rows are fingerprinted without them."""
    prints: dict[str, str] = {}
    with_keys: dict[str, Cell] = {}  # a sweep may say one cell in two ways: method.lr=1e-3,0.001
    for cell in cells:
        same_rows = digest([cell.config["task"], cell.config["split"]])
        if same_rows not in prints:
            prints[same_rows] = cell.task.fingerprint(found[cell.names["task"]], cell.config["split"])
        weights = weights_identity(found[cell.names["backbone"]])
        new = with_key(cell, data_fingerprint=prints[same_rows], weights=weights, engine=ENGINE_VERSION)
        with_keys.setdefault(new.key, new)
    return list(with_keys.values())


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


def check_late_failures(cell: Cell, found: dict[str, Found]) -> Facts | None:
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


def facts_of(cell: Cell, found: dict[str, Found]) -> Facts | None:
    """Steps and adapted matrices of a cell; None where the number of training rows is not known."""
    from adalora_bench.methods.base import Facts

    task, method, train = cell.task, cell.method, cell.train
    if cell.names["task"] in found:
        rows = task.counts(found[cell.names["task"]], cell.config["split"])["train"]
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
