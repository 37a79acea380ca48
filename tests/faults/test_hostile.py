"""What a foreign record says, in every form that is written from it: no command, link, tag, formula or escape."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import report_records

from adalora_bench import cli
from adalora_bench.report.formats import _no_formula, _tex
from adalora_bench.report.text import one_line, pipe_table
from adalora_bench.store.records import RecordStore
from adalora_bench.store.schema import misfit

pytestmark = pytest.mark.fault("hostile")

HOSTILE = {
    "terminal": "\x1b]0;owned\x07\x1b[2J\x9b31m",
    "overwrite": "0.99\r0.10\b\b",
    "direction": "\u202eevil\u2066",
    "latex": "\\input{/etc/passwd}\\immediate\\openout1=x ^^5c $x$ % & # _ { } ~",
    "html": "<script>alert(1)</script><img src=x onerror=alert(1)>\"'><svg onload=alert(1)>",
    "markdown": "[click](javascript:alert(1)) ![p](http://evil.example/x.png) `a` | b \\| c\n# head\n[r]: http://evil.example",
    "formula": "=cmd|' /C calc'!A0",
    "formula plus": "+1+1",
    "formula at": "@SUM(A1)",
    "mathtext": "$\\frac{1}{$",
    "long": "a" * 5000,
    "empty": "",
    "newlines": "a\n\nb\r\nc\u2028d",
}
FIELDS = ("overrides", "notes", "subset", "reason", "source", "caveat", "detail", "metric text", "git")


def hostile(field: str, text: str) -> dict[str, Any]:
    """A record that says this text in one of its free fields."""
    one = json.loads(json.dumps(report_records.record("lora", "rte", 0)))
    one["key"] = "e" * 64
    if field == "overrides":
        one["overrides"] = [f"method.rank={text}"]
    elif field == "notes":
        one["notes"] = [text, f"(ours) {text}"]
    elif field == "subset":
        one["subset"] = text
    elif field == "reason":
        one |= {"status": "diverged", "reason": text or "x", "final": None}
    elif field == "source":
        one["config"]["recipe"] = {"source": text, "values": {text: text}}
    elif field == "caveat":
        one["config"]["backbone"]["caveat"] = text
    elif field == "detail":
        one["sources"] = {
            "backbone": {"served_by": "local", "detail": text},
            "task": {"served_by": text, "detail": text},
        }
    elif field == "metric text":
        one["metrics"] = {one["main_metric"]: text}
    else:
        one["git"] = {"commit": text, "dirty": False}
    return one


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A results folder with a hostile record for every text in every field, and all that is made of it."""
    root = tmp_path_factory.mktemp("hostile")
    store, seed = RecordStore(root / "runs"), 0
    for method in ("lora", "increlora"):
        for k in range(2):
            store.write(report_records.record(method, "rte", k))
    for field in FIELDS:
        for text in HOSTILE.values():
            one = hostile(field, text) | {"seed": (seed := seed + 1)}
            if misfit(one) is None:
                folder = store.folder(one["names"], one["key"], one["seed"])
                folder.mkdir(parents=True, exist_ok=True)
                (folder / "record.json").write_text(json.dumps(one))
    assert len(store.scan().records) > 100
    for command in ("tables", "claims", "figures", "report"):
        assert cli.main([command, f"results_dir={root}"]) == 0
    return root


def texts(root: Path, ending: str) -> dict[str, str]:
    return {
        str(path.relative_to(root)): path.read_text()
        for path in root.rglob(f"*.{ending}")
        if "runs" not in path.relative_to(root).parts[:1]
    }


@pytest.mark.parametrize("ending", ["md", "tex", "csv", "html", "svg"])
def test_no_form_holds_a_control_character(ending: str, written: Path) -> None:
    found = texts(written, ending)
    assert found
    for name, text in found.items():
        assert not re.search("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", text), name


