"""What does not depend on the training is found before it: weights against settings, metrics against references.

Imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adalora_bench import forms, metrics
from adalora_bench.data.prompts import references
from adalora_bench.errors import UserError
from adalora_bench.models import files

if TYPE_CHECKING:
    from adalora_bench.data.tasks import Task
    from adalora_bench.models.backbone import Backbone
    from adalora_bench.settings.config import Cell

Report = Mapping[str, Sequence[dict[str, Any]]]


def check_weights(cell: Cell, folder: Path | None) -> None:
    """Do the settings fit these weights? By their files alone.

    Args:
        folder: of the weights; None where they are random.

    Raises:
        UserError: other blocks than `backbone.layers`, inputs longer than the position table, more tokens than
            embeddings, or a role that names no matrix.
    """
    backbone = cell.backbone
    config = files.configuration(folder, backbone.config)
    where = f"the weights in {folder.name}" if folder else f"the random {backbone.architecture}"
    for name, count in files.blocks(config).items():
        if count != backbone.layers:
            raise UserError(
                f"{where} have {count} blocks ({name}), but backbone.layers={backbone.layers}; "
                f"set backbone.layers={count}, or name the backbone that these weights belong to."
            )
    _check_length(cell, config, where)
    if folder is None:
        return
    tokens, embeddings = files.tokens(folder), config.get("vocab_size")
    if tokens is not None and isinstance(embeddings, int) and tokens > embeddings:
        raise UserError(
            f"{where} have {embeddings} embeddings, but their tokenizer has {tokens} tokens; they do not belong "
            "together."
        )
    _check_roles(backbone, folder, where)


def _check_length(cell: Cell, config: Mapping[str, Any], where: str) -> None:
    task, backbone = cell.task, cell.backbone
    cap = cell.scale.max_length
    length = forms.shortened(task.max_length, cap)
    if backbone.form == "encoder":
        most = files.positions(config, backbone.architecture) if config else None
        if most is not None and length > most:
            raise UserError(
                f"task.max_length={length} is longer than the {most} positions of {where}; set task.max_length={most}."
            )
        return
    most = next((config[name] for name in files.POSITIONS if isinstance(config.get(name), int)), None)
    answers = (task.max_answer if task.max_answer is not None else cap, task.generation.max_new_tokens)
    answer = max(forms.shortened(one, cap) if one is not None else 0 for one in answers)
    needed = max(length, answer) if backbone.form == "seq2seq" else length + answer
    if most is not None and needed > most:
        raise UserError(
            f"task.max_length={length} and an answer of {answer} tokens take {needed} positions, but {where} have "
            f"{most}; set task.max_length or task.generation.max_new_tokens."
        )


def _check_roles(backbone: Backbone, folder: Path, where: str) -> None:
    there = files.tensors(folder)
    if there is None:
        return
    endings = {name.removesuffix(".weight") for name in there if name.endswith(".weight")}
    known = {ending[at:] for ending in endings for at in _starts(ending)}
    for module, role in backbone.module_roles().items():
        fused = module.rpartition(".")[0]  # GPT-2's c_attn holds q, k and v
        if module not in known and not (module.endswith((".q", ".k", ".v")) and fused in known):
            raise UserError(
                f"backbone.roles.{role} names {module}, but {where} hold no such matrix; a role is the name of a "
                "matrix below the body, with {i} for the block."
            )


def _starts(name: str) -> list[int]:
    """Where a dotted name's parts begin: a tensor may have the path to the body in front."""
    return [0, *(at + 1 for at, sign in enumerate(name) if sign == ".")]


# -- references ------------------------------------------------------------------------------------------------


def check_references(task: Task, report: Report, variant: str = "") -> list[str]:
    """Score the report rows' own answers with every metric of the task: what they refuse, they would refuse at the end.

    Returns:
        A sentence for each metric that gives a right answer the worst score there is.

    Raises:
        UserError: a metric refuses the references; names the row.
    """
    right = {suffix: [_right(task, row) for row in rows] for suffix, rows in report.items()}
    try:
        scores = task.score(right, report, variant)
    except (ValueError, ArithmeticError, TypeError) as error:
        raise UserError(
            f"the report rows cannot be scored: {_culprit(task, report, variant) or error}"
        ) from error
    said = []
    for name, score in scores.items():
        if score == 0 and metrics.higher_is_better(name) and task.kind in ("text", "span"):
            said.append(
                f"{name} is 0 for the references themselves (they are too short for it, or in a script that it does "
                "not read), so its scores mean nothing here"
            )
    return said


def _right(task: Task, row: Mapping[str, Any]) -> Any:
    if task.kind in ("text", "span"):
        return next(iter(references(task, row)), "")
    return row[task.label]


def _culprit(task: Task, report: Report, variant: str) -> str | None:
    """The first row that a metric refuses by itself."""
    for suffix, rows in report.items():
        for number, row in enumerate(rows, 1):
            try:
                task.score({suffix: [_right(task, row)]}, {suffix: [row]}, variant)
            except (ValueError, ArithmeticError, TypeError) as error:
                split = task.report_splits.get(suffix, suffix)
                return f"row {number} of {split}, with the answer {str(_right(task, row))[:60]!r}: {error}"
    return None
