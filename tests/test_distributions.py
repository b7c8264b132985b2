import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from helpers import SETTINGS, chi_square
from reference import Settings
from scipy import stats

from cascades import distributions
from cascades.distributions import Purpose, Sampling

MORE = (
    *SETTINGS,
    Settings(2.0, top_k=1),
    Settings(1.0, top_k=100),
    Settings(1.0, top_p=0.05),
    Settings(1.0, top_p=0.999),
    Settings(1.0, min_p=1.0),
    Settings(0.3, top_k=4, top_p=0.5),
    Settings(1.5, top_k=7, min_p=0.2),
)


def sampling_of(settings) -> Sampling:
    kinds = (np.float32, np.int32, np.float32, np.float32)
    return Sampling(*(jnp.asarray(np.asarray(x, t)) for x, t in zip(zip(*settings, strict=True), kinds, strict=True)))


@pytest.mark.parametrize("vocab_size", [3, 5, 64])
def test_scaled_is_the_reference(vocab_size):
    logits = 3 * np.random.default_rng(0).normal(size=(40, vocab_size)).astype(np.float32)
    rows = [(row, settings) for row in logits for settings in MORE]
    ours = distributions.scaled(jnp.asarray([row for row, _ in rows]), sampling_of([s for _, s in rows]))
    theirs = np.stack([reference.sampled(row, s) for row, s in rows])
    seen = (theirs == 0) | (theirs > 1e-6)  # a tail below the rounding of the kept mass may go either way
    np.testing.assert_array_equal((np.asarray(ours) > 0) & seen, (theirs > 0) & seen)
    np.testing.assert_allclose(ours, theirs, atol=2e-6)
    assert ours.dtype == jnp.float32


def test_greedy_is_one_hot_at_the_first_largest():
    logits = jnp.asarray([[0.0, 2.0, 2.0], [5.0, 5.0, 5.0], [-1.0, -2.0, 0.0]], jnp.bfloat16)
    ours = distributions.scaled(logits, sampling_of([Settings(0.0, top_k=2, top_p=0.5)] * 3))
    np.testing.assert_array_equal(ours, [[0, 1, 0], [1, 0, 0], [0, 0, 1]])


@pytest.mark.parametrize(
    "settings", [Settings(1.0, top_k=2), Settings(1.0, top_p=0.6), Settings(1.0, min_p=0.5)], ids=str
)
def test_ties_with_the_last_kept_token_stay_in_any_order(settings):
    logits = np.log(np.asarray([0.4, 0.25, 0.25, 0.1], np.float32))
    for order in ([0, 1, 2, 3], [3, 2, 1, 0], [1, 0, 3, 2]):
        kept = np.asarray(distributions.scaled(jnp.asarray(logits[order])[None], sampling_of([settings])))[0]
        np.testing.assert_allclose(kept, (np.asarray([0.4, 0.25, 0.25, 0]) / 0.9)[order], rtol=1e-5)


def test_a_cut_never_removes_everything():
    logits = jnp.asarray([[1.0, 2.0, 0.0]] * 2, jnp.float32)
    ours = distributions.scaled(logits, sampling_of([Settings(1.0, top_p=0.0), Settings(1.0, top_p=1e-30)]))
    np.testing.assert_array_equal(ours, [[0, 1, 0]] * 2)


def test_a_row_is_not_touched_by_its_neighbours_cut():
    logits = jnp.asarray(np.random.default_rng(1).normal(size=(2, 50)), jnp.float32) * 8
    plain = Settings(1.0)
    alone = distributions.scaled(logits[:1], sampling_of([plain]))
    beside = distributions.scaled(logits, sampling_of([plain, Settings(1.0, top_k=3, top_p=0.5, min_p=0.1)]))
    np.testing.assert_array_equal(alone[0], beside[0])
    assert np.count_nonzero(beside[1]) <= 3


def test_masked_logits_stay_finite():
    logits = jnp.asarray([[0.0, -1e30, -jnp.inf, 1.0]] * 3, jnp.float32)
    ours = distributions.scaled(logits, sampling_of([Settings(0.0), Settings(1e-4), Settings(1.0, top_p=0.99)]))
    np.testing.assert_allclose(jnp.sum(ours, axis=-1), 1, rtol=1e-6)
    np.testing.assert_array_equal(ours[:, 1:3], 0)


def test_distances():
    rng = np.random.default_rng(2)
    a, b = rng.dirichlet(np.ones(7), size=(2, 100)).astype(np.float32)
    a[0] = np.eye(7)[3]
    np.testing.assert_allclose(
        distributions.total_variation(jnp.asarray(a), jnp.asarray(b)),
        [reference.distance(x, y) for x, y in zip(a, b, strict=True)],
        atol=1e-6,
    )
    ours = distributions.entropy(jnp.asarray(a))
    np.testing.assert_allclose(ours, [reference.entropy(x) for x in a], atol=1e-6)
    assert ours[0] == 0
    index = rng.integers(0, 7, 100).astype(np.int32)
    np.testing.assert_array_equal(distributions.at(jnp.asarray(a), jnp.asarray(index)), a[np.arange(100), index])


def test_draws_follow_the_distribution():
    probs = jnp.asarray([0.5, 0.0, 0.3, 0.2], jnp.float32)
    tokens = distributions.draw(jnp.broadcast_to(probs, (20_000, 4)), jax.random.split(jax.random.key(0), 20_000))
    statistic, freedom = chi_square(np.bincount(tokens, minlength=4), np.asarray(probs, np.float64))
    assert stats.chi2.sf(statistic, freedom) > 1e-3


