"""Under the Gumbel coupling a seeded sample does not depend on draft lengths, rounds, neighbours or batch."""

import functools

import numpy as np
import pytest
from helpers import crowd, decode, lab, request, sequential_text, texts


@functools.cache
def expected():
    return [sequential_text(lab(coupling="gumbel"), case) for case in crowd()]


@pytest.mark.parametrize("forced", [0, 1, 2, 3, 4, -1])
def test_text_is_the_sequential_sample_whatever_the_draft_length(forced):
    state = decode(lab(coupling="gumbel"), request(crowd()), forced=forced)
    assert texts(state) == expected()
    if forced > 0:
        assert int(np.sum(state.info.accepted)) > 0 and int(np.sum(state.info.rejected)) > 0


def test_text_does_not_depend_on_the_order_of_the_batch():
    # Nor on the controller, as the row's number chooses it.
    order = np.random.default_rng(0).permutation(len(crowd()))
    state = decode(lab(coupling="gumbel"), request([crowd()[i] for i in order]))
    assert texts(state) == [expected()[i] for i in order]


def test_lossless_text_is_the_verifiers_own_sample_whatever_the_drafter():
    cases = crowd(rule="lossless")
    alone = texts(decode(lab(alone=True), request(cases)))
    pair = lab(coupling="gumbel")
    assert alone == [sequential_text(pair, case) for case in cases]
    stranger = {"table": -pair.drafter["table"]}
    assert texts(decode(lab("gumbel", "verifier"), request(cases))) == alone
    accepted = []
    for drafter in (pair.drafter, pair.verifier, stranger):
        state = decode(pair._replace(drafter=drafter), request(cases))
        assert texts(state) == alone
        accepted.append(int(np.sum(state.info.accepted)))
    assert accepted[1] > accepted[0] > accepted[2]


def test_different_seeds_differ():
    cases = [case._replace(seed=case.seed + 1000) for case in crowd()]
    state = decode(lab(coupling="gumbel"), request(cases))
    sampled = [i for i, case in enumerate(cases) if case.settings.temperature == 1]
    same = sum(texts(state)[i] == expected()[i] for i in sampled)
    assert same <= len(sampled) // 10
