"""bench judge: grades for the stored answers of MT-Bench records. Imports no torch.

The judge is no part of a run, so nothing of it is part of a key: a complete set of grades becomes one more score of
the record, with a signature that names the judge, and `force=true` takes both away with the answers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from adalora_bench.data.mt_bench import TALK, Conversation, MtBench, conversations
from adalora_bench.data.sources import ensure
from adalora_bench.errors import UserError
from adalora_bench.judge.judge import Judge, Verdict, judge_answers, signature
from adalora_bench.metrics import GRADE
from adalora_bench.settings import prepare
from adalora_bench.settings.config import typed
from adalora_bench.settings.recorded import cell_of, locate
from adalora_bench.store.records import PREDICTIONS, RecordStore
from adalora_bench.store.schema import FINISHED

OWN = ("url", "model", "key_env", "folder", "attempts", "timeout")
SETTINGS = (*(f"judge.{name}" for name in OWN), "results_dir", "data_dir", "offline", "task.source.local")


def judge_of(settings: Mapping[str, str]) -> Judge:
    """The judge that these settings name. UserError: no address, no model, or a wrong value."""
    given = {name: settings[f"judge.{name}"] for name in OWN if f"judge.{name}" in settings}
    judge: Judge = typed(Judge, given, "judge")
    return judge


def grade_records(named: Sequence[str], settings: Mapping[str, str]) -> Iterator[tuple[Path, Verdict]]:
    """Have every answer graded that is not yet, record by record; each pair when its record is done.

    Args:
        named: record files or their folders; none takes every finished record of the store that has conversations.

    Raises:
        UserError: wrong settings, no such record, or one whose answers cannot be judged.
        AssetError: the judge did not answer; what was graded before is kept.
        LeaseHeld: the unit is being trained.
    """
    judge = judge_of(settings)
    store = RecordStore(Path(settings.get("results_dir", "results")) / "runs")
    for path in [locate(name).parent.absolute() for name in named] or _all(store):
        own = RecordStore.around(path)
        with own.lease(path):
            record = own.read(path)
            if record is None or own.folder(record["names"], record["key"], record["seed"]) != path:
                raise UserError(f"{path} holds no record, or one that belongs elsewhere.")
            talks = _conversations(path, record, settings)
            # HF_HUB_OFFLINE is about the hub: a judge may well run on this machine
            verdict = judge_answers(talks, judge, path, offline=settings.get("offline") == "true")
            if verdict.score is not None:
                own.loosen(path)
                own.write(_with_grade(record, verdict, signature(judge)))
        yield path, verdict


def _all(store: RecordStore) -> list[Path]:
    found = [
        store.folder(record["names"], record["key"], record["seed"])
        for record in store.scan(light=True).records
        if GRADE in (record.get("metrics") or {}) and record["status"] in FINISHED
    ]
    if not found:
        raise UserError(f"no finished record of mt_bench in {store.root}; there are no answers to judge.")
    return found


def _conversations(path: Path, record: Mapping[str, Any], settings: Mapping[str, str]) -> list[Conversation]:
    """The record's questions with its stored answers."""
    cell = cell_of(record, settings)
    name, split = cell.names["task"], cell.config["split"]
    task = cell.task
    if not isinstance(task, MtBench) or record["status"] not in FINISHED:
        raise UserError(
            f"{path}: {name}, {record['status']}: only answers of a finished mt_bench are judged."
        )
    found = ensure([task.wanted(name, split)], prepare.places_of(cell.config))[0]
    if task.fingerprint(found, split) != record["data_fingerprint"]:
        raise UserError(f"the rows of {name} that were found are not those of the record {path}.")
    rows = prepare.rows_of(cell, found).report.get("", [])
    if not rows or TALK not in rows[0]:
        raise UserError(
            f"{path}: split={split} has instructions held out from training, and no conversations."
        )
    answers = RecordStore.around(path).predictions(path)
    if answers is None:
        raise UserError(f"{path / PREDICTIONS} is missing; run the unit again with force=true.")
    return conversations(rows, [row["prediction"] for row in answers])


def _with_grade(record: Mapping[str, Any], verdict: Verdict, words: str) -> dict[str, Any]:
    scores = record["final"]["scores"] | {GRADE: verdict.score}
    if verdict.unreadable:
        words += f", {verdict.unreadable} of {verdict.total} replies without a grade"
    return dict(record) | {
        "final": record["final"] | {"scores": scores},
        "metrics": (record.get("metrics") or {}) | {GRADE: words},
    }
