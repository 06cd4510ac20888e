"""Each statistic against numbers worked out by hand, and against a slow and obvious oracle."""

import itertools
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import mannwhitneyu

from aamlib import stats

numbers = st.lists(st.integers(-1000, 1000).map(float), min_size=1, max_size=12).map(np.array)


def test_random_play_is_zero_and_the_expert_one():
    scores = np.array([-20.0, 16.0, -2.0, 25.0])
    assert stats.normalise(scores, 16.0, -20.0).tolist() == [0, 1, 0.5, 1.25]


@pytest.mark.parametrize("expert", [-20.0, -21.0, np.nan])
def test_an_expert_no_better_than_chance_normalises_nothing(expert):
    with pytest.raises(ValueError, match="is not above random play's -20.0"):
        stats.normalise(np.array([1.0]), expert, -20.0)


@pytest.mark.parametrize(
    ("y", "interval"),
    [
        ([0.1, 0.6, 0.4, 0.9], (10, 20)),  # the first time, though it falls again
        ([0.5, 0.6, 0.7, 0.8], (0, 10)),  # reached at some time before the first evaluation
        ([0.1, 0.2, 0.3, 0.5], (30, 40)),  # at the threshold is reached
        ([0.1, 0.2, 0.3, 0.49], (40, np.inf)),  # censored: all that is known is that 40 were not enough
    ],
)
def test_threshold_lies_between_two_evaluations(y, interval):
    assert stats.reached(np.array([10.0, 20.0, 30.0, 40.0]), np.array(y), 0.5) == interval


def test_a_run_without_an_evaluation_is_censored_from_the_start():
    assert stats.reached(np.array([]), np.array([]), 0.5) == (0, np.inf)


def test_mean_height_by_hand():
    x, y = np.array([10.0, 20.0, 40.0]), np.array([0.0, 1.0, 1.0])
    assert stats.mean_height(x, y, 10.0, 40.0) == pytest.approx((5 + 20) / 30)
    assert stats.mean_height(x, y, 15.0, 30.0) == pytest.approx((3.75 + 10) / 15)
    x, y = np.array([0.0, 1.0, 1.0, 2.0]), np.array([0.0, 0.0, 1.0, 1.0])  # nothing new was asked about meanwhile
    assert stats.mean_height(x, y, 0.0, 2.0) == pytest.approx(0.5)
    assert stats.mean_height(x, y, 0.0, 1.0) == stats.mean_height(x, -y, 0.0, 1.0) == 0


def test_mean_height_is_nan_outside_of_the_curve():
    x, y = np.array([10.0, 20.0, 40.0]), np.array([0.0, 1.0, 1.0])
    for start, end in ((5.0, 20.0), (10.0, 41.0), (20.0, 20.0), (np.nan, 20.0)):
        assert np.isnan(stats.mean_height(x, y, start, end))


@given(st.lists(st.floats(-2, 2), min_size=2, max_size=8), st.floats(0.05, 0.9))
def test_mean_height_is_that_of_many_thin_slices(y, start):
    x = np.arange(len(y)) ** 1.5
    start, end = start * 0.5, float(x[-1])
    middles = start + (np.arange(20_000) + 0.5) / 20_000 * (end - start)
    assert stats.mean_height(x, np.array(y), start, end) == pytest.approx(np.interp(middles, x, y).mean(), abs=1e-3)


def slow_iqm(values):
    ordered, cut = sorted(values), len(values) // 4 if len(values) >= 5 else 0
    kept = ordered[cut : len(ordered) - cut]
    return sum(kept) / len(kept)


@given(numbers)
def test_interquartile_mean_leaves_out_a_quarter_at_each_end(values):
    assert stats.iqm(values) == pytest.approx(slow_iqm(values))


def test_interquartile_mean_by_hand():
    assert stats.iqm(np.array([1.0, 2, 3, 4, 5, 6, 7, 100])) == 4.5
    assert stats.iqm(np.array([0.0, 9.0, 1.0, 2.0, -50.0])) == 1
    assert stats.iqm(np.array([1.0, 5.0])) == 3
    assert stats.iqm(np.array([0.0, 1.0, 2.0, 9.0])) == 3, "of four seeds none is left out"
    assert stats.iqm(np.array([1.0, 2, 3, 4, 50]), np.array([7.0])) == 5, "each game counts as much as the other"
    assert stats.iqm(np.array([[1.0, 10.0], [3.0, 30.0]]), axis=0).tolist() == [2, 20]


