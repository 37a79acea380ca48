"""Short answers: SQuAD, ReCoRD and GSM8k, by hand."""

from fractions import Fraction

import pytest

from adalora_bench import metrics
from adalora_bench.metrics.answers import last_number, marked_number, normalise

# Row 1: equal to the second reference. Row 2: words "red brick house" against "brick house" -> P 2/3, R 1.
# Row 3: no word in common. Row 4: nothing said.
SAID = ["The  Denver Broncos!", "a red brick house", "1999", ""]
WANTED = [["Broncos", "Denver Broncos"], ["brick house", "shed"], ["2001"], ["nobody"]]


@pytest.mark.parametrize("family", ["squad", "record"])
def test_by_hand(family):
    assert metrics.score(f"{family}_em", SAID, WANTED) == pytest.approx(1 / 4)
    assert metrics.score(f"{family}_f1", SAID, WANTED) == pytest.approx((1 + 2 * (2 / 3) / (2 / 3 + 1)) / 4)
    assert metrics.score(f"{family}_mean", SAID, WANTED) == pytest.approx((1 / 4 + 1.8 / 4) / 2)


@pytest.mark.parametrize(
    ("text", "normalised"),
    [
        ("The  Quick,\tbrown\nfox.", "quick brown fox"),
        ("an apple a day", "apple day"),
        ("theatre anthem", "theatre anthem"),  # an article within a word stays
        ("U.S.-based (1,000)", "usbased 1000"),
        ("\u00a320\u2014caf\u00e9", "\u00a320\u2014caf\u00e9"),  # only ASCII punctuation goes
        ("The a an", ""),
    ],
)
def test_normalisation_is_that_of_squad(text, normalised):
    assert normalise(text) == normalised


def test_a_repeated_word_counts_as_often_as_both_have_it():
    # "new new york" against "new york york": new 1 + york 1 of 3 and 3 words.
    assert metrics.score("squad_f1", ["new new york"], [["new york york"]]) == pytest.approx(2 / 3)


def test_answers_of_articles_only_are_equal_but_share_no_word():
    # SQuAD 1.1's script: the same empty text after normalisation, and no common word.
    assert metrics.score("squad_em", ["the"], [["a"]]) == 1.0
    assert metrics.score("squad_f1", ["the"], [["a"]]) == 0.0


@pytest.mark.parametrize(
    ("text", "marked", "last"),
    [
        ("3 + 4 = 7\n#### 7", "7", "7"),
        ("#### 1,234.50 dollars", "1234.5", "1234.5"),
        ("#### $-3", "-3", "-3"),
        ("#### - $3", "-3", "3"),
        ("#### -3", "-3", "-3"),
        ("####12 then #### 13", "12", "13"),  # the first mark, the last number
        ("#### none, so 8", None, "8"),
        ("the answer is 42.", None, "42"),
        ("from 20-25 stars", None, "25"),  # a dash between numbers is no sign
        ("x = -5", None, "-5"),
        ("it costs -$5.25!", None, "-5.25"),
        ("1, 2, 3", None, "3"),
        ("12,34", None, "34"),  # no comma of thousands
        ("half: .5", None, "0.5"),
        ("#### \u22123", "-3", "-3"),
        ("#### \u20133", "-3", "-3"),
        ("20\u201325", None, "25"),
        ("#### 1 000", "1000", "1000"),
        ("#### 1\u00a0234\u202f567.5", "1234567.5", "1234567.5"),
        ("#### 3/4", "3/4", "3/4"),
        ("#### 1 1/2", "3/2", "3/2"),
        ("#### \u00bd", "1/2", "1/2"),
        ("#### 2\u00be", "11/4", "11/4"),
        ("#### 5e2", "500", "500"),
        ("#### 1.5E-1", "3/20", "3/20"),
        ("#### 5 eggs", "5", "5"),
        ("5e2x", None, "2"),
        ("in 2010 200 people", None, "200"),
        ("12,3456", None, "3456"),
        ("#### 1/0", None, None),
        ("no number", None, None),
        ("", None, None),
    ],
)
def test_numbers_are_read(text, marked, last):
    assert marked_number(text) == (None if marked is None else Fraction(marked))
    assert last_number(text) == (None if last is None else Fraction(last))


def test_gsm8k_strict_and_flexible_side_by_side():
    gold = [["He has 3 + 4 = 7 apples.\n#### 7"], ["#### 1,000"], ["12"], ["#### 5"]]
    said = ["so #### 7", "#### 1000.0 and 3 more", "I say 12", "no idea"]
    # Strict: rows 1 and 2. Flexible: rows 1 and 3 (row 2 goes on to another number).
    assert metrics.score("gsm8k_strict", said, gold) == 2 / 4
    assert metrics.score("gsm8k_flexible", said, gold) == 2 / 4
    assert (metrics.unparsed("gsm8k_strict", said), metrics.unparsed("gsm8k_flexible", said)) == (2, 1)
    assert metrics.score("gsm8k_strict", [row[0] for row in gold[:2]], gold[:2]) == 1.0
    with pytest.raises(ValueError, match="gsm8k_strict: a reference of row 1 holds no number"):
        metrics.score("gsm8k_strict", ["1", "2"], [["1"], ["two"]])


TEXT = [
    name
    for name in metrics.names()
    if metrics.label_kind(name) == "text" and metrics.METRICS[name].needs is None
]


@pytest.mark.parametrize("name", TEXT)
def test_what_every_text_metric_refuses(name):
    with pytest.raises(ValueError, match="no rows to score"):
        metrics.score(name, [], [])
    with pytest.raises(ValueError, match="1 predictions for 2 labels"):
        metrics.score(name, ["5"], [["5"], ["6"]])
    with pytest.raises(ValueError, match="row 1 predicts None, which is no string"):
        metrics.score(name, ["5", None], [["5"], ["6"]])
    with pytest.raises(ValueError, match="the references of row 0 are no list of strings"):
        metrics.score(name, ["5"], ["5"])
    with pytest.raises(ValueError, match="the references of row 0 are no list of strings"):
        metrics.score(name, ["5"], [[5]])
    for empty in ([], ["", " \n"]):
        with pytest.raises(ValueError, match="row 1 has no reference text"):
            metrics.score(name, ["5", "6"], [["5"], empty])


@pytest.mark.parametrize("name", TEXT)
def test_empty_short_and_perfect_outputs(name):
    wanted = [["#### 5 birds sat on the fence and sang."], ["#### 6 cats sat on the long red wall."]]
    perfect = [row[0] for row in wanted]
    worst = 1.0 if name.startswith("ter") else 0.0
    assert metrics.score(name, ["", ""], wanted) == worst
    assert metrics.score(name, ["", " \n"], [[*row, ""] for row in wanted]) == worst
    short = metrics.score(name, ["x", "y"], wanted)
    best = metrics.score(name, perfect, wanted)
    unit = metrics.METRICS[name].unit
    assert short == pytest.approx(worst)
    if unit == "share":
        # nltk's METEOR keeps a penalty of 0.5 * (1 / words)^3 for the one chunk of a perfect text.
        assert 0.999 < best <= 1.0
    elif unit == "rate":
        assert best == 0.0
    else:
        assert best > 2.0
    half = metrics.score(name, [perfect[0], ""], wanted)
    assert min(worst, best) < half < max(worst, best)
