"""Weights in a GGUF file, as llama.cpp keeps them: turned once into an ordinary float32 folder of safetensors.

transformers reads weights, configuration and tokenizer out of the file. What it returns still says that it is
quantised, so a clean model is built around the same numbers. Light: torch and transformers are imported inside.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from tempfile import TemporaryDirectory

from adalora_bench.errors import AssetError

FORM = 1
"""Of the restored folder, part of its name: raise it when `_restore` writes something else."""
_log = logging.getLogger(__name__)


def holds_gguf(folder: Path) -> bool:
    """Whether the weights in this folder are a GGUF file and nothing that transformers opens by itself."""
    return not (folder / "config.json").is_file() and any(folder.glob("*.gguf"))


def restored(folder: Path) -> Path:
    """The folder of config.json, model.safetensors and tokenizer made from the GGUF file in `folder`.

    It lies beside `folder` and is made by the first who asks; others wait for it. A restored folder is complete or
    not there.

    Raises:
        AssetError: `folder` holds not exactly one GGUF file, or one of something else than a language model.
    """
    from filelock import FileLock

    target = folder.parent / f"{folder.name}-float32-{FORM}"
    with FileLock(f"{target}.lock"):
        if not target.is_dir():
            files = sorted(path.name for path in folder.glob("*.gguf"))
            if len(files) != 1:
                raise AssetError(f"{folder.name} must hold one GGUF file, but it holds {len(files)}.")
            _log.info("restoring %s to float32, once", files[0])
            with TemporaryDirectory(dir=target.parent, prefix=".restore-") as temporary:
                made = Path(temporary) / "model"
                _restore(folder, files[0], made)
                os.replace(made, target)
    return target


def _restore(folder: Path, file: str, made: Path) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    try:
        model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file)
    except ValueError as error:
        raise AssetError(f"{file} cannot be read as a language model: {error}") from error
    settings = model.config.to_dict()
    del settings["quantization_config"]
    with torch.device("meta"):
        clean = AutoModelForCausalLM.from_config(AutoConfig.for_model(**settings), dtype=torch.float32)
    clean.load_state_dict(model.state_dict(), assign=True)
    clean.tie_weights()
    clean.save_pretrained(made)
    tokenizer.save_pretrained(made)
