"""Statistics over seeds, each number worked out by hand."""

import itertools
import math

import pytest

from adalora_bench.report import statistics as st


@pytest.mark.parametrize(
    ("values", "by_hand"),
    [([3.0], 3.0), ([5.0, 1.0], 3.0), ([9.0, 1.0, 4.0], 4.0), ([1, 2, 3, 10], 2.5), ([2, 2, 9, 9, 3], 3.0)],
)
def test_median(values, by_hand):
    assert st.median(values) == by_hand


@pytest.mark.parametrize("values", [[], [1.0, math.nan]])
def test_median_refuses(values):
    with pytest.raises(ValueError, match="undefined"):
        st.median(values)


def test_summary():
    summary = st.summarise([0.6, 0.5, 0.7, 0.55, 0.9])
    assert (summary.median, summary.low, summary.high, summary.n, summary.finished) == (0.6, 0.5, 0.9, 5, 5)


@pytest.mark.parametrize(
    ("values", "higher", "median", "low", "high", "finished"),
    [
        ([0.6, None, 0.7, 0.5, 0.9], True, 0.6, -math.inf, 0.9, 4),
        ([0.6, None, None, 0.5, None], True, -math.inf, -math.inf, 0.6, 2),
        ([0.6, None], True, -math.inf, -math.inf, 0.6, 1),
        ([None, None], True, -math.inf, -math.inf, -math.inf, 0),
        # An error rate: the worst is the highest.
        ([0.6, None, 0.7, 0.5, 0.9], False, 0.7, 0.5, math.inf, 4),
    ],
)
def test_a_diverged_seed_is_the_worst_and_counts(values, higher, median, low, high, finished):
    summary = st.summarise(values, higher)
    assert (summary.median, summary.low, summary.high) == (median, low, high)
    assert (summary.n, summary.finished) == (len(values), finished)


def test_order_of_seeds_does_not_matter():
    values = [0.1, None, 0.3, 0.2]
    assert len({st.summarise(list(order)) for order in itertools.permutations(values)}) == 1


def test_coverage_of_min_max():
    assert st.median_coverage(5) == 0.9375
    assert st.median_coverage(1) == 0.0
    with pytest.raises(ValueError, match="at least one"):
        st.median_coverage(0)


def test_standard_error():
    assert st.standard_error(0.5, 100) == 0.05
    # RTE: 146 of 277 rows are the majority class.
    assert st.standard_error(146 / 277, 277) == pytest.approx(0.0299983, abs=1e-6)
    assert st.standard_error(1.0, 7) == 0.0
    for accuracy, n in ((52.7, 277), (-0.1, 5), (0.5, 0)):
        with pytest.raises(ValueError, match="an accuracy"):
            st.standard_error(accuracy, n)


def test_ranking():
    assert st.ranking([0.5, 0.9, 0.7]) == [3, 1, 2]
    assert st.ranking([0.5, 0.9, 0.9]) == [3, 1.5, 1.5]
    assert st.ranking([None, 0.1, None]) == [2.5, 1, 2.5]
    assert st.ranking([None, 0.1, 0.3], higher_is_better=False) == [3, 1, 2]
    assert st.ranking([]) == []
    with pytest.raises(ValueError, match="NaN"):
        st.ranking([math.nan])
