import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from helpers import ALPHAS, NAMES, RULES
from reference import Settings

from cascades import rules
from cascades.distributions import Purpose, Sampling, argmax, draw, gumbel, softmax, stream, total_variation
from cascades.speculation import Keys, acceptance, judge, pair_of, residual

KEPT = (Settings(0.0), Settings(0.5), Settings(1.0))
GRID = tuple(
    base._replace(**cut)
    for base in KEPT
    for cut in ({}, {"top_p": 0.7}, {"top_k": 2}, {"min_p": 0.3}, {"top_k": 3, "top_p": 0.9, "min_p": 0.1})
)


@functools.cache
def logits(vocab_size):
    rng = np.random.default_rng(vocab_size)
    p = 1.5 * rng.normal(size=(vocab_size**2, vocab_size))
    q = 0.5 * p + 0.75 * rng.normal(size=p.shape)
    return q.astype(np.float32), p.astype(np.float32)


def wide_sampling(settings, count):
    """Sampling parameters `[len(settings), count]`."""
    kinds = (np.float32, np.int32, np.float32, np.float32)
    columns = [np.asarray(x, t)[:, None] for x, t in zip(zip(*settings, strict=True), kinds, strict=True)]
    return Sampling(*(jnp.asarray(np.broadcast_to(x, (len(settings), count))) for x in columns))


@functools.cache
def pairs(vocab_size):
    """Every setting of the grid at every context: `[setting, context, v]`."""
    q, p = (jnp.broadcast_to(x, (len(GRID), *x.shape)) for x in logits(vocab_size))
    return pair_of(q, p, wide_sampling(GRID, vocab_size**2))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("vocab_size", [3, 4, 5])
def test_law_of_blocks_is_the_autoregressive_law(name, vocab_size):
    # The package's pi, acceptance and residual, enumerated over every draft, against the reference's pi.
    pair = pairs(vocab_size)
    pi = RULES[name](pair, jnp.full(pair.p.shape[:-1], ALPHAS[name], jnp.float32)).pi
    kept = pair.q * acceptance(pi, pair.q)
    rejected = 1 - jnp.sum(kept, axis=-1, keepdims=True)
    corrected = rejected * residual(pi, pair.q)
    plain, beta = (name[:5], 0.8) if name == "lossy_beta" else (name, 1.0)
    q, p = logits(vocab_size)
    for i, settings in enumerate(GRID):
        wanted, _, _ = reference.tables(plain, q, p, settings, ALPHAS[name], beta)
        moves = [np.asarray(x[i], np.float64) for x in (kept, corrected, pi)]
        for k in (1, 2, 3):
            length = min(k + 1, 3 if vocab_size == 5 else 4)
            law = reference.block_law(*moves, vocab_size, (1,), length, k)
            target = reference.autoregressive_law(wanted, vocab_size, (1,), length)
            assert reference.distance(law, target) < 1e-5, (settings, k)
            assert abs(law.sum() - 1) < 1e-5


@pytest.mark.parametrize("name", NAMES)
def test_rejection_probability_is_the_distance(name):
    pair = pairs(5)
    pi = RULES[name](pair, jnp.full(pair.p.shape[:-1], ALPHAS[name], jnp.float32)).pi
    rejected = 1 - jnp.sum(pair.q * acceptance(pi, pair.q), axis=-1)
    np.testing.assert_allclose(rejected, total_variation(pi, pair.q), atol=2e-6)
    np.testing.assert_allclose(jnp.minimum(pair.q, pi) + rejected[..., None] * residual(pi, pair.q), pi, atol=2e-6)


def test_residual_of_equal_distributions_is_the_target():
    pi = jnp.asarray([[0.2, 0.8, 0.0], [0.0, 1.0, 0.0]], jnp.float32)
    np.testing.assert_array_equal(residual(pi, pi), pi)
    np.testing.assert_allclose(residual(pi, pi[::-1]), [[1, 0, 0], [0, 1, 0]], atol=1e-6)


judged = jax.jit(judge, static_argnums=(5, 9, 10))
FIRST = jnp.zeros((64,), jnp.int32)  # the rule that each row has chosen


