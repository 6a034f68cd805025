"""avg@k, pass@k and bootstrap intervals: by hand, and whether the intervals cover what they should."""

import numpy as np
import pytest

from sgopd_trl.evaluation.metrics import accuracies, bootstrap, interval, pass_probabilities, replicates


def test_by_hand():
    table = [[True, False, False, False], [True, True, False, False], [False] * 4]
    assert accuracies(table).tolist() == [0.25, 0.5, 0.0]
    # 1 - C(3, 2) / C(4, 2) = 1 - 3/6; 1 - C(2, 2) / C(4, 2) = 1 - 1/6; none
    assert pass_probabilities(table, 2) == pytest.approx([1 / 2, 5 / 6, 0])
    assert pass_probabilities(table, 4).tolist() == [1, 1, 0]
    assert pass_probabilities(table, 1) == pytest.approx(accuracies(table))


def test_pass_at_k_is_unbiased():
    """Its mean over many sets of n samples is the chance that k samples hold a correct one."""
    rng = np.random.default_rng(0)
    chances = np.array([0.05, 0.3])
    found = np.mean([pass_probabilities(rng.random((2, 16)) < chances[:, None], 4) for _ in range(4000)], 0)
    assert found == pytest.approx(1 - (1 - chances) ** 4, abs=0.01)


def test_replicates_are_means_of_whole_problems():
    """Both numbers of a problem are drawn together, and every replicate has as many problems as there are."""
    values = np.array([[0.0, 10.0], [1.0, 11.0], [2.0, 12.0]])
    drawn = replicates(values, 5000, (0,))
    assert drawn[:, 1] - drawn[:, 0] == pytest.approx(np.full(5000, 10.0))
    counts = np.round(drawn[:, 0] * 3)
    assert drawn[:, 0] * 3 == pytest.approx(counts) and set(counts) == set(range(7))
    # Of the 27 draws one is all zeros
    assert (counts == 0).mean() == pytest.approx(1 / 27, abs=0.01)


def test_replicates_in_chunks(monkeypatch):
    values = np.random.default_rng(0).random((7, 2))
    whole = replicates(values, 100, (3,))
    monkeypatch.setattr("sgopd_trl.evaluation.metrics._CHUNK", 50)
    assert replicates(values, 100, (3,)).shape == whole.shape == (100, 2)
    assert np.array_equal(replicates(values, 100, (3,)), whole)


def test_percentiles():
    found = interval(5.0, np.arange(101.0), 0.9)
    assert (found.mean, found.low, found.high) == pytest.approx((5.0, 5.0, 95.0))


def test_the_average_weighs_benchmarks_and_not_problems():
    """Resampled within each: the variance of the mean of two is a quarter of the sum of theirs."""
    rng = np.random.default_rng(1)
    groups = [rng.random((10, 1)), 5 + rng.random((1000, 1))]
    each, average = bootstrap(groups, count=4000, seed=2)
    assert average[0].mean == pytest.approx((groups[0].mean() + groups[1].mean()) / 2)
    width = [found[0].high - found[0].low for found in each]
    assert average[0].high - average[0].low == pytest.approx(np.hypot(*width) / 2, rel=0.05)
    # Drawn apart, also where they are equal: errors of one do not add to those of another
    each, average = bootstrap([groups[0], groups[0]], count=4000, seed=2)
    assert average[0].high - average[0].low == pytest.approx((each[0][0].high - each[0][0].low) / 2**0.5, rel=0.05)
    assert each[0][0].low < groups[0].mean() < each[0][0].high
    assert bootstrap(groups, count=100, seed=2) == bootstrap(groups, count=100, seed=2)
    assert bootstrap(groups, count=100, seed=2) != bootstrap(groups, count=100, seed=3)


@pytest.mark.parametrize("problems", [30, 100])
def test_intervals_cover_the_truth(problems):
    """95% intervals of avg@8 over problems of unequal difficulty hold the mean difficulty about 95% of the time.

    At 30 problems the percentile bootstrap is known to be somewhat short.
    """
    rng = np.random.default_rng(problems)
    covered = 0
    for trial in range(400):
        chances = rng.beta(0.5, 1.5, problems)
        values = (rng.random((problems, 8)) < chances[:, None]).mean(1, keepdims=True)
        ((found,),), _ = bootstrap([values], count=1000, seed=trial)
        covered += found.low <= 0.25 <= found.high
    assert 0.91 <= covered / 400 <= 0.98


def test_intervals_of_paired_differences_cover_the_truth():
    """And are narrower than those of unpaired ones, as the difficulty of a problem is in both."""
    rng = np.random.default_rng(0)
    covered, widths = 0, []
    for trial in range(300):
        chances = rng.beta(0.5, 1.5, 100)
        a, b = ((rng.random((100, 32)) < p[:, None]).mean(1, keepdims=True) for p in (0.9 * chances, chances))
        ((paired,),), _ = bootstrap([b - a], count=1000, seed=trial)
        ((alone,),), _ = bootstrap([b], count=1000, seed=trial)
        covered += paired.low <= 0.1 * 0.25 <= paired.high
        widths.append((paired.high - paired.low) / (alone.high - alone.low))
    assert 0.91 <= covered / 300 <= 0.98
    assert np.mean(widths) < 0.5
