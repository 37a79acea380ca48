"""E2E NLG: a sentence or two about a restaurant from its attributes. Several people wrote one for each set of them.

One row of the files (invented): meaning_representation "name[Green Door], eatType[pub], area[riverside]",
human_reference "The Green Door is a pub by the river.".
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adalora_bench.data.converted import Recounted
from adalora_bench.data.fields import Row
from adalora_bench.data.sources import Found

if TYPE_CHECKING:
    import pyarrow as pa

_SLOT = re.compile(r"\s*([^\[\],]+)\[([^\]]*)\]\s*(?:,|$)")


@dataclass(frozen=True, kw_only=True)
class E2E(Recounted):
    """Training rows: one for each text. Report rows: one for each set of attributes, with all its texts."""

    def raw_columns(self, split: str) -> list[str]:
        return ["meaning_representation", "human_reference"]

    def expand(self, raw: Row, split: str) -> list[Row]:
        return [{"data": linear(raw["meaning_representation"]), self.label: raw["human_reference"]}]

    def tables(self, found: Found, splits: Sequence[str]) -> dict[str, pa.Table]:
        import pyarrow as pa

        tables = super().tables(found, splits)
        for split in splits:
            if split != self.train_split:
                groups: dict[str, Row] = {}
                for row in tables[split].to_pylist():
                    group = groups.setdefault(row["data"], row | {"references": []})
                    group["references"].append(row[self.label])
                tables[split] = self.checked(pa.Table.from_pylist(list(groups.values())), split)
        return tables


def linear(meaning: str) -> str:
    """`name[Green Door], eatType[pub]` as `name : Green Door | eatType : pub`. ValueError: another form."""
    slots = _SLOT.findall(meaning)
    if not slots or _SLOT.sub("", meaning).strip():
        raise ValueError(
            f"'meaning_representation' is {meaning!r}; it must read name[value], name[value], ..."
        )
    return " | ".join(f"{name.strip()} : {value.strip()}" for name, value in slots)
