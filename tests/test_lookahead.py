import doctest
import functools
import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import lookahead_cases
import numpy as np
import pytest

from cascades import lookahead
from cascades.errors import UserError
from cascades.lookahead import Drafted, Verdict, given_costs, guided

ROUNDS = 300


@functools.partial(jax.jit, static_argnums=(0, 5, 7, 8))
def simulate(controller, costs, accept, tops, key, rounds=ROUNDS, expected=None, counted=False, batch=None):
    """Runs rounds of a row each, with no models: a position is of a random kind, accepted with its own probability.

    Args:
      accept: `[rounds, b, kinds]`, acceptance of each kind. tops: `[b, kinds]`, how sure the drafter is there.
      expected: what the controller is told in the place of `accept`. counted: whether it is to go by what happens.
      batch: of rows that are one, and wait for the longest draft of all, whether they decide as one; None if each is
        a batch of its own.

    Returns:
      For each round and row: drafts verified, drafter steps, tokens emitted, time.
    """
    rows, k_max = tops.shape[0], costs.verify.shape[0] - 1
    column = jnp.arange(k_max, dtype=jnp.int32)[None, :]
    peers = jnp.ones((rows,), bool) if batch else None

    def one(state, now):
        key, accept = now
        state, length, _ = controller.propose(state, jnp.zeros((rows,), jnp.int32), peers)
        length = jnp.clip(length, 0, k_max)
        first, second = jax.random.split(key)
        kind = jax.random.randint(first, (rows, k_max), 0, tops.shape[1])
        rate, top = (jnp.take_along_axis(x, kind, axis=1) for x in (accept, tops))
        steps = jnp.zeros((rows,), jnp.int32)
        for i in range(k_max):
            drafting = i < length
            state, keep, more = controller.step(state, Drafted(jnp.int32(i), top[:, i], drafting, peers))
            steps = steps + drafting.astype(jnp.int32)
            length = jnp.where(drafting & ~more, jnp.where(keep, i + 1, i), length).astype(jnp.int32)
        within = column < length[:, None]
        kept = (jax.random.uniform(second, (rows, k_max)) < rate) & within
        accepted = jnp.sum(jnp.cumprod(kept.astype(jnp.int32), axis=1), axis=1).astype(jnp.int32)
        decided = (column <= accepted[:, None]) & within
        told = rate if expected is None else jnp.full_like(rate, expected)
        matched, by_outcome = jnp.zeros(decided.shape, jnp.int32), jnp.full((rows,), counted)
        seen = steps, length, accepted, told, decided, top, matched, by_outcome, peers
        state = controller.update(state, Verdict(*seen))
        longest, most = (length, steps) if batch is None else (jnp.full_like(x, jnp.max(x)) for x in (length, steps))
        time = costs.verify[longest] + costs.draft * most.astype(jnp.float32)
        return state, (length, steps, accepted + 1, time)

    return jax.lax.scan(one, controller.init(rows, costs), (jax.random.split(key, rounds), accept))[1]


def constant(rates, rounds=ROUNDS):
    return jnp.broadcast_to(jnp.asarray(rates, jnp.float32), (rounds, *np.shape(rates)))


def best_fixed(rate, costs):
    """Tokens per unit of time of the best constant length, 0 included."""
    k = np.arange(costs.verify.shape[0])
    tokens = np.cumsum(rate**k)
    return np.max(tokens / (k * float(costs.draft) + np.asarray(costs.verify, np.float64)))


