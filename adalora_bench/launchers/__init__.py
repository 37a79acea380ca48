"""What runs units: launcher=local, ray or slurm. Each is one class over `Launcher`, found here by its name."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

from adalora_bench.errors import UserError, unknown

if TYPE_CHECKING:
    from adalora_bench.launchers.base import Launcher

# launcher -> (module, class, the package that pip brings as an extra of the same name)
LAUNCHERS = {
    "local": ("adalora_bench.launch", "LocalPool", None),
    "ray": ("adalora_bench.launchers.ray", "RayPool", "ray"),
    "slurm": ("adalora_bench.launchers.slurm", "SlurmPool", "submitit"),
}


def check(name: str) -> None:
    """UserError: no such launcher, or its package is not installed."""
    if name not in LAUNCHERS:
        raise UserError(unknown("launcher", name, LAUNCHERS))
    package = LAUNCHERS[name][2]
    if package is not None and importlib.util.find_spec(package) is None:
        raise UserError(f"launcher={name} needs {package}; pip install 'adalora_bench[{name}]' brings it.")


def launcher_class(name: str) -> type[Launcher]:
    """The class of a launcher. UserError: as `check`."""
    check(name)
    module, cls, _ = LAUNCHERS[name]
    found: type[Launcher] = getattr(importlib.import_module(module), cls)
    return found
