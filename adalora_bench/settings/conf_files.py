"""Where settings stand: conf/, the user's own folders laid out alike, and their files, read as plain values."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from adalora_bench.errors import UserError

CONF_VARIABLE = "ADALORA_BENCH_CONF"


def conf_dir() -> Path:
    """The folder of the YAML files: beside the package in a checkout, inside it in a wheel."""
    package = Path(__file__).parent.parent
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"


def conf_dirs() -> list[Path]:
    """`conf_dir`, then the user's own folders, laid out alike: those that ADALORA_BENCH_CONF names.

    UserError: a folder that is not there.
    """
    named = [part for part in os.environ.get(CONF_VARIABLE, "").split(os.pathsep) if part]
    folders = [Path(at_home("--config-dir", part)).resolve() for part in named]
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"{folder}, a folder of settings (--config-dir, {CONF_VARIABLE}), is not there.")
    return [conf_dir(), *folders]


def options(group: str) -> list[str]:
    """Names of a config group, sorted."""
    return sorted({path.stem for folder in conf_dirs() for path in (folder / group).glob("*.yaml")})


def option_file(group: str, name: str) -> Path:
    """The file of an option; the package's own wins, as in Hydra's search path."""
    paths = [folder / group / f"{name}.yaml" for folder in conf_dirs()]
    return next((path for path in paths if path.is_file()), paths[0])


def describe(group: str, name: str) -> str:
    """One line on an option: its `description`, or the first comment of its file."""
    from omegaconf import OmegaConf

    path = option_file(group, name)
    text = OmegaConf.select(load_yaml(path), "description")
    return str(text) if text else path.read_text().splitlines()[0].lstrip("# ")


def load_yaml(path: Path) -> Any:
    """The node of a file of settings. UserError: it is no YAML that can be read, or wants to make objects."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    try:
        return OmegaConf.load(path)
    except (YAMLError, OmegaConfBaseException, OSError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}" if mark else ""
        reason = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise UserError(f"{path}{place} is no file of settings that can be read: {reason}.") from None


@contextmanager
def no_environment() -> Iterator[None]:
    """Settings cannot take the value of an environment variable: a record would keep it, and it may be a secret."""
    from omegaconf import OmegaConf
    from omegaconf.errors import UnsupportedInterpolationType
    from omegaconf.resolvers import oc

    def refuse(*_: object) -> Any:
        raise UnsupportedInterpolationType("a setting cannot read the environment")

    OmegaConf.register_new_resolver("oc.env", refuse, replace=True)
    try:
        yield
    finally:
        OmegaConf.register_new_resolver("oc.env", oc.env, replace=True)


def at_home(name: str, path: str) -> str:
    """A path whose `~` is expanded. UserError: there is no such home."""
    full = os.path.expanduser(path)
    if full.startswith("~") and path in ("~", full) and not Path(path).exists():
        raise UserError(f"{name}={path!r}: there is no such home folder; write the whole path.")
    return full
