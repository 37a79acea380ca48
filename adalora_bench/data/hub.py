"""The Hugging Face hub: its cache on this machine, read without its library, and downloads with it.

The cache layout is the documented one of huggingface_hub:
`<cache>/<datasets|models>--<owner>--<name>/snapshots/<commit>/<path>`, with `refs/<branch>` naming a commit.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from adalora_bench.errors import AssetError

TIMEOUT_SECONDS = 5.0
# huggingface_hub's own reading of a switched-on environment variable.
_TRUE = {"1", "ON", "YES", "TRUE"}
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "spm.model",
    "sentencepiece.bpe.model",
    "spiece.model",
    "vocab.txt",
    "vocab.json",
)
_SMALL_MODEL_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "merges.txt",
    *_TOKENIZER_FILES,
)
# host -> why; a host that did not answer is not tried again in this process
_silent_hosts: dict[str, str] = {}


def offline_by_environment() -> bool:
    """Whether HF_HUB_OFFLINE, or the older TRANSFORMERS_OFFLINE, is switched on."""
    value = os.environ.get("HF_HUB_OFFLINE") or os.environ.get("TRANSFORMERS_OFFLINE") or ""
    return value.upper() in _TRUE


def cache_dir() -> Path:
    """The hub's cache folder, by the same variables as huggingface_hub, read at the time of the call."""
    environment = os.environ
    home = environment.get("HF_HOME") or os.path.join(
        environment.get("XDG_CACHE_HOME") or "~/.cache", "huggingface"
    )
    cache = (
        environment.get("HF_HUB_CACHE")
        or environment.get("HUGGINGFACE_HUB_CACHE")
        or os.path.join(home, "hub")
    )
    return Path(os.path.expandvars(os.path.expanduser(cache)))


def snapshot(repository: str, kind: str, revision: str | None) -> Path | None:
    """The cached snapshot folder of a commit, branch or tag (None: main); None if there is none.

    A cache without `refs` is fine for a pinned commit, and for no revision where it holds a single snapshot.
    """
    root = cache_dir() / f"{kind}s--{repository.replace('/', '--')}"
    reference = root / "refs" / (revision or "main")
    commit = reference.read_text().strip() if reference.is_file() else revision
    if commit is not None:
        folder = root / "snapshots" / commit
        return folder if folder.is_dir() else None
    folders = list((root / "snapshots").glob("*"))
    return folders[0] if len(folders) == 1 else None


def is_complete_model(folder: Path) -> bool:
    """Whether the folder has a config, some tokenizer file and all of the weights."""
    # A snapshot holds links; is_file() is False for one whose target is gone.
    present = {path.name for path in folder.glob("*") if path.is_file()}
    return (
        "config.json" in present
        and any(name in present for name in _TOKENIZER_FILES)
        and bool(_weights(present, require_all_shards=True))
    )


def dataset_patterns(folder: str | None, splits: Sequence[str]) -> list[str]:
    """Glob patterns of the parquet files of these splits inside the repository; `folder` is where they are."""
    prefix = f"{folder}/" if folder else ""
    return [f"{prefix}{split}{shards}" for split in splits for shards in ("-*.parquet", "/*.parquet")]


def model_files(names: Sequence[str]) -> list[str]:
    """Of a repository's files, those that a model needs: config, tokenizer, and one form of the weights."""
    return [name for name in _SMALL_MODEL_FILES if name in names] + _weights(
        set(names), require_all_shards=False
    )


def download(
    repository: str, kind: str, revision: str | None, *, patterns: list[str] | None, gated: str | None = None
) -> None:
    """Bring files into the hub's cache: those that match `patterns`, or the model files if that is None.

    The listing is a single request with a short timeout; only a host that answered it is asked for files.

    Raises:
        AssetError: no answer (and the host is remembered), no access, no such repository or revision or files.
    """
    from huggingface_hub import HfApi, constants, hf_hub_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    host = constants.ENDPOINT.split("//")[-1]
    if host in _silent_hosts:
        raise AssetError(_silent_hosts[host])
    try:
        api = HfApi()
        # Plain calls, not the retrying ones: exactly one attempt.
        listing = (
            api.dataset_info(repository, revision=revision, timeout=TIMEOUT_SECONDS)
            if kind == "dataset"
            else api.model_info(repository, revision=revision, timeout=TIMEOUT_SECONDS)
        )
        names = [entry.rfilename for entry in listing.siblings or []]
        chosen = model_files(names) if patterns is None else _matching(names, patterns)
        for name in chosen:
            hf_hub_download(
                repository,
                name,
                repo_type=kind,
                revision=revision,
                cache_dir=cache_dir(),
                etag_timeout=TIMEOUT_SECONDS,
            )
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            raise AssetError(gated or f"{host} gives no access to {repository} (HTTP {status})") from error
        if isinstance(error, RepositoryNotFoundError) or status == 404:
            raise AssetError(f"{host} has no {repository} at revision {revision or 'main'}") from error
        raise AssetError(_remember(host, f"HTTP {status}")) from error
    except (HTTPError, LocalEntryNotFoundError, ConnectionError) as error:
        raise AssetError(_remember(host, _first_line(error))) from error
    except OSError as error:
        raise AssetError(
            f"{repository} could not be stored in {cache_dir()} ({_first_line(error)})"
        ) from error


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _remember(host: str, reason: str) -> str:
    _silent_hosts[host] = f"{host} did not answer ({reason})"
    return _silent_hosts[host]


def _matching(names: Sequence[str], patterns: Sequence[str]) -> list[str]:
    return [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]


def _weights(names: set[str], *, require_all_shards: bool) -> list[str]:
    """One form of the weights out of these file names, the safe one first; [] if none is there."""
    for single, shard, index in (
        ("model.safetensors", r"model-\d+-of-(\d+)\.safetensors", "model.safetensors.index.json"),
        ("pytorch_model.bin", r"pytorch_model-\d+-of-(\d+)\.bin", "pytorch_model.bin.index.json"),
    ):
        if single in names:
            return [single]
        shards = [(name, int(match[1])) for name in sorted(names) if (match := re.fullmatch(shard, name))]
        complete = bool(shards) and len(shards) == shards[0][1]
        if index in names and shards and (complete or not require_all_shards):
            return [index, *(name for name, _ in shards)]
    return []
