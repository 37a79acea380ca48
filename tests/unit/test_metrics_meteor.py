"""METEOR: nltk's by hand, with a WordNet of one synset, and METEOR 1.5 behind a stand-in for Java."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from made_up_texts import made_up_texts

from adalora_bench import metrics
from adalora_bench.errors import AssetError, UserError

JAVA = """#!{python}
import sys
from pathlib import Path
Path({log!r}).write_text(repr(sys.argv[1:]) + "\\n" + Path(sys.argv[5]).read_text("utf-8") + "|\\n"
                         + Path(sys.argv[6]).read_text("utf-8"), "utf-8")
{end}
"""


@pytest.mark.parametrize(
    ("said", "wanted", "by_hand"),
    [
        # All three words match ("cats" by its stem) in one chunk: F = 1, penalty 0.5 * (1/3)^3.
        (["The cat sat"], [["the cats sat"]], 1 - 0.5 * (1 / 3) ** 3),
        # the, sat: P = 2/2, R = 2/4, F = 1 * 0.5 / (0.9 * 1 + 0.1 * 0.5); two words apart in the reference: two chunks.
        (["the sat"], [["the old cat sat"]], 0.5 / 0.95 * (1 - 0.5 * (2 / 2) ** 3)),
        (["a", "b c"], [["x"], ["d", "b c"]], (0 + 1 - 0.5 * (1 / 2) ** 3) / 2),
        # "centre." within the text is two words, as at its end.
        (["The centre. It"], [["the centre . It"]], 1 - 0.5 * (1 / 4) ** 3),
    ],
)
def test_exact_and_stem_by_hand(said, wanted, by_hand):
    assert metrics.score("meteor_nltk_exact_stem", said, wanted) == pytest.approx(by_hand, abs=1e-12)


def test_parity_with_nltk():
    from nltk.tokenize import word_tokenize
    from nltk.translate.meteor_score import single_meteor_score

    class Nothing:
        def synsets(self, word):
            return []

    said, wanted = ["the bus came late"] * 2, ["a late bus came", "the buses came lately"]
    rows = [
        single_meteor_score(
            word_tokenize(gold, preserve_line=True),
            word_tokenize(text, preserve_line=True),
            wordnet=Nothing(),
        )
        for text, gold in zip(said, wanted, strict=True)
    ]
    ours = metrics.score("meteor_nltk_exact_stem", said, [[gold] for gold in wanted])
    assert ours == pytest.approx(sum(rows) / 2, abs=1e-9)
    assert 0.0 < ours < 1.0


def write_wordnet(folder: Path) -> None:
    """The files of a WordNet in which "car" and "auto" mean the same."""
    folder.mkdir(parents=True)
    for part, letter in (("noun", "n"), ("verb", "v"), ("adj", "a"), ("adv", "r")):
        synset = f"00000000 00 {letter} 02 car 0 auto 0 000 | made up  \n" if part == "noun" else ""
        index = "".join(f"{word} n 1 0 1 0 00000000  \n" for word in ("auto", "car")) if synset else ""
        (folder / f"data.{part}").write_text(synset)
        (folder / f"index.{part}").write_text(index)
        (folder / f"{part}.exc").write_text("")
    (folder / "index.sense").write_text("")
    (folder / "lexnames").write_text("00\tnoun.Tops\t1\n")


def test_synonyms_come_from_wordnet(tmp_path):
    # In a process of its own: nltk keeps a WordNet that it has loaded.
    write_wordnet(tmp_path / "corpora" / "wordnet")
    code = (
        "from adalora_bench import metrics\n"
        "metrics.require(['meteor_nltk'])\n"
        "for name in ('meteor_nltk', 'meteor_nltk_exact_stem'):\n"
        "    print(metrics.score(name, ['my car stops'], [['my auto stops']]))\n"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"NLTK_DATA": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    with_synonyms, without = map(float, answer.stdout.split())
    assert with_synonyms == pytest.approx(1 - 0.5 * (1 / 3) ** 3)
    assert without == pytest.approx(2 / 3 * (1 - 0.5 * (2 / 2) ** 3))


def test_missing_wordnet_is_said(tmp_path, monkeypatch):
    import nltk

    monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])
    for call in (
        lambda: metrics.require(["acc", "meteor_nltk"]),
        lambda: metrics.score("meteor_nltk", ["a"], [["a"]]),
    ):
        with pytest.raises(AssetError, match=r"python -m nltk.downloader wordnet.*NLTK_DATA.*exact_stem"):
            call()
    metrics.require([name for name in metrics.names() if not name.startswith("meteor")])


def test_wordnet_that_lacks_a_file_is_said(tmp_path, monkeypatch):
    import nltk

    write_wordnet(tmp_path / "corpora" / "wordnet")
    (tmp_path / "corpora" / "wordnet" / "lexnames").unlink()
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])
    with pytest.raises(AssetError, match=r"cannot read its WordNet; copy all of it.*lexnames"):
        metrics.require(["meteor_nltk"])


def test_wordnet_that_is_linked_from_elsewhere_is_said(tmp_path, monkeypatch):
    import nltk

    write_wordnet(tmp_path / "elsewhere" / "wordnet")
    (tmp_path / "data" / "corpora").mkdir(parents=True)
    (tmp_path / "data" / "corpora" / "wordnet").symlink_to(tmp_path / "elsewhere" / "wordnet")
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path / "data")])
    with pytest.raises(AssetError, match="nltk cannot read its WordNet; copy all of it, do not link it"):
        metrics.require(["meteor_nltk"])


@pytest.fixture
def java(tmp_path, monkeypatch):
    """A program `java` on the PATH, and the jar where pycocoevalcap has it. Returns (write the program, its log)."""
    jar = tmp_path / "site" / "pycocoevalcap" / "meteor" / "meteor-1.5.jar"
    jar.parent.mkdir(parents=True)
    jar.touch()
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.delitem(sys.modules, "pycocoevalcap", raising=False)
    program, log = tmp_path / "bin" / "java", tmp_path / "log"
    program.parent.mkdir()
    monkeypatch.setenv("PATH", str(program.parent))

    def write(end: str) -> None:
        program.write_text(JAVA.format(python=sys.executable, log=str(log), end=end))
        program.chmod(0o755)

    return write, log


@pytest.mark.parametrize(
    ("name", "test", "references"),
    [
        # Rows of one and two references: the first fills up the missing one.
        ("meteor_15", "it 's caf\u00e9 nine\n\n", "a caf\u00e9\na caf\u00e9\nb\nc\n"),
        ("meteor_15_webnlg", "it ' s caf\u00e9 nine .\n\n", "a caf\u00e9 !\na caf\u00e9 !\nb\nc\n"),
    ],
)
def test_what_the_jar_is_given(java, name, test, references):
    write, log = java
    write("print('Segment 1 score:\\t0.9\\n\\nFinal score:            0.25')")
    assert metrics.score(name, ["It's Caf\u00e9\nNine.", ""], [["A caf\u00e9!"], ["b", "c"]]) == 0.25
    arguments, lines = log.read_text("utf-8").split("\n", 1)
    assert "'-l', 'en', '-norm', '-r', '2'" in arguments
    assert "pycocoevalcap/meteor/meteor-1.5.jar" in arguments
    assert lines.split("|\n") == [test, references]


@pytest.mark.parametrize(
    ("end", "said"),
    [
        ("sys.exit('Error: out of memory')", r"exit code 1\); it said last: Error: out of memory"),
        ("print('usage: ...')", r"exit code 0\); it said last: usage: ..."),
    ],
)
def test_a_failed_jar_is_said(java, end, said):
    write, _ = java
    write(end)
    with pytest.raises(UserError, match=f"METEOR 1.5 gave no score .{said}"):
        metrics.score("meteor_15", ["a"], [["a"]])


def test_missing_java_or_jar_is_said(java, tmp_path, monkeypatch):
    with pytest.raises(AssetError, match=r"METEOR 1.5 needs Java on the PATH \(8 or newer\); meteor_nltk"):
        metrics.require(["meteor_15"])
    (tmp_path / "site" / "pycocoevalcap" / "meteor" / "meteor-1.5.jar").unlink()
    with pytest.raises(
        AssetError, match=r"needs Java on the PATH \(8 or newer\) and its jar \(`pip install pyc"
    ):
        metrics.score("meteor_15_webnlg", ["a"], [["a"]])


@pytest.mark.slow
def test_parity_with_coco_caption():
    # pycocoevalcap 1.2 with its Java tokeniser and its METEOR 1.5 on made_up_texts().
    try:
        metrics.require(["meteor_15"])
    except AssetError as missing:
        pytest.skip(str(missing))
    assert metrics.score("meteor_15", *made_up_texts()) == pytest.approx(0.32176808928820366, rel=1e-9)