def block(coupling="maximal", bonus="verifier", lengths=None, rule=rules.token_v2, temperature=1.0, **new):
    """One judged block of random logits; returns what went in and what came out."""
    rng, rows, k, vocab = np.random.default_rng(5), 64, 3, 6
    given = {
        "q": rng.normal(size=(rows, k + 1, vocab)).astype(np.float32) * 1.5,
        "p": rng.normal(size=(rows, k + 1, vocab)).astype(np.float32) * 1.5,
        "drafts": rng.integers(0, vocab, (rows, k)).astype(np.int32),
        "lengths": np.full(rows, k, np.int32) if lengths is None else np.asarray(lengths, np.int32),
    } | new
    keys = jax.random.split(jax.random.key(3), rows)
    positions = jnp.broadcast_to(jnp.arange(k + 1, dtype=jnp.int32)[None] + 7, (rows, k + 1))
    given["keys"] = Keys(stream(keys, positions[:, :k], Purpose.ACCEPT), stream(keys, positions, Purpose.TOKEN))
    row = jnp.ones((rows,), jnp.float32)
    sampling = Sampling(temperature * row, jnp.zeros((rows,), jnp.int32), row, 0 * row)
    arrays = [jnp.asarray(given[name]) for name in ("drafts", "lengths", "q", "p")]
    return given, judged(*arrays, given["keys"], (rule,), FIRST, 0.3 * row, sampling, coupling, bonus)


def test_judge_reports_scalars_of_each_position():
    given, out = block()
    for row in range(8):
        for i in range(3):
            d = reference.pair_of(given["q"][row, i], given["p"][row, i], Settings(1.0))
            pi = reference.target("token_v2", d, float(np.float32(0.3)))
            token = given["drafts"][row, i]
            np.testing.assert_allclose(out.expected[row, i], 1 - reference.distance(pi, d.q), atol=1e-5)
            kept = d.p_raw >= d.p_raw.max() - 0.3
            np.testing.assert_allclose(out.defer[row, i], d.q[~kept].sum(), atol=1e-5)
            np.testing.assert_allclose(out.log_p[row, i], np.log(d.p_raw[token]), atol=1e-5)
        end = reference.softmax(given["p"][row, int(out.accepted[row])])
        np.testing.assert_allclose(out.log_p[row, 3], np.log(end[int(out.token[row])]), atol=1e-5)


@pytest.mark.parametrize("rule", [rules.lossless, rules.opt, rules.token_v3])
def test_judge_tells_how_close_the_models_were_also_of_greedy_rows(rule):
    _, sampled = block(rule=rule)
    _, greedy = block(rule=rule, temperature=0.0)
    np.testing.assert_allclose(greedy.expected, sampled.expected, rtol=1e-5)
    assert ((np.asarray(greedy.expected) > 0.01) & (np.asarray(greedy.expected) < 0.99)).mean() > 0.1


@pytest.mark.parametrize("coupling", ["maximal", "gumbel"])
def test_judge_stops_at_each_rows_length(coupling):
    lengths = np.arange(64) % 4
    q = np.random.default_rng(0).normal(size=(64, 4, 6)).astype(np.float32)
    drafts = np.zeros((64, 3), np.int32)
    if coupling == "gumbel":  # drafts that this coupling keeps: drawn with the noise that judges them
        given, _ = block()
        drafts = np.asarray(draw(softmax(jnp.asarray(q[:, :3])), given["keys"].token[:, :3]))
    _, out = block(coupling, lengths=lengths, rule=rules.lossless, q=q, p=q, drafts=drafts)
    np.testing.assert_array_equal(out.accepted, lengths)
    assert bool(jnp.all(out.lossless))


def test_judge_rejects_what_the_target_never_says():
    q = np.zeros((64, 4, 6), np.float32)
    p = np.zeros((64, 4, 6), np.float32)
    p[..., 0] = -np.inf
    _, out = block(rule=rules.lossless, q=q, p=p, drafts=np.zeros((64, 3), np.int32))
    np.testing.assert_array_equal(out.accepted, 0)
    assert not bool(jnp.any(out.token == 0))


def test_judge_does_not_read_the_drafter_behind_the_block_unless_the_bonus_is_the_targets():
    given, out = block()
    poisoned = given["q"].copy()
    poisoned[:, 3] = np.nan
    _, other = block(q=poisoned)
    full = np.asarray(out.accepted) == 3
    assert full.any()
    for a, b in zip(out, other, strict=True):
        np.testing.assert_array_equal(a, b)
    _, target = block(bonus="target")
    assert (np.asarray(target.token)[full] != np.asarray(out.token)[full]).any()
    np.testing.assert_array_equal(np.asarray(target.token)[~full], np.asarray(out.token)[~full])


def test_gumbel_emits_the_argmax_of_pi_and_noise():
    given, out = block("gumbel", "target")
    noise = np.asarray(gumbel(given["keys"].token, 6))
    for row in range(64):
        end = int(out.accepted[row])
        for i in range(end + 1):
            d = reference.pair_of(given["q"][row, i], given["p"][row, i], Settings(1.0))
            pi = reference.target("token_v2", d, float(np.float32(0.3)))
            best = int(np.argmax(np.log(pi) + noise[row, i]))
            if i < end:
                assert best == given["drafts"][row, i]
            else:
                assert best == int(out.token[row])
                assert i == 3 or best != given["drafts"][row, i]


