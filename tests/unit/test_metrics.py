"""Metrics: fixtures worked out by hand, parity with scikit-learn and scipy, and what is refused."""

import math
import random
import subprocess
import sys

import numpy as np
import pytest

from adalora_bench import metrics
from adalora_bench.errors import UserError

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
    numbers = [rng.gauss(0, 1) for _ in true]
    noisy = [round(value + rng.gauss(0, 1), 1) for value in numbers]
    expected = {
        "acc": reference.accuracy_score(true, said),
        "f1": reference.f1_score(true, said),
        "mcc": reference.matthews_corrcoef(true, said),
        "pearson": stats.pearsonr(noisy, numbers).statistic,
        "spearman": stats.spearmanr(noisy, numbers).statistic,
    }
    assert set(expected) == set(metrics.names())
    for name, value in expected.items():
        classes = metrics.label_kind(name) == "class"
        ours = metrics.score(name, said, true) if classes else metrics.score(name, noisy, numbers)
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


@pytest.mark.parametrize("name", metrics.names())
def test_what_is_refused(name):
    with pytest.raises(ValueError, match="no rows to score"):
        metrics.score(name, [], [])
    with pytest.raises(ValueError, match="2 predictions for 3 labels"):
        metrics.score(name, [0, 1], [0, 1, 1])
    with pytest.raises(ValueError, match="1 of 2 predictions are NaN or infinite, first in row 1"):
        metrics.score(name, [0.0, math.nan], [0, 1])
    with pytest.raises(ValueError, match="1 of 2 labels are NaN or infinite, first in row 0"):
        metrics.score(name, [0, 1], [math.inf, 1])


@pytest.mark.parametrize("name", ["acc", "f1", "mcc"])
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


@pytest.mark.parametrize("name", metrics.names())
def test_signature_names_library_version_and_variant(name):
    import scipy
    import sklearn

    metric = metrics.METRICS[name]
    version = {"scikit-learn": sklearn.__version__, "scipy": scipy.__version__}[metric.library]
    assert metrics.signature(name) == f"{name}|{metric.library}:{version}|{metric.variant}"
    assert metric.higher_is_better


def test_import_is_light():
    modules = "adalora_bench.metrics, adalora_bench.records, adalora_bench.report.tables"
    code = f"import sys, {modules}; print([name for name in sys.modules if name in sys.argv])"
    heavy = ["torch", "transformers", "sklearn", "scipy", "numpy", "datasets", "filelock"]
    answer = subprocess.run([sys.executable, "-c", code, *heavy], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"
