"""A drafter that is the verifier: every draft is kept, and every round but the last writes k + 1 tokens."""

import jax
import numpy as np
import pytest
from helpers import crowd, decode, lab, request

from cascades.decoding import Finish

BOTH = [("maximal", "verifier"), ("gumbel", "target")]
CASES = tuple(case._replace(rule="lossless") for case in crowd())  # T = 0 and above, with and without cuts


def twins(coupling, bonus, ending=False):
    pair = lab(coupling, bonus, ending=ending)
    return pair._replace(drafter=pair.verifier)


@pytest.mark.parametrize(("coupling", "bonus"), [*BOTH, ("gumbel", "verifier")])
@pytest.mark.parametrize("k", [1, 3, 4])
def test_everything_is_accepted(coupling, bonus, k):
    check(decode(twins(coupling, bonus), request(CASES), forced=k), CASES, k)


@pytest.mark.parametrize("cases", [*((case,) for case in CASES[:4]), CASES[:5], CASES[5:10]], ids=len)
def test_everything_is_accepted_in_small_batches(cases):
    check(decode(twins("maximal", "verifier"), request(cases), forced=4), cases, 4)


@pytest.mark.parametrize(("coupling", "bonus"), BOTH)
@pytest.mark.parametrize("k", [1, 3, 4])
def test_everything_is_accepted_up_to_the_end_of_the_sequence(coupling, bonus, k):
    state = decode(twins(coupling, bonus, ending=True), request(CASES), forced=k)
    assert 0.2 < np.mean(np.asarray(state.finish) == Finish.EOS) < 1  # both ends are met
    check(state, CASES, k)


@pytest.mark.parametrize(("coupling", "bonus"), BOTH)
def test_adaptive_lengths_accept_everything_too(coupling, bonus):
    state = decode(twins(coupling, bonus), request(CASES))
    assert int(np.sum(state.info.drafted)) > 100
    np.testing.assert_array_equal(state.info.accepted, state.info.drafted)
    np.testing.assert_array_equal(state.info.rejected, 0)


def check(state, cases, k):
    info = jax.tree.map(np.asarray, state.info)
    new = np.asarray(state.length) - [len(case.prompt) for case in cases]
    # Drafts behind an end-of-sequence token are not counted, or acceptance would fall below 1 there.
    np.testing.assert_array_equal(info.accepted, info.drafted)
    np.testing.assert_array_equal(info.rejected, 0)
    assert info.accepted.sum() > 0
    np.testing.assert_array_equal(info.rounds, -(-new // (k + 1)))
    assert (info.histogram[:, k] >= info.rounds - 1).all()
    limited = np.asarray(state.finish) == Finish.LENGTH
    np.testing.assert_array_equal(new[limited], np.asarray([case.new for case in cases])[limited])
    np.testing.assert_array_equal(new[limited], (info.accepted + info.rounds)[limited])
