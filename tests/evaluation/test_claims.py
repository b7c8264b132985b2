"""What the rows of a count run say of the paper's claims: made-up rows where each is true, false, or not to be told."""

import math

import pytest

from cascades.errors import UserError
from cascades.evaluation import claims
from cascades.evaluation.claims import NOT_RUN, NOT_SEEN, SEEN, UNCLEAR
from cascades.evaluation.counts import CountRow, Figure
from cascades.evaluation.summary import VERIFIER

QUALITY = 20.0  # the verifier's: the margin is 0.4


def figure(value, half=0.1):
    return Figure(value, value - half, value + half)


def row(
    rule, alpha=None, time=1.0, difference=0.0, half=0.1, *, temperature=1.0, deferral=0.5, task="t", drafts="fixed"
):
    nothing = figure(math.nan)
    names = ("block_efficiency", "acceptance", "rejection", "tokens", "length", "log_p")
    return CountRow(
        task,
        temperature,
        rule,
        drafts,
        alpha,
        100,
        {"BLEU": figure(QUALITY + difference, half)},
        {"BLEU": figure(difference, half)},
        deferral=figure(deferral),
        times={"v4": figure(time, 0.0)},
        **dict.fromkeys(names, nothing),
    )


def base(temperature=1.0):
    """The verifier alone, and lossless decoding in half of its time."""
    alone = row(VERIFIER, half=0.0, temperature=temperature, deferral=math.nan, drafts="")
    return [alone, row("lossless", None, 0.5, temperature=temperature, deferral=1.0)]


def curve(rule, differences, half=0.1, **more):
    """A rule whose thresholds take 0.5, 0.4, 0.3 … of the verifier's time."""
    return [row(rule, (at + 1) / 10, 0.5 - at / 10, each, half, **more) for at, each in enumerate(differences)]


def verdicts(rows, **knobs):
    return {claim.name: claim.verdict for claim in claims.judged(rows, **knobs)}


def claim(rows, name, **knobs):
    [found] = [each for each in claims.judged(rows, **knobs) if each.name == name]
    return found


@pytest.mark.parametrize(
    ("chow", "opt", "half", "verdict"),
    [
        ([0.0, -2.0, -4.0], [0.0, -1.5, -3.0], 0.1, SEEN),  # token_v3 loses 1 in the same time
        ([0.0, -0.5, -1.0], [0.0, -0.5, -1.0], 0.1, SEEN),  # they are the same, within the margin
        ([0.0, -2.0, -4.0], [0.0, 0.2, 0.2], 0.1, NOT_SEEN),  # one is better
        ([0.0, -2.0, -4.0], [0.0, -0.5, -1.0], 0.8, UNCLEAR),  # the same, but who could tell
    ],
)
def test_token_rules_lead(chow, opt, half, verdict):
    rows = [*base(), *curve("token_v3", [0.0, -0.5, -1.0], half), *curve("chow", chow, half), *curve("opt", opt, half)]
    found = claim(rows, "token_v3_leads")
    assert found.verdict == verdict
    assert "token_v3 less chow: " in found.told and "token_v3 less opt: " in found.told
    assert "BLEU at 0.30x – 0.50x" in found.told
    # A rule that the paper does not name is no reason against it, nor is another temperature.
    rows += [*curve("typical", [5.0, 5.0, 5.0], half), *base(0.0), *curve("opt", [9.0], temperature=0.0)]
    assert claim(rows, "token_v3_leads").verdict == verdict
    assert verdicts(rows)["token_v1_leads"] == NOT_RUN


@pytest.mark.parametrize(
    ("leads", "half", "verdict"),
    [([2.0, 1.0, 0.5], 0.1, SEEN), ([0.5, 1.0, 2.0], 0.1, NOT_SEEN), ([1.0, 1.0, 1.0], 0.05, NOT_SEEN)]
    + [([2.0, 1.0, 0.5], 2.0, UNCLEAR)],
)
def test_the_lead_over_opt_shrinks_as_the_temperature_falls(leads, half, verdict):
    rows = []
    for temperature, each in zip((1.0, 0.5, 0.0), leads, strict=True):
        at = {"temperature": temperature}
        rows += (
            base(temperature) + curve("opt", [-3.0, -3.0], half, **at) + curve("token_v3", [each - 3] * 2, half, **at)
        )
        rows = [each for each in rows if each.rule != "lossless"]
    found = claim(rows, "lead_shrinks")
    assert found.verdict == verdict
    assert f"token_v3 less opt: {leads[1]:+.2f}" in found.told and "1 less 0: " in found.told
    assert verdicts([each for each in rows if each.temperature == 0.5])["lead_shrinks"] == NOT_RUN


