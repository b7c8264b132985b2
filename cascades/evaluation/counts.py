"""From the lines of count runs to a row per point: quality and rates, with intervals over the examples.

Every figure is a function of sums over examples. A bootstrap draws examples, the same ones for a point and for the
verifier alone at the same temperature, so that differences and ratios are paired.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from cascades.evaluation import bootstrap, latency
from cascades.evaluation.latency import PassCosts
from cascades.evaluation.summary import VERIFIER
from cascades.evaluation.tasks.contract import Metric, Task

DRAWS, LEVEL = 1000, 0.95
_POINT = ("temperature", "rule", "rule_id", "lookahead", "lookahead_id", "alpha")


class Figure(NamedTuple):
    """A figure and its interval, by a percentile bootstrap over examples; nan where it has no basis."""

    value: float
    low: float
    high: float


class CountRow(NamedTuple):
    """One point of a sweep on one task.

    task: its name. rule, lookahead, alpha, temperature: of the point, see `runs.points.Point`. examples: that it and
    the verifier alone answered.
    metrics: by name. differences: the same, less the verifier's alone. block_efficiency: tokens per verifier call.
    acceptance: accepted of drafted tokens. rejection, deferral: per decided position. tokens: of an answer. length:
    tokens relative to the verifier's alone. log_p: the verifier's mean log-probability of a token, in nats. times: by
    the name of the costs, the time of a task relative to the verifier alone there: counts are measured, costs are what
    was given.
    """

    task: str
    temperature: float
    rule: str
    lookahead: str
    alpha: float | None
    examples: int
    metrics: dict[str, Figure]
    differences: dict[str, Figure]
    block_efficiency: Figure
    acceptance: Figure
    rejection: Figure
    deferral: Figure
    tokens: Figure
    length: Figure
    log_p: Figure
    times: dict[str, Figure]


_RATES = {
    "block_efficiency": ("tokens_out", "verifier_calls"),
    "acceptance": ("accepted", "drafted"),
    "rejection": ("rejected", "decided"),
    "deferral": ("deferred", "decided"),
    "tokens": ("tokens_out", "one"),
    "log_p": ("log_p", "tokens_out"),
}


def key(line: Mapping[str, Any]) -> tuple:
    """What makes a line of a count run the only one of its kind within its settings."""
    return tuple(line[name] for name in ("task", *_POINT, "prompt_id"))


def scores(task: Task, record: dict[str, Any], text: str) -> dict[str, list[float]]:
    """Returns the statistics of an answer by each metric of its task, for the line that keeps them."""
    return {metric.name: [float(each) for each in metric.statistics(record, text)] for metric in task.metrics}


def summarise(
    lines: Iterable[Mapping[str, Any]],
    tasks: Sequence[Task],
    costs: Mapping[str, PassCosts] | None = None,
    *,
    draws: int = DRAWS,
    level: float = LEVEL,
    seed: int = 0,
) -> list[CountRow]:
    """Returns a row for each task, temperature and point: the verifier alone, then rules as they first occur, each with
    its thresholds in order.

    Args:
      lines: of count runs of one run's settings; of equal keys the last counts. costs: by name.
      draws, level, seed: of the bootstrap.
    """
    groups: dict[tuple, dict[str, Mapping]] = defaultdict(dict)
    for line in lines:
        groups[tuple(line[name] for name in ("task", *_POINT))][line["prompt_id"]] = line
    known, rows = {task.name: task for task in tasks}, []
    rules = list(dict.fromkeys((VERIFIER, *(group[2] for group in groups))))

    def place(group: tuple) -> tuple:
        task, temperature, rule, identity, *controller, alpha = group
        at = list(known).index(task) if task in known else len(known)
        return at, temperature, rules.index(rule), identity, *controller, -np.inf if alpha is None else alpha

    for group in sorted(groups, key=place):
        task, temperature, rule, _, lookahead, _, alpha = group
        answers = groups[group]
        base = groups.get((task, temperature, VERIFIER, "", "", "", None))
        if task in known and base is not None and (both := sorted(answers.keys() & base.keys())):
            pairs = [(answers[each], base[each]) for each in both]
            weights = bootstrap.resamples(len(pairs), draws, seed) if len(pairs) > 1 else None
            figures = _figures(known[task].metrics, pairs, costs or {}, weights, level)
            rows.append(CountRow(task, temperature, rule, lookahead, alpha, len(pairs), **figures))
    return rows


def _figures(
    metrics: Sequence[Metric],
    pairs: Sequence[tuple[Mapping, Mapping]],
    costs: Mapping[str, PassCosts],
    weights: np.ndarray | None,
    level: float,
) -> dict[str, Any]:
    """Returns what a `CountRow` tells of answers, each beside the verifier's own."""
    own, theirs = [line["stats"] | {"one": 1} for line, _ in pairs], [line["stats"] for _, line in pairs]

    def figure(statistics: Sequence[Sequence[float | None]], value: Callable[[np.ndarray], float]) -> Figure:
        table = np.asarray(statistics, np.float64)  # None is nan
        ends = (np.nan, np.nan) if weights is None else bootstrap.interval(table, value, weights, level)
        return Figure(float(value(table.sum(axis=0))), *ends)

    def ratio(top: Sequence[float], bottom: Sequence[float]) -> Figure:
        return figure(list(zip(top, bottom, strict=True)), lambda sums: sums[0] / sums[1] if sums[1] else np.nan)

    def column(stats: Sequence[Mapping], name: str) -> list[float]:
        return [np.nan if each[name] is None else float(each[name]) for each in stats]

    told: dict[str, Any] = {"metrics": {}, "differences": {}, "times": {}}
    for metric in metrics:
        scored = [(a["scores"][metric.name], b["scores"][metric.name]) for a, b in pairs if a["scores"] and b["scores"]]
        size = len(scored[0][0]) if scored else 0
        several = [[*a, *b] for a, b in scored]
        if len(several) < len(pairs):  # an answer that could not be scored spoils the metric, not the run
            none = Figure(np.nan, np.nan, np.nan)
            told["metrics"][metric.name] = told["differences"][metric.name] = none
            continue
        told["metrics"][metric.name] = figure([a for a, _ in scored], metric.value)
        told["differences"][metric.name] = figure(
            several, lambda sums, metric=metric, size=size: metric.value(sums[:size]) - metric.value(sums[size:])
        )
    for name, (top, bottom) in _RATES.items():
        told[name] = ratio(column(own, top), column(own, bottom))
    told["length"] = ratio(column(own, "tokens_out"), column(theirs, "tokens_out"))
    for name, each in costs.items():
        told["times"][name] = ratio(
            [latency.expected(stats, each) for stats in own], [latency.expected(stats, each) for stats in theirs]
        )
    return told