@given(numbers, numbers)
def test_probability_of_improvement_counts_won_pairs(x, y):
    wins = [1 if a > b else 0.5 if a == b else 0 for a in x for b in y]
    assert stats.probability_of_improvement([x], [y]) == pytest.approx(sum(wins) / len(wins))


def test_probability_of_improvement_is_the_mean_over_games():
    low, high, even = np.array([1.0, 2.0]), np.array([3.0, 4.0]), np.array([1.0, 2.0])
    assert stats.probability_of_improvement([high, low], [low, even]) == (1 + 0.5) / 2


@pytest.mark.parametrize("seed", range(3))
def test_permutation_p_agrees_with_the_exact_test_of_mann_and_whitney(seed):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=5), rng.normal(loc=seed, size=6)
    exact = mannwhitneyu(x, y, method="exact").pvalue
    assert stats.permutation_p([x], [y]) == pytest.approx(exact)


def test_permutation_p_of_more_ways_than_can_be_tried():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=10), rng.normal(loc=0.8, size=10)  # 184,756 ways
    exact = mannwhitneyu(x, y, method="exact").pvalue
    assert stats.permutation_p([x], [y]) == pytest.approx(exact, rel=0.05)


@given(st.lists(st.tuples(*[st.lists(st.integers(0, 4), min_size=1, max_size=3)] * 2), min_size=1, max_size=2))
def test_permutation_p_agrees_with_exact_fractions(games):
    def distance(games):
        shares = [Fraction(sum(2 * (a > b) + (a == b) for a in x for b in y), 2 * len(x) * len(y)) for x, y in games]
        return abs(sum(shares) / len(shares) - Fraction(1, 2))

    def exchanges(x, y):
        runs = [*x, *y]
        for kept in itertools.combinations(range(len(runs)), len(x)):
            yield [runs[i] for i in kept], [run for i, run in enumerate(runs) if i not in kept]

    distances = [distance(ways) for ways in itertools.product(*(exchanges(*game) for game in games))]
    as_far = sum(d >= distance(games) for d in distances) / len(distances)
    x, y = ([np.array(game[i], dtype=float) for game in games] for i in (0, 1))
    assert stats.permutation_p(x, y) == pytest.approx(as_far)


def test_permutation_p_of_runs_that_are_equal_by_hand():
    """Of the six ways to exchange them, but where each has one of the equal two, all are as far from one half."""
    assert stats.permutation_p([np.array([1.0, 2.0])], [np.array([2.0, 3.0])]) == pytest.approx(4 / 6)


def test_holm_by_hand():
    assert stats.holm(np.array([0.04, 0.01, 0.03]), 3).tolist() == pytest.approx([0.06, 0.03, 0.06])
    assert stats.holm(np.array([0.5, 0.9]), 2).tolist() == [1, 1]
    assert stats.holm(np.array([0.01]), 6).tolist() == pytest.approx([0.06]), "five are still to be tested"


def test_permutation_p_exchanges_runs_within_games_only():
    low, high = np.arange(5.0), np.arange(5.0) + 10
    assert stats.permutation_p([high, high + 100], [low, low + 100]) < 0.001, "together surer than each alone"
    assert stats.permutation_p([high, low], [low, high]) == 1, "one game against the other"


def test_interval_agrees_with_a_bootstrap_written_as_a_loop():
    values = np.random.default_rng(1).normal(size=8)
    rng = np.random.default_rng(2)
    slow = [slow_iqm(rng.choice(values, 8)) for _ in range(4000)]
    low, high = stats.interval(stats.iqm, values)
    assert [low, high] == pytest.approx(np.percentile(slow, [2.5, 97.5]), abs=0.1)
    assert stats.interval(stats.iqm, values) == (low, high), "the same on every call"


def test_seeds_are_resampled_within_their_game():
    easy, hard = np.ones(6), np.zeros(6)  # between the games all differs, within them nothing
    assert stats.interval(stats.iqm, easy, hard) == (0.5, 0.5)


def test_interval_at_each_evaluation_is_that_of_its_seeds():
    values = np.random.default_rng(3).normal(size=(6, 3))
    low, high = stats.interval(stats.iqm, values)
    for i in range(3):
        assert (low[i], high[i]) == stats.interval(stats.iqm, values[:, i])


def test_fewer_than_five_seeds_have_no_interval():
    assert np.isnan(stats.interval(stats.iqm, np.ones(4))).all()
    assert np.isnan(stats.interval(stats.iqm, np.ones(6), np.ones(4))).all()
    assert np.isfinite(stats.interval(stats.iqm, np.ones(5))).all()
