"""Errors that the user can fix, each with its exit code, and the sentence for an unknown name."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

EXIT_OK = 0
EXIT_UNIT_FAILED = 1
EXIT_CONFIG = 2
EXIT_ASSET = 3
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143


class UserError(Exception):
    """Something that the user can fix. The message is shown without a traceback."""

    exit_code = EXIT_CONFIG


class AssetError(UserError):
    """Data or weights are missing; the message names all of them and what to do."""

    exit_code = EXIT_ASSET


class Interrupted(Exception):
    """A unit was asked to stop; its checkpoint is written. `signum` is the signal that asked."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by signal {signum}")
        self.signum = signum


class Diverged(Exception):
    """A loss, gradient or score became NaN or infinite."""


class PromiseBroken(Exception):
    """What the method promises did not happen in this run; the run is failed."""


def unknown(kind: str, received: str, valid: Iterable[str]) -> str:
    """One sentence for an unknown name: what was received, the nearest valid name, the valid ones."""
    names = sorted(valid)
    near = get_close_matches(received, names, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    return f"unknown {kind} {received!r}{hint} Valid: {', '.join(names)}."
