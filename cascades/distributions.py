"""From logits to the distributions that are sampled: temperature, top-k, top-p, min-p; distances; seeded draws.

Everything here is float32 and made of elementwise operations and reductions over the vocabulary (no sort, no
cumulative sum), so a sharded vocabulary needs no gather. Sampling parameters are traced and differ per row.
"""

from enum import IntEnum
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from cascades.typing import Array, Bool, Float, Int, Key

COLDEST = 1e-6
"""Temperatures below it are greedy: no two float32 logits of a usual size are so near that it could tell them apart."""
_HOTTEST = 1e20  # a token that is masked by a large negative logit stays so at every temperature
_ONE = 0x3F800000  # the bits of 1.0f: floats in [0, 1] are ordered as their bits are


class Sampling(NamedTuple):
    """How a row is sampled; every field has the shape of the leading axes of the logits.

    temperature: 0, and all below `COLDEST`, is greedy. top_k: int32, 0 is off. top_p: 1 is off. min_p: 0 is off.
    """

    temperature: Float[Array, "*b"]
    top_k: Int[Array, "*b"]
    top_p: Float[Array, "*b"]
    min_p: Float[Array, "*b"]


class Purpose(IntEnum):
    """What a random number is for: one stream per request, absolute position and purpose.

    DRAFT + i: the draft number i of a round that begins at the position.
    """

    ACCEPT = 1
    TOKEN = 2
    DRAFT = 3


def softmax(logits: Float[Array, "*b v"]) -> Float[Array, "*b v"]:
    """Returns the raw distribution (temperature 1, nothing cut off)."""
    _, weights, total = _exponentials(logits)
    return weights / total


def log_normalizer(logits: Float[Array, "*b v"]) -> Float[Array, "*b"]:
    """Returns log sum exp: a token's logit less it is its log-probability, however small that is.

    It is not finite exactly where the logits are those of no distribution: one is NaN or infinite, or all are -inf. Of
    the same steps as `softmax`, so that beside it this costs nothing.
    """
    top, _, total = _exponentials(logits)
    return (top + jnp.log(total))[..., 0]


def greedy(sampling: Sampling) -> Bool[Array, "*b"]:
    """Returns which rows take the first largest logit."""
    return sampling.temperature < COLDEST


def scaled(logits: Float[Array, "*b v"], sampling: Sampling) -> Float[Array, "*b v"]:
    """Returns the distribution that is sampled: temperature, then top-k, top-p of what is left, min-p.

    A greedy row's is one-hot at the first largest logit. A cut keeps every token that ties with the last one
    kept, so the result does not depend on the order of the vocabulary. What no row asks for is not computed.
    """
    logits = logits.astype(jnp.float32)
    cold = greedy(sampling)
    cut = (sampling.top_k > 0) | (sampling.top_p < 1) | (sampling.min_p > 0)
    cut &= ~cold

    top = jnp.max(logits, axis=-1, keepdims=True)

    def truncated(weights: Array) -> Array:
        return jnp.where(cut[..., None], _truncate(weights, sampling), weights)

    def weighed(logits: Array) -> Array:
        temperature = jnp.where(cold, 1.0, jnp.minimum(sampling.temperature, _HOTTEST))
        # The largest is taken off first: it stays 0 whatever it is divided by, so that nothing overflows to NaN.
        weights = jnp.exp((logits - top) / temperature[..., None])
        return lax.cond(jnp.any(cut), truncated, lambda weights: weights, weights)

    weights = lax.cond(jnp.all(cold), lambda logits: logits, weighed, logits)
    one_hot = (_iota(logits) == argmax(logits)[..., None]).astype(jnp.float32)
    return jnp.where(cold[..., None], one_hot, weights / jnp.sum(weights, axis=-1, keepdims=True))


def argmax(values: Float[Array, "*b v"]) -> Int[Array, "*b"]:
    """Returns the first index of the largest value; the last index where there is none (NaN).

    By two plain reductions: XLA's own argmax is no vector code on CPUs, and over a sharded axis it moves pairs. Both
    are of floats, which count to 2^24 exactly: of integers XLA on CPUs makes trees of four programs each.
    """
    best, last = jnp.max(values, axis=-1, keepdims=True), values.shape[-1] - 1
    from_the_end = (last - _iota(values)).astype(jnp.float32)
    return last - jnp.max(jnp.where(values == best, from_the_end, 0.0), axis=-1).astype(jnp.int32)


def entropy(probs: Float[Array, "*b v"]) -> Float[Array, "*b"]:
    """Returns the entropy in nats."""
    return -jnp.sum(jnp.where(probs > 0, probs * jnp.log(jnp.where(probs > 0, probs, 1.0)), 0.0), axis=-1)


