"""What passes take, learnt from the clock while they run: a Kalman filter over their seconds, on the host."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from cascades.decoding import Clock
from cascades.lookahead import Costs, given_costs

_NOISE = 0.05  # of a clocked call, relative to what it takes; this and the following are standard deviations
_SCALE_FIRST = 0.3  # of all costs together, at first
_SHAPE_FIRST, _LEAST = 0.25, 0.05  # of each cost, relative to itself, and what is added, relative to v_0
_SCALE_WALK = 0.03  # from call to call: what the machine does beside this moves all costs together
_SHAPE_WALK = 0.002  # from call to call, of each pass that ran: a longer text, another rule
_SURPRISE = 2.0  # standard deviations; what lies further off is laid to the machine
_FARTHEST = 2.0  # times more or less than was expected: an interrupt says nothing about passes
_SMOOTH = 0.1  # weight of a call in the unit that is told
_UNKNOWN = 1e2  # spread of a scale of which nothing is known


class Belief(NamedTuple):
    """What each kind of pass takes, in the order of `kinds`.

    seconds: `[n]`, mean. covariance: `[n, n]`. unit: seconds of a verifier pass over one token, over the last calls,
    None where nothing was clocked. given: costs relative to each other are the user's and stay as they are.
    """

    seconds: np.ndarray
    covariance: np.ndarray
    unit: float | None
    given: bool = False


def kinds(clock: Clock) -> np.ndarray:
    """Returns the counts of a clock as floats `[n]`: verifier passes by width, drafter steps, passes that catch up."""
    return np.concatenate([np.ravel(np.asarray(each)) for each in clock]).astype(np.float64)


def measured(seconds: np.ndarray) -> Belief:
    """Returns what is believed behind a measurement."""
    spread = _SHAPE_FIRST * seconds + _LEAST * seconds[0]
    return Belief(seconds, _SCALE_FIRST**2 * np.outer(seconds, seconds) + np.diag(spread**2), float(seconds[0]))


def given(costs: Costs, passes: Sequence[int]) -> Belief:
    """Returns what is believed of costs that the user gave: their unit is unknown until something was clocked."""
    verify = np.asarray(costs.verify, np.float64)[np.asarray(passes) - 1]
    relative = np.array([*verify, float(costs.draft), float(costs.catch_up)])
    return Belief(relative, _UNKNOWN**2 * np.outer(relative, relative), None, given=True)


def clocked(belief: Belief, ran: np.ndarray, seconds: float) -> Belief:
    """Returns what is believed once a call that ran so many passes of each kind took so many seconds.

    All costs move together, and quickly: that is the machine, which does other things as well. Relative to each other
    they move slowly, and only as far as an observation is no surprise: one that is widens what is thought of the scale
    until it no longer is, so that a stall, or a busy minute, leaves the shape alone.
    """
    mean, covariance = belief.seconds, belief.covariance + _SCALE_WALK**2 * np.outer(belief.seconds, belief.seconds)
    if not belief.given:
        covariance = covariance + np.diag(np.where(ran > 0, _SHAPE_WALK * mean, 0.0) ** 2)
    expected = float(ran @ mean)
    known = belief.unit is not None
    off = (np.clip(seconds, expected / _FARTHEST, expected * _FARTHEST) if known else seconds) - expected
    noise = (_NOISE * expected) ** 2
    missing = (off / _SURPRISE) ** 2 - (ran @ covariance @ ran + noise)
    if missing > 0:
        covariance = covariance + missing / expected**2 * np.outer(mean, mean)
    toward = covariance @ ran
    gain = toward / (ran @ toward + noise)
    least = np.where(np.arange(len(mean)) < len(mean) - 2, 1e-3 * mean, 0.0)  # a drafter may cost nothing
    rest = np.eye(len(mean)) - np.outer(gain, ran)
    covariance = rest @ covariance @ rest.T + noise * np.outer(gain, gain)
    mean = np.maximum(mean + gain * off, least)
    unit = float(mean[0]) if belief.unit is None else belief.unit ** (1 - _SMOOTH) * float(mean[0]) ** _SMOOTH
    return belief._replace(seconds=mean, covariance=covariance, unit=unit)


def costs(belief: Belief, passes: Sequence[int]) -> Costs:
    """Returns the costs of drafts of each length."""
    *verify, draft, catch_up = in_order(belief).tolist()
    by_length = [next(took for width, took in zip(passes, verify, strict=True) if width > k) for k in range(passes[-1])]
    return given_costs(passes[-1] - 1, draft, tuple(by_length), catch_up)


def in_order(belief: Belief) -> np.ndarray:
    """Returns the seconds of each kind, in which no verifier pass takes longer than a wider one.

    Of two that seem to, the mean is taken, each weighted by how well it is known. One that is believed to be dear is
    never run; if a wider one then turns out to be cheaper, it is the other that was wrong.
    """
    widths = len(belief.seconds) - 2
    known = 1 / np.maximum(np.diag(belief.covariance)[:widths], 1e-30)
    return np.append(rising(belief.seconds[:widths], known), belief.seconds[widths:])


def rising(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Returns the nearest numbers of which none is less than the one before, by least squares so weighted.

    >>> rising(np.array([1.0, 3.0, 2.0, 4.0]), np.array([1.0, 1.0, 3.0, 1.0])).tolist()
    [1.0, 2.25, 2.25, 4.0]
    """
    pools: list[
        tuple[float, float, int]
    ] = []  # mean, weight, how many (Ayer et al. 1955: adjacent violators are pooled)
    for value, weight in zip(values.tolist(), weights.tolist(), strict=True):
        mean, count = value, 1
        while pools and pools[-1][0] > mean:
            before, heavy, many = pools.pop()
            mean = (before * heavy + mean * weight) / (heavy + weight)
            weight, count = heavy + weight, count + many
        pools.append((mean, weight, count))
    return np.repeat([mean for mean, _, _ in pools], [count for _, _, count in pools])


def moved(new: Costs, old: Costs) -> float:
    """Returns by how much the costs of a round differ at most, relative to the old ones."""

    def rounds(costs: Costs) -> np.ndarray:
        draft, verify, catch_up = (np.asarray(each) for each in costs)  # on the host: nothing is compiled
        return np.append(verify + np.arange(len(verify)) * draft, verify[0] + catch_up)

    return float(np.max(np.abs(rounds(new) / rounds(old) - 1)))
