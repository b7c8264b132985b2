"""The law of the emitted tokens: the real jitted loop, sampled, against exact enumeration by the reference."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from helpers import (
    CONTROLLERS,
    GOSSIP,
    NAMES,
    SETTINGS,
    Case,
    assert_follows,
    decode,
    lab,
    request,
    tally,
)

VOCAB, LENGTH, COPIES = 3, 4, 600  # copies of each case; a multiple of the number of controllers
SLOTS = 3 + LENGTH + 4

CASES = tuple(
    Case(rule, settings, (1, 2, 0)[: 1 + i % 3], new=LENGTH + 4)
    for i, rule in enumerate(NAMES)
    for settings in SETTINGS
)


@functools.cache
def rows():
    """Every case `COPIES` times, each row a request with a key of its own; copy-major, so controllers mix."""
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(20), i))(
        jnp.arange(len(CASES) * COPIES, dtype=jnp.int32)
    )
    return request([case for case in CASES for _ in range(COPIES)], keys)


@functools.cache
def samples(coupling, bonus, forced, together=False):
    """The first `LENGTH` tokens of every row: `[case, copy, token]`. The limit is far enough not to cut a draft."""
    state = decode(lab(coupling, bonus, VOCAB, 3, together=together), rows(), SLOTS, forced, rounds=LENGTH)
    tokens, start = np.asarray(state.tokens), np.asarray(rows().length)
    taken = np.take_along_axis(tokens, start[:, None] + np.arange(LENGTH), axis=1)
    return taken.reshape(len(CASES), COPIES, LENGTH)


@functools.cache
def tables(case):
    pair = lab(vocab_size=VOCAB, k_max=3)
    return case.tables(pair.q_table, pair.p_table)


def law(case):
    return reference.autoregressive_law(tables(case)[0], VOCAB, case.prompt, LENGTH)


ALL_CASES = range(len(CASES))


def check(taken, laws, cases=ALL_CASES):
    assert_follows([tally(taken[i], VOCAB) for i in cases], [laws[i] for i in cases])


@functools.cache
def target_laws():
    return [law(case) for case in CASES]


def test_cases_tell_rules_apart():
    # Otherwise the laws below would hold of a loop that ignores the rule.
    for rule in NAMES[1:]:
        pi, q, p = tables(Case(rule, SETTINGS[2]))
        assert max(np.abs(pi - p).max(), 0) > 0.05, rule
        assert max(np.abs(pi - q).max(), 0) > 0.05, rule


@pytest.mark.parametrize("coupling", ["maximal", "gumbel"])
@pytest.mark.parametrize("k", [1, 2, 3])
def test_fixed_length_follows_target(coupling, k):
    check(samples(coupling, "target", k), target_laws())


@pytest.mark.parametrize("coupling", ["maximal", "gumbel"])
@pytest.mark.parametrize("controller", range(len(CONTROLLERS)))
def test_adaptive_length_follows_target(coupling, controller):
    taken = samples(coupling, "target", -1)
    row = np.arange(len(CASES) * COPIES).reshape(len(CASES), COPIES) % len(CONTROLLERS)
    mine = [tokens[row[i] == controller] for i, tokens in enumerate(taken)]
    check(mine, target_laws())


@pytest.mark.parametrize("coupling", ["maximal", "gumbel"])
def test_rows_that_decide_as_one_follow_their_own_targets(coupling):
    check(samples(coupling, "target", -1, together=True), target_laws())


STRICT = tuple(
    Case(rule, settings, (1, 2, 0)[: 1 + i % 3], new=LENGTH + 4, strict=1 + i % 3)
    for i, rule in enumerate(NAMES)
    for settings in (SETTINGS[0], SETTINGS[2], SETTINGS[3])
)


@pytest.mark.parametrize("coupling", ["maximal", "gumbel"])
@pytest.mark.parametrize("forced", [1, 3, -1])
def test_strict_tokens_follow_the_verifier_and_those_behind_them_the_rule(coupling, forced):
    copies = 480
    count = len(STRICT) * copies
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(22), i))(jnp.arange(count, dtype=jnp.int32))
    batch = request([case for case in STRICT for _ in range(copies)], keys)
    state = decode(lab(coupling, "target", VOCAB, 3), batch, SLOTS, forced, rounds=LENGTH)
    start = np.asarray(batch.length)[:, None] + np.arange(LENGTH)
    taken = np.take_along_axis(np.asarray(state.tokens), start, axis=1).reshape(len(STRICT), copies, LENGTH)
    laws, apart = [], 0
    for case in STRICT:
        pi, _, p = tables(case)
        laws.append(reference.strict_law(pi, p, VOCAB, case.prompt, LENGTH, case.strict))
        others = [reference.autoregressive_law(each, VOCAB, case.prompt, LENGTH) for each in (pi, p)]
        apart += all(reference.distance(laws[-1], other) > 0.05 for other in others)
    assert apart >= 12  # neither the rule's law throughout nor the verifier's
    check(taken, laws, range(len(STRICT)))


@pytest.mark.parametrize("k", [1, 3])
def test_bonus_of_verifier_is_a_known_mixture(k):
    laws = []
    for case in CASES:
        pi, q, p = tables(case)
        laws.append(reference.speculative_law(pi, q, p, VOCAB, case.prompt, LENGTH, k))
    assert max(reference.distance(a, b) for a, b in zip(laws, target_laws(), strict=True)) > 0.05
    check(samples("maximal", "verifier", k), laws)


@pytest.mark.parametrize("forced", [-1, 1, 3])
def test_lossless_with_bonus_of_verifier_follows_verifier(forced):
    cases = [i for i, case in enumerate(CASES) if case.rule == "lossless"]
    pi, _, p = tables(CASES[cases[1]])
    np.testing.assert_array_equal(pi, p)
    check(samples("maximal", "verifier", forced), target_laws(), cases)


def test_length_may_depend_on_drafts_that_were_dropped():
    # q = (.52, .48) and p = (.1, .9) everywhere. A first draft 0 is mostly rejected; whether `gossip` drafts again
    # tells what the second, dropped draft was. If the next round drew it with the same key, 1 would be too frequent.
    q, p = np.asarray([0.52, 0.48, 1e-12]), np.asarray([0.1, 0.9, 1e-12])
    drafter, verifier = ({"table": jnp.tile(jnp.log(jnp.asarray(x, jnp.float32)), (9, 1))} for x in (q, p))
    pair = lab("maximal", "target", VOCAB, 3)._replace(drafter=drafter, verifier=verifier)
    batch = request([Case(prompt=(1, 1, 1), new=LENGTH + 4)] * len(CASES) * COPIES, rows().key)
    state = decode(pair, batch, SLOTS, rounds=LENGTH)
    mine = np.arange(len(CASES) * COPIES) % len(CONTROLLERS) == GOSSIP
    law = reference.autoregressive_law(np.tile(p / p.sum(), (9, 1)), VOCAB, (1,), 3)
    assert_follows([tally(np.asarray(state.tokens)[mine, 3:6], VOCAB)], [np.where(law < 1e-6, 0, law)])
