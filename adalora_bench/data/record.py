"""ReCoRD: which entity of a news passage belongs in the place of @placeholder. A span of the passage is the answer.

One row of the files (invented): passage "The port of Larne ... Harbour master Ann Roe said ...", query "Roe has run
@placeholder for ten years.", entities ["Larne", "Ann Roe", "Roe"], answers ["Larne"], entity_spans {text: ["Larne",
...], start: [12, ...], end: [17, ...]}.
"""

from __future__ import annotations

from dataclasses import dataclass

from adalora_bench.data.converted import Converted
from adalora_bench.data.fields import Row


@dataclass(frozen=True, kw_only=True)
class Record(Converted):
    """Rows of `query`, `passage` and the answers with the place where each stands first, as in SQuAD."""

    def raw_columns(self, split: str) -> list[str]:
        return ["passage", "query", "entity_spans", "answers"]

    def expand(self, raw: Row, split: str) -> list[Row]:
        spans = raw["entity_spans"]
        first: dict[str, int] = {}
        for text, start in sorted(zip(spans["text"], spans["start"], strict=True), key=lambda span: span[1]):
            first.setdefault(text, start)
        absent = [answer for answer in raw["answers"] if answer not in first]
        if absent or not raw["answers"]:
            raise ValueError(f"'answers' is {raw['answers']}; it must name one or more of 'entity_spans'")
        starts = [first[answer] for answer in raw["answers"]]
        answers = {"text": raw["answers"], "answer_start": starts}
        return [{"query": raw["query"], "passage": raw["passage"], self.label: answers}]
