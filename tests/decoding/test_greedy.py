"""Greedy lossless decoding writes what the verifier writes alone, token for token."""

import numpy as np
import pytest
from helpers import CONTROLLERS, EOS, crowd, decode, greedy_text, lab, request, texts

from cascades import rules
from cascades.decoding import Plan, advance_sequential, compile_plan
from cascades.lookahead import fixed
from cascades.testing import table_model


@pytest.mark.parametrize("forced", [0, 1, 2, 3, 4, -1])
@pytest.mark.parametrize(("coupling", "bonus"), [("maximal", "verifier"), ("gumbel", "target")])
def test_greedy_lossless_is_the_verifier_alone(forced, coupling, bonus):
    cases = crowd(rule="lossless", temperature=0.0)
    pair = lab(coupling=coupling, bonus=bonus)
    state = decode(pair, request(cases), forced=forced)
    assert texts(state) == [greedy_text(pair, case) for case in cases]


@pytest.mark.parametrize("forced", [2, -1])
def test_greedy_and_strict_to_the_end_is_the_verifier_alone_by_any_rule(forced):
    cases = [case._replace(strict=40) for case in crowd(temperature=0.0)]
    pair = lab(bonus="verifier")
    free = texts(decode(pair, request([case._replace(strict=0) for case in cases]), forced=forced))
    alone = [greedy_text(pair, case) for case in cases]
    assert texts(decode(pair, request(cases), forced=forced)) == alone != free


def test_a_token_cascade_leaves_strict_tokens_to_the_verifier():
    base, model = lab(), table_model(6)
    plan = Plan(model, model, (rules.chow,), fixed(0), 1, 6, (EOS,))
    pair = base._replace(programs=compile_plan(plan, advance_sequential))
    cases = [
        case._replace(rule="chow", alpha=1.0, strict=strict)  # which by itself never defers
        for case, strict in zip(crowd(temperature=0.0)[:6], (0, 1, 4, 12, 40, 0), strict=True)
    ]
    expected = []
    for case in cases:
        begun = greedy_text(pair, case._replace(new=min(case.strict, case.new)))
        left = case.new - (len(begun) - len(case.prompt))
        expected.append(greedy_text(pair._replace(verifier=pair.drafter), case._replace(prompt=begun, new=left)))
    assert texts(decode(pair, request(cases, rules=plan.rules))) == expected
    assert len({text[len(case.prompt) :] for text, case in zip(expected, cases, strict=True)}) > 3


def test_greedy_alone():
    cases = crowd(rule="lossless", temperature=0.0)
    alone = lab(alone=True)
    assert texts(decode(alone, request(cases))) == [greedy_text(alone, case) for case in cases]


def test_drafter_that_idled_for_long_reads_what_it_missed():
    # Greedy self-draft: were one missed token read wrongly, a draft would sooner or later be rejected.
    cases = crowd(rule="lossless", temperature=0.0)
    pair = lab(bonus="verifier")
    state = decode(pair._replace(drafter=pair.verifier), request(cases))
    idles = np.arange(len(cases)) % len(CONTROLLERS) == len(CONTROLLERS) - 1  # 20 rounds without a draft: > CATCH_UP
    drafted = np.asarray(state.info.drafted)
    assert (drafted[idles] > 0).all()
    np.testing.assert_array_equal(state.info.accepted, drafted)
    assert texts(state) == [greedy_text(pair, case) for case in cases]
