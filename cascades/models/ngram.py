"""Prompt lookup as a model: it predicts what followed the last time that the row ended in the same tokens.

A drafter with no weights, for a verifier that has no small sibling: code, summaries and answers that quote their
question repeat themselves often (the idea is apoorvumang/prompt-lookup-decoding's).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from cascades import cache as kv
from cascades.errors import UserError
from cascades.typing import Array, Int, Key, Model, Output, Params


class History(NamedTuple):
    """A row's tokens so far; the `Model` contract's cache.

    tokens: int32 `[b, t]`; slots behind the length hold garbage and are never read.
    length: int32 `[b]`.
    """

    tokens: Int[Array, "b t"]
    length: Int[Array, " b"]


def ngram(vocab_size: int, context_length: int, order: int = 3) -> Model:
    """Returns a model that looks the row's last `order` tokens up in the row itself.

    The longest ending that occurred before counts, its most recent occurrence first. The token that followed it gets
    probability 0.3 where one token matched, 0.9 for two, 0.95 for three and so on; the others share the rest. With
    no match, or one token of history, the distribution is uniform.

    Args:
      vocab_size: number of logits.
      context_length: most tokens that a row may hold.
      order: longest ending that is looked up, at least 1.
    """
    if order < 1:
        raise UserError(f"ngram order must be at least 1, not {order}.")
    if vocab_size < 2:
        raise UserError(f"an ngram model needs a vocabulary of at least 2 tokens, not {vocab_size}.")
    scores = _scores(vocab_size, order)

    def init(key: Key[Array, ""]) -> Params:
        del key
        return {}

    def init_cache(batch: int, slots: int) -> History:
        if not 1 <= slots <= context_length:
            raise UserError(f"a cache of 1 to {context_length} slots was expected, not {slots}.")
        return History(jnp.zeros((batch, slots), jnp.int32), jnp.zeros((batch,), jnp.int32))

    def prefill(params: Params, tokens: Int[Array, "b s"], lengths: Int[Array, " b"], cache: History) -> History:
        del params
        if tokens.shape[1] > cache.tokens.shape[1]:
            raise UserError(
                f"a prompt of {tokens.shape[1]} tokens does not fit a cache of {cache.tokens.shape[1]} slots: "
                "shorten the prompt or ask for a longer cache."
            )
        return History(lax.dynamic_update_slice(cache.tokens, tokens, (0, 0)), lengths)

    def extend(
        params: Params, tokens: Int[Array, "b s"], cache: History, select: Int[Array, " b"] | None = None
    ) -> tuple[Output, History]:
        del params
        history, positions = _written(cache, tokens, select)
        following, matched = find(history, positions, order)
        score = jnp.asarray(scores)[matched][:, :, None]
        vocabulary = jnp.arange(vocab_size, dtype=jnp.int32)[None, None, :]
        logits = jnp.where(vocabulary == following[:, :, None], score, jnp.float32(0))
        return Output(logits), History(history, cache.length + tokens.shape[1])

    return Model(vocab_size, context_length, init, init_cache, prefill, extend)


class Assisted(NamedTuple):
    """The cache of `assisted`: tokens as in `History`, and the other model's cache, of which `length` decides too."""

    tokens: Int[Array, "b t"]
    inner: Any
    length: Int[Array, " b"]


