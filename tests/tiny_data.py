"""A few invented rows of every task, as parquet files in the hub's own layout: columns, nesting and label numbers."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from adalora_bench.data.sources import DATASET, Found, Places, find
from adalora_bench.data.tasks import Task, TaskRows
from adalora_bench.settings.config import build

CONF = Path(__file__).parents[1] / "conf" / "task"
# fmt: off
NEW = (
    "alpaca", "cb", "cnn_dailymail", "copa", "e2e", "gsm8k", "mt_bench", "multirc", "record", "squad", "webnlg",
    "wic", "wsc", "xsum",
)
# fmt: on
OLD = ("boolq", "cola", "mnli", "mrpc", "qnli", "qqp", "rte", "sst2", "stsb")
Row = dict[str, Any]
NOUNS = ("mill", "boat", "lamp", "bridge", "garden", "letter", "window", "river")
_STRINGS = pa.list_(pa.string())


def _pair(first: str, second: str, labels: int, **more: Any) -> list[Row]:
    return [
        {
            first: f"The {noun} is {('old', 'new')[i % 2]}.",
            second: f"A {noun} is {('old', 'new')[i // 2 % 2]}.",
        }
        | {"label": i % labels, "idx": i}
        | more
        for i, noun in enumerate(NOUNS)
    ]


def _spans(context: str, noun: str) -> Row:
    return {"text": [noun], "answer_start": [context.index(noun)]}


def _record(noun: str, i: int) -> Row:
    passage = f"Ann Roe sold the {noun} in Larne.\n@highlight\nAnn Roe is from Rye"
    names = ["Ann Roe", "Larne", "Ann Roe", "Rye"]
    starts = [0, passage.index("Larne"), passage.rindex("Ann Roe"), passage.index("Rye")]
    spans = {"text": names, "start": starts, "end": [s + len(n) for s, n in zip(starts, names, strict=True)]}
    return {
        "passage": passage,
        "query": f"The {noun} of @placeholder was sold.",
        "entities": ["Ann Roe", "Larne", "Rye"],
        "entity_spans": spans,
        "answers": [["Ann Roe"], ["Larne", "Rye"]][i % 2],
        "idx": {"passage": i, "query": 0},
    }


def _lex(texts: list[str], marks: list[str] | None = None) -> Row:
    return {
        "comment": marks or ["good"] * len(texts),
        "lid": [f"Id{i + 1}" for i in range(len(texts))],
        "text": texts,
        "lang": [""] * len(texts),
    }


def _webnlg(category: str, place: str, lex: Row, kind: str = "") -> Row:
    facts = [f"Old_{place} | location | Delft", f"Old_{place} | floorCount | 3"]
    return {
        "category": category,
        "modified_triple_sets": {"mtriple_set": [facts]},
        "lex": lex,
        "test_category": kind,
    }


def _webnlg_test(category: str, place: str) -> list[Row]:
    lex = _lex([f"The Old {place} in Delft has 3 floors.", f"Delft's Old {place} has three floors."])
    none = _lex([])
    rows = [
        _webnlg(category, place, lex, "testdata_with_lex"),
        _webnlg(category, place, none, "testdata_no_lex"),
    ]
    unseen = _webnlg(category, place, lex, "testdata_unseen_with_lex")
    return [*rows, unseen] if category == "Artist" else rows


_GLUE = {
    "cola": [{"sentence": f"The {noun} is old.", "label": i % 2} for i, noun in enumerate(NOUNS)],
    "sst2": [{"sentence": f"a lovely {noun}", "label": i % 2} for i, noun in enumerate(NOUNS)],
    "rte": _pair("sentence1", "sentence2", 2),
    "mrpc": _pair("sentence1", "sentence2", 2),
    "stsb": [row | {"label": row["label"] * 2.5} for row in _pair("sentence1", "sentence2", 3)],
    "qnli": _pair("question", "sentence", 2),
    "qqp": _pair("question1", "question2", 2),
    "mnli": _pair("premise", "hypothesis", 3),
}
_SUPER_GLUE: dict[str, list[Row]] = {
    "boolq": _pair("question", "passage", 2),
    "cb": _pair("premise", "hypothesis", 3),
    "copa": [
        {
            "premise": f"The {noun} fell.",
            "choice1": "It was loose.",
            "choice2": "It was new.",
            "question": ("cause", "effect")[i % 2],
            "idx": i,
            "label": i // 2 % 2,
        }
        for i, noun in enumerate(NOUNS)
    ],
    "wic": _pair("sentence1", "sentence2", 2, word="old", start1=0, end1=3, start2=0, end2=3),
    "wsc": [
        {
            "text": f"The {noun} fell on the cup because it was loose.",
            "span1_index": 0,
            "span2_index": 7,
            "span1_text": f"The {noun}",
            "span2_text": "it",
            "idx": i,
            "label": i % 2,
        }
        for i, noun in enumerate(NOUNS)
    ],
    "multirc": [
        {
            "paragraph": f"Mia saw the {noun}.",
            "question": "Who saw it?",
            "answer": answer,
            "idx": {"paragraph": i, "question": 0, "answer": k},
            "label": 1 - k,
        }
        for i, noun in enumerate(NOUNS)
        for k, answer in enumerate(("Mia", "Ben"))
    ],
    "record": [_record(noun, i) for i, noun in enumerate(NOUNS)],
}
_SQUAD = [
    {
        "id": str(i),
        "title": "",
        "context": f"Long ago the {noun} was sold.",
        "question": "What was sold?",
        "answers": _spans(f"Long ago the {noun} was sold.", noun),
    }
    for i, noun in enumerate(NOUNS)
]
_E2E = [
    {
        "meaning_representation": f"name[Green {noun}], customer rating[{i % 4} out of 5]",
        "human_reference": text,
    }
    for i, noun in enumerate(NOUNS)
    for text in (f"The Green {noun} is rated {i % 4} of 5.", f"Green {noun}: {i % 4} out of 5.")
]
_WEBNLG = {
    "train": [
        _webnlg("Building", noun, _lex([f"Old {noun} has 3 floors.", "?"], ["good", "toFix"]))
        for noun in NOUNS
    ],
    "test": [row for c, noun in (("Building", "Mill"), ("Artist", "Barn")) for row in _webnlg_test(c, noun)],
}
_GSM8K = [
    {
        "question": f"Ana packs {i + 1} boxes of 2 cups. How many cups?",
        "answer": f"Ana packs {i + 1}*2=<<{i + 1}*2={2 * i + 2}>>{2 * i + 2} cups.\n#### {2 * i + 2}",
    }
    for i in range(8)
]
# The first two instructions are held out by their hash, the others are not: test_task_rows.py says so.
_ALPACA = [
    {"instruction": text, "input": more, "output": out, "text": "not read"}
    for text, more, out in (
        ("Name a tree 31.", "", "Oak."),
        ("Name a tree 73.", "Not an oak.", "Elm."),
        *((f"Name a colour {i}.", "" if i % 2 else "of the sea", f"Blue {i}.") for i in range(6)),
    )
]
_QUESTIONS = [
    {
        "category": category,
        "prompt": [f"Write of {noun}.", "Now shorter."],
        "reference": {"math": [f"A {noun}.", f"{noun}."], "stem": [f"{noun}.", " "]}.get(category, []),
        "prompt_id": 81 + i,
    }
    for i, (category, noun) in enumerate((("writing", "tea"), ("math", "two"), ("stem", "rain")))
]


def _splits(rows: list[Row], report: str = "validation") -> dict[str, list[Row]]:
    return {"train": rows, report: rows[:4]}


FILES: dict[str, dict[str, list[Row]]] = {
    **{f"nyu-mll/glue/{name}": _splits(rows) for name, rows in _GLUE.items() if name != "mnli"},
    "nyu-mll/glue/mnli": _splits(_GLUE["mnli"], "validation_matched")
    | {"validation_mismatched": _GLUE["mnli"][4:]},
    **{f"aps/super_glue/{name}": _splits(rows) for name, rows in _SUPER_GLUE.items()},
    "rajpurkar/squad": _splits(_SQUAD),
    "tuetschek/e2e_nlg": _splits(_E2E, "test"),
    "webnlg-challenge/web_nlg/webnlg_challenge_2017": _WEBNLG,
    "EdinburghNLP/xsum": _splits(
        [{"document": f"The {n} shut. It was old.", "summary": f"{n} shuts", "id": n} for n in NOUNS]
    ),
    "abisee/cnn_dailymail/3.0.0": _splits(
        [
            {"article": f"The {n} shut. Ann said so.", "highlights": f"{n} shuts .\nAnn says so .", "id": n}
            for n in NOUNS
        ]
    ),
    "openai/gsm8k/main": _splits(_GSM8K, "test"),
    "tatsu-lab/alpaca": {"train": _ALPACA},
    "HuggingFaceH4/mt_bench_prompts": {"train": _QUESTIONS},
}
"""Folder of the hub's layout -> split -> rows."""


