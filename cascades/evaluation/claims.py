"""What is claimed of speculative cascades (arXiv 2405.19261), held against the rows of a count run.

Rules are compared at the same computed time. The quality of a rule in a time t is the best that it reaches by one of
its thresholds, or by two of them, each for a share of the requests: so a straight line between two points is something
that can be served, and nothing is drawn beyond. Lossless decoding, which any rule can be mixed with, is a point of each
rule. The lead of one rule over another is the difference of both, on average over the times that both have.

How sure a figure is comes from the rows alone: the intervals of the differences to the verifier's own answers to the
same examples. Of an average the ends are averaged. Of the difference of two figures the interval is MOVER's (Zou and
Donner, 2008), as if they were independent: as both are of the same examples it is too wide rather than too narrow.
Where one of n figures is picked out, such as the best of a rule's thresholds, intervals are widened as Bonferroni says,
as if they were normal; the figure itself is flattered by having been picked. Two things they leave out: times are taken
as they were counted, and BLEU of a mixture is not quite the mixture of BLEUs.

A claim that something is better is `SEEN` where the interval lies above 0, and `NOT_SEEN` where it lies below the
margin, which is a share of the verifier's quality that nobody would miss. A claim that something is no worse is `SEEN`
where the interval lies above minus the margin, and `NOT_SEEN` where it lies below 0. Everything else is `UNCLEAR`: more
examples would tell.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

from cascades.errors import UserError
from cascades.evaluation.counts import LEVEL, CountRow, Figure
from cascades.evaluation.summary import VERIFIER

SEEN, NOT_SEEN, UNCLEAR, NOT_RUN = "seen", "not seen", "unclear", "not run"
MARGIN = 0.02
HEADLINE = "token_v3"
TOKEN_RULES = ("token_v1", "token_v2", HEADLINE)
OTHER_RULES = ("lossy", "chow", "diff", "opt", "bild")
"""Those that the paper sets its token rules beside."""
_BETWEEN = (0.05, 0.95)  # deferral that is neither the drafter's alone nor the verifier's
_STEPS = 21  # times at which two rules are compared

Points = Sequence[tuple[float, Figure]]
"""Of a rule: the time of each threshold, and its quality less the verifier's."""


class Claim(NamedTuple):
    """name: for programs. statement: for people. verdict: `SEEN`, `NOT_SEEN`, `UNCLEAR` or, where the rows do not hold
    what it speaks of, `NOT_RUN`. told: the figures that decided."""

    name: str
    statement: str
    verdict: str
    told: str


class Lead(NamedTuple):
    """Of one rule over another, on average between two times."""

    figure: Figure
    first: float
    last: float


class _Run(NamedTuple):
    """Rows of one task by temperature, and which of their figures are looked at."""

    rows: dict[float, list[CountRow]]
    metric: str
    time: str
    margin: float

    def slack(self, temperature: float) -> float:
        """The margin in the metric's own units."""
        alone = next(row for row in self.rows[temperature] if row.rule == VERIFIER)
        return self.margin * abs(alone.metrics[self.metric].value)

    def time_of(self, row: CountRow) -> Figure:
        return row.times[self.time]

    def quality_of(self, row: CountRow) -> Figure:
        """Less the verifier's."""
        return row.differences[self.metric]

    def points(self, temperature: float, rule: str) -> Points:
        of_it = [row for row in self.rows[temperature] if row.rule == rule]
        known = [(self.time_of(row).value, self.quality_of(row)) for row in of_it]
        return [(time, quality) for time, quality in known if math.isfinite(time) and math.isfinite(quality.value)]

    def by_threshold(
        self, temperature: float, rule: str, figure: Callable[["_Run", CountRow], Figure]
    ) -> dict[float, list[Figure]]:
        """What a rule has at each threshold, one figure per draft length."""
        found: dict[float, list[Figure]] = {}
        for row in self.rows[temperature]:
            if row.rule == rule and row.alpha is not None and math.isfinite(figure(self, row).value):
                found.setdefault(_key(row.alpha), []).append(figure(self, row))
        return found

    def lead(self, temperature: float, rule: str, other: str) -> Lead | None:
        return lead(*(self.points(temperature, each) for each in (rule, other, "lossless")))

    def told(self, figure: Figure) -> str:
        return f"{figure.value:+.2f} ({figure.low:+.2f} – {figure.high:+.2f}) {self.metric}"

    def told_lead(self, rule: str, other: str, found: Lead) -> str:
        span = f"{found.first:.2f}x – {found.last:.2f}x" if found.last > found.first else f"{found.first:.2f}x"
        return f"{rule} less {other}: {self.told(found.figure)} at {span}"