def assisted(model: Model, order: int = 6) -> Model:
    """Returns a drafter that also looks the row's last `order` tokens up in the row itself.

    Its distribution is the model's mixed with the token that followed the longest ending that occurred before. That
    token weighs 0.9 (1 - 1 / m) where m tokens matched: about as often as it was right in answers of SmolLM2-135M (50%
    for two, 57% for three, 77% for six and more), which a small drafter alone seldom is.
    """
    looked_up = ngram(model.vocab_size, model.context_length, order)

    def init_cache(batch: int, slots: int) -> Assisted:
        tokens, length = looked_up.init_cache(batch, slots)
        return Assisted(tokens, model.init_cache(batch, slots), length)

    def prefill(
        params: Params, tokens: Int[Array, "b s"], lengths: Int[Array, " b"], cache: Assisted, *features
    ) -> Assisted:
        history = looked_up.prefill({}, tokens, lengths, History(cache.tokens, cache.length))
        return Assisted(history.tokens, model.prefill(params, tokens, lengths, cache.inner, *features), lengths)

    def extend(
        params: Params, tokens: Int[Array, "b s"], cache: Assisted, select: Int[Array, " b"] | None = None, **given
    ) -> tuple[Output, Assisted]:
        output, inner = model.extend(params, tokens, kv.rewind(cache.inner, cache.length), select, **given)
        history, positions = _written(History(cache.tokens, cache.length), tokens, select)
        following, matched = find(history, positions, order)
        weight = jnp.where(matched > 0, 0.9 * (1 - 1 / jnp.maximum(matched, 1)), 0.0)[:, :, None]
        one = jnp.arange(model.vocab_size, dtype=jnp.int32)[None, None, :] == following[:, :, None]
        mixed = (1 - weight) * jax.nn.softmax(output.logits) + jnp.where(one, weight, 0.0)
        logits = jnp.log(jnp.maximum(mixed, 1e-30))
        return output._replace(logits=logits), Assisted(history, inner, cache.length + tokens.shape[1])

    return model._replace(init_cache=init_cache, prefill=prefill, extend=extend)


def _written(
    cache: History, tokens: Int[Array, "b s"], select: Int[Array, " b"] | None
) -> tuple[Int[Array, "b t"], Int[Array, "b _"]]:
    """The row's tokens with the new ones, and the positions of these or of the selected one."""
    positions = cache.length[:, None] + jnp.arange(tokens.shape[1], dtype=jnp.int32)[None, :]
    rows = jnp.arange(tokens.shape[0], dtype=jnp.int32)[:, None]
    history = cache.tokens.at[rows, positions].set(tokens, mode="drop")
    if select is not None:
        positions = jnp.take_along_axis(positions, select[:, None], axis=1, mode="clip")
    return history, positions


def find(
    history: Int[Array, "b t"], positions: Int[Array, "b s"], order: int
) -> tuple[Int[Array, "b s"], Int[Array, "b s"]]:
    """Finds where the tokens that end at each position occurred before.

    Returns:
      The token that followed the most recent occurrence of the longest ending, and how many tokens matched (0 to
      `order`; the token means nothing where it is 0).
    """
    slots = history.shape[1]
    ends = jnp.arange(slots, dtype=jnp.int32)[None, None, :]
    running = ends < positions[:, :, None]  # an occurrence ends before the position itself
    matched = jnp.zeros(running.shape, jnp.int32)
    for back in range(order):
        wanted = jnp.take_along_axis(history, jnp.maximum(positions - back, 0), axis=1, mode="clip")
        shifted = jnp.pad(history, ((0, 0), (back, 0)))[:, :slots]
        running &= (shifted[:, None, :] == wanted[:, :, None]) & (ends >= back)
        matched += running.astype(jnp.int32)
    # The longest match first, then the most recent, as one number to maximise.
    best = jnp.max(jnp.where(matched > 0, matched * slots + ends, 0), axis=-1)
    following = jnp.take_along_axis(history, best % slots + 1, axis=1, mode="clip")
    return following, best // slots


def _scores(vocab_size: int, order: int) -> np.ndarray:
    """The logit, over zeros elsewhere, that gives the followed token its probability, by match length; float32."""
    probability = np.array([0.3] + [1 - 0.1 / length for length in range(1, order)])
    odds = probability / (1 - probability)
    # Never below the uniform level, which a probability of 0.3 would be over two or three tokens.
    logits = np.log(np.maximum(odds * (vocab_size - 1), 1.0))
    return np.concatenate([[0.0], logits]).astype(np.float32)
