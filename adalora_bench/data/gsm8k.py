"""GSM8K: a word problem of a few steps, answered with its solution and the number behind ####.

One row of the files (invented): question "Ana packs 3 boxes of 12 eggs. How many eggs is that?", answer "Ana packs
3*12=<<3*12=36>>36 eggs.\\n#### 36".
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from adalora_bench.data.converted import Converted
from adalora_bench.data.fields import Row

_CALCULATOR = re.compile(r"<<[^<>]*>>")
_LAST_LINE = re.compile(r"\n#### *-?\$?[\d,]*\.?\d+ *$")


@dataclass(frozen=True, kw_only=True)
class Gsm8k(Converted):
    """Rows of `question` and `answer`, without the marks for a calculator, which nobody reads here."""

    def raw_columns(self, split: str) -> list[str]:
        return ["question", "answer"]

    def expand(self, raw: Row, split: str) -> list[Row]:
        if not _LAST_LINE.search(raw["answer"]):
            raise ValueError(
                f"'answer' ends in {raw['answer'][-20:]!r}; its last line must be #### and a number"
            )
        return [{"question": raw["question"], self.label: _CALCULATOR.sub("", raw["answer"])}]