TABLES = {
    "free pass": given_costs(8, 0.05),
    "usual": given_costs(8, 0.2),
    "dear drafter": given_costs(8, 0.5),
    "rising": given_costs(8, 0.2, tuple(1 + 0.1 * i for i in range(9))),
    "two cores": given_costs(8, 0.37, (1.0, 1.35, 1.4, 1.45, 1.45, 1.5, 1.5, 1.55, 1.55)),
    "jumps": given_costs(8, 0.1, (1.0, 1.6, 1.6, 1.7, 1.7, 2.2, 2.2, 2.2, 2.2)),
    "linear": given_costs(8, 0.1, tuple(1 + 0.8 * i for i in range(9))),
}
RATES, COPIES = (0.02, 0.3, 0.6, 0.9, 0.97), 32
GUIDED = lookahead.verifier_guided()


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("telling", [False, True])
@pytest.mark.parametrize(("counted", "least"), [(False, 0.97), (True, 0.93)])
def test_guided_is_close_to_the_best_fixed_length(table, telling, counted, least):
    # Every position alike. Where `telling`, the drafter is sure and unsure by turns, and it means nothing. Of rows that
    # go by outcomes a rate is known by their number alone, as what was expected may be far from it.
    costs = TABLES[table]
    tops = np.tile(np.float32([0.2, 0.5, 0.75, 0.95] if telling else [0.75] * 4), (len(RATES) * COPIES, 1))
    accept = np.repeat(np.float32(RATES), COPIES)[:, None] * np.ones((1, 4), np.float32)
    given = constant(accept), jnp.asarray(tops), jax.random.key(0), ROUNDS, None, counted
    _, _, tokens, time = simulate(GUIDED, costs, *given)
    # The first rounds, when nothing is known, count too.
    tokens, time = (
        np.asarray(x, np.float64).reshape(ROUNDS, len(RATES), COPIES).sum(axis=(0, 2)) for x in (tokens, time)
    )
    ratio = tokens / time / [best_fixed(rate, costs) for rate in RATES]
    assert (ratio >= least).all(), ratio


@pytest.mark.parametrize("tops", [[0.2, 0.5, 0.75, 0.95], [0.95, 0.75, 0.5, 0.2]], ids=["honest", "inverted"])
def test_guided_learns_what_the_drafters_confidence_means(tops):
    # Acceptance differs by confidence, even the wrong way round: better than any fixed length.
    accept = np.tile(np.float32([0.1, 0.4, 0.8, 0.98]), (COPIES, 1))
    for table in ("usual", "rising", "jumps"):
        costs = TABLES[table]
        *_, tokens, time = simulate(
            GUIDED, costs, constant(accept), jnp.asarray(np.tile(np.float32(tops), (COPIES, 1))), jax.random.key(1)
        )
        tokens, time = np.asarray(tokens, np.float64), np.asarray(time, np.float64)
        assert np.sum(tokens[100:]) / np.sum(time[100:]) > 1.03 * best_fixed(accept[0].mean(), costs)


def test_guided_stops_probes_and_starts_again():
    costs = TABLES["usual"]
    rates = np.concatenate([np.full(300, 0.02), np.full(300, 0.95), np.full(300, 0.02)]).astype(np.float32)
    accept = jnp.broadcast_to(jnp.asarray(rates)[:, None, None], (900, COPIES, 1))
    tops = jnp.full((COPIES, 1), 0.7, jnp.float32)
    length, *_ = simulate(GUIDED, costs, accept, tops, jax.random.key(2), 900)
    length = np.asarray(length)
    low, high, again = length[100:300], length[450:600], length[700:]
    assert np.mean(low == 0) > 0.95
    assert (low.max(axis=0) > 0).all(), "no row ever probes"
    gaps = np.diff(np.flatnonzero(length[:300, 0] > 0))
    stretch = 0.2 / (0.02 * 8)  # a probe in vain costs 0.2 here, and 2% of 8 rounds is less
    assert gaps.max() <= 64 * stretch + 1 and gaps[-1] > 2 * gaps[gaps > 1][0]  # rarer and rarer, but they do not end
    assert high.mean() > 7
    assert np.mean(again == 0) > 0.95


def test_guided_drafts_long_where_everything_is_accepted():
    length, *_ = simulate(
        GUIDED, given_costs(16, 0.02), constant([[1.0]] * 4), jnp.full((4, 1), 0.9, jnp.float32), jax.random.key(3)
    )
    assert (np.asarray(length)[:20].max(axis=0) == 16).all()
    assert (np.asarray(length)[20:] == 16).all()


