"""Rows from lines of a sweep."""

import pytest

from cascades.evaluation.summary import VERIFIER, relative_time, summarise


def line(rule=VERIFIER, alpha=None, unit="a", repeat=0, wall=1.0, prompt="p", text="", **others):
    names = {"rule": rule, "alpha": alpha, "unit": unit, "repeat": repeat, "prompt_id": prompt}
    names |= {name: others.pop(name, "") for name in ("rule_id", "lookahead", "lookahead_id")}
    stats = {"tokens_out": 10, "verifier_calls": 10, "accepted": 0, "drafted": 0, "rejected": 0, "decided": 0}
    stats |= {"deferred": 0.0, "log_p": -5.0, "wall_s": wall} | others
    return names | {"text": text, "input": {"prompt": prompt}, "stats": stats}


def test_time_is_paired_and_weighted_by_the_verifier():
    base = {("a", 0): 1.0, ("a", 1): 10.0, ("a", 2): 1.0, ("b", 0): 3.0, ("c", 0): 9.0}
    # A slow spell of the machine hits both; the third repeat of `a` is an outlier; `d` was never paired.
    walls = {("a", 0): 0.5, ("a", 1): 5.0, ("a", 2): 7.0, ("b", 0): 3.0, ("d", 0): 99.0}
    assert relative_time(walls, base) == pytest.approx((0.5 * 1.0 + 1.0 * 3.0) / 4.0)
    assert relative_time({("d", 0): 1.0}, base) is None


def test_rates_are_of_summed_counts():
    lines = [
        line(wall=2.0),
        line("chow", 0.5, wall=1.0, accepted=6, drafted=8, verifier_calls=4, decided=7, rejected=1, deferred=2.0),
        line("chow", 0.5, unit="b", prompt="q", tokens_out=30, verifier_calls=6, drafted=12, accepted=9, decided=3),
    ]
    alone, chow = summarise(lines)
    assert alone.relative_time == 1.0 and alone.acceptance is None and alone.rejection is None
    assert (chow.prompts, chow.relative_time, chow.speed, chow.tokens) == (2, 0.5, 2.0, 20.0)
    assert (chow.block_efficiency, chow.acceptance, chow.rejection, chow.deferral) == (4.0, 0.75, 0.1, 0.2)
    assert (chow.log_p, chow.tokens_per_s, chow.score) == (-10.0 / 40, 20.0, None)


def test_the_last_of_equal_lines_counts():
    [row] = summarise([line(wall=2.0, log_p=-1.0), line(wall=4.0, log_p=-3.0)])
    assert (row.log_p, row.tokens_per_s) == (-0.3, 2.5)


def test_a_spread_is_of_whole_repeats():
    lines = [line(unit=unit, repeat=repeat, wall=1.0) for unit in "ab" for repeat in range(3)]
    times = {("a", 0): 0.5, ("b", 0): 0.5, ("a", 1): 0.7, ("b", 1): 0.9, ("a", 2): 0.1}
    lines += [line("chow", 0.5, unit=unit, repeat=repeat, wall=wall) for (unit, repeat), wall in times.items()]
    row = summarise(lines)[1]
    assert (row.low, row.high) == (pytest.approx(0.5), pytest.approx(0.8))


def test_order_and_labels():
    lines = [
        line("lossy", 0.5, rule_id="aaaa1"),
        line("lossy", -0.5, rule_id="aaaa1"),
        line("lossy", 0.1, rule_id="bbbb1"),
    ]
    lines += [line("lossless", rule_id="cc"), line()]
    labels = [(row.rule, row.alpha) for row in summarise(lines)]
    assert labels == [
        (VERIFIER, None),
        ("lossy aaaa", -0.5),
        ("lossy aaaa", 0.5),
        ("lossy bbbb", 0.1),
        ("lossless", None),
    ]


def test_controllers_are_rows_of_their_own():
    lines = [line()]
    for name, identity in (("fixed(1)", "aa"), ("fixed(2)", "bb"), ("custom", "cccc1"), ("custom", "dddd1")):
        lines += [line("chow", alpha, lookahead=name, lookahead_id=identity) for alpha in (0.5, 0.1)]
    found = [(row.lookahead, row.alpha) for row in summarise(lines)]
    names = ("fixed(1)", "fixed(2)", "custom cccc", "custom dddd")
    assert found == [(None, None), *((name, alpha) for name in names for alpha in (0.1, 0.5))]


def test_exact_match_as_a_score():
    def exact(record, text):
        return float(text.strip().lower() == record["prompt"])

    alone, chow = summarise(
        [line(text=" P "), line("chow", 0.0, text="p"), line("chow", 0.0, prompt="q", text="no")], exact
    )
    assert (alone.score, chow.score) == (1.0, 0.5)


def test_without_the_verifier_there_is_no_relative_time():
    [row] = summarise([line("chow", 0.5)])
    assert row.relative_time is None and row.speed is None and row.low is None
