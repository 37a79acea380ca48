"""The columns of a task's tables by its kind, checked value by value. A fault names the file and the row.

pyarrow is imported inside the functions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from adalora_bench.data.fields import CHOICES, REFERENCES, TaskFields
from adalora_bench.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa


def names(task: TaskFields) -> list[str]:
    """The columns that are read: of text, the choices, the label last."""
    choices = [CHOICES] if task.kind == "choice" else []
    return [*_texts(task), *choices, task.label]


def checked(task: TaskFields, table: pa.Table, where: str) -> pa.Table:
    """The table with the columns of the task's kind only, in their types.

    UserError: no rows, a wrong type, an empty or impossible value; names `where` and the row.
    """
    import pyarrow as pa

    if table.num_rows == 0:
        raise UserError(f"{where} has no rows.")
    columns = {name: _text_column(table.column(name), where, name) for name in _texts(task)}
    label = table.column(task.label)
    if task.kind == "classification":
        columns[task.label] = _class_column(label, where, task.label, task.labels)
    elif task.kind == "regression":
        columns[task.label] = _number_column(label, where, task.label)
    elif task.kind == "choice":
        columns[CHOICES] = _list_column(table.column(CHOICES), where, CHOICES, least=2)
        columns[task.label] = _choice_column(label, where, task.label, columns[CHOICES])
    elif task.kind == "span":
        columns[task.label] = _answers_column(label, where, task.label, columns[task.text[1]])
    else:
        columns[task.label] = _text_column(label, where, task.label)
        if REFERENCES in table.column_names:
            columns[REFERENCES] = _list_column(table.column(REFERENCES), where, REFERENCES, least=1)
    return pa.table(columns)


def _texts(task: TaskFields) -> list[str]:
    """The columns that hold one text a row, each once."""
    more = [name for name in (task.group, task.score_group) if name]
    return list(dict.fromkeys([*task.text, *more]))


def _text_column(column: pa.ChunkedArray, where: str, name: str) -> pa.ChunkedArray:
    """The column as large_string. UserError: another type, or a null; names `where` and the row."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        raise UserError(f"{where}: column {name!r} holds {column.type}, not text.")
    _refuse(column, pc.is_null(column), where, name, "a text")
    return column.cast(pa.large_string())


def _class_column(column: pa.ChunkedArray, where: str, name: str, labels: Sequence[str]) -> pa.ChunkedArray:
    """The column as int64. UserError: no whole numbers, or a number that is none of the classes 0..n-1."""
    import pyarrow as pa
    import pyarrow.compute as pc

    valid = "one of " + ", ".join(f"{i} ({label})" for i, label in enumerate(labels))
    if not pa.types.is_integer(column.type):
        raise UserError(f"{where}: column {name!r} holds {column.type}; each label must be {valid}.")
    good = pc.and_(pc.greater_equal(column, 0), pc.less(column, len(labels)))
    _refuse(column, pc.invert(pc.fill_null(good, False)), where, name, valid)
    return column.cast(pa.int64())


def _number_column(column: pa.ChunkedArray, where: str, name: str) -> pa.ChunkedArray:
    """The column as float64. UserError: no numbers, or one that is null, NaN or infinite."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        raise UserError(f"{where}: column {name!r} holds {column.type}; each label must be a finite number.")
    good = pc.fill_null(pc.is_finite(column), False)
    _refuse(column, pc.invert(good), where, name, "a finite number")
    return column.cast(pa.float64())


def _list_column(column: pa.ChunkedArray, where: str, name: str, *, least: int) -> pa.ChunkedArray:
    """A column of lists of texts. UserError: another type, a null, or a list of fewer than `least` texts."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if not _is_texts(column.type):
        raise UserError(f"{where}: column {name!r} holds {column.type}, not lists of texts.")
    enough = pc.fill_null(pc.greater_equal(pc.list_value_length(column), least), False)
    _refuse(column, pc.invert(enough), where, name, f"a list of {least} or more texts")
    whole = pa.chunked_array([[None not in texts for texts in column.to_pylist()]])
    _refuse(column, pc.invert(whole), where, name, "a list of texts without gaps")
    return column


def _choice_column(
    column: pa.ChunkedArray, where: str, name: str, choices: pa.ChunkedArray
) -> pa.ChunkedArray:
    """The column as int64. UserError: no whole numbers, or a number that is none of the row's choices."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if not pa.types.is_integer(column.type):
        raise UserError(f"{where}: column {name!r} holds {column.type}; each label must number a choice.")
    good = pc.and_(pc.greater_equal(column, 0), pc.less(column, pc.list_value_length(choices)))
    _refuse(
        column,
        pc.invert(pc.fill_null(good, False)),
        where,
        name,
        f"the number (from 0) of one of {CHOICES!r}",
    )
    return column.cast(pa.int64())


def _answers_column(
    column: pa.ChunkedArray, where: str, name: str, contexts: pa.ChunkedArray
) -> pa.ChunkedArray:
    """A column of {text: [...], answer_start: [...]}. UserError: another type, no answer, or one that is not there.

    Only the first answer is trained on; it must stand where it is said to stand.
    """
    import pyarrow as pa

    kind = column.type
    fields: dict[str, Any] = (
        {field.name: field.type for field in kind.fields} if pa.types.is_struct(kind) else {}
    )
    places = fields.get("answer_start")
    if not (
        _is_texts(fields.get("text"))
        and _is_list(places)
        and pa.types.is_integer(fields["answer_start"].value_type)
    ):
        raise UserError(
            f"{where}: column {name!r} holds {kind}, not {{text: texts, answer_start: whole numbers}}."
        )
    faults = []
    for answers, context in zip(column.to_pylist(), contexts.to_pylist(), strict=True):
        texts = (answers or {}).get("text") or []
        starts = (answers or {}).get("answer_start") or []
        there = (
            len(texts) == len(starts) > 0
            and None not in (*texts, *starts)
            and min(starts) >= 0
            and texts[0] != ""
            and context.startswith(texts[0], starts[0])
        )
        faults.append(not there)
    _refuse(column, pa.chunked_array([faults]), where, name, "one or more texts that stand in the context")
    return column


def _is_list(kind: Any) -> bool:
    import pyarrow as pa

    return kind is not None and (pa.types.is_list(kind) or pa.types.is_large_list(kind))


def _is_texts(kind: Any) -> bool:
    import pyarrow as pa

    return _is_list(kind) and (
        pa.types.is_string(kind.value_type) or pa.types.is_large_string(kind.value_type)
    )


def _refuse(column: pa.ChunkedArray, bad: pa.ChunkedArray, where: str, name: str, valid: str) -> None:
    """UserError for the first row that is marked bad."""
    import pyarrow.compute as pc

    row = pc.index(bad, True).as_py()
    if row >= 0:
        value = column[row].as_py()
        hint = " (-1 marks a hidden label)" if value == -1 else ""
        raise UserError(f"{where}, row {row} (from 0): {name!r} is {value!r}{hint}; it must be {valid}.")