@pytest.mark.parametrize(
    ("token", "half", "verdict"),
    [(0.0, 0.1, SEEN), (-1.0, 0.1, SEEN), (1.0, 0.1, NOT_SEEN), (0.2, 0.1, SEEN), (0.2, 0.3, UNCLEAR)],
)
def test_greedy_token_rules_are_not_above_lossy(token, half, verdict):
    """One that is above by less than the margin is not above."""
    lossy = [row("lossy", alpha, 0.5, 0.0, temperature=0.0, deferral=1.0) for alpha in (0.1, 0.5)]
    rows = [*base(0.0), *lossy, *curve("token_v3", [token], half, temperature=0.0)]
    found = claim(rows, "greedy_not_above_lossy")
    assert found.verdict == verdict and "at 0.50x." in found.told
    assert verdicts([*base(), *curve("token_v3", [1.0]), *curve("lossy", [1.0])])[found.name] == NOT_RUN


def test_a_rule_scores_above_the_verifier():
    def verdict(*rows):
        return claim([*base(), *rows], "above_verifier_1").verdict

    assert verdict(row("opt", 0.1, 0.4, 1.0), row("chow", 0.1, 0.4, -1.0)) == SEEN
    assert verdict(row("opt", 0.1, 0.4, 0.1), row("chow", 0.1, 0.4, -1.0)) == NOT_SEEN  # not by more than the margin
    assert verdict(row("opt", 0.1, 0.4, 0.5, 0.6), row("chow", 0.1, 0.4, -1.0)) == UNCLEAR
    assert verdict(row("opt", 0.1, 0.4, 1.0, deferral=0.99)) == NOT_RUN  # it is the verifier
    assert verdict(row("drafter_only", None, 0.1, 5.0, drafts=""), row("opt", 0.1, 0.4, -1.0)) == NOT_SEEN
    # The best of many is above by chance: what would do alone does not do among forty.
    alone, others = row("opt", 0.1, 0.4, 0.55, 0.5), [row("chow", at / 100, 0.4, 0.0, 0.5) for at in range(40)]
    assert verdict(alone) == SEEN and verdict(alone, *others) == UNCLEAR
    found = claim([*base(), alone, *others], "above_verifier_1")
    assert "opt 0.1, which defers 50%, less the verifier: +0.55" in found.told and "best of 41" in found.told


@pytest.mark.parametrize(
    ("sequential", "speculative", "half", "verdict"),
    [
        ((0.9, 0.7), (0.5, 0.4), 0.02, SEEN),
        ((0.5, 0.4), (0.9, 0.7), 0.02, NOT_SEEN),
        ((0.9, 0.3), (0.6, 0.6), 0.0, NOT_SEEN),
    ]
    + [((0.9, 0.7), (0.8, 0.6), 0.2, UNCLEAR)],
)
def test_sequential_cascades_are_slow(sequential, speculative, half, verdict):
    rows = base()
    for alpha, one, other in zip((0.3, 0.7), sequential, speculative, strict=True):
        at = {"times": {"v4": figure(one, half)}}, {"times": {"v4": figure(other, half)}}
        rows.append(row("token_cascade", alpha, drafts="")._replace(**at[0]))
        rows += [row("chow", alpha)._replace(**at[1]), row("chow", alpha, other + 0.5, drafts="longer")]  # not the best
    rows.append(row("chow", 0.5, 0.01))  # nothing to set it beside
    found = claim(rows, "token_cascade_slow_1")
    assert found.verdict == verdict
    assert f"at 0.3 {sequential[0]:.2f}x (" in found.told and f"at 0.7 {sequential[1]:.2f}x (" in found.told
    assert verdicts([each for each in rows if each.rule != "token_cascade"])["token_cascade_slow_1"] == NOT_RUN