@pytest.mark.parametrize("rate", [0.05, 0.2])
def test_guided_believes_what_was_accepted_over_what_was_expected(rate):
    # Flat greedy distributions: the two models are near each other everywhere, and seldom agree on the largest.
    costs, tops = TABLES["usual"], jnp.full((COPIES, 1), 0.9, jnp.float32)
    accept = constant(np.full((COPIES, 1), rate))
    *_, tokens, time = simulate(GUIDED, costs, accept, tops, jax.random.key(6), ROUNDS, 0.9, True)
    tokens, time = np.asarray(tokens, np.float64), np.asarray(time, np.float64)
    assert np.sum(tokens[:50]) / np.sum(time[:50]) > 0.8
    assert np.sum(tokens) / np.sum(time) > 0.95


def test_guided_spends_little_on_probes_however_dear_they_are():
    costs = given_costs(8, 0.36, (1.0, 2.33, 2.55, 2.9, 2.9, 3.1, 3.1, 3.1, 3.1))  # a CPU without a narrow product
    accept = jnp.full((COPIES, 1), 0.1, jnp.float32)
    *_, tokens, time = simulate(GUIDED, costs, constant(accept), jnp.full((COPIES, 1), 0.7), jax.random.key(5))
    tokens, time = np.asarray(tokens, np.float64), np.asarray(time, np.float64)
    assert (time > 1).any(), "no probe"
    for rounds in (20, 60, ROUNDS):
        assert np.sum(tokens[:rounds]) / np.sum(time[:rounds]) > 0.97, rounds


def test_guided_never_drafts_where_no_draft_can_pay():
    # A drafter as slow as the verifier: even certain acceptance does not pay, and only probes draft.
    costs = given_costs(4, 1.0, (1.0, 2.0, 3.0, 4.0, 5.0))
    length, *_ = simulate(GUIDED, costs, constant([[0.9]] * 4), jnp.full((4, 1), 0.9, jnp.float32), jax.random.key(3))
    assert (np.asarray(length) <= 1).all() and np.asarray(length).mean() < 0.05


MIXES = {"bad": [0.2] * 8, "good": [0.8] * 8, "one good": [0.9] + [0.2] * 7, "half good": [0.9] * 4 + [0.2] * 4}


def speed_of_a_batch(table, rates, together):
    tops = jnp.tile(jnp.float32([0.2, 0.5, 0.75, 0.95]), (8, 1))
    accept, tokens, time = constant(np.repeat(np.float32(rates)[:, None], 4, axis=1)), 0, 0
    for seed in range(3):
        *_, said, took = simulate(
            GUIDED, TABLES[table], accept, tops, jax.random.key(seed), ROUNDS, None, True, together
        )
        tokens, time = tokens + np.sum(np.asarray(said, np.float64)), time + np.sum(np.asarray(took, np.float64))
    return tokens / time


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("table", ["usual", "jumps", "dear drafter"])
def test_rows_of_a_batch_decide_as_one_nearly_as_well_as_hindsight(table, mix):
    costs, k = TABLES[table], np.arange(9)
    tokens = np.mean([np.cumsum(rate**k) for rate in MIXES[mix]], axis=0)
    best = np.max(tokens / (k * float(costs.draft) + np.asarray(costs.verify, np.float64)))
    assert speed_of_a_batch(table, MIXES[mix], True) >= 0.97 * best


def test_one_good_row_does_not_hold_up_the_others():
    assert (
        speed_of_a_batch("jumps", MIXES["one good"], True) > 0.97 > speed_of_a_batch("jumps", MIXES["one good"], False)
    )


def test_who_has_ended_has_no_say():
    state = GUIDED.init(3, TABLES["usual"])
    bad = verdict([8, 8, 8], [0, 0, 0])._replace(expected=jnp.zeros((3, 8), jnp.float32))
    state = jax.tree.map(lambda good, spoilt: good.at[1:].set(spoilt[1:]), state, GUIDED.update(state, bad))
    nothing = jnp.zeros((3,), jnp.int32)
    _, k, _ = GUIDED.propose(state, nothing, jnp.asarray([True, False, False]))
    _, alone, _ = GUIDED.propose(state, nothing, None)
    assert k[0] == alone[0] > 0
    shared_state, _, _ = GUIDED.propose(state, nothing, jnp.asarray([True, True, True]))
    assert bool(jnp.all(shared_state.probing == shared_state.probing[0]))


