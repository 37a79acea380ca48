"""Refuse files that are too large for git: results that a command makes, weights, data.

python scripts/tracked_sizes.py            (every tracked file of this checkout)
python scripts/tracked_sizes.py FILE...    (these alone)
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

LIMIT = 500_000
ROOT = Path(__file__).resolve().parent.parent


def tracked() -> list[Path]:
    """The files that git tracks here; none where this is no checkout."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    return [ROOT / name for name in listed.stdout.decode().split("\0") if name]


def too_large(paths: list[Path]) -> list[tuple[Path, int]]:
    """The files above LIMIT bytes, with their size."""
    sizes = [(path, path.lstat().st_size) for path in paths if path.exists()]
    return [(path, size) for path, size in sizes if size > LIMIT]


def main(names: list[str]) -> int:
    found = too_large([Path(name) for name in names] or tracked())
    for path, size in found:
        print(f"{path}: {size:,} bytes; a tracked file has at most {LIMIT:,}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
