"""Which settings hold a floor: candidates are halved on one part of the prompts, and certified on another.

The search is successive halving (Jamieson and Talwalkar, 2016): few examples for all candidates, twice as many for the
half that promises most. What is left is tested in order, the safest first, each by a one-sided paired bootstrap at the
stated confidence, until one fails: of such a sequence the chance that any setting is certified wrongly is no more than
that of one test (Angelopoulos et al., "Learn then Test", arXiv 2110.01052, on fixed sequences). The order comes from
the search alone, whose examples the test does not see.
"""

import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np

from cascades.evaluation import bootstrap
from cascades.evaluation.latency import PassCosts, expected
from cascades.evaluation.tasks.contract import Metric

DRAWS = 2000
LEAST = 8  # examples that a candidate answers at least before it may be dropped


class Goal(NamedTuple):
    """What has to hold, and by it what is wanted.

    share: of the verifier's score that is kept at least; score: that is reached at least: of those that hold it the
    fastest is wanted. time: that is taken at most, relative to the verifier alone: of those the best score is wanted.
    One of them is not None.
    """

    share: float | None = None
    score: float | None = None
    time: float | None = None

    def __str__(self) -> str:
        if self.share is not None:
            return f"at least {self.share:g} of the verifier's score"
        return f"a score of at least {self.score:g}" if self.score is not None else f"at most {self.time:g} of the time"


class Evidence(NamedTuple):
    """What examples say of a candidate.

    examples: how many. slack: by how much it holds the goal, in units of the score (of a time: of the verifier's).
    bound: that the slack is no less, at the confidence. score, base: its own and the verifier's. time: relative to the
    verifier alone, computed. needed: about how many examples would bring the bound to 0; None if it is there already,
    infinite where no number would.
    """

    examples: int
    slack: float
    bound: float
    score: float
    base: float
    time: float
    needed: float | None

    @property
    def holds(self) -> bool:
        return self.bound >= 0


def likelihood() -> Metric:
    """Of answers without a reference: the verifier's mean probability of a token, exp(mean log p), from 0 to 1.

    Its statistics are those of a line's `stats`, see `evidence`.
    """
    definition = "exp of the verifier's mean log-probability of a token, at temperature 1."

    def value(sums: np.ndarray) -> float:
        return float(np.exp(sums[0] / sums[1])) if sums[1] else math.nan

    return Metric("likelihood", definition, lambda record, text: (0.0, 0.0), value)


def evidence(
    goal: Goal,
    metric: Metric | None,
    lines: Sequence[Mapping[str, Any]],
    base: Sequence[Mapping[str, Any]],
    costs: PassCosts,
    confidence: float,
    seed: int = 0,
) -> Evidence:
    """Returns what answers say of the goal.

    A bootstrap of answers that are all alike would be sure of anything. So the bound is at most what it would be had
    -log(1 - confidence) answers more been empty: so many failures may stay unseen with such a chance (rule of three).

    Args:
      metric: None is `likelihood`. lines, base: of the candidate and of the verifier alone, at least two, of the same
        examples in one order. costs: of passes.
    """
    score, own, theirs = metric or likelihood(), [], []
    for ours, alone in zip(lines, base, strict=True):
        own.append([*_statistics(metric, ours), expected(ours["stats"], costs)])
        theirs.append([*_statistics(metric, alone), expected(alone["stats"], costs)])
    table = np.concatenate([np.asarray(own, np.float64), np.asarray(theirs, np.float64)], axis=1)
    width = table.shape[1] // 2

    def slack(sums: np.ndarray) -> float:
        ours, alone = sums[:width], sums[width:]
        if goal.time is not None:
            return goal.time - float(ours[-1] / alone[-1])
        least = goal.score if goal.share is None else goal.share * score.value(alone[:-1])
        assert least is not None
        return score.value(ours[:-1]) - least

    sums = table.sum(axis=0)
    weights = bootstrap.resamples(len(table), DRAWS, seed)
    drawn = np.array([slack(each) for each in weights @ table])
    bound = bootstrap.lower_bound(drawn, confidence)
    if goal.time is None:
        bound = min(bound, slack(sums + _failures(metric, lines, base, -math.log(1 - confidence), width)))
    found = float(slack(sums))
    bound = -math.inf if math.isnan(bound) else float(bound)
    needed = None if bound >= 0 else math.inf
    if bound < 0 < found < math.inf and math.isfinite(bound):
        needed = math.ceil(len(table) * ((found - bound) / found) ** 2)
    time = float(sums[width - 1] / sums[-1])
    reached, reached_alone = (float(score.value(part)) for part in (sums[: width - 1], sums[width:-1]))
    return Evidence(len(table), found, bound, reached, reached_alone, time, needed)


