"""What can be wrong with a task's settings: one sentence each, before any data is read. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Iterable
from string import Formatter

from adalora_bench import metrics
from adalora_bench.data import prompts
from adalora_bench.data.fields import CHOICES, TaskFields
from adalora_bench.errors import UserError, unknown

METRIC_KINDS = {
    "classification": ("class", "grouped"),
    "choice": ("class",),
    "regression": ("number",),
    "span": ("text",),
    "text": ("text",),
}
"""Kind of task -> what its metrics may compare."""


def check(task: TaskFields) -> None:
    """UserError for settings that cannot work, whatever the backbone."""
    if task.version < 1:
        raise UserError(f"task.version is {task.version}; versions start at 1.")
    if task.kind not in METRIC_KINDS:
        raise UserError(unknown("task.kind", task.kind, METRIC_KINDS))
    _check_columns(task)
    _check_report(task)
    if task.max_length < 4:
        raise UserError(f"task.max_length is {task.max_length}; it must be at least 4 tokens.")
    if task.prompt is not None:
        _check_text(task)
    elif task.kind == "text":
        raise UserError("task.prompt is missing; a task of kind text needs one.")


def _check_columns(task: TaskFields) -> None:
    if task.kind == "span" and len(task.text) != 2:
        raise UserError(f"task.text is {task.text}; of a span it names the question and the context.")
    if not task.text or (len(task.text) > 2 and task.kind != "text"):
        raise UserError(f"task.text names {len(task.text)} columns; it must name one, or two for a pair.")
    if task.kind == "classification" and len(set(task.labels)) != max(len(task.labels), 2):
        raise UserError(f"task.labels is {task.labels}; a classification needs two or more different names.")
    if task.kind != "classification" and task.labels:
        raise UserError(f"task.labels is {task.labels}; a {task.kind} has no label names, so leave it empty.")


def _check_report(task: TaskFields) -> None:
    for name in task.metrics:
        if metrics.label_kind(name) not in METRIC_KINDS[task.kind]:
            raise UserError(f"task.metrics names {name!r}, which does not fit a {task.kind}.")
        if metrics.label_kind(name) == "grouped" and task.score_group is None:
            raise UserError(f"task.metrics names {name!r}, which needs task.score_group.")
    if "f1" in task.metrics and task.kind == "classification" and len(task.labels) != 2:
        raise UserError(
            f"task.metrics names 'f1', which is for two classes; task.labels has {len(task.labels)}."
        )
    if not task.report_splits or task.train_split in task.report_splits.values():
        raise UserError("task.report_splits must name at least one split, and none that is trained on.")
    for split in task.optional_splits:
        if split not in task.report_splits.values():
            raise UserError(unknown("split in task.optional_splits", split, task.report_splits.values()))
    for union, parts in task.report_unions.items():
        if union in task.report_splits:
            raise UserError(f"task.report_unions.{union} is the name of a split in task.report_splits.")
        for part in parts:
            if part not in task.report_splits:
                raise UserError(unknown(f"suffix in task.report_unions.{union}", part, task.report_splits))
    if task.main_metric not in task.certain_scores():
        raise UserError(unknown("task.main_metric", task.main_metric, task.certain_scores()))
    for name in task.metrics:
        mine = task.main_metric == name or task.main_metric.startswith(f"{name}_")
        if mine and not metrics.METRICS[name].higher_is_better:
            raise UserError(f"task.main_metric is {task.main_metric}, of which less is better; name another.")


def _check_text(task: TaskFields) -> None:
    assert task.prompt is not None
    allowed = [*task.text, *([CHOICES] if task.kind == "choice" else [])]
    _check_template("task.prompt", task.prompt, allowed)
    _check_template("task.answer", task.answer, ["answer"])
    if _names(task.answer) != ["answer"]:
        raise UserError(f"task.answer={task.answer!r} must hold {{answer}}, once.")
    if task.cut is not None and task.cut not in _names(task.prompt):
        raise UserError(unknown("column in task.cut", task.cut, _names(task.prompt)))
    if task.max_answer is not None and task.max_answer < 2:
        raise UserError(f"task.max_answer={task.max_answer} must be at least 2 tokens, or null for no limit.")
    if not 0 <= task.label_smoothing < 1:
        raise UserError(f"task.label_smoothing={task.label_smoothing} must lie in [0, 1).")
    if task.answer_by not in ("generation", "likelihood"):
        raise UserError(unknown("value of task.answer_by", task.answer_by, ["generation", "likelihood"]))
    if task.answer_by == "likelihood" and task.kind not in ("classification", "choice"):
        raise UserError(
            f"task.answer_by=likelihood needs given answers, which a task of kind {task.kind} lacks."
        )
    _check_words(task)


def _check_words(task: TaskFields) -> None:
    words = task.answer_words
    if task.kind == "classification":
        for label in task.labels:
            if label not in words:
                raise UserError(f"task.answer_words has no word for the label {label!r}.")
        for label in words:
            if label not in task.labels:
                raise UserError(unknown("label in task.answer_words", label, task.labels))
    elif task.kind == "choice" and set(words) != {str(i) for i in range(len(words))}:
        raise UserError(
            f"task.answer_words has the keys {list(words)}; for choices they are '0', '1' and so on."
        )
    elif words and task.kind != "choice":
        raise UserError(f"task.answer_words is for classes and choices, but task.kind is {task.kind}.")
    if len({prompts.plain(word) for word in words.values()}) != len(words) or "" in words.values():
        raise UserError(f"task.answer_words is {words}; the words must differ, and none may be empty.")


def _check_template(setting: str, template: str, allowed: Iterable[str]) -> None:
    try:
        fields = [part[1:] for part in Formatter().parse(template) if part[1] is not None]
    except ValueError as error:
        raise UserError(
            f"{setting}={template!r} is no template ({error}); write a plain brace twice: {{{{."
        ) from None
    for name, spec, conversion in fields:
        match = re.fullmatch(rf"(\w+)|({CHOICES})\[\d+\]", str(name))
        if match is None or spec or conversion:
            raise UserError(f"{setting}={template!r}: {{{name}}} must be the plain name of a column.")
        column = match[1] or match[2]
        if column not in allowed or (column == CHOICES and match[1]):
            raise UserError(unknown(f"column in {setting}", str(name), allowed))


def _names(template: str) -> list[str]:
    return [name for _, name, _, _ in Formatter().parse(template) if name is not None]
