"""The clock counts the passes that ran: against what each round must have needed, and against `Info`."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import Lab, begin, crowd, lab, request

from cascades import rules
from cascades.decoding import Plan, advance_sequential, compile_plan
from cascades.lookahead import fixed
from cascades.testing import table_model

K_MAX = 4
CATCH_UP = 16
WIDTHS = (1, 3, 5)
CASE = crowd(new=80, rule="lossless", temperature=1.0)[3]
LENGTHS = [4, 1, 3, 2, 4, *[0] * 18, 3, 4, *[0] * 7, 2, 1, 1, 4]  # behind idle rounds the drafter lacks a pass or two


@functools.cache
def pair(bonus="verifier", step=None) -> Lab:
    base, model = lab(bonus=bonus), table_model(6)
    rule = rules.lossless if step is None else rules.chow
    plan = Plan(model, model, (rule,), fixed(2), K_MAX, 6, bonus=bonus, widths=WIDTHS)
    return base._replace(programs=compile_plan(plan, *(() if step is None else (step,))))


def run(pair, state, forced, rounds=1):
    stop = jnp.zeros(state.length.shape, bool)
    return pair.programs.run(pair.verifier, pair.drafter, state, stop, jnp.int32(rounds), jnp.int32(forced))


def counted(state):
    return np.asarray(state.clock.passes), int(state.clock.steps), int(state.clock.catch_ups)


def needed(lag: int, scores: int) -> tuple[int, int]:
    """Drafter passes of one token, and of more, of a row that lacks `lag` tokens and scores so many positions."""
    catch_ups = 0
    while scores and lag >= 2:
        lag -= lag if lag <= CATCH_UP else min(lag - 1, CATCH_UP)
        catch_ups += 1
    return max(scores - 1, 0) + (scores > 0 and lag == 1), catch_ups


@pytest.mark.parametrize("bonus", ["verifier", "target"])
def test_every_pass_is_counted_once(bonus):
    setup = pair(bonus)
    state = begin(setup, request([CASE], rules=setup.programs.plan.rules))
    passes, steps, catch_ups = np.zeros(len(WIDTHS), np.int32), 0, 0
    lags = []
    for k in LENGTHS:
        length = int(state.length[0])
        lags.append(length - int(state.drafter_cache.length[0]))
        k = min(k, int(state.limit[0]) - length - 1)
        state = run(setup, state, k)
        more = needed(lags[-1], k + (bonus == "target"))
        steps, catch_ups = steps + more[0], catch_ups + more[1]
        passes[next(at for at, width in enumerate(WIDTHS) if width > k)] += 1
        assert counted(state)[1:] == (steps, catch_ups)
        np.testing.assert_array_equal(counted(state)[0], passes)
    assert passes.min() > 0 and steps > 0 and setup.programs.plan.catch_up(1) == CATCH_UP
    if bonus == "verifier":  # the other scores a position in every round, and lacks nothing but the last token
        assert max(lags) > CATCH_UP + 1 and catch_ups > 1
    assert passes.sum() == int(state.info.verifier_calls[0]) == len(LENGTHS)
    # A step that scores reads by a pass of its own, or by the last of those that catch up.
    alone = sum(needed(lag, 1)[1] - (needed(lag, 1)[0] == 0) for lag, k in zip(lags, LENGTHS, strict=True) if k)
    if bonus == "verifier":
        assert steps + catch_ups - alone == int(state.info.drafter_steps[0])


def test_the_longest_row_is_what_a_batch_takes_and_its_passes_are_counted_once():
    setup, cases = pair(), crowd(new=40, rule="lossless", temperature=1.0)[:5]
    state = run(setup, begin(setup, request(cases, rules=setup.programs.plan.rules)), 3, rounds=6)
    assert counted(state)[0].tolist() == [0, 0, 6] and np.asarray(state.info.verifier_calls).tolist() == [6] * 5
    # Three steps a round; those of rows that catch up come on top where another row lacks one token.
    assert counted(state)[1] <= 3 * 6 <= sum(counted(state)[1:])


def test_an_insertion_leaves_the_clock_as_it_is():
    setup = pair()
    rule = setup.programs.plan.rules
    state = run(setup, begin(setup, request([CASE] * 2, rules=rule)), 2, rounds=3)
    row = run(setup, begin(setup, request([CASE], rules=rule)), 4)
    before = counted(state)
    after = counted(setup.programs.insert(state, row, jnp.int32(1)))
    np.testing.assert_array_equal(after[0], before[0])
    assert after[1:] == before[1:] and sum(before[1:]) > 0


def test_a_model_alone_counts_its_passes_and_a_token_cascade_none():
    alone = lab(alone=True)
    state = begin(alone, request([CASE]))
    assert [leaf.tolist() for leaf in run(alone, state, 0, rounds=7).clock] == [[7], 0, 0]
    cascade = pair(step=advance_sequential)
    state = run(cascade, begin(cascade, request([CASE._replace(rule="chow")], rules=(rules.chow,))), 0, rounds=7)
    assert int(state.info.rounds[0]) == 7 and not any(np.any(leaf) for leaf in jax.tree.leaves(state.clock))