def test_guided_rows_are_independent():
    state = GUIDED.init(6, TABLES["usual"])
    others = GUIDED.init(1, TABLES["usual"])
    rng = np.random.default_rng(2)
    for _ in range(30):
        matched = jnp.asarray(rng.integers(0, 8, 6), jnp.int32)
        state, k, found = GUIDED.propose(state, matched, None)
        others, k_alone, found_alone = GUIDED.propose(others, matched[4:5], None)
        assert int(found[4]) == int(found_alone[0])
        assert int(k[4]) == int(k_alone[0])
        verdict = Verdict(
            steps=jnp.asarray(rng.integers(0, 8, 6), jnp.int32),
            drafted=jnp.asarray(rng.integers(0, 8, 6), jnp.int32),
            accepted=jnp.zeros((6,), jnp.int32),
            expected=jnp.asarray(rng.uniform(size=(6, 8)), jnp.float32),
            decided=jnp.asarray(rng.uniform(size=(6, 8)) < 0.5),
            top=jnp.asarray(rng.uniform(size=(6, 8)), jnp.float32),
            matched=jnp.asarray(rng.integers(0, 3, (6, 8)), jnp.int32),
            counted=jnp.asarray(rng.uniform(size=6) < 0.5),
        )
        state = GUIDED.update(state, verdict)
        others = GUIDED.update(others, jax.tree.map(lambda x: x[4:5], verdict))
    for ours, theirs in zip(jax.tree.leaves(state), jax.tree.leaves(others), strict=True):
        np.testing.assert_allclose(ours[4], theirs[0], rtol=1e-6)


CONTROLLERS = {
    "fixed": lookahead.fixed(3),
    "heuristic": lookahead.heuristic(),
    "drafter_confidence": lookahead.drafter_confidence(),
    "bild_fallback": lookahead.bild_fallback(),
    "verifier_guided": lookahead.verifier_guided(),
}


def test_every_controller_is_tried():
    assert set(CONTROLLERS) == set(lookahead.__all__)


def verdict(drafted, accepted, k_max=8):
    drafted, accepted = (jnp.asarray(x, jnp.int32) for x in (drafted, accepted))
    column = jnp.arange(k_max, dtype=jnp.int32)[None, :]
    wide = jnp.full((drafted.shape[0], k_max), 0.5, jnp.float32)
    decided = (column <= accepted[:, None]) & (column < drafted[:, None])
    counted = jnp.ones(drafted.shape, bool)
    return Verdict(drafted, drafted, accepted, wide, decided, wide, jnp.zeros(wide.shape, jnp.int32), counted)


def proposed(controller, state, matched=None):
    """What a controller proposes where a look-up found nothing, or as many tokens matched as are given."""
    batch = jax.tree.leaves(state)[0].shape[0]
    matched = jnp.zeros((batch,), jnp.int32) if matched is None else jnp.int32(matched)
    return controller.propose(state, matched, None)


@pytest.mark.parametrize("name", CONTROLLERS)
def test_protocol(name):
    controller, rows = CONTROLLERS[name], 3
    state = controller.init(rows, given_costs(8, 0.2))
    assert all(leaf.shape[0] == rows for leaf in jax.tree.leaves(state))
    spec = jax.tree.map(lambda x: (x.shape, x.dtype), state)
    state, k, found = proposed(controller, state, [0, 2, 9])
    assert k.shape == found.shape == (rows,) and k.dtype == found.dtype == jnp.int32
    assert int(jnp.min(k)) >= 0 and int(jnp.min(found)) >= 0
    half = jnp.full((rows,), 0.5, jnp.float32)
    drafted = Drafted(jnp.int32(0), half, jnp.ones((rows,), bool))
    state, keep, more = controller.step(state, drafted)
    assert keep.shape == more.shape == (rows,) and keep.dtype == more.dtype == bool
    state, another = controller.drawn(state, drafted, half)
    assert another.shape == (rows,) and another.dtype == bool
    state = controller.update(state, verdict([4, 4, 0], [4, 1, 0]))
    # The state goes round a while_loop.
    assert jax.tree.map(lambda x: (x.shape, x.dtype), state) == spec


def test_fixed():
    state = lookahead.fixed(3).init(2, given_costs(8, 0.2))
    for _ in range(3):
        state, k, _ = proposed(lookahead.fixed(3), state)
        np.testing.assert_array_equal(k, 3)
        state = lookahead.fixed(3).update(state, verdict([3, 3], [0, 3]))


