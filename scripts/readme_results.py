"""Put the scores of the benchmark at CPU scale into README.md, between its two marks.

python scripts/readme_results.py            (after `make tables figures`; from the records in results/runs alone)
python scripts/readme_results.py --check    (write nothing; exit code 1 where README.md shows other numbers)
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

from adalora_bench.report.cells import cell_summary
from adalora_bench.report.rows import CellRow, Group
from adalora_bench.report.scores import on_other_rows, sections
from adalora_bench.store.records import RecordStore

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
GROUP = Group(scale="cpu", backbone="minilm_l6", split="validation")
TASKS = ("stsb", "mrpc", "film_reviews")
SEEDS = 5  # a row with fewer stays in results/tables
START, END = "<!-- made by scripts/readme_results.py -->", "<!-- end -->"


def table(rows: list[CellRow]) -> str:
    """The methods under their own settings with all seeds, on the same rows: results/tables, these tasks alone.

    A method on one task alone is there for an ablation, and has its place in results/tables.
    """
    here = [row for row in rows if row.group == GROUP and row.task in TASKS and not row.overrides]
    odd = on_other_rows(here)
    whole = [row for row in here if len(row.seeds) >= SEEDS and row not in odd]
    tasks_of = Counter(row.method for row in whole)
    chosen = [row for row in whole if tasks_of[row.method] > 1]
    if not chosen:
        return ""
    return sections(chosen)[1]


def written(text: str, block: str) -> str:
    """README.md with this block between the marks."""
    head, _, rest = text.partition(START)
    _, _, tail = rest.partition(END)
    return f"{head}{START}\n\n{block}\n\n{END}{tail}"


def main() -> int:
    block = table(cell_summary(RecordStore(ROOT / "results" / "runs").scan(light=True).records))
    before = README.read_text(encoding="utf-8")
    after = written(before, block)
    if "--check" in sys.argv[1:]:
        return int(before != after)
    README.write_text(after, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
