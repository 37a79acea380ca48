"""What can be wrong with the files and the declarations of a task: one sentence that names file and row."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny_data
from tiny_data import FILES, NEW, OLD, load, task_of

from adalora_bench.data.sources import Places
from adalora_bench.errors import UserError


def _answers(text: str = "mill", start: int = 13) -> dict[str, Any]:
    return {"answers": {"text": [text], "answer_start": [start]}}


@pytest.mark.parametrize(
    ("name", "file", "row", "change", "sentence"),
    [
        ("copa", "aps/super_glue/copa/train", 2, {"label": 2}, "row 2 .*'label' is 2"),
        ("copa", "aps/super_glue/copa/validation", 1, {"label": -1}, "row 1 .*-1 marks a hidden label"),
        ("copa", "aps/super_glue/copa/train", 3, {"question": "why"}, "row 3 .*'question' is 'why'; it must be cause"),
        ("copa", "aps/super_glue/copa/train", 3, {"choice2": None}, "row 3 .*'choice2' is None"),
        ("cb", "aps/super_glue/cb/train", 1, {"label": 3}, "row 1 .*'label' is 3; it must be one of 0 .entailment"),
        ("wic", "aps/super_glue/wic/validation", 0, {"label": -1}, "row 0 .*-1 marks a hidden label"),
        ("wic", "aps/super_glue/wic/train", 4, {"word": None}, "row 4 .*'word' is None"),
        ("wsc", "aps/super_glue/wsc/train", 4, {"label": 2}, "row 4 .*'label' is 2"),
        ("multirc", "aps/super_glue/multirc/train", 5, {"label": -1}, "row 5 .*-1 marks a hidden label"),
        ("multirc", "aps/super_glue/multirc/train", 5, {"idx": None}, "row 5 .*'idx' is None"),
        ("record", "aps/super_glue/record/train", 6, {"answers": ["Delft"]}, "row 6 .*'answers' is .'Delft'.; it must"),
        ("record", "aps/super_glue/record/train", 0, {"answers": []}, "row 0 .*one or more of 'entity_spans'"),
        ("squad", "rajpurkar/squad/train", 0, _answers(start=12), "row 0 .*'answers' is .*that stand in the context"),
        ("squad", "rajpurkar/squad/train", 1, {"context": None}, "row 1 .*'context' is None"),
        ("e2e", "tuetschek/e2e_nlg/train", 2, {"meaning_representation": "x"}, "row 2 .*must read name.value"),
        ("e2e", "tuetschek/e2e_nlg/test", 2, {"human_reference": None}, "row 2 .*'human_reference' is None"),
        (
            "webnlg", "webnlg-challenge/web_nlg/webnlg_challenge_2017/train", 3,
            {"modified_triple_sets": {"mtriple_set": [["a | b"]]}}, "row 3 .*facts of three parts",
        ),
        (
            "webnlg", "webnlg-challenge/web_nlg/webnlg_challenge_2017/test", 0,
            {"lex": {"comment": ["toFix"], "lid": [""], "text": ["?"], "lang": [""]}}, "row 0 .*no text marked as good",
        ),
        ("xsum", "EdinburghNLP/xsum/train", 1, {"summary": None}, "row 1 .*'summary' is None"),
        ("cnn_dailymail", "abisee/cnn_dailymail/3.0.0/validation", 1, {"article": None}, "row 1 .*'article' is None"),
        ("gsm8k", "openai/gsm8k/main/train", 7, {"answer": "It is 4."}, "row 7 .*its last line must be ####"),
        ("alpaca", "tatsu-lab/alpaca/train", 2, {"input": None}, "row 2 .*'input' is None"),
        ("mt_bench", "HuggingFaceH4/mt_bench_prompts/train", 0, {"prompt": ["one"]}, "row 0 .*must hold two turns"),
        ("mt_bench", "tatsu-lab/alpaca/train", 2, {"output": None}, "row 2 .*'output' is None"),
    ],
)  # fmt: skip
def test_a_bad_row_is_named(
    name: str, file: str, row: int, change: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    places = tiny_data.write_all(tmp_path, task_of(name))
    folder, split = file.rsplit("/", 1)
    rows = [dict(one) for one in FILES[folder][split]]
    rows[row] |= change
    tiny_data.write(rows, tmp_path / f"{file}-00000-of-00001.parquet")
    with pytest.raises(
        UserError, match=f"{folder.split('/')[-1]}/{split}-00000-of-00001.parquet, {sentence}"
    ):
        load(name, places)


@pytest.mark.parametrize("name", [*NEW, *OLD])
def test_a_missing_column_an_empty_split_and_a_cut_file_are_named(name: str, tmp_path: Path) -> None:
    task = task_of(name)
    places = tiny_data.write_all(tmp_path, task)
    found = tiny_data.found(task, name, places)
    for files in found.files.values():
        (path,) = files
        whole = path.read_bytes()
        table = pq.read_table(path)
        read = set(task.raw_columns("train" if path.name.startswith("train") else "test")) if hasattr(
            task, "raw_columns"
        ) else {*task.text, task.label}  # fmt: skip
        for column in sorted(read & set(table.column_names)):
            if column == task.label and not hasattr(task, "raw_columns"):
                continue
            pq.write_table(table.drop_columns([column]), path)
            with pytest.raises(UserError, match=f"{path.name}: column '{column}' is missing; the file has"):
                task.load(found, "validation")
        pq.write_table(table.slice(0, 0), path)
        with pytest.raises(UserError, match=f"{path.name} has no rows"):
            task.load(found, "validation")
        path.write_bytes(whole[:-20])
        with pytest.raises(UserError, match=f"{path.name} cannot be read as parquet"):
            task.load(found, "validation")
        path.write_bytes(whole)
    task.load(found, "validation")


# --- columns from templates


@pytest.mark.parametrize(
    ("derived", "sentence"),
    [
        ({"frist": "{word}"}, "unknown column in task.derived 'frist'; did you mean 'first'"),
        ({"first": "{word"}, "task.derived.first='{word' is no template"),
        ({"first": "word"}, "names no column of the files"),
    ],
)
def test_wrong_templates_are_one_sentence(derived: dict[str, str], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        replace(task_of("wic"), derived=derived)


def test_a_template_that_does_not_fit_names_the_row(tmp_path: Path) -> None:
    task = replace(task_of("multirc"), derived={"claim": "{question}", "asked": "{idx[page]}"})
    found = tiny_data.found(task, "multirc", tiny_data.write_all(tmp_path, task))
    with pytest.raises(
        UserError, match=r"row 0 \(from 0\): task.derived does not fit this row \(KeyError: 'page'\)"
    ):
        task.load(found, "validation")


def test_texts_without_a_type_are_no_rows(tmp_path: Path) -> None:
    table = pa.table({"document": pa.nulls(2), "summary": pa.nulls(2)})
    for split in ("train", "validation"):
        path = tmp_path / f"EdinburghNLP/xsum/{split}-00000-of-00001.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, path)
    with pytest.raises(UserError, match="column 'document' holds null, not text"):
        load("xsum", Places(data_dir=tmp_path, cache_dir=tmp_path, offline=True))
