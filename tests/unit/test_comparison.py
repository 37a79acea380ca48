"""Statistics that compare two rows, against hand-worked numbers and scipy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from adalora_bench.report import comparison as c

FIVE = [0.62, 0.60, 0.65, 0.61, 0.67]
OTHER = [0.60, 0.61, 0.60, 0.58, 0.62]


def test_mean_sd_and_t_interval_equal_scipy() -> None:
    assert c.mean_sd([1.0, 3.0]) == pytest.approx((2.0, 2**0.5))
    found = c.t_interval(FIVE)
    low, high = stats.t.interval(0.95, 4, loc=np.mean(FIVE), scale=stats.sem(FIVE))
    assert (found.value, found.low, found.high) == pytest.approx((np.mean(FIVE), low, high), abs=1e-12)
    with pytest.raises(ValueError, match="two values"):
        c.t_interval([1.0])


def test_paired_differences_are_those_of_common_finished_seeds() -> None:
    a = {0: 0.5, 1: 0.7, 2: None, 3: 0.9}
    b = {1: 0.6, 2: 0.1, 3: None, 4: 0.2}
    assert c.paired_differences(a, b) == {1: pytest.approx(0.1)}


def test_difference_interval_is_the_median_with_its_range() -> None:
    found = c.difference_interval([0.02, -0.01, 0.05])
    assert (found.value, found.low, found.high, found.excludes_zero) == (0.02, -0.01, 0.05, False)
    assert c.difference_interval([0.02, 0.01]).excludes_zero
    assert c.difference_interval([-0.02, -0.01]).excludes_zero
    assert not c.difference_interval([0.0, 0.01]).excludes_zero


def test_sign_flip_by_hand() -> None:
    """Five equal signs: only all + and all - reach the sum, 2 of 32. This is the smallest p that n = 5 can give."""
    assert c.sign_flip_test([1.0, 2.0, 3.0, 1.0, 2.0]) == 0.0625
    # +-1 +-2: sums 3, 1, 1, 3 in size; |1 - 2| = 1 is reached by all four
    assert c.sign_flip_test([1.0, -2.0]) == 1.0
    assert c.sign_flip_test([0.1, 0.2, -0.3]) == 1.0  # a sum of 0, whatever the rounding


def test_permutation_by_hand_and_by_scipy() -> None:
    assert c.permutation_test([1, 2, 3, 4, 5], [6, 7, 8, 9, 10]) == pytest.approx(2 / 252)
    assert c.permutation_test([1.0], [2.0]) == 1.0
    scipys = stats.permutation_test(
        (FIVE, OTHER), lambda x, y: np.mean(x) - np.mean(y), n_resamples=np.inf, alternative="two-sided"
    )
    assert c.permutation_test(FIVE, OTHER) == pytest.approx(scipys.pvalue, abs=1e-12)


def test_interquartile_mean_by_hand_and_by_scipy() -> None:
    assert c.interquartile_mean(np.arange(8.0).reshape(4, 2)) == pytest.approx((2 + 3 + 4 + 5) / 4)
    # six entries: the middle three sixths, 1.5 .. 4.5 of 6: half of the 2nd, the 3rd, the 4th, half of the 5th
    assert c.interquartile_mean(np.array([[0.0, 10, 20, 30, 40, 90]])) == pytest.approx(
        (5 + 20 + 30 + 20) / 3
    )
    eight = np.array([FIVE[:4], OTHER[:4]])
    assert c.interquartile_mean(eight) == pytest.approx(stats.trim_mean(eight.flatten(), 0.25))
    assert c.interquartile_mean(np.stack([eight, eight + 1])) == pytest.approx(
        [c.interquartile_mean(eight), c.interquartile_mean(eight) + 1]
    )
    with pytest.raises(ValueError, match="NaN"):
        c.interquartile_mean(np.array([[np.nan]]))


def test_bootstrap_is_stratified_fixed_and_contains_the_estimate() -> None:
    # column 0 is constant: were seeds drawn across tasks, the statistic of column 0 would vary
    scores = np.array([[1.0, 0.2], [1.0, 0.4], [1.0, 0.6]])
    first = c.stratified_bootstrap([scores], lambda s: s[..., 0].mean(axis=-1), draws=50)
    assert (first.low, first.value, first.high) == (1.0, 1.0, 1.0)
    one = c.stratified_bootstrap([scores], c.interquartile_mean, draws=300)
    assert one == c.stratified_bootstrap([scores], c.interquartile_mean, draws=300)
    assert one.low <= one.value <= one.high


def test_probability_of_improvement_by_hand() -> None:
    a = np.array([[3.0, 1.0], [1.0, 1.0]])
    b = np.array([[2.0, 1.0], [0.0, 2.0]])
    # task 0: (3>2) (3>0) (1<2) (1>0) = 3/4; task 1: (1=1) half, (1<2), twice: 1/4
    assert c.probability_of_improvement(a, b) == pytest.approx((3 / 4 + 1 / 4) / 2)
    assert c.probability_of_improvement(b, a) == pytest.approx(1 - c.probability_of_improvement(a, b))
    with pytest.raises(ValueError, match="tasks"):
        c.probability_of_improvement(a, b[:, :1])


def test_holm_by_hand() -> None:
    # sorted 0.01 x 4, 0.02 x 3, 0.03 x 2, 0.5 x 1, never falling
    assert c.holm([0.02, 0.5, 0.01, 0.03]) == pytest.approx([0.06, 0.5, 0.04, 0.06])
    assert c.holm([0.6, 0.7]) == [1.0, 1.0]


def test_paired_bootstrap_over_rows() -> None:
    right, wrong = [1.0] * 50, [0.0] * 50
    sure = c.paired_bootstrap(right, wrong, draws=50)
    assert (sure.value, sure.low, sure.high) == (1.0, 1.0, 1.0)
    mixed = c.paired_bootstrap([1.0, 0.0] * 25, [0.0, 1.0] * 25, draws=400)
    assert mixed.value == 0.0
    assert mixed.low < 0 < mixed.high
    # sd of the mean of 50 values of +-1 is 1/sqrt(50) = 0.141, and 1.96 of it 0.277
    assert mixed.high == pytest.approx(0.277, abs=0.06)
    with pytest.raises(ValueError, match="same rows"):
        c.paired_bootstrap([1.0], [])


@settings(max_examples=200)
@given(st.lists(st.floats(-1, 1).map(lambda x: round(x, 3)), min_size=1, max_size=6))
def test_p_values_are_shares_of_all_signs(differences: list[float]) -> None:
    p = c.sign_flip_test(differences)
    assert 2 / 2 ** len(differences) <= p <= 1 or p == 1
    assert p == c.sign_flip_test([-d for d in differences])