def test_gumbel_acceptance_is_bounded_below():
    # Daliri, Musco, Suresh (arXiv 2408.07978): at least (1 - TV) / (1 + TV), against 1 - TV of the maximal coupling.
    rng = np.random.default_rng(8)
    a, b = rng.dirichlet(np.ones(5), size=(2, 12)).astype(np.float32)
    noise = gumbel(jax.random.split(jax.random.key(5), 20_000), 5)[:, None]
    first, second = (argmax(jnp.log(jnp.asarray(x)[None]) + noise) for x in (a, b))
    same = jnp.mean((first == second).astype(jnp.float32), axis=0)
    distance = np.asarray([reference.distance(x, y) for x, y in zip(a, b, strict=True)])
    error = 3 / np.sqrt(20_000)
    assert (np.asarray(same) >= (1 - distance) / (1 + distance) - error).all()
    assert (np.asarray(same) <= 1 - distance + error).all()


# Extremes.

STEEP = np.asarray(
    [
        [0, 200, -200, 1, 0, 3],
        [-np.inf, 5, -np.inf, 5, 5, -1e30],
        [300, 299, 0, -np.inf, -300, 1],
        [3e38, -3e38, 0, 1, 2, 3],
        [1, 1, 1, 1, 1, 1],
    ],
    np.float32,
)
ENDS = [Settings(temperature, *cut) for temperature in (0.0, 1e-9, 1e-4, 1.0, 100.0) for cut in ((), (1,), (0, 1e-7))]


@pytest.mark.parametrize("name", NAMES)
def test_every_rule_gives_a_distribution_at_the_extremes(name):
    rows = [(q, p, settings) for q in STEEP for p in STEEP for settings in ENDS]
    q, p = (jnp.asarray([row[i] for row in rows]) for i in (0, 1))
    sampling = Sampling(*(x[:, 0] for x in wide_sampling([settings for _, _, settings in rows], 1)))
    pair = pair_of(q, p, sampling)
    low, high = rules.ALPHA_RANGE.get(RULES[name], (0.0, 1.0))
    for alpha in {ALPHAS[name], max(low, -3e38), min(high, 3e38), low, high, 1.0 - 6e-8 if high == 1 else high}:
        pi, defer = RULES[name](pair, jnp.full(len(rows), alpha, jnp.float32))
        assert np.isfinite(pi).all() and (np.asarray(pi) >= 0).all(), alpha
        np.testing.assert_allclose(jnp.sum(pi, axis=-1), 1, rtol=1e-5)
        assert np.isfinite(defer).all()
        rest = residual(pi, pair.q)
        assert np.isfinite(rest).all() and np.isfinite(acceptance(pi, pair.q)).all()
        np.testing.assert_allclose(jnp.sum(rest, axis=-1), 1, rtol=1e-5)


def test_the_log_probability_of_a_token_far_down_is_a_number():
    p = np.zeros((64, 4, 6), np.float32)
    p[..., 0] = 250.0
    _, out = block(rule=rules.lossless, p=p, drafts=np.full((64, 3), 2, np.int32))
    np.testing.assert_allclose(out.log_p[:, :3], -250.0, rtol=1e-6)


@pytest.mark.parametrize("coupling", ["maximal", "gumbel"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_judge_keeps_nothing_where_the_verifier_says_nan(coupling, value):
    _, calm = block(coupling)
    given, _ = block(coupling)
    spoilt = given["p"].copy()
    spoilt[::2, 1] = value
    _, out = block(coupling, p=spoilt)
    before = np.asarray(calm.accepted)
    reached = (before >= 1) & (np.arange(64) % 2 == 0)
    assert reached.any() and (np.asarray(out.accepted)[reached] == 1).all()
    np.testing.assert_array_equal(out.failed, reached)
    for ours, theirs in zip(out, calm, strict=True):
        np.testing.assert_array_equal(np.asarray(ours)[1::2], np.asarray(theirs)[1::2])
    assert np.isfinite(out.expected).all() and np.isfinite(out.defer).all()


def test_a_bonus_without_a_drafter_is_the_verifiers():
    known = jnp.asarray(np.arange(64) % 2 == 0)
    given, target = block("gumbel", "target", rule=rules.token_v1)
    _, plain = block("gumbel", "verifier", rule=rules.token_v1)
    arrays = [jnp.asarray(given[name]) for name in ("drafts", "lengths", "q", "p")]
    row = jnp.ones((64,), jnp.float32)
    sampling = Sampling(row, jnp.zeros((64,), jnp.int32), row, 0 * row)
    mixed = judged(*arrays, given["keys"], (rules.token_v1,), FIRST, 0.3 * row, sampling, "gumbel", "target", known)
    np.testing.assert_array_equal(mixed.token, jnp.where(known, target.token, plain.token))