def write(rows: list[Row], path: Path) -> Path:
    """One parquet file of these rows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist(rows)
    for name in ("reference",):  # a list that is empty in every row has no type of its own
        if name in table.column_names:
            table = table.set_column(table.column_names.index(name), name, table.column(name).cast(_STRINGS))
    pq.write_table(table, path)
    return path


def write_all(folder: Path, task: Task | None = None) -> Places:
    """The rows of every task (or of this one) below `folder`, which becomes the data folder."""
    for name, splits in FILES.items():
        if task is None or name in str(task.source).split(" and "):
            for split, rows in splits.items():
                write(rows, folder / name / f"{split}-00000-of-00001.parquet")
    return Places(data_dir=folder, cache_dir=folder / "cache", offline=True)


@lru_cache
def task_of(name: str) -> Any:
    """The task of conf/task/<name>.yaml, as the program builds it."""
    return build(yaml.safe_load((CONF / f"{name}.yaml").read_text()), "task")


def load(name: str, places: Places, split: str = "validation") -> TaskRows:
    """The rows of a task from `places`."""
    task: Task = task_of(name)
    return task.load(found(task, name, places, split), split)


def found(task: Task, name: str, places: Places, split: str = "validation") -> Found:
    """Where the rows of a task are; it must be there."""
    wanted = task.wanted(name, split)
    hit = find(wanted.source, places, splits=wanted.splits, kind=DATASET, optional=wanted.optional)
    assert hit is not None, name
    return hit
