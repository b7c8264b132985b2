"""Rows that come and go: a request's text depends neither on when it came, nor on who sits or sat around it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import SLOTS, begin, come_and_go, crowd, decode, greedy_text, lab, request, sequential_text, texts

from cascades.decoding import FREE, Finish
from cascades.lookahead import given_costs

ROWS = 5


@pytest.mark.parametrize("seed", [0, 1])
def test_a_seeded_sample_is_the_sequential_one(seed):
    pair, cases = lab(coupling="gumbel"), crowd()[seed::4]
    assert come_and_go(pair, cases, ROWS, seed) == [sequential_text(pair, case) for case in cases]


def test_greedy_text_is_the_verifiers():
    pair, cases = lab(bonus="verifier"), crowd(rule="lossless", temperature=0.0)[:12]
    assert come_and_go(pair, cases, ROWS, 2) == [greedy_text(pair, case) for case in cases]


def test_a_sample_of_the_maximal_coupling_is_that_of_the_same_draft_length():
    pair, cases = lab(bonus="verifier"), crowd()[1::6]
    expected = texts(decode(pair, request(cases), forced=3))
    assert come_and_go(pair, cases, ROWS, 3, forced=3) == expected


def test_an_end_of_sequence_token_may_be_ignored_by_one_row():
    pair = lab(bonus="verifier", ending=True)
    cases = crowd(rule="lossless")[:8]
    ends = [text.index(5) for text in texts(decode(pair, request(cases))) if 5 in text]
    assert ends, "some rows end by themselves"
    heedless = np.arange(len(cases)) % 2 == 0
    batch = request(cases)._replace(ignore_eos=jnp.asarray(heedless))
    state = decode(pair, batch)
    for case, ignores, finish, text in zip(cases, heedless, np.asarray(state.finish), texts(state), strict=True):
        assert finish == (Finish.EOS if 5 in text[len(case.prompt) :] and not ignores else Finish.LENGTH)
        assert len(text) == len(case.prompt) + case.new or finish == Finish.EOS


def test_an_eager_loop_ends_with_its_first_row():
    pair, cases = lab(bonus="verifier"), crowd(rule="lossless", temperature=0.0)[:4]
    cases = [case._replace(new=10 * (at + 1)) for at, case in enumerate(cases)]

    def left(eager):
        state, none = begin(pair, request(cases)), jnp.zeros((4,), bool)
        state = pair.programs.run(
            pair.verifier, pair.drafter, state, none, jnp.int32(1000), jnp.int32(0), jnp.bool_(eager)
        )
        return np.asarray(state.info.rounds).tolist(), np.asarray(state.running).tolist()

    assert left(True) == ([10, 10, 10, 10], [False, True, True, True])
    assert left(False) == ([10, 20, 30, 40], [False] * 4)


def test_an_insertion_leaves_the_others_as_they_are_and_nothing_of_who_sat_there():
    pair, cases = lab(bonus="verifier"), crowd()[:4]
    plan, programs = pair.programs.plan, pair.programs
    state = decode(pair, request(cases), rounds=3)
    before = jax.tree.map(np.asarray, state._replace(key=jax.random.key_data(state.key)))
    row = programs.start(
        pair.verifier, pair.drafter, request(crowd()[7:8]), plan.lookahead.init(1, given_costs(plan.k_max, 0.2)), SLOTS
    )
    nobodys = {"draft_logits": None, "clock": None}
    put = jax.tree.map(np.asarray, row._replace(key=jax.random.key_data(row.key), **nobodys))
    after = programs.insert(state, row, jnp.int32(2))
    after = jax.tree.map(np.asarray, after._replace(key=jax.random.key_data(after.key), **nobodys))
    for old, new, one in zip(*(map(jax.tree.leaves, (before._replace(**nobodys), after, put))), strict=True):
        np.testing.assert_array_equal(new[2:3], one)
        np.testing.assert_array_equal(np.delete(new, 2, axis=0), np.delete(old, 2, axis=0))


def test_nobody_sits_in_a_vacant_row():
    pair = lab(bonus="verifier")
    plan, programs = pair.programs.plan, pair.programs
    state = programs.vacant(plan.lookahead.init(ROWS, given_costs(plan.k_max, 0.2)), SLOTS)
    assert np.all(np.asarray(state.finish) == Finish.VACANT)
    stop = jnp.zeros((ROWS,), bool)
    state = programs.run(pair.verifier, pair.drafter, state, stop, jnp.int32(9), jnp.int32(FREE), jnp.bool_(False))
    assert int(np.sum(state.info.rounds)) == 0 and np.all(np.asarray(state.finish) == Finish.VACANT)
