"""A payload: an object whose pickle does something where it is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any


class Payload:
    """Reading a pickle of it writes the file `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (self.path, "run")
