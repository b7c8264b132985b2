"""From the lines of a sweep to a row per rule and threshold: paired relative time, and rates of summed counts."""

import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

VERIFIER = "verifier_only"

Score = Callable[[Any, Any], float | None]
"""`score(record, text)`: how good an answer is, given the line of the prompt file that it answers; None where it cannot
tell. One with an attribute `whole` that is true takes lists of all records and texts, as BLEU does."""


class Row(NamedTuple):
    """One rule at one threshold with one draft-length controller. None where there is no basis.

    rule: its label, `VERIFIER` for the verifier alone. alpha: None for it, and for a rule without threshold.
    lookahead: the controller's label, None for the verifier alone.
    prompts: that count here. relative_time: see `relative_time`. low, high: the same of single repeats, its least and
    largest. speed: 1 / relative_time. block_efficiency: tokens per verifier call. acceptance, rejection, deferral: as
    in `generation.results.stats`. tokens_per_s: of a whole batch. tokens: mean length of an answer. log_p: mean raw
    log-probability of a token under the verifier, in nats. score: mean over answers that have one.
    """

    rule: str
    lookahead: str | None
    alpha: float | None
    prompts: int
    relative_time: float | None
    low: float | None
    high: float | None
    speed: float | None
    block_efficiency: float | None
    acceptance: float | None
    rejection: float | None
    deferral: float | None
    tokens_per_s: float | None
    tokens: float | None
    log_p: float | None
    score: float | None


def key(record: dict[str, Any]) -> tuple:
    """What makes a line of a clock run the only one of its kind within its settings, task and temperature."""
    names = ("rule", "rule_id", "lookahead", "lookahead_id", "alpha", "repeat", "unit", "prompt_id")
    return tuple(record[name] for name in names)


def summarise(lines: Iterable[dict[str, Any]], score: Score | None = None) -> list[Row]:
    """Returns a row for the verifier alone, then one per rule, controller and threshold, thresholds in order.

    Args:
      lines: of one run's settings, one task and one temperature; of equal keys the last counts. score: applied to
        every answer.
    """
    groups: dict[tuple, list[dict]] = defaultdict(list)
    for line in {key(line): line for line in lines}.values():
        groups[tuple(line[name] for name in ("rule", "rule_id", "lookahead", "lookahead_id", "alpha"))].append(line)
    base = _walls(next((group for (rule, *_), group in groups.items() if rule == VERIFIER), []))
    rules, controllers = _labels([group[:2] for group in groups]), _labels([group[2:4] for group in groups])
    order = {name: number for number, name in enumerate([*rules, *controllers])}

    def place(group: tuple) -> tuple:
        rule, controller, alpha = group[:2], group[2:4], group[4]
        return rule[0] != VERIFIER, order[rule], order[controller], -math.inf if alpha is None else alpha

    rows = []
    for group in sorted(groups, key=place):
        names = rules[group[:2]], controllers[group[2:4]] or None
        rows.append(_row(*names, group[4], groups[group], base, score))
    return rows


def relative_time(walls: dict[tuple, float], base: dict[tuple, float]) -> float | None:
    """Returns total time against the verifier alone on the same prompts.

    Each batch of prompts was timed next to the verifier's own run of it, several times. Per batch, the median over the
    repeats of the ratio counts, weighted with the verifier's median time. A machine that slows down for a while, or one
    outlier, moves it little, and a run that was interrupted is no worse than a shorter one.

    Args:
      walls, base: seconds by (batch, repeat).
    """
    ratios, weights = defaultdict(list), defaultdict(list)
    for unit, repeat in walls.keys() & base.keys():
        ratios[unit].append(walls[unit, repeat] / max(base[unit, repeat], 1e-9))
        weights[unit].append(base[unit, repeat])
    total = sum(statistics.median(each) for each in weights.values())
    if not total:
        return None
    return sum(statistics.median(ratios[unit]) * statistics.median(weights[unit]) for unit in ratios) / total


def _labels(names: Sequence[tuple[str, str]]) -> dict[tuple[str, str], str]:
    """Returns a label for each (name, digest): the name, with the beginning of the digest where others share it."""
    known = list(dict.fromkeys(names))
    shared = [name for name, _ in known]
    return {each: f"{each[0]} {each[1][:4]}" if shared.count(each[0]) > 1 else each[0] for each in known}


def _row(
    rule: str, lookahead: str | None, alpha: float | None, lines: Sequence[dict], base: dict, score: Score | None
) -> Row:
    def add(name: str) -> int | float:
        figures = [line["stats"][name] for line in lines]  # null is written of what is no number: log 0
        return sum(-math.inf if figure is None else figure for figure in figures)

    walls = _walls(lines)
    relative = relative_time(walls, base)
    repeats = sorted({repeat for _, repeat in walls})
    single = [
        relative_time({at: walls[at] for at in walls if at[1] == repeat}, base)
        for repeat in repeats
        if sum(at[1] == repeat for at in walls) == len({unit for unit, _ in walls})  # whole ones only
    ]
    single = [each for each in single if each is not None]
    return Row(
        rule=rule,
        lookahead=lookahead,
        alpha=alpha,
        prompts=len({line["prompt_id"] for line in lines}),
        relative_time=relative,
        low=min(single, default=None),
        high=max(single, default=None),
        speed=_ratio(1.0, relative or 0.0),
        block_efficiency=_ratio(add("tokens_out"), add("verifier_calls")),
        acceptance=_ratio(add("accepted"), add("drafted")),
        rejection=_ratio(add("rejected"), add("decided")),
        deferral=_ratio(add("deferred"), add("decided")),
        tokens_per_s=_ratio(add("tokens_out"), sum(walls.values())),
        tokens=_ratio(add("tokens_out"), len(lines)),
        log_p=_ratio(add("log_p"), add("tokens_out")),
        score=_score(lines, score) if score else None,
    )


def _score(lines: Sequence[dict], score: Score) -> float | None:
    if getattr(score, "whole", False):
        return score([line["input"] for line in lines], [line["text"] for line in lines])
    values = [score(line["input"], line["text"]) for line in lines]
    known = [float(each) for each in values if each is not None]
    return statistics.fmean(known) if known else None


def _walls(lines: Iterable[dict]) -> dict[tuple, float]:
    """Seconds by (batch, repeat): a batch takes as long as its last row."""
    walls: dict[tuple, float] = defaultdict(float)
    for line in lines:
        at = line["unit"], line["repeat"]
        walls[at] = max(walls[at], line["stats"]["wall_s"])
    return dict(walls)


def _ratio(a: int | float, b: int | float) -> float | None:
    return a / b if b else None
