"""Write the tables that tests/golden expects, from the hand-made records beside them: read the diff before you keep it.

python scripts/regenerate_golden.py
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = ROOT / "tests" / "golden"

sys.path.insert(0, str(ROOT))

from adalora_bench.report.tables import build_tables  # noqa: E402
from adalora_bench.store.records import RecordStore  # noqa: E402


def main() -> None:
    """Replace every expected table, for both selections of the checkpoint; remove those that no record makes."""
    stored = RecordStore(GOLDEN / "store").scan().records
    for selection in ("last", "best"):
        folder = GOLDEN / "expected" / selection
        folder.mkdir(parents=True, exist_ok=True)
        tables = build_tables(stored, selection)
        for path in folder.glob("*.md"):
            if path.stem not in tables:
                path.unlink()
        for name, text in tables.items():
            (folder / f"{name}.md").write_bytes(text.encode())
            print(f"{(folder / name).relative_to(ROOT)}.md")
    sys.path.insert(0, str(GOLDEN))
    from test_paper_tables import (  # the papers' tables and figures, as their test makes them
        EXPECTED,
        records,
        texts,
    )

    for name, text in texts(records()).items():
        (EXPECTED / name).write_bytes(text.encode())
        print((EXPECTED / name).relative_to(ROOT))


if __name__ == "__main__":
    main()
