"""The statistics that runs are compared by: small pure functions of arrays.

A curve is a score in several evaluations, y, at increasing steps or labels, x. Strata are the seeds' values per game:
seeds are resampled within a game, never across games (Agarwal et al. 2021, arXiv:2108.13264, section 4).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float

MIN_SEEDS = 5  # fewer carry no interval
THRESHOLDS = (0.5, 0.75, 0.9)  # of the normalised score
RESAMPLES = 2000
PERMUTATIONS = 99_999
SIGNIFICANT = 0.05


def normalise(score: np.ndarray, expert: float, random_play: float) -> np.ndarray:
    """(score - random play) / (expert - random play): 0 plays like chance, 1 like the expert.

    Raises ValueError unless the expert is better than random play.
    """
    if not expert > random_play:
        raise ValueError(
            f"an expert's score of {expert} is not above random play's {random_play}: nothing can be normalised by them"
        )
    return (score - random_play) / (expert - random_play)


def reached(x: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"], threshold: float) -> tuple[float, float]:
    """The interval (after, by] of x in which y first reaches the threshold.

    `after` is the evaluation before, or 0 if there is none. A curve that never reaches it is censored: (last x, inf);
    one without an evaluation: (0, inf).
    """
    above = np.flatnonzero(y >= threshold)
    if not len(above):
        return (float(x[-1]) if len(x) else 0.0), np.inf
    first = above[0]
    return (float(x[first - 1]) if first else 0.0), float(x[first])


def mean_height(x: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"], start: float, end: float) -> float:
    """Area under the curve between start and end, by trapezoids, divided by the width: in the units of y.

    NaN unless start < end, and both lie within the curve.
    """
    if not (len(x) and x[0] <= start < end <= x[-1]):
        return np.nan
    inside = (x > start) & (x < end)
    first, last = np.interp(start, x, y), np.interp(-end, -x[::-1], y[::-1])  # where x stands still, from within
    heights = np.concatenate([[first], y[inside], [last]])
    return float(np.trapezoid(heights, np.concatenate([[start], x[inside], [end]])) / (end - start))


def n_trimmed(n: int) -> int:
    """How many of n seeds an interquartile mean leaves out at each end: a quarter, rounded down; of few seeds none."""
    return n // 4 if n >= MIN_SEEDS else 0


def iqm(*strata: np.ndarray, axis: int = -1) -> np.ndarray | float:
    """Interquartile mean of a game's seeds; of several games the mean of theirs, each as weighty as the others.

    So of five seeds the middle three count, and of fewer all.
    """
    means = []
    for values in strata:
        cut = n_trimmed(n := values.shape[axis])
        means.append(np.sort(values, axis=axis).take(range(cut, n - cut), axis=axis).mean(axis=axis))
    return np.mean(means, axis=0)


def probability_of_improvement(x: Sequence[np.ndarray], y: Sequence[np.ndarray], axis: int = -1) -> np.ndarray | float:
    """Probability that a run of X scores higher than one of Y, ties counting half: the mean over games.

    Within a game, the Mann-Whitney statistic divided by the number of pairs. `x` and `y` hold the strata, game by game.
    """
    shares = []
    for a, b in zip(x, y, strict=True):
        difference = np.moveaxis(a, axis, -1)[..., :, None] - np.moveaxis(b, axis, -1)[..., None, :]  # (..., n, m)
        shares.append(np.mean((np.sign(difference) + 1) / 2, axis=(-2, -1), dtype=float))
    return np.mean(shares, axis=0)


def permutation_p(x: Sequence[np.ndarray], y: Sequence[np.ndarray]) -> float:
    """Two-sided p-value of "the runs of X and of Y are distributed alike", in (0, 1].

    The runs of a game are exchanged between X and Y: `probability_of_improvement` is as far from one half, or farther,
    in this share of the ways to do so. Up to 99,999 ways all are tried; of more, as many at random and the observed one
    (Phipson & Smyth 2010). Where one function's runs spread far more than the other's, it is small more often than it
    says, though neither is the higher one. Students of the same seed start from the same weights; this is not made use
    of, so that smaller differences go unnoticed, but false ones are not more frequent.
    """
    orders = _exchanges([(len(of_x), len(of_y)) for of_x, of_y in zip(x, y, strict=True)], np.random.default_rng(0))
    probabilities = []
    for of_x, of_y, order in zip(x, y, orders, strict=True):
        n, m = len(of_x), len(of_y)
        ranks = pd.Series(np.concatenate([of_x, of_y])).rank().to_numpy()
        rank_sums = ranks[order[:, :n]].sum(axis=1)  # (ways,)
        probabilities.append((rank_sums - n * (n + 1) / 2) / (n * m))
    distances = np.abs(np.mean(probabilities, axis=0) - 0.5)
    return float(np.mean(distances >= distances[0] - 1e-9))  # the first way is the observed one


def _exchanges(sizes: list[tuple[int, int]], rng: np.random.Generator) -> list[np.ndarray]:
    """Ways to exchange n and m runs, the observed first: per game an order of the n + m, int (ways, n + m), n X's."""
    if math.prod(math.comb(n + m, n) for n, m in sizes) <= PERMUTATIONS:
        every = [
            [(*kept, *sorted({*range(n + m)} - {*kept})) for kept in itertools.combinations(range(n + m), n)]
            for n, m in sizes
        ]
        return [np.array(of_game) for of_game in zip(*itertools.product(*every), strict=True)]
    observed = [np.arange(n + m) for n, m in sizes]
    drawn = [rng.permuted(np.tile(order, (PERMUTATIONS, 1)), axis=1) for order in observed]
    return [np.vstack([order, of_game]) for order, of_game in zip(observed, drawn, strict=True)]


def holm(p: np.ndarray, family: int) -> np.ndarray:
    """p-values corrected, so that a false "better" among the family's tests stays as rare (Holm 1979).

    `family`: how many tests there are; those without a p-value yet count as 1.
    """
    order = np.argsort(p)
    corrected = np.empty(len(p))
    corrected[order] = np.maximum.accumulate(p[order] * np.arange(family, family - len(p), -1)).clip(max=1)
    return corrected


def interval(
    statistic: Callable[..., np.ndarray | float], *strata: np.ndarray
) -> tuple[np.ndarray | float, np.ndarray | float]:
    """95 % interval of a statistic over seeds: percentiles of a stratified bootstrap, 2,000 resamples.

    So few values make it narrow: of five seeds it holds the truth about nine times in ten (normal values, simulated).
    The statistic is called as f(*strata, axis=...). NaN from strata of which one has fewer than `MIN_SEEDS` seeds.
    """
    if min(len(values) for values in strata) < MIN_SEEDS:
        nothing = np.full(strata[0].shape[1:], np.nan)
        return nothing, nothing
    from scipy import stats

    result = stats.bootstrap(
        strata, statistic, n_resamples=RESAMPLES, vectorized=True, axis=0, method="percentile", rng=0
    )
    return result.confidence_interval.low, result.confidence_interval.high
