"""From records to cells: which key a table shows, and what is stale."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from adalora_bench.report.rows import CellRow, Group, Record, Selection, age, group_of, local_weights, row_of
from adalora_bench.store.schema import DONE, finished_at

# Overrides of these groups belong to what a row is called; others (jobs, seeds) change no number.
_LABELLED = ("method", "train", "task", "backbone", "pair", "scale")


@dataclass(frozen=True, kw_only=True)
class Hidden:
    """Records that a table does not show: another key for the same place, or stale ones."""

    group: Group
    label: str
    task: str
    key8: str
    records: int
    why: str


Place = tuple[Group, str, str, tuple[str, ...]]
"""Where a row stands: its table, its task, its method and what was typed beyond them."""


@dataclass(frozen=True, kw_only=True)
class Cells:
    """Rows in order of group, task, method and overrides, and what they hide."""

    rows: list[CellRow]
    others: list[Hidden]
    stale: list[Hidden]


def cell_summary(records: Iterable[Record], selection: Selection | None = None) -> list[CellRow]:
    """The rows that tables are made of, one per cell; see `arrange` for what is shown."""
    return arrange(records, selection).rows


def arrange(records: Iterable[Record], selection: Selection | None = None) -> Cells:
    """Choose for each table, label and task the key to show, whatever the order of the records.

    Without a `selection` each split has its own (`selection_of`).

    Of records with the same settings, those whose versions or data differ from the newest are stale. Of several keys
    for one place the newest with a result is shown (the newest at all, where none has one).
    """
    fresh, stale_keys = _split_stale(_by_key(records))
    places: dict[Place, list[str]] = defaultdict(list)
    for key, seeds in fresh.items():
        names = seeds[0]["names"]
        places[group_of(seeds[0]), names["task"], names["method"], _overrides(seeds)].append(key)
    places = _by_weights(places, fresh)
    rows, others = [], []
    for (_, _, _, overrides), keys in places.items():
        ranked = sorted(
            keys, key=lambda key: (_has_result(fresh[key]), _newest(fresh[key]), key), reverse=True
        )
        rows.append(row_of(fresh[ranked[0]], overrides, selection))
        others += [_hidden(fresh[key], f"key {ranked[0][:8]} is shown") for key in ranked[1:]]
    stale = [_hidden(seeds, why) for seeds, why in stale_keys]
    rows.sort(key=lambda row: (row.group.sort_key, row.task, row.method, row.overrides))
    return Cells(rows=rows, others=_sorted(others), stale=_sorted(stale))


def _by_weights(
    places: Mapping[Place, Sequence[str]], fresh: Mapping[str, Sequence[Record]]
) -> dict[Place, list[str]]:
    """The same, but weights of several local folders in one place are rows of their own, called after the folder."""
    apart: dict[Place, list[str]] = defaultdict(list)
    for (group, task, method, overrides), keys in places.items():
        folders = {key: local_weights(fresh[key][0]) for key in keys}
        several = len(set(folders.values())) > 1
        for key in keys:
            more = (f"weights of {folders[key]}",) if several and folders[key] else ()
            apart[group, task, method, (*overrides, *more)].append(key)
    return apart


def arrange_seeds(records: Iterable[Record]) -> list[Record]:
    """The seeds of one cell, in their order: of several keys the newest that has a result; stale ones are left out."""
    fresh, _ = _split_stale(_by_key(records))
    if not fresh:
        return []
    return max(fresh.values(), key=lambda seeds: (_has_result(seeds), _newest(seeds), seeds[0]["key"]))


def left_out(records: Iterable[Record], used: Iterable[Record]) -> list[Hidden]:
    """The records that are not among the used ones, key by key."""
    shown = {(record["key"], record["seed"]) for record in used}
    rest = [record for record in records if (record["key"], record["seed"]) not in shown]
    return _sorted([_hidden(seeds, "other settings or versions") for seeds in _by_key(rest).values()])


def _by_key(records: Iterable[Record]) -> dict[str, list[Record]]:
    """Key -> its records in order of seed; of two records of one seed the newer."""
    newest: dict[tuple[str, int], Record] = {}
    for record in records:
        place = record["key"], record["seed"]
        if place not in newest or age(record) > age(newest[place]):
            newest[place] = record
    by_key: dict[str, list[Record]] = defaultdict(list)
    for place in sorted(newest):
        by_key[place[0]].append(newest[place])
    return by_key


def _split_stale(
    by_key: Mapping[str, list[Record]],
) -> tuple[dict[str, list[Record]], list[tuple[list[Record], str]]]:
    settings: dict[str, list[str]] = defaultdict(list)
    for key, seeds in by_key.items():
        settings[seeds[0]["settings_key"]].append(key)
    fresh: dict[str, list[Record]] = {}
    stale: list[tuple[list[Record], str]] = []
    for keys in settings.values():
        newest = max((record for key in keys for record in by_key[key]), key=age)
        for key in keys:
            differences = _differences(by_key[key][0], newest)
            if differences:
                stale.append((by_key[key], differences))
            else:
                fresh[key] = by_key[key]
    return fresh, stale


def _differences(record: Record, newest: Record) -> str:
    parts = sorted(set(record["versions"]) | set(newest["versions"]))
    found = [
        f"{part} version {record['versions'].get(part)}, now {newest['versions'].get(part)}"
        for part in parts
        if record["versions"].get(part) != newest["versions"].get(part)
    ]
    if record["data_fingerprint"] != newest["data_fingerprint"]:
        found.append("other data")
    return "; ".join(found)


def _overrides(seeds: Sequence[Record]) -> tuple[str, ...]:
    """What the row is called after. One key may have been typed in several ways: the shortest names it."""
    return min((_labelled(record["overrides"]) for record in seeds), key=lambda typed: (len(typed), typed))


def _labelled(overrides: Sequence[str]) -> tuple[str, ...]:
    kept = []
    for override in overrides:
        name, _, value = override.lstrip("+~").partition("=")
        # A path is no setting: it is not part of the key and means nothing on another machine.
        if name.split(".")[0].split("@")[0] in _LABELLED and not value.strip("'\"").startswith(("/", "~")):
            kept.append(override)
    return tuple(sorted(kept))


def _hidden(seeds: Sequence[Record], why: str) -> Hidden:
    names = seeds[0]["names"]
    overrides = _overrides(seeds)
    label = f"{names['method']} ({', '.join(overrides)})" if overrides else names["method"]
    return Hidden(
        group=group_of(seeds[0]),
        label=label,
        task=names["task"],
        key8=seeds[0]["key"][:8],
        records=len(seeds),
        why=why,
    )


def _sorted(hidden: list[Hidden]) -> list[Hidden]:
    return sorted(hidden, key=lambda one: (one.group.sort_key, one.task, one.label, one.key8))


def _newest(seeds: Sequence[Record]) -> datetime:
    return max(finished_at(record) for record in seeds)


def _has_result(seeds: Sequence[Record]) -> bool:
    return any(record["status"] in DONE for record in seeds)


NAMED = 12  # keys; of more the rest is counted


def not_shown(hidden: Sequence[Hidden], which: str) -> str:
    """7 further records with other settings are not shown: lora on rte, key 1a2b3c4d (5); lora on cola, ..."""
    total = sum(one.records for one in hidden)
    names = [f"{one.label} on {one.task}, key {one.key8} ({one.records})" for one in hidden[:NAMED]]
    rest = len(hidden) - NAMED
    names += [f"and {rest} more keys ({sum(one.records for one in hidden[NAMED:])})"] if rest > 0 else []
    noun, verb = ("record", "is") if total == 1 else ("records", "are")
    return f"{total} further {noun} {which} {verb} not shown: {'; '.join(names)}."
