"""A folder of weights that others made: opened without running anything in it, and refused where it is not whole.

What a folder may bring along is code (`auto_map`: transformers would ask at the terminal whether to run it) and
pickles. Neither is run: the architecture must be one that transformers has itself, and torch loads tensors alone.
Imports torch and transformers inside functions only.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from adalora_bench.errors import UserError

Opened = TypeVar("Opened")


def check_architecture(folder: Path, architecture: str) -> None:
    """Raises UserError: config.json is damaged, or of another architecture, such as one that brings its own code."""
    path = folder / "config.json"
    try:
        config = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{folder.name}/config.json cannot be read: {error}.") from error
    found = config.get("model_type") if isinstance(config, dict) else None
    if found != architecture:
        own = (
            " and bring code of their own, which is never run"
            if isinstance(config, dict) and "auto_map" in config
            else ""
        )
        raise UserError(
            f"the weights in {folder.name} are of architecture {found!r}{own}, "
            f"but backbone.architecture is {architecture!r}."
        )


def open_files(what: str, folder: Path, open_them: Callable[[], Opened]) -> Opened:
    """What `open_them` makes of the files in `folder`; whatever damage stops it becomes one sentence.

    Raises:
        UserError: the files are damaged, hold something else than they should, or a pickle that is more than tensors.
    """
    try:
        return open_them()
    except Exception as error:  # the readers of transformers raise whatever a damaged file leads them to
        if isinstance(error, (MemoryError, UserError)) or type(error).__name__ == "OutOfMemoryError":
            raise
        first = (str(error).strip().splitlines() or [""])[0][:200].rstrip(".: ")
        reason = "it holds a pickle of more than tensors" if _is_unpickling(error) else first
        raise UserError(
            f"the {what} in {folder.name} cannot be opened ({type(error).__name__}: {reason}); copy or fetch it again."
        ) from error


def load_model(auto: Any, folder: Path, *, newly_made: Sequence[str], **arguments: Any) -> Any:
    """The model of `folder`, every tensor of it read from there.

    Args:
        auto: a class of transformers with `from_pretrained`.
        newly_made: modules that the weights need not hold.
        arguments: more for `from_pretrained`.

    Raises:
        UserError: the weights are damaged, or lack a tensor, which would train as random numbers.
    """
    model, told = open_files(
        "weights",
        folder,
        lambda: auto.from_pretrained(
            folder, local_files_only=True, output_loading_info=True, ignore_mismatched_sizes=True, **arguments
        ),
    )
    for name, there, here in told["mismatched_keys"]:
        if not any(f".{new}." in f".{name}" for new in newly_made):
            raise UserError(
                f"the weights in {folder.name} hold {name} of shape {tuple(there)}, but their configuration asks for "
                f"{tuple(here)}."
            )
    lacking = sorted(
        name for name in told["missing_keys"] if not any(f".{new}." in f".{name}" for new in newly_made)
    )
    if lacking:
        raise UserError(
            f"the weights in {folder.name} lack {len(lacking)} tensors of their architecture, among them {lacking[0]}."
        )
    return model


def _is_unpickling(error: BaseException | None) -> bool:
    return error is not None and (
        type(error).__name__ == "UnpicklingError" or _is_unpickling(error.__cause__)
    )