def judged(
    rows: Sequence[CountRow], *, time: str | None = None, metric: str | None = None, margin: float = MARGIN
) -> list[Claim]:
    """Returns every claim with what the rows of one task say of it.

    1. *Token rules lead*: at temperature 1 a token rule is at or above each other rule of the paper. One claim per
       token rule.
    2. *Their lead over opt shrinks*: `HEADLINE`'s lead over `opt` is larger at the highest temperature than at the
       lowest. Not that it leads at all: that is the first.
    3. *None over lossy when greedy*: at temperature 0 no token rule is above `lossy`. Greedy `lossy` is lossless at
       any threshold below 1 here, as in the authors' code; what others call greedy lossy decoding is `token_v3` itself.
    4. *Above the verifier*: at an intermediate deferral, 5% to 95%, some threshold of some rule scores above the
       verifier alone. One claim per temperature.
    5. *Sequential cascades are slow*: a token cascade takes longer than speculation by the same rule, `chow`, at the
       same threshold, which is text of the same law but for bonus tokens, on average over the thresholds that both
       have; with the draft length that is fastest there, of those that were run. One claim per temperature.
    6. *More than truncation*: at the highest temperature `token_v3` scores above min-p sampling from the verifier
       alone with min_p = 1 - alpha, whose tokens are those that the drafter may choose by this rule, on average over
       the thresholds that both have. Where this is not seen, a quality above the verifier's may be owed to the unlikely
       tokens that are left out, and not to the drafter.

    Args:
      rows: as `counts.summarise` returns them, of one task. Points with fewer examples than the verifier alone, which
        are still being counted, are left out. time: the name of the costs by which times were computed, the first of
        the rows by default. metric: likewise, more is better.
      margin: see the module, as a share of the verifier's quality.

    Raises:
      UserError: rows of several tasks, or without times, or without the metric.
    """
    run = _run(rows, time, metric, margin)
    if run is None:
        return []
    temperatures = sorted(run.rows)
    return [
        *(_leads(run, rule) for rule in TOKEN_RULES),
        _shrinks(run),
        _greedy(run),
        *(_overshoots(run, each) for each in temperatures),
        *(_slow(run, each) for each in temperatures),
        _control(run),
    ]


def _run(rows: Sequence[CountRow], time: str | None, metric: str | None, margin: float) -> _Run | None:
    if not rows:
        return None
    tasks = list(dict.fromkeys(row.task for row in rows))
    if len(tasks) > 1:
        raise UserError(f"claims are about one task, but the rows are of {', '.join(tasks)}: pass those of one")
    chosen = _chosen("metric", metric, rows[0].metrics), _chosen("time", time, rows[0].times)
    examples = {row.temperature: row.examples for row in rows if row.rule == VERIFIER}
    by_temperature: dict[float, list[CountRow]] = {}
    for row in rows:
        if row.examples == examples.get(
            row.temperature
        ):  # fewer of a point that is still being counted: not the same ones
            by_temperature.setdefault(row.temperature, []).append(row)
    return _Run(by_temperature, *chosen, margin) if by_temperature else None


def _chosen(kind: str, asked: str | None, known: Mapping[str, Figure]) -> str:
    name = next(iter(known), None) if asked is None else asked
    if name is None or name not in known:
        has = ", ".join(known) if known else "none: LATENCY gives times, and a task its metrics"
        raise UserError(f"claims need a {kind}{'' if asked is None else f' {asked!r}'}, but the rows have {has}")
    return name


def best(points: Points, time: float) -> Figure:
    """Returns the best quality in a time, by one point or by a mixture of two.

    Args:
      points: at least one takes no longer than `time`.
    """
    quick = [each for each in points if each[0] <= time]
    slow = [each for each in points if each[0] > time]
    found = [quality for _, quality in quick]
    for first, one in quick:
        for last, other in slow:
            share = (time - first) / (last - first)
            found.append(Figure(*((1 - share) * a + share * b for a, b in zip(one, other, strict=True))))
    return max(found, key=lambda quality: quality.value)


