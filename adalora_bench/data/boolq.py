"""BoolQ: a yes/no question on a passage. From parquet (local, hub), or from a wheel with all its rows in one file.

One row of the wheel's file (invented): {"question": "can a kite fly without wind", "passage": "Kite -- A kite
is ...", "label": false, "idx": 12}. Rows without a label are the test set.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adalora_bench.data.sources import Found
from adalora_bench.data.tasks import Task
from adalora_bench.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

ALL_ROWS = "combined.jsonl"
VALIDATION_ROWS = "dev.jsonl"


@dataclass(frozen=True, kw_only=True)
class BoolQ(Task):
    """The wheel's rows, put back into the splits and the order of the hub's data set."""

    def tables(self, found: Found, splits: Sequence[str]) -> dict[str, pa.Table]:
        import pyarrow as pa

        if found.files or found.folder is None:
            return super().tables(found, splits)
        asked_in_validation = {row["question"] for row in _lines(found.folder / VALIDATION_ROWS)}
        path = found.folder / ALL_ROWS
        rows: dict[str, list[dict[str, Any]]] = {"train": [], "validation": []}
        for row in _lines(path):
            if "label" in row:
                rows["validation" if row["question"] in asked_in_validation else "train"].append(row)
        tables = {}
        for split in splits:
            # The file is shuffled; idx is the row number within the split.
            ordered = sorted(rows[split], key=lambda row: int(row["idx"]))
            columns: dict[str, list[Any]] = {name: [row[name] for row in ordered] for name in self.text}
            columns[self.label] = [int(row["label"]) for row in ordered]
            tables[split] = self.checked(pa.table(columns), f"{path} ({split})")
        return tables


def _lines(path: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    try:
        with path.open(encoding="utf-8") as file:
            rows.extend(json.loads(line) for line in file if line.strip())
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path}, row {len(rows)}: cannot be read ({error}); remove its folder and fetch it again."
        ) from error
    return rows
