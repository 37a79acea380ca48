"""Make docs/reliability.md of what the fault tests counted; `make test-faults` calls it.

python scripts/reliability.py FIGURES PAGE      (FIGURES: the JSON lines that pytest --figures left)

Exit code 1 where a fault was not survived every time, or was not tried.
"""

from __future__ import annotations

import json
import os
import platform
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from adalora_bench.store.environment import git_state

ROOT = Path(__file__).parents[1]
HEAD = ["fault", "how it is provoked", "tried", "survived", "figure"]
sys.path.insert(0, str(ROOT / "tests"))  # the names of the faults stand where the tests find them


def rows(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for each fault, in the order of FAULTS; a test that was skipped is no try, and is said."""
    from fault_figures import FAULTS

    found = []
    for name, fault in FAULTS.items():
        mine = [line for line in lines if line["id"] == name]
        said = [line["said"] for line in mine if line["said"] and line["outcome"] != "skipped"]
        skipped = [line["said"] for line in mine if line["outcome"] == "skipped"]
        failed = [line["test"] for line in mine if line["outcome"] in ("failed", "error")]
        words = [*dict.fromkeys(said), *(f"skipped: {reason}" for reason in dict.fromkeys(skipped))]
        words += [f"FAILED: {test}" for test in failed]
        found.append(
            {
                "id": name,
                "what": fault.what,
                "how": fault.how,
                "tried": sum(line["tried"] for line in mine),
                "survived": sum(line["survived"] for line in mine),
                "figure": "; ".join(words),
            }
        )
    return found


def page(table: list[dict[str, Any]], tests: int) -> str:
    """Markdown; nothing in it is written by hand but these sentences."""
    commit = (git_state(ROOT) or {}).get("commit") or "unknown"
    where = (
        f"{datetime.now(UTC):%Y-%m-%d}, commit {commit[:12]}, Python {platform.python_version()}, "
        f"torch {version('torch')}, {len(os.sched_getaffinity(0))} cores, {tests} tests"
    )
    cells = [
        [one["what"], one["how"], str(one["tried"]), str(one["survived"]), one["figure"]] for one in table
    ]
    lines = [
        " | ".join(text.replace("|", "\\|").replace("\n", " ") for text in row) for row in [HEAD, *cells]
    ]
    tried, survived = (sum(one[name] for one in table) for name in ("tried", "survived"))
    return "\n".join(
        [
            "# What it survives",
            "",
            "Made by `make test-faults` (scripts/reliability.py) from what the tests counted; do not edit.",
            "",
            f"Run: {where}.",
            f"Of {tried:,} attempts, {survived:,} were survived.",
            "",
            f"| {lines[0]} |",
            f"|{'---|' * len(HEAD)}",
            *(f"| {line} |" for line in lines[1:]),
            "",
            "*Tried* counts kills, interruptions, meetings or files; where a row is about a rule, each case of its",
            "table is one. *Survived*: what is recorded can be read and is whole, nothing finished runs again,",
            "the result is that of an undisturbed run, or the command has said in a sentence what is wrong and has",
            "written nothing. `make test` tries the quick ones every time; KILLS= and PAIRS= set how often a unit is",
            "killed and two processes meet.",
            "",
        ]
    )


def main() -> int:
    if len(sys.argv) != 3 or not Path(sys.argv[1]).is_file():
        print(__doc__)
        return 2
    read = [json.loads(line) for line in Path(sys.argv[1]).read_text(encoding="utf-8").splitlines()]
    lines = list({line["test"]: line for line in read}.values())  # a test that was run again counts once
    table = rows(lines)
    Path(sys.argv[2]).write_text(page(table, len(lines)), encoding="utf-8")
    lost = [one for one in table if one["survived"] < one["tried"]]
    absent = [one for one in table if not one["tried"]]
    for one in lost:
        print(f"not survived: {one['what']}: {one['survived']} of {one['tried']}; {one['figure']}")
    for one in absent:
        print(f"not tried: {one['what']}; {one['figure']}")
    print(f"wrote {sys.argv[2]}")
    return int(bool(lost or absent))


if __name__ == "__main__":
    sys.exit(main())
