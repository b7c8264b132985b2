"""Losses against plain NumPy, and what their gradients do."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cascades import rules
from cascades.models.layers import MASKED
from cascades.training import losses

V = 7
DISTANCES = [losses.forward_kl, losses.reverse_kl, losses.jensen_shannon, losses.total_variation]


def logits(seed):
    return jax.random.normal(jax.random.key(seed), (3, 4, V)) * 2


def softmax(x):
    x = np.asarray(x, np.float64)
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


def kl(a, b):
    return (a * np.log(a / b)).sum(-1)


def test_values():
    q, p = softmax(logits(0)), softmax(logits(1))
    m = 0.3 * p + 0.7 * q
    expected = {
        losses.forward_kl: kl(p, q),
        losses.reverse_kl: kl(q, p),
        losses.total_variation: np.abs(p - q).sum(-1) / 2,
    }
    for loss, values in expected.items():
        np.testing.assert_allclose(loss(logits(0), logits(1)), values, rtol=1e-5)
    found = losses.jensen_shannon(logits(0), logits(1), beta=0.3)
    np.testing.assert_allclose(found, 0.3 * kl(p, m) + 0.7 * kl(q, m), rtol=1e-5)


@pytest.mark.parametrize("name", rules.__all__)
def test_rejection_is_one_minus_the_mass_that_q_shares_with_the_target(name):
    rule = getattr(rules, name)
    q, p = (jax.nn.softmax(logits(seed)) for seed in (0, 1))
    pi, _ = rule(rules.Pair(q, p, q, p), jnp.full((3, 4), 0.4))
    expected = 1 - np.minimum(np.asarray(pi), np.asarray(q)).sum(-1)
    np.testing.assert_allclose(losses.rejection(logits(0), logits(1), rule, 0.4), expected, atol=1e-5)


@pytest.mark.parametrize("loss", DISTANCES)
def test_equal_distributions_are_no_distance_and_the_verifier_gets_no_gradient(loss):
    np.testing.assert_allclose(loss(logits(0), logits(0) + 3.0), 0.0, atol=1e-6)
    drafter, verifier = jax.grad(lambda q, p: loss(q, p).sum(), argnums=(0, 1))(logits(0), logits(1))
    assert float(jnp.max(jnp.abs(drafter))) > 0 and not bool(jnp.any(verifier))


@pytest.mark.parametrize("loss", [*DISTANCES, losses.rejection])
def test_a_drafter_that_scores_some_tokens_alone(loss):
    """KL compares with what it can say; what is rejected is counted over all tokens."""
    there = jnp.arange(V) < 4
    drafter = jnp.where(there, logits(0), MASKED)
    found = loss(drafter, logits(1))
    q, p = softmax(drafter), softmax(logits(1))
    if loss in (losses.forward_kl, losses.reverse_kl, losses.jensen_shannon):
        np.testing.assert_allclose(found, loss(logits(0)[..., :4], logits(1)[..., :4]), rtol=1e-5)
    elif loss is losses.total_variation:
        np.testing.assert_allclose(found, np.abs(p - q).sum(-1) / 2, rtol=1e-5)
    gradient = jax.grad(lambda x: loss(jnp.where(there, x, MASKED), logits(1)).sum())(logits(0))
    assert np.isfinite(gradient).all() and not np.any(gradient[..., 4:]) and np.any(gradient[..., :4])


@pytest.mark.parametrize("loss", [*DISTANCES, losses.rejection])
def test_descent_raises_acceptance(loss, standard_promotion):
    del standard_promotion
    q, p = logits(0), logits(1)
    optimizer = optax.adam(0.1)

    @jax.jit
    def step(q, state):
        updates, state = optimizer.update(jax.grad(lambda q: loss(q, p).sum())(q), state)
        return optax.apply_updates(q, updates), state

    before, state = losses.rejection(q, p).mean(), optimizer.init(q)
    for _ in range(60):
        q, state = step(q, state)
    assert float(losses.rejection(q, p).mean()) < 0.4 * float(before)


def test_cross_entropy_and_the_weighted_mean():
    labels = jnp.asarray([[0, 1, 2, 3], [4, 5, 6, 0], [1, 1, 1, 1]], jnp.int32)
    found = losses.cross_entropy(logits(0), labels)
    expected = -np.log(np.take_along_axis(softmax(logits(0)), np.asarray(labels)[..., None], -1)[..., 0])
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    weight = jnp.zeros((3, 4)).at[1, 2].set(1.0)
    np.testing.assert_allclose(losses.mean(found, weight), expected[1, 2], rtol=1e-5)
    assert float(losses.mean(found, 0 * weight)) == 0.0
