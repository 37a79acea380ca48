"""Lengths of phases and the learning-rate factor."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adalora_bench.errors import UserError
from adalora_bench.schedule import lr_factor, phase_steps


@pytest.mark.parametrize(
    ("value", "steps"),
    [
        (100, 100),
        (0, 0),
        ("6%", 12),
        (" 6% ", 12),
        ("0.1%", 1),
        ("0%", 0),
        ("100%", 200),
        ("1ep", 50),
        ("0.25ep", 13),
        ("0.01ep", 1),
        ("2ep", 100),
    ],
)
def test_phase_in_steps_shares_and_epochs_rounded_up(value: int | str, steps: int) -> None:
    assert phase_steps("train.warmup", value, total_steps=200, steps_per_epoch=50) == steps


def test_phase_is_not_rounded_up_by_float_noise() -> None:
    assert phase_steps("w", "6%", total_steps=50, steps_per_epoch=1) == 3  # 0.06 * 50 = 3.0000000000000004
    assert phase_steps("w", "7%", total_steps=100, steps_per_epoch=1) == 7


@pytest.mark.parametrize(
    "value", ["six%", "100", "1 epoch", "%", "ep", "", "1ep%", "-1%", "-2ep", -3, "inf%"]
)
def test_bad_phase_is_a_user_error_with_its_name_and_value(value: int | str) -> None:
    with pytest.raises(UserError) as caught:
        phase_steps("method.interval", value, total_steps=200, steps_per_epoch=50)
    assert "method.interval" in str(caught.value)
    assert str(value) in str(caught.value)


def test_nan_is_no_length() -> None:
    with pytest.raises(UserError, match="nan%"):
        phase_steps("w", "nan%", total_steps=200, steps_per_epoch=50)


def test_linear_factor_by_hand() -> None:
    factors = [lr_factor(age, 10, 4) for age in range(-1, 12)]
    assert factors == pytest.approx(
        [0, 0, 0.25, 0.5, 0.75, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6, 0, 0], abs=1e-15
    )


def test_constant_factor_stays_at_one_after_the_warm_up() -> None:
    assert [lr_factor(age, 5, 2, "constant") for age in range(6)] == [0, 0.5, 1, 1, 1, 0]
    assert lr_factor(0, 5, 0) == 1  # no warm-up starts at the peak


@settings(max_examples=300)
@given(age=st.integers(-5, 60), life=st.integers(0, 50), warmup=st.integers(0, 60))
def test_linear_factor_properties(age: int, life: int, warmup: int) -> None:
    f = lr_factor(age, life, warmup)
    assert 0 <= f <= 1
    if age < 0 or age >= life or (age == 0 and warmup > 0):
        assert f == 0
    elif age < warmup:
        assert f > lr_factor(age - 1, life, warmup)
    else:
        assert f > lr_factor(age + 1, life, warmup)
        if age == warmup:
            assert f == 1
