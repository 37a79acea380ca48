"""METEOR in its two families: nltk's, with or without WordNet, and METEOR 1.5 in Java. They differ by much."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from adalora_bench.errors import AssetError, UserError
from adalora_bench.metrics.base import Metric, mean, texts
from adalora_bench.metrics.text import webnlg_texts
from adalora_bench.metrics.tokens import ptb_words, sentences

if TYPE_CHECKING:
    from pathlib import Path

_FINAL = r"(?m)^Final score:\s*([0-9.]+)\s*$"


class _NoSynonyms:
    """Stands for WordNet in nltk's METEOR: no word has a synonym."""

    def synsets(self, word: str) -> list[Any]:
        return []


def meteor_nltk(predictions: Sequence[Any], references: Sequence[Any]) -> float:
    """nltk's METEOR (exact, stem, WordNet synonyms), as the evaluate library's; mean over rows.

    AssetError: WordNet is not in nltk's data folders.
    """
    return _nltk("meteor_nltk", predictions, references, wordnet())


def meteor_nltk_exact_stem(predictions: Sequence[Any], references: Sequence[Any]) -> float:
    """nltk's METEOR without its synonym stage (exact and stem only), which needs no data; mean over rows."""
    return _nltk("meteor_nltk_exact_stem", predictions, references, _NoSynonyms())


def meteor_15(predictions: Sequence[Any], references: Sequence[Any]) -> float:
    """METEOR 1.5 over the corpus, of coco-caption's words, as the E2E challenge scores it.

    AssetError: no Java, or no METEOR jar. UserError: METEOR failed.
    """
    said, wanted = texts("meteor_15", predictions, references)
    return _java_meteor(
        [" ".join(ptb_words(text)) for text in said],
        [[" ".join(ptb_words(text)) for text in row] for row in wanted],
    )


def meteor_15_webnlg(predictions: Sequence[Any], references: Sequence[Any]) -> float:
    """METEOR 1.5 over the corpus, of lower-cased text split at non-word characters, as LoRA scores WebNLG.

    Errors as `meteor_15`.
    """
    return _java_meteor(*webnlg_texts("meteor_15_webnlg", predictions, references))


def wordnet() -> Any:
    """nltk's WordNet reader, loaded. AssetError: it is not in nltk's data folders, not whole, or only linked."""
    from nltk.corpus import wordnet as reader

    try:
        reader.ensure_loaded()
    except LookupError:
        raise AssetError(
            "meteor_nltk needs WordNet, and nltk's data folders have no corpora/wordnet. Fetch it with "
            "`python -m nltk.downloader wordnet`, or set NLTK_DATA to a folder that has it; "
            "meteor_nltk_exact_stem does without."
        ) from None
    except OSError as error:
        # A file of it lacks, or lies outside nltk's data folders, where nltk follows no link.
        raise AssetError(
            f"meteor_nltk: nltk cannot read its WordNet; copy all of it, do not link it ({error})."
        ) from None
    return reader


def java_and_jar() -> tuple[str, Path]:
    """The Java program and METEOR's jar. AssetError: names all that is missing."""
    import shutil
    from importlib.util import find_spec
    from pathlib import Path

    java = shutil.which("java")
    found = find_spec("pycocoevalcap")
    folders = list(found.submodule_search_locations or ()) if found else []
    jars = [jar for folder in folders for jar in Path(folder).glob("meteor/meteor-1.5.jar")]
    missing = [] if java else ["Java on the PATH (8 or newer)"]
    if not jars:
        missing.append("its jar (`pip install pycocoevalcap`)")
    if java is None or not jars:
        raise AssetError(f"METEOR 1.5 needs {' and '.join(missing)}; meteor_nltk_exact_stem does without.")
    return java, jars[0]


def _nltk(name: str, predictions: Sequence[Any], references: Sequence[Any], synonyms: Any) -> float:
    from nltk.tokenize.destructive import NLTKWordTokenizer
    from nltk.translate.meteor_score import meteor_score

    cut = NLTKWordTokenizer().tokenize

    def words(text: str) -> list[str]:
        return [word for sentence in sentences(text) for word in cut(sentence)]

    said, wanted = texts(name, predictions, references)
    return mean(
        [
            float(meteor_score([words(reference) for reference in row], words(text), wordnet=synonyms))
            for text, row in zip(said, wanted, strict=True)
        ]
    )


def _java_meteor(said: Sequence[str], wanted: Sequence[Sequence[str]]) -> float:
    """The final score of one run of the jar on one line per text; a row's first reference fills the others up."""
    import subprocess
    from pathlib import Path
    from tempfile import TemporaryDirectory

    java, jar = java_and_jar()
    width = max(map(len, wanted))
    with TemporaryDirectory(prefix="adalora_bench-meteor-") as folder:
        test, gold = Path(folder, "test"), Path(folder, "reference")
        test.write_text("".join(f"{text}\n" for text in said), encoding="utf-8")
        rows = [[*row, *[row[0]] * (width - len(row))] for row in wanted]
        gold.write_text("".join(f"{text}\n" for row in rows for text in row), encoding="utf-8")
        # The options of both scripts: English, METEOR's own normalisation of punctuation.
        command = [java, "-Xmx2G", "-Dfile.encoding=UTF-8", "-jar", str(jar), str(test), str(gold)]
        command += ["-l", "en", "-norm", "-r", str(width)]
        done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", check=False)
    final = re.search(_FINAL, done.stdout)
    if done.returncode != 0 or final is None:
        last = (done.stderr.strip() or done.stdout.strip() or "nothing").splitlines()[-1]
        raise UserError(f"METEOR 1.5 gave no score (exit code {done.returncode}); it said last: {last}")
    return float(final[1])


METRICS: dict[str, Metric] = {
    "meteor_nltk": Metric(
        function=meteor_nltk,
        description="METEOR of nltk, as the evaluate library gives it; needs WordNet",
        kind="text",
        library="nltk",
        variant="exact, stem, WordNet; Treebank words of own sentences, best reference, mean over rows",
        needs=wordnet,
    ),
    "meteor_nltk_exact_stem": Metric(
        function=meteor_nltk_exact_stem,
        description="METEOR of nltk without synonyms, no WordNet needed",
        kind="text",
        library="nltk",
        variant="exact, stem; Treebank words of own sentences, best reference, mean over rows",
    ),
    "meteor_15": Metric(
        function=meteor_15,
        description="METEOR 1.5 as the E2E challenge scores it; needs Java",
        kind="text",
        library="METEOR",
        revision="1.5",
        variant="jar, -l en -norm, PTB-like words (own, not Java), lower case, no punctuation",
        needs=java_and_jar,
    ),
    "meteor_15_webnlg": Metric(
        function=meteor_15_webnlg,
        description="METEOR 1.5 as LoRA scores WebNLG; needs Java",
        kind="text",
        library="METEOR",
        revision="1.5",
        variant="jar, -l en -norm, lower case, split at non-word characters, first 6 references",
        needs=java_and_jar,
    ),
}
