"""Prompt look-up: drafts what followed the last time that a row ended in the same tokens.

It helps a drafter, or drafts alone for a verifier that has no small sibling: code, summaries and answers that quote
their question repeat themselves often (the idea is apoorvumang/prompt-lookup-decoding's). A row is looked up once a
round. What is drafted depends on the tokens before it alone, so that the law of the output holds.
"""

from typing import NamedTuple

import jax.numpy as jnp

from cascades.distributions import softmax
from cascades.errors import UserError
from cascades.typing import Array, Float, Int

LONGEST = 32  # most tokens that are looked up: each is one more comparison with the whole row in the program


class LookUp(NamedTuple):
    """A look-up of a row's last tokens in the row itself.

    order: longest ending that is looked up. alone: whether the drafter has no opinion of its own.
    """

    order: int
    alone: bool = False


class Continuation(NamedTuple):
    """What followed the longest ending of each row that occurred before, its most recent occurrence.

    tokens: int32 `[b, k]`, the tokens behind that occurrence. Where they end, at the row's own end, they begin anew:
    the row is read as if it went on so. matched: int32 `[b]`, tokens of that ending; where it is 0 `tokens` mean
    nothing.
    """

    tokens: Int[Array, "b k"]
    matched: Int[Array, " b"]


def look_up(order: int, *, alone: bool = False) -> LookUp:
    """Returns a `LookUp`.

    Raises:
      UserError: the order is no whole number from 1 to `LONGEST`.
    """
    if type(order) is not int or not 1 <= order <= LONGEST:
        raise UserError(f"the order of a look-up must be a whole number from 1 to {LONGEST}, not {order!r}.")
    return LookUp(order, alone)


def find(lookup: LookUp, tokens: Int[Array, "b n"], length: Int[Array, " b"], k: int) -> Continuation:
    """Finds the last tokens of each row, `tokens[b, :length[b]]`, in the row itself.

    Example: of `1 2 3 4 1 2` two tokens matched, and `3 4 1 2` followed; then again `3 4 …`.
    """
    slots, last = tokens.shape[1], (length - 1)[:, None]
    ends = jnp.arange(slots, dtype=jnp.int32)[None, :]
    running = ends < last  # an occurrence ends before the row does
    matched = jnp.zeros(running.shape, jnp.int32)
    for back in range(min(lookup.order, slots)):
        wanted = jnp.take_along_axis(tokens, jnp.maximum(last - back, 0), axis=1)
        shifted = jnp.pad(tokens, ((0, 0), (back, 0)))[:, :slots]
        running &= (shifted == wanted) & (ends >= back)
        matched += running.astype(jnp.int32)
    # The longest match first, then the most recent, as one number to maximise.
    best = jnp.max(jnp.where(matched > 0, matched * slots + ends, 0), axis=1)
    end = (best % slots)[:, None]
    ahead = jnp.arange(k, dtype=jnp.int32)[None, :] % jnp.maximum(last - end, 1)
    return Continuation(jnp.take_along_axis(tokens, end + 1 + ahead, axis=1, mode="clip"), best // slots)


def mixed(
    lookup: LookUp,
    continuation: Continuation,
    drafts: Int[Array, "b k"],
    index: Int[Array, ""],
    logits: Float[Array, "b v"],
    probs: Float[Array, "b v"],
) -> tuple[Float[Array, "b v"], Float[Array, "b v"]]:
    """Mixes what was found into a model's distribution of the round's draft number `index`.

    Where the drafts so far are those that were found, the next of these gets its weight: see `_weight`. Elsewhere, and
    where nothing was found, the distribution is the model's own.

    Args:
      drafts: tokens of which the first `index` are this round's drafts. logits, probs: the model's.

    Returns:
      Logits and probabilities.
    """
    column = jnp.arange(drafts.shape[1], dtype=jnp.int32)[None, :]
    follows = jnp.all((drafts == continuation.tokens) | (column >= index), axis=1)
    told = follows & (continuation.matched > 0) & (index < drafts.shape[1])
    token = jnp.sum(jnp.where(column == index, continuation.tokens, 0), axis=1)
    weight = jnp.where(told, _weight(lookup, continuation.matched + index, logits.shape[-1]), 0.0)[:, None]
    one = jnp.arange(logits.shape[-1], dtype=jnp.int32)[None, :] == token[:, None]
    probs = (1 - weight) * probs + jnp.where(one, weight, 0.0)
    return jnp.where(weight > 0, jnp.log(jnp.maximum(probs, 1e-30)), logits), probs


def next_token(
    lookup: LookUp, tokens: Int[Array, "b n"], length: Int[Array, " b"], logits: Float[Array, "b v"]
) -> Float[Array, "b v"]:
    """Returns the logits of the token behind a row with what its look-up finds mixed in."""
    continuation = find(lookup, tokens, length, 1)
    return mixed(lookup, continuation, continuation.tokens, jnp.int32(0), logits, softmax(logits))[0]


def _weight(lookup: LookUp, matched: Int[Array, " b"], vocab_size: int) -> Float[Array, " b"]:
    """How much a token weighs that followed `matched` tokens.

    Beside a model 0.9 (1 - 1 / m): about as often as it was right in answers of SmolLM2-135M (50% for two, 57% for
    three, 77% for six and more), which a small drafter alone seldom is. Alone, what brings its probability to 0.3 for
    one token, 0.9 for two, 0.95 for three and so on, and never below that of the others.
    """
    count = jnp.maximum(matched, 1).astype(jnp.float32)
    if not lookup.alone:
        return 0.9 * (1 - 1 / count)
    even = 1 / vocab_size
    probability = jnp.where(count < 2, 0.3, 1 - 0.1 / jnp.maximum(count - 1, 1))
    return jnp.maximum((probability - even) / (1 - even), 0.0)
