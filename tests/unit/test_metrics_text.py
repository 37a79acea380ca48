"""BLEU, NIST, TER and ROUGE: by hand, against the libraries' own calls, and against values of the papers' scripts."""

import math

import pytest
from made_up_texts import made_up_texts

from adalora_bench import metrics
from adalora_bench.metrics.edits import pyter_edits
from adalora_bench.metrics.tokens import sentences, webnlg_words

SAID, WANTED = made_up_texts()
LENGTHS = ["a b c d e"], [["a b c d e f", "a b c"]]  # all n-grams match; the closest reference has 6 words


@pytest.mark.parametrize(
    ("name", "said", "wanted", "by_hand"),
    [
        # Seven words each, lower-cased: the (1 of 2) cat sat on mat . = 6/7; pairs: the cat, cat sat, sat on, mat . =
        # 4/6; triples: the cat sat, cat sat on = 2/5; fours: the cat sat on = 1/4.
        (
            "bleu_mteval_ci",
            ["The cat sat on the mat."],
            [["the cat sat on a mat."]],
            (6 / 7 * 4 / 6 * 2 / 5 * 1 / 4) ** (1 / 4),
        ),
        # Case kept: "The" has no match, the other six words have, and so all pairs, triples, fours without "The".
        (
            "bleu_evaluate",
            ["The cat sat on a mat."],
            [["the cat sat on a mat."]],
            (6 / 7 * 5 / 6 * 4 / 5 * 3 / 4) ** (1 / 4),
        ),
        # Over the corpus, not per row: 3 + 4 of 8 words, 2 + 3 of 6 pairs, 1 + 2 of 4 triples, 0 + 1 of 2 fours.
        (
            "bleu_mteval_ci",
            ["a b c x", "d e f g"],
            [["a b c y"], ["d e f g", "d"]],
            (7 / 8 * 5 / 6 * 3 / 4 * 1 / 2) ** (1 / 4),
        ),
        ("bleu_mteval_ci", *LENGTHS, math.exp(1 - 6 / 5)),
        ("bleu_webnlg", *LENGTHS, math.exp(1 - 6 / 5)),
        ("bleu_evaluate", *LENGTHS, 1.0),  # takes the shortest reference: no penalty
        # Equally close references of 4 and 6 words: the shorter one counts.
        ("bleu_mteval_ci", ["a b c d e"], [["a b c d e f", "a b c d"]], 1.0),
        # WebNLG's split tears "It's low-priced." into the seven words of the reference; mteval's does not.
        ("bleu_webnlg", ["It's low-priced."], [["it ' s LOW - priced ."]], 1.0),
        ("bleu_mteval_ci", ["It's low-priced."], [["it ' s LOW - priced ."]], 0.0),
        # Only six references are looked at.
        ("bleu_webnlg", ["a b c d"], [["u v w x"] * 5 + ["a b c d"]], 1.0),
        ("bleu_webnlg", ["a b c d"], [["u v w x"] * 6 + ["a b c d"]], 0.0),
        # Counts over references: 4 words, a twice, b and d once. Words: a 1 bit, b 2 bits, a 1 bit, of 4 predicted;
        # pairs: "a b" log2(2 / 1) = 1 bit, of 2 predicted; the lengths are equal.
        ("nist_mteval", ["a b", "a c"], [["a b"], ["A d"]], 4 / 4 + 1 / 2),
        # 2 of 3 words halve the score; words a and b log2 3 each, of 2; pair "a b" log2(1 / 1).
        ("nist_mteval", ["a b"], [["a b c"]], 0.5 * math.log2(3)),
        # The mean reference has 3 words, as the prediction; 6 words, a twice, the others once.
        ("nist_mteval", ["a x y"], [["a b", "a c d e"]], math.log2(6 / 2) / 3),
        ("ter", ["c a b"], [["A B C"]], 1 / 3),  # one move
        ("ter_pyter", ["c a b"], [["A B C"]], 1 / 3),
        # One word replaced of three; two missing of four, but of the second reference one of three.
        ("ter", ["a x c", "a b"], [["a b c"], ["a b c d", "a b c"]], (1 / 3 + 1 / 3) / 2),
        ("ter_pyter", ["a x c", "a b"], [["a b c"], ["a b c d", "a b c"]], (1 / 3 + 1 / 3) / 2),
        ("ter_pyter", ["a b c d e f"], [["a b"]], 4 / 2),  # can pass 1
        # Stems: "cats" is "cat". P = 3/3, R = 3/4.
        ("rouge1", ["the cats sat"], [["The cat sat down."]], 2 * 0.75 / 1.75),
        ("rouge2", ["the cats sat"], [["The cat sat down."]], 2 * (2 / 3) / (5 / 3)),
        ("rougeL", ["the cats sat"], [["The cat sat down."]], 2 * 0.75 / 1.75),
        # No stems: P = 2/3, R = 2/4.
        ("rougeL_evaluate", ["the cats sat"], [["The cat sat down."]], 2 * 2 / (3 + 4)),
        # Two sentences swapped: half is in order; sentence by sentence all is there.
        ("rougeL", ["Dogs bark. Cats sleep."], [["Cats sleep. Dogs bark."]], 0.5),
        ("rougeLsum", ["Dogs bark. Cats sleep."], [["Cats sleep. Dogs bark."]], 1.0),
        ("rougeLsum", ["dogs bark\ncats sleep"], [["cats sleep\ndogs bark"]], 1.0),
        # The best reference of each row, then the mean over rows.
        ("rouge1", ["a b", "c d"], [["x y", "a b"], ["c x"]], (1 + 0.5) / 2),
    ],
)
def test_by_hand(name, said, wanted, by_hand):
    assert metrics.score(name, said, wanted) == pytest.approx(by_hand, abs=1e-9)


