"""The page in a real browser: no error, no request, sorting and filtering work. Needs playwright and a Chromium.

pytest -m browser tests/browser; screenshots go to the folder that ADALORA_BENCH_SCREENSHOTS names, where it does.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from report_records import everything

from adalora_bench.report.page import refresh
from adalora_bench.settings.compose import conf_dir
from adalora_bench.store.records import RecordStore

pytestmark = pytest.mark.browser
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    store = RecordStore(folder / "runs")
    for record in everything():
        store.write(record)
    refresh(conf_dir(), store, store.scan().records, folder / "report.html")
    return folder / "report.html"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    if CHROMIUM is None:
        pytest.skip("no Chromium on the PATH (Debian: apt-get install chromium)")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def page(browser: Any, page_file: Path) -> Iterator[Any]:
    opened = browser.new_page(viewport={"width": 1280, "height": 900})
    opened.said, opened.asked = [], []
    opened.on("console", lambda message: opened.said.append(message.text))
    opened.on("pageerror", lambda error: opened.said.append(str(error)))
    opened.on("request", lambda request: opened.asked.append(request.url))
    opened.goto(page_file.as_uri())
    yield opened
    assert opened.said == []
    assert [url for url in opened.asked if not url.startswith(("file:", "data:"))] == []
    opened.close()


def column(page: Any, table: str, number: int) -> list[str]:
    return page.eval_on_selector_all(
        f"{table} tbody tr:not([hidden])", f"rows => rows.map(row => row.cells[{number}].dataset.value)"
    )


def test_sorting_by_a_head(page: Any) -> None:
    table = "#scales table"
    head = page.locator(f"{table} thead th").nth(2)
    assert head.inner_text() == "rte: acc"
    head.locator("button").click()
    down = [float(value) for value in column(page, table, 2)]
    assert len(down) == 11
    assert down == sorted(down, reverse=True)
    assert head.get_attribute("aria-sort") == "descending"
    head.locator("button").click()
    assert [float(value) for value in column(page, table, 2)] == down[::-1]
    page.locator(f"{table} thead th").nth(1).locator("button").click()
    texts = column(page, table, 1)
    assert texts[-5:] == [""] * 5, "rows without a number stay last"


def test_filters(page: Any) -> None:
    names = "#scales tbody tr:not([hidden]) th"
    assert page.locator(names).count() == 11
    page.select_option("#method", "sora")
    assert page.locator(names).all_inner_texts() == ["sora"]
    claims = page.locator("#claims tbody tr:visible")
    assert "sora-mrpc" in claims.locator("th").all_inner_texts()
    assert "delta-t1-bleu" not in claims.locator("th").all_inner_texts()
    assert page.locator("#cells > details:visible").count() == 2
    page.select_option("#task", "mrpc")
    assert page.locator("#cells > details:visible").count() == 1
    assert page.locator("#scales thead th:visible").all_inner_texts() == ["method", "mrpc: acc"]
    costs = page.locator("#tables > details[open]:visible table.cost tbody tr:visible")
    assert set(costs.evaluate_all("rows => rows.map(row => row.dataset.method)")) == {"sora"}
    assert costs.first.locator("td:visible").count() == 4
    page.select_option("#method", "")
    page.select_option("#task", "gsm8k")
    titles = page.locator("#tables > details:visible summary").all_inner_texts()
    assert len(titles) == 1
    assert titles[0].startswith("AFLoRA, Table 2")
    page.select_option("#task", "")
    assert page.locator(names).count() == 11


@pytest.mark.parametrize("width", [1280, 400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_runs_over_the_edge(page: Any, width: int, scheme: str) -> None:
    page.set_viewport_size({"width": width, "height": 900})
    page.emulate_media(color_scheme=scheme)
    page.evaluate("document.querySelectorAll('#cells > details').forEach(one => { one.open = true })")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    back = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert back == ("rgb(22, 24, 27)" if scheme == "dark" else "rgb(255, 255, 255)")
    folder = os.environ.get("ADALORA_BENCH_SCREENSHOTS")
    if folder:
        for part in ("overview", "scales", "figures", "claims", "cells"):
            page.evaluate(f"document.getElementById('{part}').scrollIntoView()")
            page.screenshot(path=f"{folder}/{width}_{scheme}_{part}.png")
