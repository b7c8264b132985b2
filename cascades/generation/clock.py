"""What passes take, learnt from the clock while they run: a Kalman filter over their seconds, on the host."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from cascades.decoding import Clock
from cascades.lookahead import Costs, given_costs
from cascades.models.attention import LEAST_SPAN

_NOISE = 0.05  # of a clocked call, relative to what it takes; this and the following are standard deviations
_SCALE_FIRST = 0.6  # of all costs together, at first
_SHAPE_FIRST, _LEAST = 0.2, 0.05  # of each cost, relative to itself, and what is added, relative to v_0
_REACH_FIRST = 0.02  # of what a token takes for each further 512 slots, relative to v_0
_SCALE_WALK = 0.03  # from call to call: what the machine does beside this moves all costs together
_SHAPE_WALK = 0.002  # from call to call, of each pass that ran: a longer text, another rule
_SURPRISE = 2.0  # standard deviations; what lies further off is laid to the machine
_FARTHEST = 2.0  # times more or less than was expected: an interrupt says nothing about passes
_SMOOTH = 0.1  # weight of a call in the unit that is told
_UNKNOWN = 1e2  # spread of a scale of which nothing is known
_SURE = 0.05  # a round known so well, relative to a pass over one token, is not tried to learn more
_TRYING = 0.01  # most of the time that such rounds may take
_TRIES = 3  # of which the median counts: a single round is easily disturbed
_REST = 100.0  # passes over one token until the first: what runs anyway comes first, and a short run needs none
OTHERS = 3  # kinds behind the passes of each width, see `ran`: drafter steps, passes that catch up, attention further


class Belief(NamedTuple):
    """What each kind of pass takes, in the order of `ran`.

    seconds: `[n]`, mean. covariance: `[n, n]`. unit: seconds of a verifier pass over one token, over the last calls,
    None where nothing was clocked. given: costs relative to each other are the user's and stay as they are. call:
    seconds of a call besides its passes. rest: time until a round may be tried, in passes over one token. trying: the
    drafts of the round that is being tried, None where none is. took: by how much each of its calls so far took longer
    than expected.
    """

    seconds: np.ndarray
    covariance: np.ndarray
    unit: float | None
    given: bool = False
    call: float = 0.0
    rest: float = 0.0
    trying: int | None = None
    took: tuple[float, ...] = ()


def kinds(clock: Clock) -> np.ndarray:
    """Returns the counts of a clock as floats: verifier passes by width, drafter steps, passes that catch up."""
    return np.concatenate([np.ravel(np.asarray(each)) for each in clock]).astype(np.float64)


def reach(slots: int) -> float:
    """Returns by how many times 512 slots a pass attends to more than the first 512."""
    return max(slots / LEAST_SPAN - 1, 0.0)


def ran(counts: np.ndarray, passes: Sequence[int], reach: float) -> np.ndarray:
    """Returns `kinds` and behind them the verifier's tokens, each as often as it attended to further 512 slots, `[n]`.

    This is what a long text takes: each token of a pass attends to it, so that wide passes become dearer than others.
    """
    return np.append(counts, reach * float(counts[: len(passes)] @ np.asarray(passes)))


def measured(seconds: np.ndarray, call: float = 0.0) -> Belief:
    """Returns what is believed behind a measurement of `seconds`, and of a `call` in which nothing runs."""
    spread = _SHAPE_FIRST * seconds + _LEAST * seconds[0]
    spread[-1] = _SHAPE_FIRST * seconds[-1] + _REACH_FIRST * seconds[0]
    covariance = _SCALE_FIRST**2 * np.outer(seconds, seconds) + np.diag(spread**2)
    return Belief(seconds, covariance, float(seconds[0]), call=call, rest=_REST)


def given(costs: Costs, passes: Sequence[int]) -> Belief:
    """Returns what is believed of costs that the user gave: their unit is unknown until something was clocked."""
    verify = np.asarray(costs.verify, np.float64)[np.asarray(passes) - 1]
    relative = np.array([*verify, float(costs.draft), float(costs.catch_up), 0.0])
    return Belief(relative, _UNKNOWN**2 * np.outer(relative, relative), None, given=True)


def clocked(belief: Belief, ran: np.ndarray, seconds: float) -> Belief:
    """Returns what is believed once a call that ran so many passes of each kind took so many seconds.

    All costs move together, and quickly: that is the machine, which does other things as well. Relative to each other
    they move slowly, and only as far as an observation is no surprise: one that is widens what is thought of the scale
    until it no longer is, so that a stall, or a busy minute, leaves the shape alone. Of a trial, whose calls are short,
    the median counts.
    """
    if belief.trying is not None:
        took = (*belief.took, max(seconds - belief.call, 0.0) / float(ran @ belief.seconds))
        if len(took) < _TRIES:
            return belief._replace(took=took)
        belief = belief._replace(trying=None, took=())
        seconds = belief.call + float(np.median(took)) * float(ran @ belief.seconds)
    mean, covariance = belief.seconds, belief.covariance + _SCALE_WALK**2 * np.outer(belief.seconds, belief.seconds)
    if not belief.given:
        covariance = covariance + np.diag(np.where(ran > 0, _SHAPE_WALK * mean, 0.0) ** 2)
    expected, seconds = float(ran @ mean), max(seconds - belief.call, 0.0)
    known = belief.unit is not None
    off = (np.clip(seconds, expected / _FARTHEST, expected * _FARTHEST) if known else seconds) - expected
    noise = (_NOISE * expected) ** 2
    missing = (off / _SURPRISE) ** 2 - (ran @ covariance @ ran + noise)
    if missing > 0:
        covariance = covariance + missing / expected**2 * np.outer(mean, mean)
    toward = covariance @ ran
    gain = toward / (ran @ toward + noise)
    least = np.where(np.arange(len(mean)) < len(mean) - OTHERS, 1e-3 * mean, 0.0)  # a drafter may cost nothing
    kept = np.eye(len(mean)) - np.outer(gain, ran)
    covariance = kept @ covariance @ kept.T + noise * np.outer(gain, gain)
    mean = np.maximum(mean + gain * off, least)
    unit = float(mean[0]) if belief.unit is None else belief.unit ** (1 - _SMOOTH) * float(mean[0]) ** _SMOOTH
    rest = max(belief.rest - seconds / float(mean[0]), 0.0)
    return belief._replace(seconds=mean, covariance=covariance, unit=unit, rest=rest)


def trial(belief: Belief, passes: Sequence[int], reach: float = 0.0) -> int | None:
    """Returns how many drafts a round should have that is run to learn what it takes; None where none should be.

    Of a pass that a controller avoids the clock would never learn that it has become cheap, nor of the pass over one
    token, with which all others are compared, while drafting pays. It is the round that tells most about what drafting
    costs relative to none, for the time that it may lose. It is run a few times in a row, once `tried` says so.
    """
    if belief.trying is not None:
        return belief.trying
    if belief.given or belief.rest > 0 or len(passes) < 2:
        return None
    rounds = np.stack([ran(_round(k, passes), passes, reach) for k in (width - 1 for width in passes)])
    relative = rounds / (rounds @ belief.seconds)[:, None]
    against = relative[1:] - relative[:1]
    spread = np.einsum("wi,ij,wj->w", against, belief.covariance, against)
    if np.max(spread) < _SURE**2:
        return None
    learnt = (against @ belief.covariance @ relative.T) ** 2
    known = np.einsum("ri,ij,rj->r", relative, belief.covariance, relative) + _NOISE**2
    lost = np.array([_lost(belief, passes, width - 1) for width in passes])
    return passes[int(np.argmax(np.sum(learnt / known, axis=0) / lost))] - 1


def tried(belief: Belief, passes: Sequence[int], drafts: int) -> Belief:
    """Returns `belief` while rounds of so many drafts are tried."""
    if belief.trying is not None:
        return belief
    return belief._replace(trying=drafts, rest=_TRIES * _lost(belief, passes, drafts) / _TRYING)


def _lost(belief: Belief, passes: Sequence[int], drafts: int) -> float:
    """What a trial may lose, in passes over one token: its drafts are all in vain, or it goes without one."""
    took = float(_round(drafts, passes) @ belief.seconds[:-1]) / float(belief.seconds[0])
    return max(took - 1, 0.1) if drafts else 1.0


def _round(drafts: int, passes: Sequence[int]) -> np.ndarray:
    """The `kinds` of a round."""
    counts = np.zeros(len(passes) + 2)
    counts[next(at for at, width in enumerate(passes) if width > drafts)] = 1
    counts[-2:] = (drafts - 1, 1) if drafts else (0, 0)
    return counts


def costs(belief: Belief, passes: Sequence[int], reach: float = 0.0) -> Costs:
    """Returns the costs of drafts of each length, where the longest row reaches so far."""
    *verify, draft, catch_up, further = in_order(belief).tolist()
    verify = [took + further * reach * width for took, width in zip(verify, passes, strict=True)]
    by_length = [next(took for width, took in zip(passes, verify, strict=True) if width > k) for k in range(passes[-1])]
    return given_costs(passes[-1] - 1, draft, tuple(by_length), catch_up)


def in_order(belief: Belief) -> np.ndarray:
    """Returns the seconds of each kind, in which no verifier pass takes longer than a wider one.

    Of two that seem to, the mean is taken, each weighted by how well it is known. One that is believed to be dear is
    never run; if a wider one then turns out to be cheaper, it is the other that was wrong.
    """
    widths = len(belief.seconds) - OTHERS
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
