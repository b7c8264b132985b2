"""Tiny models with known distributions, for tests and examples: no weights, no downloads."""

from itertools import product
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cascades.typing import Array, Float, Int, Key, Model, Output


class History(NamedTuple):
    """The cache of a table model: the tokens themselves. tokens: int32 `[b, t]`. length: int32 `[b]`."""

    tokens: Int[Array, "b t"]
    length: Int[Array, " b"]


def table_model(vocab_size: int, scale: float = 1.0, context_length: int = 1 << 16) -> Model:
    """Returns a model whose next-token logits are a random table over the last two tokens (0 before the first).

    Two tokens, read back from its cache, so that a cache that is one short or one long shows in the law of the output.
    `params` is the table, float32 `[v * v, v]`.
    """

    def init(key: Key[Array, ""]) -> dict[str, Array]:
        return {"table": scale * jax.random.normal(key, (vocab_size**2, vocab_size), jnp.float32)}

    def init_cache(batch: int, slots: int) -> History:
        return History(jnp.full((batch, slots), -1, jnp.int32), jnp.zeros((batch,), jnp.int32))

    def write(cache: History, tokens: Int[Array, "b s"]) -> History:
        rows = jnp.arange(tokens.shape[0], dtype=jnp.int32)[:, None]
        slots = cache.length[:, None] + jnp.arange(tokens.shape[1], dtype=jnp.int32)[None, :]
        return cache._replace(tokens=cache.tokens.at[rows, slots].set(tokens, mode="drop"))

    def prefill(params, tokens, lengths, cache):
        del params
        return write(cache, tokens)._replace(length=lengths)

    def extend(params, tokens, cache, select=None):
        cache = write(cache, tokens)
        slots = cache.length[:, None] + jnp.arange(tokens.shape[1], dtype=jnp.int32)[None, :]
        limit = cache.tokens.shape[1] - 1
        last = jnp.take_along_axis(cache.tokens, jnp.minimum(slots, limit), axis=1)
        before = jnp.take_along_axis(cache.tokens, jnp.clip(slots - 1, 0, limit), axis=1)
        before = jnp.where(slots > 0, before, 0)
        logits = params["table"][jnp.clip(before * vocab_size + last, 0, vocab_size**2 - 1)]
        if select is not None:
            logits = jnp.take_along_axis(logits, select[:, None, None], axis=1)
        return Output(logits), cache._replace(length=cache.length + tokens.shape[1])

    return Model(vocab_size, context_length, init, init_cache, prefill, extend)


def table_logits(params: dict[str, Array], prefix: tuple[int, ...]) -> Float[np.ndarray, " v"]:
    """Returns the logits that a table model gives behind `prefix`, computed without any cache."""
    table = np.asarray(params["table"])
    padded = (0, *prefix)
    return table[padded[-2] * table.shape[1] + padded[-1]]


def sequences(vocab_size: int, length: int) -> list[tuple[int, ...]]:
    """Returns every sequence of `length` tokens."""
    return list(product(range(vocab_size), repeat=length))