def test_heuristic_schedule():
    controller = lookahead.heuristic(4)
    state = controller.init(4, given_costs(8, 0.2))
    seen = []
    # Rows: everything kept, nothing kept, alternately; the last had room for two drafts only, both kept.
    for i in range(5):
        state, k, _ = proposed(controller, state)
        seen.append(k.tolist())
        drafted = [int(k[0]), int(k[1]), int(k[2]), 2]
        state = controller.update(state, verdict(drafted, [drafted[0], 0, drafted[2] if i % 2 else 0, 2]))
    assert [row[0] for row in seen] == [4, 6, 8, 8, 8]
    assert [row[1] for row in seen] == [4, 3, 2, 1, 1]
    assert [row[2] for row in seen] == [4, 3, 5, 4, 6]
    assert [row[3] for row in seen] == [4, 6, 8, 8, 8]


def said(top, index=0):
    top = jnp.asarray(top, jnp.float32)
    return Drafted(jnp.int32(index), top, jnp.ones(top.shape, bool))


def test_drafter_confidence_keeps_the_unsure_token_and_stops_behind_it():
    controller = lookahead.drafter_confidence(0.4)
    state = controller.init(3, given_costs(8, 0.2))
    state, keep, more = controller.step(state, said([0.9, 0.9, 0.9]))
    np.testing.assert_array_equal([keep, more], True)
    _, another = controller.drawn(state, said([0.9, 0.9, 0.9]), jnp.float32([0.5, 0.4, 0.3]))
    np.testing.assert_array_equal(another, [True, True, False])


def test_bild_fallback_drops_the_unsure_token():
    controller = lookahead.bild_fallback(0.6)
    state = controller.init(3, given_costs(8, 0.2))
    _, keep, more = controller.step(state, said([0.9, 0.6, 0.5]))
    np.testing.assert_array_equal(keep, [True, True, False])
    np.testing.assert_array_equal(more, [True, True, False])


def test_a_position_is_judged_without_the_token_that_will_be_drawn_there():
    assert Drafted._fields == ("index", "top", "drafting", "peers")


@pytest.mark.parametrize("name", lookahead.__all__)
def test_the_same_arguments_make_the_same_controller(name):
    factory, other = getattr(lookahead, name), {"fixed": 5, "heuristic": 5}.get(name, 0.25)
    assert factory() == factory() and hash(factory()) == hash(factory())
    assert factory(other) == factory(other) != factory()


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: lookahead.fixed(2.5), "fixed.k must be a whole number from 0 to 1048576, not 2.5"),  # pyright: ignore
        (lambda: lookahead.fixed(-3), "fixed.k must be a whole number from 0 to 1048576, not -3"),
        (lambda: lookahead.fixed(True), "fixed.k must be a whole number from 0 to 1048576, not True"),
        (lambda: lookahead.fixed(10**12), "fixed.k must be a whole number from 0 to 1048576, not 1000000000000"),
        (lambda: lookahead.fixed(None), "fixed.k must be a whole number from 0 to 1048576, not None"),
        (lambda: lookahead.heuristic(0), "heuristic.start must be a whole number from 1 to 1048576, not 0"),
        (lambda: lookahead.heuristic("4"), "heuristic.start must be a whole number from 1 to 1048576, not '4'"),
        (
            lambda: lookahead.drafter_confidence(1.5),
            "drafter_confidence.threshold must be a number from 0 to 1, not 1.5",
        ),
        (lambda: lookahead.drafter_confidence(float("nan")), "threshold must be a number from 0 to 1, not nan"),
        (lambda: lookahead.bild_fallback(-0.1), "bild_fallback.threshold must be a number from 0 to 1, not -0.1"),
        (lambda: lookahead.bild_fallback(True), "bild_fallback.threshold must be a number from 0 to 1, not True"),
        (lambda: lookahead.verifier_guided(memory=1.01), "memory must be a number from 0 to 1, not 1.01"),
        (lambda: lookahead.verifier_guided(memory=float("nan")), "memory must be a number from 0 to 1, not nan"),
        (lambda: lookahead.verifier_guided(prior=0), "prior must be a number from 0.001 to 1000, not 0"),
        (lambda: lookahead.verifier_guided(prior=float("inf")), "prior must be a number from 0.001 to 1000, not inf"),
        (lambda: lookahead.verifier_guided(patience=0), "patience must be a whole number from 1 to 1048576, not 0"),
        (lambda: lookahead.verifier_guided(patience=8.0), "patience must be a whole number from 1 to 1048576, not 8.0"),
        (lambda: lookahead.verifier_guided(longest_wait=-1), "longest_wait must be a whole number from 1 to 1048576"),
    ],
)
def test_bad_arguments_are_told(call, sentence):
    with pytest.raises(UserError, match=re.escape(sentence)):
        call()


