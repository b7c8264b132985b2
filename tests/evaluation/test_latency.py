"""Times computed from counts: each round by its own length."""

import math

import pytest

from cascades.errors import UserError
from cascades.evaluation.latency import PassCosts, expected, pass_costs

COSTS = PassCosts(0.25, (1.0, 1.1, 1.3, 1.6))


def stats(calls, by_position, steps, tokens=0):
    return {"tokens_out": tokens, "verifier_calls": calls, "drafted_by_position": by_position, "drafter_steps": steps}


def test_costs_are_in_units_of_the_verifiers_pass_over_one_token():
    found = pass_costs("a", (1, (4, 4.4, 5.2, 6.4)))
    assert found.draft == COSTS.draft and found.verify == pytest.approx(COSTS.verify)
    assert pass_costs("a", [0.0, [2.0]]) == (0.0, (1.0,))


@pytest.mark.parametrize(
    "given", [None, 1.0, (1.0,), (0.1, ()), (0.1, 1.0), ("a", (1.0,)), (-0.1, (1.0,)), (0.1, (1.0, 0.0))]
)
def test_what_is_no_cost_is_told(given):
    with pytest.raises(UserError, match="each of LATENCY is a name and"):
        pass_costs("a", given)


def test_each_round_costs_what_a_pass_of_its_length_does():
    assert expected(stats(7, [], 0, 7), COSTS) == 7.0  # the verifier alone
    assert expected(stats(7, [], 0, 5), COSTS) == 7.0  # two of them behind a stop string
    assert expected(stats(0, [], 9, 9), COSTS) == 2.25  # the drafter alone
    # Four rounds of 3, 3, 1 and 0 drafts.
    rounds = stats(4, [3, 2, 2], 7)
    assert expected(rounds, COSTS) == pytest.approx(2 * 1.6 + 1.1 + 1.0 + 7 * 0.25)


def test_a_token_cascades_verifier_reads_what_the_drafter_wrote():
    assert expected(stats(4, [0, 0, 0], 4, 4), COSTS) == 4 + 4 * 0.25  # it is asked for every token
    assert expected(stats(4, [0, 0, 0], 8, 8), COSTS) == pytest.approx(4 * 1.1 + 8 * 0.25)  # for every second
    assert expected(stats(4, [0, 0, 0], 6, 6), COSTS) == pytest.approx(4 * 1.05 + 6 * 0.25)  # now so, now so
    assert expected(stats(1, [0, 0, 0], 50, 50), COSTS) == pytest.approx(1.6 + 50 * 0.25)  # the longest that is known


@pytest.mark.parametrize("acceptance", [0.3, 0.8])
def test_of_a_fixed_length_it_is_the_textbooks_speed(acceptance):
    """(1 - a^(k + 1)) / (1 - a) tokens a round of k c + v_k (Leviathan et al., arXiv 2211.17192)."""
    k, rounds = 3, 1000
    tokens = rounds * sum(acceptance**i for i in range(k + 1))
    took = expected(stats(rounds, [rounds] * k, rounds * k), COSTS)
    speed = tokens / took
    assert math.isclose(speed, (1 - acceptance ** (k + 1)) / (1 - acceptance) / (k * 0.25 + 1.6))
