"""ROUGE-L and CIDEr of coco-caption, by hand and against coco-caption itself, and the words they are made of."""

import math

import pytest
from made_up_texts import made_up_texts

from adalora_bench import metrics
from adalora_bench.metrics.tokens import ptb_words


def rouge(precision, recall):
    return 2.44 * precision * recall / (recall + 1.44 * precision)


@pytest.mark.parametrize(
    ("said", "wanted", "by_hand"),
    [
        # Common subsequence "a b" of "a c b": P = 2/3, R = 2/2.
        (["a c b"], [["a b"]], rouge(2 / 3, 1)),
        # The best precision (2/3, of "a b x y") and the best recall (1/1, of "c") come from different references.
        (["a c b"], [["a b x y", "c"]], rouge(2 / 3, 1)),
        (["a b", "x"], [["a b"], ["y"]], 1 / 2),
        (["...", "a"], [["a"], ["a"]], 1 / 2),  # no word is left of the first
    ],
)
def test_rouge_by_hand(said, wanted, by_hand):
    assert metrics.score("rougeL_coco", said, wanted) == pytest.approx(by_hand, abs=1e-12)


@pytest.mark.parametrize(
    ("said", "wanted", "by_hand"),
    [
        # Two rows, so every n-gram of one row weighs log 2. Equal texts of four words: cosine 1 for n = 1..4.
        (["a b c d", "x"], [["a b c d"], ["y"]], 10 / 2),
        # One word: only n = 1 has a cosine, the mean over n is 1/4.
        (["a", "x"], [["a"], ["y"]], 10 * (1 / 4) / 2),
        # "a b" and "a b c": 2 / sqrt(2 * 3) and 1 / sqrt(1 * 2); one pair and two pairs, so exp(-1 / 72).
        (
            ["a b", "x"],
            [["a b c"], ["y"]],
            10 * (2 / math.sqrt(6) + 1 / math.sqrt(2)) / 4 * math.exp(-1 / 72) / 2,
        ),
        # "a a" has weight 2 for a, clipped to the reference's 1: 1 / (2 * 1); one pair and none.
        (["a a", "x"], [["a"], ["y"]], 10 * (1 / 2) / 4 * math.exp(-1 / 72) / 2),
        # The mean over the references of a row: one equal, one without a common word.
        (["a b c d", "x"], [["a b c d", "e f g h"], ["y"]], 10 * (1 / 2) / 2),
        # What stands in both rows weighs log(2 / 2) = 0: b and c only.
        (["a b", "a"], [["a c"], ["a"]], 0.0),
        (["a b c d"], [["a b c d"]], 0.0),  # one row alone: log(1 / 1)
    ],
)
def test_cider_by_hand(said, wanted, by_hand):
    assert metrics.score("cider", said, wanted) == pytest.approx(by_hand, abs=1e-12)


# pycocoevalcap 1.2 with its Java tokeniser (Stanford 3.4.1) on made_up_texts().
@pytest.mark.parametrize(
    ("name", "official"), [("rougeL_coco", 0.5412226976461075), ("cider", 2.125357611733622)]
)
def test_parity_with_coco_caption(name, official):
    assert metrics.score(name, *made_up_texts()) == pytest.approx(official, rel=1e-9)


# What Stanford's tokeniser 3.4.1 gave in Java, without the punctuation that coco-caption drops.
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("The Eagle (a pub), costs \u00a320-25", "the eagle -lrb- a pub -rrb- costs # 20-25"),
        ("it's kid-friendly; it isn't bad!", "it 's kid-friendly it is n't bad"),
        ("Mr. Smith's U.S. centre... 3.5 km/h.", "mr. smith 's u.s. centre 3.5 km/h"),
        ("\"Hello,\" he said: 'no way' \u2014 can't", "hello he said no way ca n't"),
        ("cannot, gonna, don\u2019t", "can not gon na do n't"),
        ("1,000 $5 50% a/b & c # e-mail", "1,000 $ 5 50 % a/b & c # e-mail"),
        ("near Caf\u00e9 Sicilia. The customers' rating", "near caf\u00e9 sicilia the customers rating"),
        (
            "from \u00a320-\u00a325, 1-5 stars, 10:30 a.m. St. Mary's",
            "from # 20 # 25 1-5 stars 10:30 a.m. st. mary 's",
        ),
        ("period.Then more,and more;yes AT&T O'Neil", "period.then more and more yes at&t o'neil"),
        ("8.3m wide {x}", "8.3 m wide -lcb- x -rcb-"),
        ("? ! ... --", ""),
    ],
)
def test_words_are_those_of_the_stanford_tokeniser(text, words):
    assert ptb_words(text) == words.split()
