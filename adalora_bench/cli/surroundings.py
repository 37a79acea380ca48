"""What a shell, a container or a scheduler may have left out: an audience for what is printed, a home, a user's name.

Work goes on without its audience: output that nobody can take any more is dropped, and what was trained is kept.
"""

from __future__ import annotations

import io
import os
import sys
import tempfile
from contextlib import suppress
from typing import Any, TextIO


def settle() -> None:
    """Make the process ready for surroundings without standard streams, a home or a name for its user."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:  # closed: else the next file that is opened would take its place
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
            os.set_inheritable(number, True)  # for workers
    sys.stdin = sys.stdin or open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stdout = Audience(sys.stdout or open(1, "w", encoding="utf-8", closefd=False))  # noqa: SIM115
    sys.stderr = Audience(sys.stderr or open(2, "w", encoding="utf-8", closefd=False))  # noqa: SIM115
    if (
        os.path.expanduser("~") == "~"
    ):  # libraries would make a folder of this name where the command was started
        os.environ["HOME"] = os.path.join(tempfile.gettempdir(), f"adalora_bench-{os.getuid()}")
    if not any(os.environ.get(name) for name in ("LOGNAME", "USER", "LNAME", "USERNAME")):
        import pwd

        try:
            pwd.getpwuid(os.getuid())
        except KeyError:
            os.environ["USER"] = f"uid{os.getuid()}"


class Audience(io.TextIOBase):
    """A text stream whose reader may go away, whose disk may be full, and whose locale may lack a letter.

    Args:
        stream: what it writes to.
    """

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._stream = stream
        with suppress(AttributeError, ValueError):
            stream.reconfigure(errors="backslashreplace")  # type: ignore[attr-defined]

    def write(self, text: str) -> int:
        """All of it, or nothing where nobody takes it any more."""
        try:
            self._stream.write(text)
        except (OSError, ValueError):
            self._leave()
        return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except (OSError, ValueError):
            self._leave()

    def _leave(self) -> None:
        """From now on into nowhere, also what is still in the buffer."""
        with suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)

    def isatty(self) -> bool:
        with suppress(OSError, ValueError):
            return self._stream.isatty()
        return False

    def fileno(self) -> int:
        return self._stream.fileno()

    def writable(self) -> bool:
        return True

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._stream.encoding

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