# On made_up_texts(): the BLEU and NIST of the E2E challenge's script (pymteval), from a transcription of it.
@pytest.mark.parametrize(
    ("name", "official"), [("bleu_mteval_ci", 0.3258124256428822), ("nist_mteval", 4.66190597548175)]
)
def test_parity_with_the_script_of_the_e2e_challenge(name, official):
    assert metrics.score(name, SAID, WANTED) == pytest.approx(official, rel=1e-9)


def test_parity_with_pyter():
    # pyter3 0.3 on the first 20 rows, mean of the least rate of each row.
    assert metrics.score("ter_pyter", SAID[:20], WANTED[:20]) == pytest.approx(0.516347267302393, rel=1e-9)


def test_parity_with_sacrebleu():
    from sacrebleu.metrics import BLEU, TER

    one = [row[0] for row in WANTED]
    scorer = BLEU(tokenize="13a", lowercase=True, smooth_method="none")
    assert metrics.score("bleu_mteval_ci", SAID, [[text] for text in one]) == pytest.approx(
        scorer.corpus_score(SAID, [one]).score / 100, abs=1e-9
    )
    prepared = [" ".join(webnlg_words(text)) for text in one[:8]]
    rates = [
        TER().sentence_score(" ".join(webnlg_words(text)), [reference]).score / 100
        for text, reference in zip(SAID, prepared, strict=False)
    ]
    ours = metrics.score("ter", SAID[:8], [[text] for text in one[:8]])
    assert ours == pytest.approx(sum(rates) / len(rates), abs=1e-9)


def test_parity_with_bleu_of_nltk():
    from nltk.translate.bleu_score import corpus_bleu

    words = [webnlg_words(text) for text in SAID]
    references = [[webnlg_words(text) for text in row] for row in WANTED]
    expected = corpus_bleu(references, words)
    assert metrics.score("bleu_webnlg", SAID, WANTED) == pytest.approx(expected, abs=1e-9)


def test_bleu_of_evaluate_differs_by_its_penalty_only():
    from sacrebleu.metrics import BLEU
    from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

    cut = Tokenizer13a()
    streams = [[row[k] if k < len(row) else None for row in WANTED] for k in range(5)]
    found = BLEU(tokenize="13a", smooth_method="none").corpus_score(SAID, streams)
    shortest = sum(min(len(cut(text).split()) for text in row) for row in WANTED)
    penalty = math.exp(min(0.0, 1 - shortest / found.sys_len))
    expected = found.score / 100 / found.bp * penalty
    assert metrics.score("bleu_evaluate", SAID, WANTED) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    ("name", "kind", "stemmer"),
    [
        ("rouge1", "rouge1", True),
        ("rouge2", "rouge2", True),
        ("rougeL", "rougeL", True),
        ("rougeL_evaluate", "rougeL", False),
    ],
)
def test_parity_with_rouge_score(name, kind, stemmer):
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer([kind], use_stemmer=stemmer)
    rows = [
        max(scorer.score(reference, text)[kind].fmeasure for reference in row)
        for text, row in zip(SAID, WANTED, strict=True)
    ]
    assert metrics.score(name, SAID, WANTED) == pytest.approx(sum(rows) / len(rows), abs=1e-9)


def test_parity_of_rouge_lsum_with_sentence_lines():
    from rouge_score.rouge_scorer import RougeScorer

    said = ["The bus was late. Nobody was hurt.", "Rain fell on Monday."]
    wanted = ["Nobody was hurt!\nThe late bus stopped. It rained.", "On Monday there was rain."]
    lines = ["The bus was late.\nNobody was hurt.", "Rain fell on Monday."]
    gold = ["Nobody was hurt!\nThe late bus stopped.\nIt rained.", "On Monday there was rain."]
    scorer = RougeScorer(["rougeLsum"], use_stemmer=True)
    rows = [scorer.score(b, a)["rougeLsum"].fmeasure for a, b in zip(lines, gold, strict=True)]
    ours = metrics.score("rougeLsum", said, [[text] for text in wanted])
    assert ours == pytest.approx(sum(rows) / 2, abs=1e-9)


@pytest.mark.parametrize(
    ("words", "reference", "edits"),
    [
        ("a b c", "a b c", 0),
        ("", "a b", 2),
        ("b c a", "a b c", 1),  # the phrase "b c", or "a", moves
        ("d a b c e", "a b c d e", 1),
        ("x y", "a b c", 3),
        ("c d a b x", "a b c d y", 2),  # one move, one word replaced
    ],
)
def test_edits_with_moves(words, reference, edits):
    assert pyter_edits(words.split(), reference.split()) == edits


def test_an_output_shorter_than_four_words_is_no_error():
    assert metrics.score("bleu_mteval_ci", ["Yes."], [["Yes."]]) == 0.0  # no four words, so no fours
    assert metrics.score("nist_mteval", ["yes"], [["yes no"]]) > 0.0
    # Beside a longer output it is part of the corpus.
    assert 0.0 < metrics.score("bleu_mteval_ci", ["Yes.", "a b c d e"], [["Yes."], ["a b c d e"]]) <= 1.0


def test_sentences():
    text = 'Mr. J. Smith left. He said "no." Then 5 came!\n  new line. lower case stays (see Fig. 2) '
    assert sentences(text) == [
        "Mr. J. Smith left.",
        'He said "no."',
        "Then 5 came!",
        "new line. lower case stays (see Fig.",
        "2)",
    ]
    assert sentences(" \n ") == []