def test_markdown_holds_no_link_no_tag_and_no_line_of_its_own(written: Path) -> None:
    for name, text in texts(written, "md").items():
        assert not re.search(r"\]\((javascript|http)", text), name
        assert not re.search(r"(?m)^\[r\]:", text), name
        assert not re.search(r"<(?!/?u>)[a-z]", text), name
        assert "\n# head" not in text


def test_latex_holds_no_command_of_a_record(written: Path) -> None:
    for name, text in texts(written, "tex").items():
        for command in ("\\input", "\\immediate", "\\openout", "^^", "\\frac"):
            assert command not in text, (name, command)


def test_html_holds_no_tag_of_a_record(written: Path) -> None:
    for name, text in texts(written, "html").items():
        assert "<script>alert" not in text, name
        assert "<img src=x" not in text, name
        assert "<svg onload" not in text, name


def test_csv_holds_no_formula(written: Path) -> None:
    for name, text in texts(written, "csv").items():
        for row in csv.reader(io.StringIO(text)):
            for cell in row:
                number = re.fullmatch(r"[+-]?[0-9.e+-]+", cell)
                assert number or cell[:1] not in ("=", "+", "-", "@", "\t", "\r"), (name, cell)


def test_the_terminal_gets_no_escape(written: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["tables", "--compare", f"results_dir={written}"]) == 0
    out, err = capsys.readouterr()
    assert "\x1b" not in out + err
    assert "\x07" not in out + err


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_each_form_escapes_for_itself(text: str) -> None:
    assert "\n" not in one_line(text)
    (line,) = pipe_table(["a", "b"], [[text, "x"]]).splitlines()[2:]
    assert len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) == 3  # as many cells as there are
    assert not re.search(
        r"(?<!\\)(?:\\\\)*[&%#_{}$]", re.sub(r"\\[a-z]+\{\}", "", _tex(text).replace("$\\to$", ""))
    )
    assert _no_formula(text)[:1] not in ("=", "+", "-", "@", "\r", "\t")


@pytest.mark.skipif(not shutil.which("pdflatex"), reason="no LaTeX here")
def test_latex_of_hostile_records_compiles(written: Path, tmp_path: Path) -> None:
    for path in sorted((written / "tables" / "papers").glob("increlora_1_*.tex")):
        (tmp_path / "page.tex").write_text(
            "\\documentclass{article}\\usepackage{booktabs}\\begin{document}"
            + path.read_text()
            + "\\end{document}"
        )
        done = subprocess.run(
            ["pdflatex", "-interaction=nonstopmode", "-no-shell-escape", "page.tex"],
            cwd=tmp_path,
            check=False,
        )
        assert done.returncode == 0


@pytest.mark.parametrize(
    "place", ["tables/cpu_deberta_v3_base.md", "tables/papers", "figures", "report.html", "claims.md"]
)
@pytest.mark.parametrize("kind", ["folder", "file"])
def test_a_place_that_is_taken_is_named_and_the_others_are_written(
    place: str, kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for method in ("lora", "increlora"):
        RecordStore(tmp_path / "runs").write(report_records.record(method, "rte", 0))
    path = tmp_path / place
    path.parent.mkdir(exist_ok=True)
    taken = (kind == "folder") == (
        "." in path.name
    )  # a folder where a file belongs, or a file where a folder does
    if kind == "folder":
        path.mkdir()
    elif taken:
        path.write_text("a file")
    codes = {
        name: cli.main([name, f"results_dir={tmp_path}"])
        for name in ("tables", "claims", "figures", "report")
    }
    said = capsys.readouterr().err
    assert sorted(codes.values()) == ([0, 0, 0, 2] if taken else [0, 0, 0, 0])
    assert (str(path) in said) == taken
    written = {p.name for p in tmp_path.rglob("*") if p.is_file()}
    expected = {"cpu_deberta_v3_base.md", "claims.md", "report.html"} - ({path.name} if taken else set())
    assert expected <= written
