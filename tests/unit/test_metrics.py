"""Metrics: fixtures worked out by hand, parity with scikit-learn and scipy, and what is refused."""

import math
import random
import subprocess
import sys

import numpy as np
import pytest

from adalora_bench import metrics
from adalora_bench.errors import UserError

PLAIN = [name for name in metrics.names() if metrics.label_kind(name) in ("class", "number")]

# Six rows: 2 hits of class 1, 1 false alarm, 1 miss, 2 correct rejections.
TRUE = [1, 1, 1, 0, 0, 0]
SAID = [1, 1, 0, 1, 0, 0]


@pytest.mark.parametrize(
    ("name", "predictions", "labels", "by_hand"),
    [
        ("acc", SAID, TRUE, 4 / 6),
        ("acc", [2, -1, 0], [2, 1, 1], 1 / 3),
        ("f1", SAID, TRUE, 2 * 2 / (2 * 2 + 1 + 1)),
        ("f1", [-1, 1], [1, 1], 2 / 3),
        ("f1", [0, 0], [0, 0], 0.0),
        ("mcc", SAID, TRUE, (2 * 2 - 1 * 1) / math.sqrt(3 * 3 * 3 * 3)),
        ("mcc", [1, 0], [0, 1], -1.0),
        # Means 2 and 3: sum of products 1, sums of squares 2 and 2.
        ("pearson", [1.0, 2.0, 3.0], [2.0, 4.0, 3.0], 0.5),
        # Classes 0, 1, 2: F1 of 0 is 2*1/(2*1+0+1), of 1 is 2*1/(2*1+1+0), of 2 is 1.
        ("macro_f1", [0, 1, 1, 2], [0, 0, 1, 2], (2 / 3 + 2 / 3 + 1) / 3),
        # Class -1 (unreadable) takes from the recall of class 0 and is no class: (2/3 + 1) / 2.
        ("macro_f1", [0, -1, 1], [0, 0, 1], (2 / 3 + 1) / 2),
        # Question q: both right; r: one of two; s: its only answer wrong. Class 1: 1 hit, 2 misses, 0 false alarms.
        ("multirc_em", [1, 0, 0, 0, 0], [("q", 1), ("q", 0), ("r", 1), ("r", 0), ("s", 1)], 1 / 3),
        ("multirc_f1a", [1, 0, 0, 0, 0], [("q", 1), ("q", 0), ("r", 1), ("r", 0), ("s", 1)], 2 / (2 + 2)),
        # The rows of a question need not be neighbours.
        ("multirc_em", [1, 1, 0], [(7, 1), (8, 1), (7, 1)], 1 / 2),
        # Ranks 1 2.5 2.5 4 against 1 2 3 4: 4.5 / sqrt(4.5 * 5).
        ("spearman", [0.0, 7.0, 7.0, 9.0], [1.0, 2.0, 3.0, 4.0], 4.5 / math.sqrt(4.5 * 5)),
    ],
)
def test_by_hand(name, predictions, labels, by_hand):
    assert metrics.score(name, predictions, labels) == pytest.approx(by_hand, abs=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_parity_with_the_libraries(seed):
    from scipy import stats
    from sklearn import metrics as reference

    rng = random.Random(seed)
    true = [rng.randrange(2) for _ in range(200)]
    said = [label if rng.random() < 0.7 else 1 - label for label in true]
    many = [rng.randrange(4) for _ in true]
    guess = [label if rng.random() < 0.6 else rng.randrange(4) for label in many]
    values = [rng.gauss(0, 1) for _ in true]
    noisy = [round(value + rng.gauss(0, 1), 1) for value in values]
    paired = [(row // 4, label) for row, label in enumerate(true)]
    expected = [
        ("acc", said, true, reference.accuracy_score(true, said)),
        ("acc", guess, many, reference.accuracy_score(many, guess)),
        ("f1", said, true, reference.f1_score(true, said)),
        ("macro_f1", guess, many, reference.f1_score(many, guess, average="macro")),
        ("mcc", guess, many, reference.matthews_corrcoef(many, guess)),
        ("pearson", noisy, values, stats.pearsonr(noisy, values).statistic),
        ("spearman", noisy, values, stats.spearmanr(noisy, values).statistic),
        ("multirc_f1a", said, paired, reference.f1_score(true, said)),
    ]
    for name, predictions, labels, value in expected:
        ours = metrics.score(name, predictions, labels)
        assert ours == pytest.approx(float(value), abs=1e-9), name
        assert type(ours) is float


def test_three_classes():
    from sklearn.metrics import matthews_corrcoef

    true, said = [0, 1, 2, 2, 1, 0, 2], [0, 2, 2, 2, 1, 1, 0]
    assert metrics.score("mcc", said, true) == pytest.approx(matthews_corrcoef(true, said), abs=1e-12)
    with pytest.raises(ValueError, match="f1 is for two classes, 0 and 1, but the labels hold 2"):
        metrics.score("f1", said, true)


@pytest.mark.parametrize("name", ["mcc", "pearson", "spearman"])
def test_constant_input_is_zero_without_a_warning(name):
    # Warnings are errors in this suite: a leaking one fails the test.
    for predictions, labels in (([1, 1, 1], [0, 1, 1]), ([0, 1, 1], [1, 1, 1]), ([1, 1], [1, 1]), ([1], [1])):
        assert metrics.score(name, predictions, labels) == 0.0
    assert "0 by definition" in metrics.METRICS[name].description


def test_nearly_constant_input_does_not_warn():
    value = metrics.score("pearson", [1.0, 1.0, 1.0 + 1e-15], [1.0, 2.0, 3.0])
    assert -1.0 <= value <= 1.0


@pytest.mark.parametrize("name", PLAIN)
def test_what_is_refused(name):
    with pytest.raises(ValueError, match="no rows to score"):
        metrics.score(name, [], [])
    with pytest.raises(ValueError, match="2 predictions for 3 labels"):
        metrics.score(name, [0, 1], [0, 1, 1])
    with pytest.raises(ValueError, match="1 of 2 predictions are NaN or infinite, first in row 1"):
        metrics.score(name, [0.0, math.nan], [0, 1])
    with pytest.raises(ValueError, match="1 of 2 labels are NaN or infinite, first in row 0"):
        metrics.score(name, [0, 1], [math.inf, 1])


@pytest.mark.parametrize("name", ["acc", "f1", "macro_f1", "mcc"])
def test_classes_are_whole_and_labels_known(name):
    with pytest.raises(ValueError, match="the predictions hold 0.5"):
        metrics.score(name, [0.5, 1], [0, 1])
    with pytest.raises(ValueError, match="the labels hold -1, the mark of rows without a label"):
        metrics.score(name, [0, 1], [-1, -1])


def test_numpy_arrays_are_welcome():
    assert metrics.score("acc", np.array([1, 0]), np.array([1, 1])) == 0.5
    assert metrics.score(
        "pearson", np.array([1.0, 2.0], dtype="float32"), np.array([3.0, 5.0])
    ) == pytest.approx(1.0)


def test_unknown_name():
    with pytest.raises(UserError, match="unknown metric 'pearsn'; did you mean 'pearson'"):
        metrics.score("pearsn", [1], [1])


@pytest.mark.parametrize(
    ("name", "signature"),
    [
        ("acc", "acc|scikit-learn:{sklearn}|share of equal classes"),
        ("f1", "f1|scikit-learn:{sklearn}|binary, positive class 1, 0 without positives"),
        ("mcc", "mcc|scikit-learn:{sklearn}|constant input = 0"),
        ("pearson", "pearson|scipy:{scipy}|constant input = 0"),
        ("spearman", "spearman|scipy:{scipy}|mean ranks, constant input = 0"),
        ("acc_gen", "acc_gen|scikit-learn:{sklearn}|share of equal classes, answer by generation"),
        ("acc_lik", "acc_lik|scikit-learn:{sklearn}|share of equal classes, answer by likelihood"),
        ("multirc_em", "multirc_em|own:1|all answers of a question right"),
    ],
)
def test_signatures_stay_as_records_have_them(name, signature):
    import scipy
    import sklearn

    assert metrics.signature(name) == signature.format(sklearn=sklearn.__version__, scipy=scipy.__version__)


@pytest.mark.parametrize("name", metrics.names())
def test_every_name_has_a_signature_and_one_line(name):
    metric = metrics.METRICS[name]
    assert metrics.signature(name).startswith(f"{name}|{metric.library}:")
    assert metrics.signature(name).count("|") == 2
    assert metrics.signature(name).isascii()
    assert 0 < len(metric.description) < 110
    assert "\n" not in metric.description + metric.variant
    assert metric.higher_is_better == (metric.unit != "rate")


def test_a_generative_backbone_says_how_it_answered():
    assert metrics.score("acc_gen", SAID, TRUE) == metrics.score("acc_lik", SAID, TRUE) == 4 / 6
    assert metrics.score("multirc_em_lik", [1, 0], [("q", 1), ("q", 1)]) == 0.0
    assert metrics.label_kind("f1_gen") == "class"
    assert "by generation" in metrics.METRICS["acc_gen"].description
    plain = {name[:-4] for name in metrics.names() if name.endswith(("_gen", "_lik"))}
    assert plain == {
        *("acc", "f1", "macro_f1", "mcc", "multirc_em", "multirc_f1a"),
        *("record_em", "record_f1", "record_mean"),
    }
    with pytest.raises(UserError, match="unknown metric 'pearson_gen'; did you mean 'pearson'"):
        metrics.score("pearson_gen", [1], [1])


def test_unreadable_answers_are_counted():
    assert metrics.unparsed("acc_gen", [1, -1, 0, -1]) == 2
    assert metrics.unparsed("multirc_em", [0, -1]) == 1
    assert metrics.unparsed("pearson", [0.0, -1.5]) == 0
    assert metrics.unparsed("squad_f1", ["", " \n", "a"]) == 2
    assert metrics.unparsed("gsm8k_strict", ["#### 5", "it is 5", ""]) == 2
    assert metrics.unparsed("gsm8k_flexible", ["#### 5", "it is 5", "five"]) == 1
    with pytest.raises(UserError, match="unknown metric"):
        metrics.unparsed("akk", [1])


def test_a_grouped_label_is_a_pair():
    with pytest.raises(ValueError, match=r"multirc_em: a label is a pair \(group, class\), but row 1 has 0"):
        metrics.score("multirc_em", [1, 0], [("q", 1), 0])
    with pytest.raises(ValueError, match="multirc_f1a: no rows to score"):
        metrics.score("multirc_f1a", [], [])
    with pytest.raises(ValueError, match="multirc_em: 1 predictions for 2 labels"):
        metrics.score("multirc_em", [1], [("q", 1), ("q", 0)])
    with pytest.raises(ValueError, match="the labels hold -1"):
        metrics.score("multirc_em", [1], [("q", -1)])
    with pytest.raises(ValueError, match="multirc_f1a is for two classes, 0 and 1, but the labels hold 2"):
        metrics.score("multirc_f1a", [1], [("q", 2)])


def test_import_is_light():
    modules = "adalora_bench.metrics, adalora_bench.store.records, adalora_bench.report.tables"
    code = f"import sys, {modules}; print([name for name in sys.modules if name in sys.argv])"
    heavy = ["torch", "transformers", "sklearn", "scipy", "numpy", "datasets", "filelock"]
    heavy += ["nltk", "sacrebleu", "rouge_score", "evaluate"]
    answer = subprocess.run([sys.executable, "-c", code, *heavy], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("score_name", "base"),
    [
        ("acc", "acc"),
        ("acc_matched", "acc"),
        ("acc_gen_matched", "acc_gen"),
        ("ter_pyter_all", "ter_pyter"),
        ("ter_all", "ter"),
        ("accuracy", None),
    ],
)
def test_the_metric_behind_the_name_of_a_score(score_name: str, base: str | None) -> None:
    found = metrics.of_score(score_name)
    assert found is (None if base is None else metrics.METRICS[base])


def test_how_scores_are_printed() -> None:
    assert metrics.printed("acc_matched", 0.5) == 50.0
    assert metrics.printed("nist_mteval", 8.5) == 8.5
    assert metrics.printed("judge_score", 7.5) == 7.5
    assert not metrics.higher_is_better("ter_seen")
    assert metrics.higher_is_better("no_metric")