def test_a_draw_is_the_argmax_of_log_probability_and_noise_also_beside_a_certain_row():
    probs = jnp.asarray([[0.5, 0.0, 0.3, 0.2], [0.0, 0.0, 1.0, 0.0]], jnp.float32)
    for seed in range(20):
        keys = jax.random.split(jax.random.key(seed), 2)
        noise = distributions.gumbel(keys, 4)
        np.testing.assert_array_equal(distributions.draw(probs, keys), jnp.argmax(jnp.log(probs) + noise, axis=1))
        np.testing.assert_array_equal(distributions.draw(probs[1:], keys[1:]), 2)


def test_uniform_is_uniform():
    numbers = distributions.uniform(jax.random.split(jax.random.key(1), (100, 50)))
    assert numbers.shape == (100, 50)
    assert stats.kstest(np.ravel(numbers), "uniform").pvalue > 1e-3
    assert float(jnp.min(numbers)) >= 0 and float(jnp.max(numbers)) < 1


def test_streams_differ_by_request_position_and_purpose_only():
    keys = jax.random.split(jax.random.key(2), 3)
    positions = jnp.asarray([[0, 1, 2, 3], [5, 6, 7, 8], [0, 1, 2, 3]], jnp.int32)
    data = np.concatenate(
        [jax.random.key_data(distributions.stream(keys, positions, p)).reshape(12, -1) for p in Purpose]
    )
    assert len(np.unique(data, axis=0)) == 12 * len(Purpose)
    alone = distributions.stream(keys[1:2], positions[1, 2:3], Purpose.ACCEPT)
    beside = distributions.stream(keys, positions, Purpose.ACCEPT)[1, 2]
    np.testing.assert_array_equal(jax.random.key_data(alone[0]), jax.random.key_data(beside))


# Extremes: a distribution comes of every logits that are those of one.

TINY, HUGE = (0.0, 1e-45, 1e-38, 1e-30, 1e-9, 1e-7), (100.0, 1e10, 3e38, np.inf)
STEEP = (
    [0.0, 200.0, -200.0, 1.0],
    [3e38, -3e38, 1e30, 0.0],
    [-3e38, -3e38, -3e38, -3.1e38],
    [-np.inf, 5.0, -np.inf, 5.0],
    [0.0, -1e30, -np.inf, 1e-30],
    [1e-38, 2e-38, 0.0, -1e-38],
)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("temperature", TINY)
def test_tiny_temperatures_are_greedy(temperature, dtype):
    logits = jnp.asarray([*STEEP, [1.0, 1.0 + 1e-6, 1.0, 0.0]], dtype)
    cold = distributions.scaled(logits, sampling_of([Settings(0.0)] * len(logits)))
    for beside in (Settings(temperature), Settings(1.0)):  # alone, and with a row that is sampled
        rows = [Settings(temperature)] * (len(logits) - 1) + [beside]
        found = distributions.scaled(logits, sampling_of(rows))
        np.testing.assert_array_equal(found[:-1], cold[:-1])
    cut = distributions.scaled(logits, sampling_of([Settings(temperature, 2, 0.5, 0.1)] * len(logits)))
    np.testing.assert_array_equal(cut, cold)


@pytest.mark.parametrize("cut", [{}, {"top_k": 1}, {"top_p": 1e-45}, {"top_p": 1e-7}, {"min_p": 1.0}], ids=str)
def test_no_logits_of_a_distribution_give_nan(cut):
    for temperature in (*TINY, 1e-6, 1e-5, 0.1, 1.0, *HUGE):
        for dtype in (jnp.float32, jnp.bfloat16):
            logits = jnp.asarray(STEEP, dtype)
            found = np.asarray(distributions.scaled(logits, sampling_of([Settings(temperature, **cut)] * len(STEEP))))
            assert np.isfinite(found).all(), (temperature, dtype)
            np.testing.assert_allclose(found.sum(axis=-1), 1, rtol=1e-5)
            assert (found[3, [0, 2]] == 0).all() and found[4, 2] == 0
            assert np.isfinite(distributions.log_normalizer(logits)).all()


def test_the_normalizer_tells_logits_of_no_distribution():
    bad = [[0.0, jnp.nan, 1.0], [0.0, jnp.inf, 1.0], [-jnp.inf] * 3, [jnp.inf, jnp.nan, 0.0], [jnp.nan] * 3]
    for dtype in (jnp.float32, jnp.bfloat16):
        assert not np.isfinite(jax.jit(distributions.log_normalizer)(jnp.asarray(bad, dtype))).any()
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(5, 9)) * 100, jnp.float32)
    np.testing.assert_allclose(
        logits - distributions.log_normalizer(logits)[:, None], jax.nn.log_softmax(logits), rtol=1e-5, atol=1e-4
    )


def test_a_row_of_nan_does_not_touch_the_others():
    logits = jnp.asarray([[0.0, 1.0, 2.0], [jnp.nan] * 3, [0.0, 1.0, 0.5]], jnp.float32)
    keys = jax.random.split(jax.random.key(3), 3)
    for settings in (Settings(0.0), Settings(1.0), Settings(0.7, top_k=2)):
        sampling = sampling_of([settings] * 3)
        found = distributions.scaled(logits, sampling)
        calm = distributions.scaled(logits.at[1].set(0.0), sampling)
        np.testing.assert_array_equal(found[::2], calm[::2])
        np.testing.assert_array_equal(distributions.draw(found, keys)[::2], distributions.draw(calm, keys)[::2])
