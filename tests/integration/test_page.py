"""The page as text: whole, self-contained, the same from the same records. tests/browser opens it."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from report_records import everything

from adalora_bench.report.page import page, refresh
from adalora_bench.settings.compose import conf_dir
from adalora_bench.store.records import RecordStore

VOID = {"meta", "link"}


class Checker(HTMLParser):
    """Collects ids and what is loaded; every tag must be closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.loads: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if values.get("id"):
            self.ids.append(str(values["id"]))
        self.loads += [str(values[name]) for name in ("src", "href", "xlink:href") if values.get(name)]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> RecordStore:
    store = RecordStore(tmp_path_factory.mktemp("page") / "runs")
    for one in everything():
        if one["names"]["task"] == "rte" and one["names"]["method"] in ("lora", "sora", "bitfit"):
            store.write(one)
    return store


@pytest.fixture(scope="module")
def text(store: RecordStore) -> str:
    return page(conf_dir(), store, store.scan().records)


def test_it_is_whole_and_loads_nothing(text: str) -> None:
    checker = Checker()
    checker.feed(text)
    assert checker.open == []
    assert len(set(checker.ids)) == len(checker.ids), "an id twice: pictures would refer to each other"
    assert all(link.startswith(("#", "data:")) for link in checker.loads)
    assert {link[1:] for link in checker.loads if link.startswith("#")} <= set(checker.ids)
    assert not re.search(r"@import|url\((?!#)|fetch\(|XMLHttpRequest", text)


def test_it_says_what_was_run(text: str) -> None:
    assert "24 ok, 1 diverged" in text
    assert re.search(r"Cells of the papers&#x27; tables|Cells of the papers' tables", text)
    for part in ("overview", "tables", "scales", "figures", "claims", "cells"):
        assert f'<section id="{part}">' in text
    assert text.count('<details class="cell"') == 5
    assert "method.rank = 8" in text
    assert "prefers-color-scheme: dark" in text
    for number in range(1, 6):
        assert f"AFLoRA, Table {number}:" in text


def test_made_again_it_is_the_same(store: RecordStore, text: str, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text(text)
    assert not refresh(conf_dir(), store, store.scan().records[::-1], path)


def test_names_cannot_break_it(store: RecordStore) -> None:
    records = [one | {"overrides": ["method.note='<b>&\"'"]} for one in store.scan().records[:5]]
    made = page(conf_dir(), store, records)
    assert '<b>&"' not in made
    assert "&lt;b&gt;&amp;&quot;" in made


def test_without_records(tmp_path: Path) -> None:
    assert "nothing was run" in page(conf_dir(), RecordStore(tmp_path / "runs"), [])
