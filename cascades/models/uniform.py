"""A drafter with no weights and no opinion: what it drafts comes of a look-up beside it (`decoding.lookup`)."""

from typing import NamedTuple

import jax.numpy as jnp

from cascades.typing import Array, Int, Key, Model, Output, Params


class Length(NamedTuple):
    """The cache of a model that remembers nothing. length: int32 `[b]`."""

    length: Int[Array, " b"]


def uniform(vocab_size: int, context_length: int) -> Model:
    """Returns a model to which every token is as likely as any other.

    Args:
      vocab_size: number of logits. context_length: most tokens that a row may hold.
    """

    def init(key: Key[Array, ""]) -> Params:
        del key
        return {}

    def init_cache(batch: int, slots: int) -> Length:
        del slots
        return Length(jnp.zeros((batch,), jnp.int32))

    def prefill(params: Params, tokens: Int[Array, "b s"], lengths: Int[Array, " b"], cache: Length) -> Length:
        del params, tokens, cache
        return Length(lengths)

    def extend(
        params: Params, tokens: Int[Array, "b s"], cache: Length, select: Int[Array, " b"] | None = None
    ) -> tuple[Output, Length]:
        del params
        batch, width = tokens.shape
        logits = jnp.zeros((batch, width if select is None else 1, vocab_size), jnp.float32)
        return Output(logits), Length(cache.length + width)

    return Model(vocab_size, context_length, init, init_cache, prefill, extend)