@pytest.mark.parametrize("tuning", [{"memory": 0.0}, {"memory": 1.0}, {"prior": 0.001}, {"prior": 1000.0}])
def test_guided_stays_finite_at_the_ends_of_its_ranges(tuning):
    controller, costs = lookahead.verifier_guided(**tuning), TABLES["usual"]
    state = controller.init(3, costs)
    for accepted in ([0, 2, 4], [0, 0, 4], [0, 1, 4]) * 5:
        state, *_ = proposed(controller, state)
        state, *_ = controller.step(state, said([0.1, 0.5, 0.9]))
        state = controller.update(state, verdict([4, 4, 4], accepted))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))


@pytest.mark.parametrize("case", lookahead_cases.CASES)
def test_guided_does_as_it_did_when_it_was_recorded(case):
    recorded = json.loads((Path(__file__).parent / "golden" / "lookahead.json").read_text())[case]
    tuning, costs = lookahead_cases.CASES[case]
    found = lookahead_cases.trace(lookahead.verifier_guided(**tuning), costs)
    for name in ("proposed", "stepped", "drafted"):
        assert found[name] == recorded[name], name
    assert found["state"].keys() == recorded["state"].keys()
    for name, value in recorded["state"].items():
        np.testing.assert_allclose(found["state"][name], value, rtol=1e-5, atol=1e-6, err_msg=name)


def test_the_worked_example_is_what_happens():
    tried = doctest.testmod(guided)
    assert tried.attempted >= 10 and tried.failed == 0


def test_costs_are_in_units_of_a_pass_over_one_token():
    costs = given_costs(2, 3.0, (6.0, 9.0, 12.0))
    assert float(costs.draft) == float(costs.catch_up) == 0.5
    np.testing.assert_array_equal(costs.verify, [1, 1.5, 2])
    assert float(given_costs(2, 3.0, (6.0, 9.0, 12.0), 4.5).catch_up) == 0.75


@pytest.mark.parametrize(
    ("k_max", "draft", "verify"),
    [(2, 0.1, (1.0, 1.0)), (1, 0.1, (1.0, 0.0)), (1, -0.1, ()), (1, float("nan"), ()), (1, 0.1, (1.0, float("inf")))],
)
def test_bad_costs_are_told(k_max, draft, verify):
    with pytest.raises(UserError):
        given_costs(k_max, draft, verify)


@pytest.mark.parametrize("catch_up", [-0.1, float("nan"), float("inf")])
def test_a_bad_cost_of_catching_up_is_told(catch_up):
    with pytest.raises(UserError, match="catching up must be a number from 0"):
        given_costs(1, 0.1, (), catch_up)


@pytest.mark.parametrize("controller", [lookahead.fixed(2), lookahead.heuristic(), GUIDED], ids=lambda c: c.name)
def test_a_controller_that_is_told_new_costs_is_as_one_that_began_with_them(controller):
    """At first: what it has learnt since is not touched."""
    old, new = given_costs(8, 0.2), given_costs(8, 0.7, tuple(1 + 0.4 * i for i in range(9)))
    told, first = controller.recost(controller.init(3, old), new), controller.init(3, new)
    told, first = (state._replace(wait=None) if hasattr(state, "wait") else state for state in (told, first))
    for ours, theirs in zip(jax.tree.leaves(told), jax.tree.leaves(first), strict=True):
        np.testing.assert_array_equal(ours, theirs)