def lead(points: Points, others: Points, shared: Points = ()) -> Lead | None:
    """Returns how far one rule is above another, on average over the times that both have; None where there are none.

    Args:
      shared: points that belong to both.
    """
    if not points or not others:
        return None
    sides = [[*points, *shared], [*others, *shared]]
    first = max(min(time for time, _ in side) for side in sides)
    last = max(first, min(max(time for time, _ in side) for side in sides))
    grid = np.linspace(first, last, _STEPS).tolist()
    ours, theirs = (widened(mean([best(side, time) for time in grid]), len(side)) for side in sides)
    return Lead(less(ours, theirs), first, last)


def mean(figures: Sequence[Figure]) -> Figure:
    """The average, with the average ends: as wide as it can be, whatever the figures have in common."""
    return Figure(*(math.fsum(ends) / len(figures) for ends in zip(*figures, strict=True)))


def less(one: Figure, other: Figure) -> Figure:
    """The difference, with the interval of MOVER."""
    value = one.value - other.value
    low = value - math.hypot(one.value - one.low, other.high - other.value)
    return Figure(value, low, value + math.hypot(one.high - one.value, other.value - other.low))


def widened(figure: Figure, count: int) -> Figure:
    """The interval at the level that `count` of them hold together, by Bonferroni, as if it were normal."""
    tail = (1 - LEVEL) / 2
    factor = NormalDist().inv_cdf(1 - tail / count) / NormalDist().inv_cdf(1 - tail)
    low, high = (figure.value + factor * (end - figure.value) for end in (figure.low, figure.high))
    return Figure(figure.value, low, high)


def _better(figure: Figure, slack: float) -> str:
    return SEEN if figure.low > 0 else NOT_SEEN if figure.high <= slack else UNCLEAR


def _no_worse(figures: Sequence[Figure], slack: float) -> str:
    """Of all of them: one that is worse is picked out, so that for it intervals are wider."""
    if all(figure.low >= -slack for figure in figures):
        return SEEN
    return NOT_SEEN if any(widened(figure, len(figures)).high < 0 for figure in figures) else UNCLEAR


def _leads(run: _Run, rule: str) -> Claim:
    name, statement = f"{rule}_leads", f"At temperature 1, {rule} is at or above each other rule in the same time"
    found = {other: run.lead(1.0, rule, other) for other in OTHER_RULES} if 1.0 in run.rows else {}
    known = {other: each for other, each in found.items() if each}
    if not known:
        return Claim(name, statement, NOT_RUN, f"It takes {rule} and one of {', '.join(OTHER_RULES)} at temperature 1.")
    verdict = _no_worse([each.figure for each in known.values()], run.slack(1.0))
    return Claim(name, statement, verdict, _sentence(run.told_lead(rule, *each) for each in known.items()))


def _shrinks(run: _Run) -> Claim:
    name, statement = "lead_shrinks", f"The lead of {HEADLINE} over opt shrinks as the temperature falls"
    found = {each: run.lead(each, HEADLINE, "opt") for each in sorted(run.rows, reverse=True)}
    known = {each: one for each, one in found.items() if one}
    if len(known) < 2:
        return Claim(name, statement, NOT_RUN, f"It takes {HEADLINE} and opt at two temperatures.")
    highest, *_, lowest = known
    change = less(known[highest].figure, known[lowest].figure)
    told = [f"{run.told_lead(HEADLINE, 'opt', one)} at temperature {each:g}" for each, one in known.items()]
    told.append(f"{highest:g} less {lowest:g}: {run.told(change)}")
    return Claim(name, statement, _better(change, run.slack(highest)), _sentence(told))


def _greedy(run: _Run) -> Claim:
    name, statement = "greedy_not_above_lossy", "At temperature 0, token rules are not above lossy in the same time"
    found = {rule: run.lead(0.0, rule, "lossy") for rule in TOKEN_RULES} if 0.0 in run.rows else {}
    known = {rule: each for rule, each in found.items() if each}
    if not known:
        return Claim(name, statement, NOT_RUN, "It takes a token rule and lossy at temperature 0.")
    turned = [
        Figure(*(-end for end in (each.figure.value, each.figure.high, each.figure.low))) for each in known.values()
    ]
    told = _sentence(run.told_lead(rule, "lossy", each) for rule, each in known.items())
    return Claim(name, statement, _no_worse(turned, run.slack(0.0)), told)


