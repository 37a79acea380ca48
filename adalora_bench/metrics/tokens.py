"""Text -> words and sentences, one function per tool that a metric follows. Imports nothing heavy."""

from __future__ import annotations

import re

# What coco-caption drops after tokenising; brackets stay, since it lower-cases their names first.
_DROPPED = frozenset({"'", '"', "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"})
_NAMED = {
    "(": "-lrb-",
    ")": "-rrb-",
    "[": "-lsb-",
    "]": "-rsb-",
    "{": "-lcb-",
    "}": "-rcb-",
    "\u00a3": "#",  # the tokeniser writes the pound sign so, and the euro sign as a dollar
    "\u20ac": "$",
}
_PLAIN = str.maketrans(
    {
        "\u2018": "'",
        "\u2019": "'",
        "\u201c": '"',
        "\u201d": '"',
        "\u2013": "--",
        "\u2014": "--",
        "\u2026": "...",
    }
)
# Patterns stay text, which re compiles at first use: importing this package must stay cheap.
_CLITIC = r"(?<=[^\W_])(n't|'(?:s|m|d|re|ve|ll))(?![^\W_])"
_MERGED = r"\b(can)(not)\b|\b(gon|wan|got)(na|ta)\b"
_PTB = (
    r"n't(?![^\W_])|'(?:s|m|d|re|ve|ll)(?![^\W_])"
    r"|(?<![\w.])(?:[a-z]\.)+(?![^\W_])"
    r"|\b(?:mr|mrs|ms|dr|st|prof|jr|sr|etc|vs|inc|ltd|co|corp)\."
    r"|[0-9]+\.[0-9]+(?=[^\W\d_])"
    r"|[^\W_](?:[^\W_]|[-./&'](?=[^\W_])|(?<=[0-9])[,:](?=[0-9]))*"
    r"|\.\.\.|--+|\S"
)
_NOT_WORD = r"(\W)"
_SENTENCE = (
    r"(?:(?<=[.!?])|(?<=[.!?][\"')\]]))"
    r"(?<!\b[A-Z]\.)(?<!\bMr\.)(?<!\bMs\.)(?<!\bDr\.)(?<!\bSt\.)(?<!\bMrs\.)"
    r"\s+(?=[\"'(\[]?[A-Z0-9$\u00a3\u20ac])"
)


def ptb_words(text: str) -> list[str]:
    """Lower-case words much as coco-caption makes them with the Stanford PTB tokeniser; no punctuation.

    Of the 4,532 distinct texts of the E2E test set all but 6 give the very same words as Stanford's 3.4.1 in Java.
    """
    text = re.sub(_CLITIC, r" \1", text.lower().translate(_PLAIN))
    text = re.sub(_MERGED, lambda found: f"{found[1] or found[3]} {found[2] or found[4]}", text)
    return [_NAMED.get(token, token) for token in re.findall(_PTB, text) if token not in _DROPPED]


def webnlg_words(text: str) -> list[str]:
    """Lower-case words, every character that is no letter, digit or underscore on its own (WebNLG's scripts)."""
    return " ".join(re.split(_NOT_WORD, text.lower())).split()


def sentences(text: str) -> list[str]:
    """Sentences of a text: its lines, cut after . ! ? before a capital, a digit or a currency sign.

    Not cut after initials and the commonest titles. Needs no data files, unlike nltk's punkt.
    """
    return [part for line in text.splitlines() for part in re.split(_SENTENCE, line.strip()) if part]
