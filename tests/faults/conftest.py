"""What several fault tests need: a process that forks units."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def units() -> Iterator[object]:
    """A `forked_units.Units`: torch is imported once for all tests of this worker."""
    from forked_units import Units

    started = Units()
    yield started
    started.close()


def files(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Every file below a folder but the locks: its time and its bytes."""
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "unit.lock"
    }