def chance(each: Evidence, count: int, confidence: float) -> float:
    """Returns how likely `count` other examples are to certify a candidate, as if means were normal."""
    if not math.isfinite(each.bound):
        return 0.0
    level = NormalDist().inv_cdf(confidence)
    error = (each.slack - each.bound) / level if level > 0 else 0.0
    if error <= 0:
        return float(each.slack >= 0)
    theirs = error * math.sqrt(each.examples / count)
    return NormalDist().cdf((each.slack - level * theirs) / math.hypot(error, theirs))


def better(goal: Goal, candidates: Mapping[Any, Evidence], count: int, confidence: float) -> list[Any]:
    """Returns the half of the candidates that goes on: those that promise most; and the likeliest to be certified.

    A candidate promises what it would win over the least wanted one, times its `chance`: the fastest alone would all be
    near the floor, and fail. Among equals those stay that miss the goal by least.

    Args:
      count: of the examples that certify. confidence: of that.
    """
    many = max(1, -(-len(candidates) // 2))
    least = max(_wanted(goal, each) for each in candidates.values())
    chances = {name: chance(each, count, confidence) for name, each in candidates.items()}
    promise = {name: chances[name] * (least - _wanted(goal, each)) for name, each in candidates.items()}
    ranked = sorted(candidates, key=lambda name: (-promise[name], -candidates[name].slack))
    safest = max(candidates, key=lambda name: (chances[name], candidates[name].slack, -_wanted(goal, candidates[name])))
    return ranked[:many] if safest in ranked[:many] else [*ranked[:many], safest]


def order(candidates: Mapping[Any, Evidence], count: int, confidence: float) -> list[Any]:
    """Returns candidates in the order in which they are tested: the likeliest to be certified first; see `better`."""
    may = [name for name, each in candidates.items() if each.slack >= 0]
    return sorted(may, key=lambda name: (-chance(candidates[name], count, confidence), -candidates[name].slack))


def best(goal: Goal, certified: Mapping[Any, Evidence], searched: Mapping[Any, Evidence]) -> Any:
    """Returns the certified candidate that the search wanted most; None where there is none."""
    return min(certified, key=lambda name: _wanted(goal, searched[name]), default=None)


def split(count: int, share: float, seed: int) -> tuple[list[int], list[int]]:
    """Returns the places of a search's examples and of a certification's, drawn at random."""
    mixed = np.random.default_rng(seed).permutation(count).tolist()
    first = round(share * count)
    return mixed[:first], mixed[first:]


def stages(count: int) -> list[int]:
    """Returns how many examples each stage of the search has: doubled from one to the next, up to all."""
    sizes = [count]
    while sizes[0] // 2 >= LEAST and len(sizes) < 4:
        sizes.insert(0, sizes[0] // 2)
    return sizes


def _wanted(goal: Goal, each: Evidence) -> float:
    return each.time if goal.time is None else -each.score


def _statistics(metric: Metric | None, line: Mapping[str, Any]) -> list[float]:
    if metric is None:
        return [float(line["stats"]["log_p"] or 0.0), float(line["stats"]["tokens_out"])]
    return [float(each) for each in line["scores"][metric.name]]


def _failures(
    metric: Metric | None,
    lines: Sequence[Mapping[str, Any]],
    base: Sequence[Mapping[str, Any]],
    count: float,
    width: int,
) -> np.ndarray:
    """What `count` examples more would add, whose answers are empty and the verifier's as they are on average."""
    mean = np.asarray([_statistics(metric, each) for each in base], np.float64).mean(axis=0)
    empty = np.zeros_like(mean)
    if metric is not None:
        rows = [metric.statistics(line["input"], "") for line in base[:50]]  # of so many the mean is known well enough
        empty = np.asarray(rows, np.float64).mean(axis=0)
    added = np.zeros(2 * width)
    added[: width - 1], added[width:-1] = count * empty, count * mean
    return added
