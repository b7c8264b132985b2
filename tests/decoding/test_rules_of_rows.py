"""Rows of one batch under different rules, in one program: each row's law and text are its own rule's."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from helpers import (
    EVERY_RULE,
    NAMES,
    RULES,
    Case,
    assert_follows,
    begin,
    come_and_go,
    crowd,
    decode,
    lab,
    request,
    sequential_text,
    tally,
    texts,
)
from reference import Settings

from cascades import rules
from cascades.decoding import FREE, Plan, compile_plan
from cascades.distributions import Sampling
from cascades.lookahead import fixed
from cascades.speculation import Keys, by_rule, keep
from cascades.testing import table_model

VOCAB, LENGTH, COPIES = 3, 3, 400
SLOTS = 3 + LENGTH + 4
CASES = tuple(
    Case(rule, settings, (1, 2, 0)[: 1 + i % 3], new=LENGTH + 4)
    for i, rule in enumerate(NAMES)
    for settings in (Settings(0.0), Settings(1.0), Settings(0.8, top_p=0.8))
)


@pytest.mark.parametrize("coupling", ["maximal", "gumbel"])
@pytest.mark.parametrize("k", [1, 3])
def test_every_row_follows_the_law_of_its_own_rule(coupling, k):
    pair = lab(coupling, "target", VOCAB, 3, rules=EVERY_RULE)
    count = len(CASES) * COPIES
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(21), i))(jnp.arange(count, dtype=jnp.int32))
    batch = request([case for case in CASES for _ in range(COPIES)], keys, EVERY_RULE)
    state = decode(pair, batch, SLOTS, k, rounds=LENGTH)
    start = np.asarray(batch.length)[:, None] + np.arange(LENGTH)
    taken = np.take_along_axis(np.asarray(state.tokens), start, axis=1).reshape(len(CASES), COPIES, LENGTH)
    laws = [
        reference.autoregressive_law(case.tables(pair.q_table, pair.p_table)[0], VOCAB, case.prompt, LENGTH)
        for case in CASES
    ]
    assert_follows([tally(each, VOCAB) for each in taken], laws)


def test_a_text_through_slots_is_that_of_its_own_rule():
    pair, cases = lab("gumbel", rules=EVERY_RULE), crowd()[::5]
    assert len({case.rule for case in cases}) > 8 and {case.settings.temperature for case in cases} > {0.0}
    expected = [sequential_text(pair, case) for case in cases]
    assert come_and_go(pair, cases, 4, 5) == expected
    assert [texts(decode(pair, request([case], rules=EVERY_RULE)))[0] for case in cases[:6]] == expected[:6]


SOME = (rules.lossless, rules.chow, rules.token_v3)


@functools.cache
def several(coupling="maximal", chosen=SOME):
    """A pair whose program holds three rules, or one of them."""
    base, model = lab(coupling, "target"), table_model(6)
    plan = Plan(model, model, chosen, fixed(3), 4, 6, (5,), coupling, "target")
    return base._replace(programs=compile_plan(plan))


def rows_of(state, row):
    state = state._replace(key=jax.random.key_data(state.key), draft_logits=None, clock=None)
    return [np.asarray(leaf)[row] for leaf in jax.tree.leaves(state)]


@pytest.mark.parametrize("coupling", ["maximal", "gumbel"])
def test_a_row_does_not_notice_what_its_neighbours_chose_and_nothing_is_compiled_again(coupling):
    pair = several(coupling)
    cases = [case._replace(rule="token_v3", settings=Settings(1.0), alpha=None) for case in crowd()[:4]]
    found = []
    for other in ("token_v3", "lossless", "chow"):
        batch = request([cases[0], *(case._replace(rule=other) for case in cases[1:])], rules=SOME)
        found.append(rows_of(decode(pair, batch, rounds=6), 0))
    for row in found[1:]:
        for ours, theirs in zip(row, found[0], strict=True):
            np.testing.assert_array_equal(ours, theirs)
    assert pair.programs.run._cache_size() == pair.programs.start._cache_size() == 1
    alone = decode(
        several(coupling, (rules.token_v3,)), request(cases, rules=SOME)._replace(rule=jnp.zeros(4, jnp.int32))
    )
    mixed = decode(pair, request([cases[0], *(case._replace(rule="chow") for case in cases[1:])], rules=SOME))
    assert texts(alone)[0] == texts(mixed)[0]


def test_a_rule_that_no_running_row_has_chosen_is_not_evaluated():
    seen = []

    def watched(name):
        def rule(pair, alpha):
            jax.debug.callback(lambda: seen.append(name))
            return RULES[name](pair, alpha)

        return rule

    pair = several("maximal", tuple(watched(rule.__name__) for rule in SOME))
    cases = [Case(name, Settings(1.0), new=new) for name, new in (("chow", 3), ("token_v3", 30))]
    state = begin(pair, request(cases, rules=SOME))
    stop, rounds = jnp.zeros((2,), bool), jnp.int32(1)
    state = pair.programs.run(pair.verifier, pair.drafter, state, stop, rounds, jnp.int32(FREE))
    jax.effects_barrier()
    assert set(seen) == {"chow", "token_v3"}
    seen.clear()
    stop = jnp.asarray([True, False])  # the row of `chow` has ended
    pair.programs.run(pair.verifier, pair.drafter, state, stop, rounds, jnp.int32(FREE))
    jax.effects_barrier()
    assert set(seen) == {"token_v3"}


def keep_of(chosen):
    """The equations of `keep`, at a vocabulary that no other axis has the length of."""
    rows, k, vocab = 2, 3, 97
    real = jnp.ones((rows,), jnp.float32)
    key = jnp.broadcast_to(jax.random.key(0), (rows, k))
    logits = jnp.zeros((rows, k + 1, vocab), jnp.float32)
    drafts, whole = jnp.zeros((rows, k), jnp.int32), jnp.zeros((rows,), jnp.int32)

    def run(q, p, choice):
        keys = Keys(key, jnp.concatenate([key, key[:, :1]], axis=1))
        return keep(
            drafts, whole + k, q, p, keys, chosen, choice, real, Sampling(real, whole, real, 0 * real), "maximal"
        )

    return jax.make_jaxpr(run)(logits, logits, whole)


def test_several_rules_hand_on_scalars_and_one_rule_has_no_branch():
    equations = [each for each in keep_of(SOME).eqns if each.primitive.name == "cond"]
    assert len(equations) == len(SOME)
    for each in equations:
        assert {var.aval.shape for var in each.outvars} == {(2, 3)}
        assert sum(97 in var.aval.shape for var in each.invars) <= 2  # the logits of both models, as they came
    for rule in SOME:
        branches = [each for each in keep_of((rule,)).eqns if each.primitive.name == "cond"]  # of truncation
        assert not any({var.aval.shape for var in each.outvars} == {(2, 3)} for each in branches)


def test_what_is_evaluated_by_rule():
    choice = jnp.asarray([1, 0, -1, 1], jnp.int32)
    found = by_rule((rules.chow, rules.opt), choice, lambda rule: jnp.full((4,), 1 + (rule is rules.opt), jnp.int32))
    np.testing.assert_array_equal(found, [2, 1, 0, 2])
    alone = by_rule((rules.chow,), choice, lambda rule: jnp.full((4,), 1 + (rule is rules.opt), jnp.int32))
    np.testing.assert_array_equal(alone, [1, 1, 1, 1])
