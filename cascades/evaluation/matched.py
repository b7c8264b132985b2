"""What a rule is worth where its quality, or its time, is held to another's."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from cascades.evaluation.counts import CountRow, Figure
from cascades.evaluation.summary import VERIFIER


class Matched(NamedTuple):
    """The best threshold of a rule under a condition; None where it has none.

    rule, lookahead: of the points. quality: the fastest that scores no worse than the verifier alone. pace: the best
    score among those that are no slower than lossless decoding (of a sweep without it, than the verifier alone).
    """

    rule: str
    lookahead: str
    quality: CountRow | None
    pace: CountRow | None


Cost = Callable[[CountRow], Figure]
"""Of a row, a figure of which less is better, such as its relative time."""


def matched(rows: Sequence[CountRow], metric: str, cost: Cost) -> list[Matched]:
    """Returns a line for each rule and controller of one task at one temperature.

    Estimates are compared, not their intervals, which stand beside them: of a few hundred examples the lowest end of an
    interval is below the verifier for every rule.
    """
    alone = next((row for row in rows if row.rule == VERIFIER), None)
    if alone is None or metric not in alone.metrics:
        return []
    pace = next((row for row in rows if row.rule == "lossless"), alone)
    kinds = list(dict.fromkeys((row.rule, row.lookahead) for row in rows if row.rule != VERIFIER))
    found = []
    for rule, lookahead in kinds:
        of_it = [row for row in rows if (row.rule, row.lookahead) == (rule, lookahead)]
        good = [row for row in of_it if row.differences[metric].value >= 0]
        quick = [row for row in of_it if cost(row).value <= cost(pace).value]
        found.append(
            Matched(
                rule,
                lookahead,
                min(good, key=lambda row: cost(row).value, default=None),
                max(quick, key=lambda row: row.metrics[metric].value, default=None),
            )
        )
    return found


def front(rows: Sequence[CountRow], quality: Callable[[CountRow], Figure], cost: Cost) -> list[CountRow]:
    """Returns the rows that no other beats in both cost and quality (more is better), cheapest first."""
    known = [row for row in rows if math.isfinite(cost(row).value) and math.isfinite(quality(row).value)]
    best, kept = -math.inf, []
    for row in sorted(known, key=lambda row: (cost(row).value, -quality(row).value)):
        if quality(row).value > best:
            best = quality(row).value
            kept.append(row)
    return kept
