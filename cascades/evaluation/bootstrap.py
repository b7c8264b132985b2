"""The paired bootstrap (Efron and Tibshirani, 1993; for corpus metrics Koehn, 2004) over the examples of a task.

A draw takes as many examples as there are, with replacement. The metrics of `tasks.contract` are functions of sums
over examples, so that a draw is a row of counts: how often each example was taken.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from cascades import checks
from cascades.errors import UserError

Value = Callable[[np.ndarray], float]
"""From sums of statistics over examples, shape [statistics], to the metric: `tasks.contract.Metric.value`."""


class Estimate(NamedTuple):
    """A figure and what resampling says of it.

    value: of the examples themselves. low, high: a percentile interval. lower_bound: that the figure is no less, a
    one-sided statement at a confidence of its own. All nan where the figure is not defined.
    """

    value: float
    low: float
    high: float
    lower_bound: float


class Paired(NamedTuple):
    """How a system's metric compares with a baseline's on the same examples.

    difference: system - baseline. ratio: system / baseline, such as the share of the verifier's quality that is kept.
    """

    difference: Estimate
    ratio: Estimate


def resamples(count: int, draws: int, seed: int) -> np.ndarray:
    """Returns how often each example is taken in each draw: int64 [draws, count], rows that sum to `count`.

    One seed gives one array, to be used for every metric and every system that is compared.

    Raises:
      UserError: there are fewer than two examples or no draws, or the seed is no whole number from 0.
    """
    checks.whole("the number of examples of a bootstrap", count, 2)
    checks.whole("the number of draws of a bootstrap", draws, 1)
    checks.whole("the seed of a bootstrap", seed, 0)
    return np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=draws)


def interval(statistics: np.ndarray, value: Value, weights: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """Returns the percentile interval of a metric.

    Args:
      statistics: of each example, [n, statistics]. weights: `resamples`, [draws, n]. level: the share of draws inside,
        such as 0.95; those in which the metric is not defined are left out.

    Raises:
      UserError: the level is not between 0 and 1, or the shapes do not go together.
    """
    return _interval(_values(statistics, value, weights), level)


def lower_bound(draws: np.ndarray, confidence: float = 0.95) -> float:
    """Returns the one-sided lower bound of a figure from its value in each draw, [draws]: the draw that a share of
    1 - confidence lies below, or the one before it. nan where no draw has a value.

    Raises:
      UserError: the confidence is not between 0 and 1.
    """
    _share("the confidence of a lower bound", confidence)
    return _order(draws, 1 - confidence, math.floor)


def paired(
    system: np.ndarray,
    baseline: np.ndarray,
    value: Value,
    weights: np.ndarray,
    level: float = 0.95,
    confidence: float = 0.95,
) -> Paired:
    """Returns difference and ratio of a metric of two systems, each draw taking the same examples of both.

    Where the baseline's metric is 0 and the system's is not, the ratio is infinite; where both are 0 it is not defined.

    Args:
      system, baseline: statistics of their answers, [n, statistics] each, of the same examples in one order.
      weights: `resamples`, [draws, n]. level: of the two-sided intervals. confidence: of the one-sided lower bounds.

    Raises:
      UserError: a share is not between 0 and 1, or the shapes do not go together.
    """
    if system.shape != baseline.shape:
        raise UserError(
            f"a paired bootstrap compares the answers to the same examples, but has statistics of shape {system.shape} "
            f"and {baseline.shape}: give both systems the same examples"
        )
    whole = np.ones((1, len(system)))
    ours, theirs = (_values(each, value, weights) for each in (system, baseline))
    [our], [their] = (_values(each, value, whole) for each in (system, baseline))

    def estimate(figure: float, draws: np.ndarray) -> Estimate:
        return Estimate(figure, *_interval(draws, level), lower_bound(draws, confidence))

    with np.errstate(divide="ignore", invalid="ignore"):
        return Paired(estimate(float(our - their), ours - theirs), estimate(float(our / their), ours / theirs))


def _values(statistics: np.ndarray, value: Value, weights: np.ndarray) -> np.ndarray:
    if statistics.ndim != 2 or weights.ndim != 2 or weights.shape[1] != len(statistics):
        raise UserError(
            "a bootstrap needs statistics of shape [examples, statistics] and weights of shape [draws, examples], not "
            f"{statistics.shape} and {weights.shape}"
        )
    return np.array([value(sums) for sums in weights.astype(np.float64) @ statistics], np.float64)


def _interval(draws: np.ndarray, level: float) -> tuple[float, float]:
    _share("the level of an interval", level)
    tail = (1 - level) / 2
    return _order(draws, tail, math.floor), _order(draws, 1 - tail, math.ceil)


def _order(draws: np.ndarray, share: float, towards: Callable[[float], int]) -> float:
    """The draw at a share of all, in order; of the two that lie around it the one further out. No draws are averaged,
    so that infinite ones do no harm."""
    known = np.sort(draws[~np.isnan(draws)])
    return float(known[towards(share * (len(known) - 1))]) if len(known) else math.nan


def _share(name: str, share: float) -> None:
    checks.number(name, share, 0.0, 1.0)
    if share in (0, 1):
        raise UserError(f"{name} must lie between 0 and 1, as 0.95 does, not be {share!r}")