def _overshoots(run: _Run, temperature: float) -> Claim:
    name = f"above_verifier_{temperature:g}"
    statement = f"At temperature {temperature:g}, some rule scores above the verifier at an intermediate deferral"
    low, high = _BETWEEN
    rules = [row for row in run.rows[temperature] if row.lookahead and row.alpha is not None]  # what speculates
    between = [row for row in rules if low <= row.deferral.value <= high]
    known = [row for row in between if math.isfinite(run.quality_of(row).value)]
    if not known:
        return Claim(name, statement, NOT_RUN, f"No rule defers between {low:.0%} and {high:.0%}.")
    figures = [widened(run.quality_of(row), len(known)) for row in known]
    verdicts = [_better(figure, run.slack(temperature)) for figure in figures]
    verdict = SEEN if SEEN in verdicts else NOT_SEEN if set(verdicts) == {NOT_SEEN} else UNCLEAR
    row, figure = max(zip(known, figures, strict=True), key=lambda each: (each[1].low > 0, each[1].value))
    told = (
        f"{row.rule} {row.alpha:g}, which defers {row.deferral.value:.0%}, less the verifier: {run.told(figure)}, its "
    )
    return Claim(name, statement, verdict, f"{told}interval widened as it is the best of {len(known)}.")


def _slow(run: _Run, temperature: float) -> Claim:
    name = f"token_cascade_slow_{temperature:g}"
    statement = f"At temperature {temperature:g}, a token cascade takes longer than speculation by the same rule"
    cascade, chow = (run.by_threshold(temperature, rule, _Run.time_of) for rule in ("token_cascade", "chow"))
    pairs = {
        alpha: (min(cascade[alpha], key=_value), min(chow[alpha], key=_value))
        for alpha in sorted(cascade.keys() & chow.keys())
    }
    if not pairs:
        return Claim(name, statement, NOT_RUN, "It takes token_cascade and chow at the same threshold.")
    slower = less(*(mean(side) for side in zip(*pairs.values(), strict=True)))
    told = [
        f"at {alpha:g} {sequential.value:.2f}x ({sequential.low:.2f} – {sequential.high:.2f}), "
        f"speculative {speculative.value:.2f}x ({speculative.low:.2f} – {speculative.high:.2f})"
        for alpha, (sequential, speculative) in pairs.items()
    ]
    told.append(f"slower by {slower.value:+.2f} ({slower.low:+.2f} – {slower.high:+.2f}) on average")
    return Claim(name, statement, _better(slower, run.margin), _sentence(told))


def _control(run: _Run) -> Claim:
    temperature = max(run.rows)
    name = "more_than_min_p"
    statement = f"At temperature {temperature:g}, {HEADLINE} scores above min-p sampling from the verifier alone"
    ours, control = (run.by_threshold(temperature, rule, _Run.quality_of) for rule in (HEADLINE, "min_p"))
    pairs = {
        alpha: (mean(ours[alpha]), mean(control[least]))
        for alpha in sorted(ours)
        if (least := _key(1 - alpha)) in control
    }
    if not pairs:
        return Claim(name, statement, NOT_RUN, f"It takes {HEADLINE} at alpha and min_p at 1 - alpha.")
    above = less(*(mean(side) for side in zip(*pairs.values(), strict=True)))
    told = [
        f"{HEADLINE} {alpha:g} less min_p {_key(1 - alpha):g}: {run.told(less(*pair))}" for alpha, pair in pairs.items()
    ]
    told.append(f"on average: {run.told(above)}")
    return Claim(name, statement, _better(above, run.slack(temperature)), _sentence(told))


def _key(threshold: float) -> float:
    """1 - 0.7 is not quite 0.3."""
    return round(threshold, 9)


def _value(figure: Figure) -> float:
    return figure.value


def _sentence(parts: Iterable[str]) -> str:
    return "; ".join(parts) + "."