def total_variation(a: Float[Array, "*b v"], b: Float[Array, "*b v"]) -> Float[Array, "*b"]:
    """Returns D_TV(a, b) = sum_v max(0, a - b)."""
    return jnp.sum(jnp.maximum(a - b, 0.0), axis=-1)


def at(values: Float[Array, "*b v"], tokens: Int[Array, "*b"]) -> Float[Array, "*b"]:
    """Returns `values[…, tokens]` as a masked sum, which fuses with its producer and needs no gather of a shard."""
    return jnp.sum(jnp.where(_iota(values) == tokens[..., None], values, 0.0), axis=-1)


def stream(
    keys: Key[Array, " b"], positions: Int[Array, "b *s"], purpose: Purpose | Int[np.ndarray, "*s"]
) -> Key[Array, "b *s"]:
    """Returns the key of each (request, absolute position, purpose); one purpose, or one for each place of `s`."""

    def one(key, position, purpose):
        return jax.random.fold_in(jax.random.fold_in(key, position), purpose)

    purposes = jnp.broadcast_to(jnp.asarray(purpose, jnp.int32), positions.shape[1:])
    row = jax.vmap(one, in_axes=(None, 0, 0)) if positions.ndim == 2 else one
    return jax.vmap(row, in_axes=(0, 0, None))(keys, positions, purposes)


def uniform(keys: Key[Array, "*b"]) -> Float[Array, "*b"]:
    """Draws one number in [0, 1) per key."""
    return jax.vmap(jax.random.uniform)(keys.reshape(-1)).reshape(keys.shape)


def gumbel(keys: Key[Array, "*b"], size: int) -> Float[Array, "*b v"]:
    """Draws a vector of `size` standard Gumbel numbers per key."""
    draws = jax.vmap(lambda key: jax.random.gumbel(key, (size,), jnp.float32))(keys.reshape(-1))
    return draws.reshape(*keys.shape, size)


def draw(probs: Float[Array, "*b v"], keys: Key[Array, "*b"]) -> Int[Array, "*b"]:
    """Returns argmax(log probs + Gumbel noise of `keys`), a sample of `probs` (the Gumbel-max trick).

    No noise is made where every row has one possible token only.
    """
    certain = jnp.all(jnp.sum((probs > 0).astype(jnp.float32), axis=-1) <= 1)  # 0 of a row that is NaN, and ends

    def noisy(probs: Array) -> Array:
        return jnp.log(probs) + gumbel(keys, probs.shape[-1])

    return argmax(lax.cond(certain, lambda probs: probs, noisy, probs))


def _exponentials(logits: Float[Array, "*b v"]) -> tuple[Array, Array, Array]:
    """The largest logit, exp of how far all lie below it, and their sum; the first and the last with an axis of 1."""
    logits = logits.astype(jnp.float32)
    top = lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
    weights = jnp.exp(logits - top)
    return top, weights, jnp.sum(weights, axis=-1, keepdims=True)


def _truncate(weights: Float[Array, "*b v"], sampling: Sampling) -> Float[Array, "*b v"]:
    """Top-k, top-p of what is left, min-p: zeros in place of what is cut off. The largest weight is 1."""
    size = weights.shape[-1]
    count = jnp.where(sampling.top_k > 0, jnp.minimum(sampling.top_k, size), size).astype(jnp.float32)

    def cut(turn, weights):
        by_count = turn == 0
        counted = jnp.where(by_count, 1.0, weights)
        return _keep_largest(weights, counted, jnp.where(by_count, count, sampling.top_p * jnp.sum(weights, axis=-1)))

    weights = lax.fori_loop(0, 2, cut, weights)  # a loop, so that it is compiled once
    return jnp.where(weights >= sampling.min_p[..., None], weights, 0.0)


def _keep_largest(weights: Array, counted: Array, wanted: Array) -> Array:
    """Keeps the largest entries, as few as give `wanted` in sums of `counted`, and all that tie with the last."""
    bits = lax.bitcast_convert_type(weights, jnp.int32)

    def enough(threshold: Array) -> Bool[Array, "*b"]:
        return jnp.sum(jnp.where(bits >= threshold[..., None], counted, 0.0), axis=-1) >= wanted

    def halve(_, bounds):
        low, high = bounds  # enough(low) holds, or low is 0; enough(high + 1) does not
        middle = low + (high - low + 1) // 2
        ok = enough(middle)
        return jnp.where(ok, middle, low), jnp.where(ok, high, middle - 1)

    # Never above the largest, whose bits are those of 1, so that never nothing is kept, though 0 was wanted.
    start = jnp.zeros(wanted.shape, jnp.int32), jnp.full(wanted.shape, _ONE, jnp.int32)
    threshold, _ = lax.fori_loop(0, 30, halve, start)
    return jnp.where(bits >= threshold[..., None], weights, 0.0)


def _iota(values: Array) -> Array:
    return lax.broadcasted_iota(jnp.int32, values.shape, values.ndim - 1)
