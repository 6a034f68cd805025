"""The figures of a study, by hand."""

import math

import pytest

from sgopd_trl.study.statistics import Mean, mean, paired_difference


def test_mean_and_standard_error_by_hand():
    # 1, 2, 6: mean 3, squared deviations 4 + 1 + 9 = 14, s^2 = 7, error sqrt(7 / 3)
    assert mean([1, 2, 6]) == Mean(3, pytest.approx(math.sqrt(7 / 3)), 3)
    assert mean([4.0]) == Mean(4.0, None, 1)
    with pytest.raises(ValueError, match="at least one"):
        mean([])


def test_paired_difference_by_hand():
    # Seeds 0, 1, 2 in both: differences 1, 2, 6; 4.30265 * sqrt(7 / 3) = 6.57235. Seeds 3 and 4 have no partner.
    difference = paired_difference({0: 11, 1: 22, 2: 36, 3: 99}, {2: 30, 1: 20, 0: 10, 4: -99})
    assert (difference.value, difference.n) == (3, 3)
    assert (difference.low, difference.high) == pytest.approx((3 - 6.57235, 3 + 6.57235), abs=1e-4)
    assert not difference.decided
    wide = paired_difference({0: 11, 1: 22, 2: 36}, {2: 30, 1: 20, 0: 10}, level=0.99)  # 9.92484 * sqrt(7 / 3)
    assert (wide.low, wide.high) == pytest.approx((3 - 15.16044, 3 + 15.16044), abs=1e-4)


def test_pairs_are_what_narrows_the_interval():
    """Seeds that differ by 100 and rows that differ by 1 in each of them."""
    difference = paired_difference({s: 100 * s + 1 + s / 100 for s in range(4)}, {s: 100 * s for s in range(4)})
    assert 0.9 < difference.low < difference.value < difference.high < 1.1
    assert difference.decided


def test_without_pairs_and_with_one():
    assert paired_difference({0: 1.0}, {1: 1.0}) is None
    single = paired_difference({0: 3.0}, {0: 1.0})
    assert (single.value, single.low, single.high, single.n) == (2.0, None, None, 1) and not single.decided