@pytest.mark.parametrize(
    ("ours", "control", "half", "verdict"),
    [(3.0, 1.0, 0.1, SEEN), (1.0, 3.0, 0.1, NOT_SEEN), (2.0, 2.0, 0.1, NOT_SEEN), (3.0, 1.0, 2.0, UNCLEAR)],
)
def test_min_p_is_the_control_of_token_v3(ours, control, half, verdict):
    rows = [*base(), *(row("token_v3", alpha, 0.4, ours, half) for alpha in (0.1, 0.3, 0.5))]
    rows += [row("min_p", least, 1.0, control, half, drafts="") for least in (0.9, 0.7, 0.2)]
    found = claim(rows, "more_than_min_p")
    assert found.verdict == verdict
    assert "token_v3 0.1 less min_p 0.9" in found.told and "token_v3 0.3 less min_p 0.7" in found.told
    assert "0.2" not in found.told and f"on average: {ours - control:+.2f}" in found.told
    assert verdicts([each for each in rows if each.alpha != 0.9 and each.alpha != 0.7])["more_than_min_p"] == NOT_RUN


def test_a_quality_in_a_time_is_one_that_can_be_served():
    points = [(0.2, figure(0.0)), (0.4, figure(4.0, 0.3)), (0.8, figure(2.0))]
    assert claims.best(points, 0.3) == pytest.approx((2.0, 1.8, 2.2))  # half of the requests each
    assert claims.best(points, 0.4) == points[1][1] == claims.best(points, 0.9)  # more time is no loss
    assert claims.best(points[::2], 0.4) == pytest.approx((2 / 3, 2 / 3 - 0.1, 2 / 3 + 0.1))


def test_a_lead_is_told_of_the_times_that_both_rules_have():
    short, long = [(0.4, figure(1.0)), (0.6, figure(2.0))], [(0.2, figure(0.0)), (0.5, figure(0.0)), (0.9, figure(0.0))]
    found = claims.lead(short, long)
    assert found is not None and (found.first, found.last) == (0.4, 0.6) and found.figure.value == pytest.approx(1.5)
    assert found.figure.high - found.figure.value == pytest.approx(
        math.hypot(*(claims.widened(figure(0.0), count).high for count in (2, 3)))  # each is the best of so many
    )
    apart = claims.lead([(0.2, figure(0.0))], [(0.5, figure(1.0))])  # the quick one may take more time
    assert apart is not None and (apart.first, apart.last, apart.figure.value) == (0.5, 0.5, -1.0)
    assert claims.lead([], long) is None and claims.lead(long, []) is None
    assert claims.lead(short, long, [(1.5, figure(9.0))]) != found


def test_arithmetic_of_figures():
    assert claims.less(Figure(3, 2.7, 3.9), Figure(1, 0.6, 1.4)) == pytest.approx((2, 1.5, 2 + math.hypot(0.9, 0.4)))
    assert claims.mean([Figure(1, 0, 2), Figure(3, 2, 6)]) == (2, 1, 4)
    assert claims.widened(figure(1.0), 1) == pytest.approx(figure(1.0))
    assert claims.widened(figure(0.0, 1.0), 40).high == pytest.approx(3.2272 / 1.96, abs=1e-3)


def test_nothing_is_claimed_without_a_basis():
    assert claims.judged([]) == [] and claims.judged([row("opt", 0.1)]) == []
    assert set(verdicts(base()).values()) == {NOT_RUN}
    begun = [each._replace(examples=7) for each in curve("token_v3", [9.0])]
    assert verdicts([*base(), *begun, *curve("opt", [1.0])])["token_v3_leads"] == NOT_RUN
    unknown = row("token_v3", 0.1, 0.4, math.nan)
    assert verdicts([*base(), unknown, *curve("opt", [1.0])])["token_v3_leads"] == NOT_RUN
    single = [each._replace(differences={"BLEU": Figure(1.0, math.nan, math.nan)}) for each in curve("token_v3", [1.0])]
    rows = [*base(), *single, *curve("opt", [0.0], deferral=1.0)]  # one example has no interval
    assert verdicts(rows)["token_v3_leads"] == verdicts(rows)["above_verifier_1"] == UNCLEAR


def test_rows_that_cannot_be_judged():
    with pytest.raises(UserError, match="about one task, but the rows are of t, other"):
        claims.judged([*base(), row("opt", 0.1, task="other")])
    with pytest.raises(UserError, match="need a time, but the rows have none: LATENCY gives times"):
        claims.judged([each._replace(times={}) for each in base()])
    with pytest.raises(UserError, match="need a metric 'chrF', but the rows have BLEU"):
        claims.judged(base(), metric="chrF")
    assert len(claims.judged(base(), metric="BLEU", time="v4")) == 8
