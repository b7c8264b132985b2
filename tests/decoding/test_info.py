"""What a run reports adds up."""

import functools

import jax
import numpy as np
import pytest
from helpers import crowd, decode, lab, request, texts
from reference import softmax

from cascades.decoding import Finish, Origin

K_MAX = 4


@functools.cache
def run(coupling="maximal", bonus="verifier", ending=False, forced=-1):
    return jax.tree.map(
        lambda x: x if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else np.asarray(x),
        decode(lab(coupling, bonus, ending=ending), request(crowd()), forced=forced),
    )


def origins(state):
    """Number of tokens of each origin, `[row, origin]`, of the part that stands."""
    column = np.arange(state.tokens.shape[1])[None]
    stands = column < state.length[:, None]
    return np.stack([np.sum((state.origins == o) & stands, axis=1) for o in Origin], axis=1)


SETUPS = [
    ("maximal", "verifier", False, -1),
    ("maximal", "verifier", False, 3),
    ("maximal", "verifier", True, -1),
    ("gumbel", "target", False, -1),
    ("gumbel", "target", True, 4),
]


@pytest.mark.parametrize("setup", SETUPS, ids=str)
def test_counts_agree(setup):
    state = run(*setup)
    info = state.info
    new = state.length - [len(case.prompt) for case in crowd()]
    wrote = origins(state)

    assert (info.accepted <= info.drafted).all()
    np.testing.assert_array_equal(info.histogram.sum(axis=1), info.rounds)
    np.testing.assert_array_equal(info.histogram @ np.arange(K_MAX + 1), info.accepted)
    np.testing.assert_array_equal(info.accepted_at.sum(axis=1), info.accepted)
    np.testing.assert_array_equal(info.drafted_at.sum(axis=1), info.drafted)
    assert (info.accepted_at <= info.drafted_at).all()
    assert (np.diff(info.drafted_at, axis=1) <= 0).all()
    np.testing.assert_array_equal(info.verifier_calls, info.rounds)
    assert (info.drafted <= info.drafter_steps).all()
    assert (info.decided <= info.drafted).all() and (info.deferred <= info.decided * (1 + 1e-5)).all()
    assert (info.accepted + info.rejected == info.decided).all()

    # Only the round of an end-of-sequence token may write fewer than its accepted drafts and one more.
    short = info.accepted + info.rounds - new
    assert set(np.unique(short)) <= {0, 1}
    assert (short[state.finish != Finish.EOS] == 0).all()
    efficiency = new / info.rounds
    assert (efficiency >= 1).all() and (efficiency <= K_MAX + 1).all()

    np.testing.assert_array_equal(wrote[:, Origin.PROMPT], [len(case.prompt) for case in crowd()])
    np.testing.assert_array_equal(wrote[:, Origin.DRAFT] + wrote[:, Origin.RULE], info.accepted)
    np.testing.assert_array_equal(wrote[:, Origin.RULE], info.by_rule)
    np.testing.assert_array_equal(wrote[:, Origin.CORRECTION], info.rejected)
    np.testing.assert_array_equal(wrote[:, Origin.BONUS], info.rounds - info.rejected - short)
    assert wrote[:, Origin.VERIFIER :].sum() == 0


def test_something_of_everything_happens():
    state = run()
    assert (origins(state).sum(axis=0)[: Origin.VERIFIER] > 50).all()
    lossless = np.asarray([case.rule == "lossless" for case in crowd()])
    assert (state.info.by_rule[lossless] == 0).all()
    assert state.info.by_rule[~lossless].sum() > 0


@pytest.mark.parametrize("setup", SETUPS[::2], ids=str)
def test_log_probability_of_the_text(setup):
    state = run(*setup)
    table = lab(ending=setup[2]).p_table
    for i, (case, text) in enumerate(zip(crowd(), texts(state), strict=True)):
        start = len(case.prompt)
        padded = (0, *text)
        total = sum(
            np.log(softmax(table[padded[n] * 6 + padded[n + 1]])[padded[n + 2]])
            for n in range(start - 1, len(text) - 1)
        )
        np.testing.assert_allclose(state.info.log_p[i], total, rtol=1e-4)


def test_deferral_of_a_position_rule_is_counted_where_it_was_decided():
    # Rows of `lossless` defer every decided position, `chow` at alpha = 1 none.
    cases = [case._replace(rule="lossless" if i % 2 else "chow", alpha=1.0) for i, case in enumerate(crowd())]
    info = decode(lab(bonus="verifier"), request(cases), forced=3).info
    odd = np.arange(len(cases)) % 2 == 1
    np.testing.assert_array_equal(info.deferred[odd], info.decided[odd])
    np.testing.assert_array_equal(info.deferred[~odd], 0)
    np.testing.assert_array_equal(info.rejected[~odd], 0)


def test_alone():
    cases = crowd()
    state = decode(lab(alone=True), request(cases))
    new = [case.new for case in cases]
    np.testing.assert_array_equal(state.info.rounds, new)
    np.testing.assert_array_equal(state.info.drafter_steps, 0)
    np.testing.assert_array_equal(origins(jax.tree.map(np.asarray, state._replace(key=0)))[:, Origin.VERIFIER], new)
