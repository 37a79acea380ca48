"""What a number was made with: versions, processor, commit. No user name, home folder or secret is read."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = (
    "accelerate",
    "datasets",
    "hydra-core",
    "numpy",
    "scikit-learn",
    "scipy",
    "tokenizers",
    "torch",
    "transformers",
)


def environment() -> dict[str, Any]:
    """Python, platform, package versions (null where not installed), processor, threads and accelerators.

    Torch is asked only if it is already imported; before that its thread count and accelerators are null.
    """
    torch: Any = sys.modules.get("torch")
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in PACKAGES},
        "cpu": _cpu_name(),
        "cores": _cores(),
        "threads": {
            "torch": torch.get_num_threads() if torch else None,
            "OMP_NUM_THREADS": _whole(os.environ.get("OMP_NUM_THREADS")),
        },
        "accelerators": _accelerators(torch) if torch else None,
    }


def git_state(root: Path) -> dict[str, Any] | None:
    """Commit (null before the first) and whether any file outside results/ differs from it; null outside git.

    Also null where git is not installed, and where `root` lies in a repository that tracks none of its files,
    as the site-packages of an environment do.
    """
    if not _git(root, "ls-files"):
        return None
    status = _git(root, "status", "--porcelain=v2", "--branch", "--", ".", ":(exclude)results")
    if status is None:
        return None
    lines = status.splitlines()
    commit = next((line.split()[2] for line in lines if line.startswith("# branch.oid ")), "(initial)")
    return {
        "commit": None if commit == "(initial)" else commit,
        "dirty": any(not line.startswith("#") for line in lines),
    }


def _git(root: Path, *arguments: str) -> str | None:
    # Optional locks off: reading the state must not write the index while somebody commits.
    settings = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
    try:
        answer = subprocess.run(
            ["git", "-C", str(root), *arguments],
            capture_output=True,
            text=True,
            env=settings,
            check=False,
            timeout=30,
        )
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None
    return answer.stdout if answer.returncode == 0 else None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu_name() -> str:
    facts = Path("/proc/cpuinfo")
    if facts.is_file():
        for line in facts.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _cores() -> int:
    # The cores this process may use; a container or a scheduler often gives fewer than the machine has.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _accelerators(torch: Any) -> list[str]:
    if torch.cuda.is_available():
        return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return ["mps"] if torch.backends.mps.is_available() else []


def _whole(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdigit() else None


def usable_cores() -> int:
    """The cores that this process may use: under taskset or in a batch job fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
