"""Rows of count runs: sums of counts, intervals over examples, and what rules are worth at the same quality."""

import math

import numpy as np
import pytest

from cascades.evaluation.counts import CountRow, Figure, summarise
from cascades.evaluation.latency import PassCosts
from cascades.evaluation.matched import front, matched
from cascades.evaluation.summary import VERIFIER
from cascades.evaluation.tasks.contract import Metric, Task

RIGHT = Metric(
    "right", "A mean.", lambda record, text: (1.0, 1.0), lambda sums: sums[0] / sums[1] if sums[1] else math.nan
)
TASK = Task("sums", "A test.", list, (RIGHT,), (), 8, True)


def line(example, rule=VERIFIER, alpha=None, *, right=1.0, tokens=10, calls=10, drafted=0, accepted=0, steps=0, **new):
    stats = {
        "tokens_out": tokens,
        "verifier_calls": calls,
        "drafted": drafted,
        "accepted": accepted,
        "log_p": -0.5 * tokens,
    }
    stats |= {"rejected": 0, "decided": drafted, "deferred": 0.25 * drafted, "drafter_steps": steps}
    stats |= {"drafted_by_position": [calls if drafted else 0, 0]}
    named = {"task": "sums", "temperature": 0.0, "rule": rule, "rule_id": "", "lookahead": "", "lookahead_id": ""}
    return {**named, "alpha": alpha, "prompt_id": str(example), "scores": {"right": [right, 1.0]}, "stats": stats} | new


def test_figures_are_ratios_of_sums_and_differences_are_paired():
    rights = [1, 0, 1, 1, 0, 1, 0, 1, 1, 1]
    lines = [line(at, right=float(right)) for at, right in enumerate(rights)]
    lines += [
        line(at, "chow", 0.3, right=float(right), tokens=12, calls=4, drafted=8, accepted=6, steps=8)
        for at, right in enumerate(rights)
    ]
    alone, chow = summarise(lines, [TASK], {"free": PassCosts(0.0, (1.0, 1.0)), "dear": PassCosts(1.0, (1.0, 2.0))})
    assert (alone.rule, chow.rule, chow.alpha, chow.examples) == (VERIFIER, "chow", 0.3, 10)
    assert alone.metrics["right"].value == chow.metrics["right"].value == 0.7
    assert 0.3 <= alone.metrics["right"].low < 0.7 < alone.metrics["right"].high <= 1.0
    assert chow.differences["right"] == (0.0, 0.0, 0.0)  # the same examples are right in every draw
    assert chow.block_efficiency == (3.0, 3.0, 3.0) and chow.acceptance.value == 0.75 and chow.deferral.value == 0.25
    assert chow.length == (1.2, 1.2, 1.2) and chow.tokens.value == 12 and chow.log_p.value == -0.5
    assert chow.times["free"].value == pytest.approx(0.4) and chow.times["dear"].value == pytest.approx((8 + 8) / 10)
    assert math.isnan(alone.acceptance.value) and math.isnan(alone.acceptance.low)


def test_a_difference_is_known_better_than_its_two_parts():
    random = np.random.default_rng(0)
    hard = random.random(200) < 0.5
    lines = [line(at, right=float(not each)) for at, each in enumerate(hard)]
    lines += [line(at, "chow", 0.1, right=float(not each and at % 20 > 0)) for at, each in enumerate(hard)]
    alone, chow = summarise(lines, [TASK])
    width = chow.differences["right"].high - chow.differences["right"].low
    assert width < 0.6 * (alone.metrics["right"].high - alone.metrics["right"].low)
    assert chow.differences["right"].high < 0 < alone.metrics["right"].low


def test_only_examples_that_the_verifier_answered_too_count_and_the_last_line_of_equal_ones():
    lines = [
        line(0),
        line(1, right=0.0),
        line(0, "chow", 0.3, right=0.0),
        line(0, "chow", 0.3),
        line(2, "chow", 0.3, right=0.0),
    ]
    _, chow = summarise(lines, [TASK])
    assert chow.examples == 1 and chow.metrics["right"].value == 1.0 and math.isnan(chow.metrics["right"].low)
    assert [row.rule for row in summarise(lines[2:], [TASK])] == []
    assert summarise([], [TASK]) == []


def test_an_answer_without_a_score_spoils_the_metric_and_nothing_else():
    alone, chow = summarise([line(0), line(1), line(0, "chow", 0.3), line(1, "chow", 0.3, scores=None)], [TASK])
    assert math.isnan(chow.metrics["right"].value) and chow.block_efficiency.value == 1.0
    assert alone.metrics["right"].value == 1.0


def row(rule, alpha, quality, cost):
    def exactly(value):
        return Figure(value, value, value)

    nothing = exactly(math.nan)
    same = dict.fromkeys(
        ("block_efficiency", "acceptance", "rejection", "deferral", "tokens", "length", "log_p"), nothing
    )
    return CountRow(
        "sums",
        0.0,
        rule,
        "",
        alpha,
        9,
        {"right": exactly(quality)},
        {"right": exactly(quality - 0.5)},
        times={"": exactly(cost)},
        **same,
    )


def test_rules_are_matched_in_quality_and_in_pace():
    rows = [row(VERIFIER, None, 0.5, 1.0), row("lossless", None, 0.5, 0.6)]
    rows += [row("chow", 0.1, 0.52, 0.9), row("chow", 0.2, 0.5, 0.7), row("chow", 0.3, 0.4, 0.5)]
    rows += [row("opt", 0.1, 0.45, 0.4)]
    lossless, chow, opt = matched(rows, "right", lambda each: each.times[""])
    assert lossless.quality is lossless.pace is rows[1]
    assert chow.quality is rows[3] and chow.pace is rows[4]
    assert opt.quality is None and opt.pace is rows[5]
    best = front(rows, lambda each: each.metrics["right"], lambda each: each.times[""])
    assert best == [rows[5], rows[1], rows[2]]
    assert matched(rows[1:], "right", lambda each: each.times[""]) == []
