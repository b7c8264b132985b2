"""Prompt look-up: drafts what followed the last time that a row ended in the same tokens.

It drafts beside a model, or alone for a verifier that has no small sibling: code, summaries and answers that quote
their question repeat themselves often (the idea is apoorvumang/prompt-lookup-decoding's). A row is looked up once a
round, and its drafts cost no pass of a drafter. They depend on the tokens before them alone, so that the law of the
output holds; `speculation.keep` says which law that is.
"""

from typing import NamedTuple

import jax.numpy as jnp

from cascades.errors import UserError
from cascades.typing import Array, Int

LONGEST = 32  # most tokens that are looked up: each is one more comparison with the whole row in the program


class LookUp(NamedTuple):
    """A look-up of a row's last tokens in the row itself.

    order, least: tokens of the longest and of the shortest ending that is looked up.
    """

    order: int
    least: int = 1


class Continuation(NamedTuple):
    """What followed the longest ending of each row that occurred before, its most recent occurrence.

    tokens: int32 `[b, k]`, the tokens behind that occurrence. Where they end, at the row's own end, they begin anew:
    the row is read as if it went on so. matched: int32 `[b]`, tokens of that ending; where it is 0 `tokens` mean
    nothing.
    """

    tokens: Int[Array, "b k"]
    matched: Int[Array, " b"]


def look_up(order: int, *, alone: bool = True) -> LookUp:
    """Returns a `LookUp`. Beside a drafter that is a model, a single token that matched says too little.

    Raises:
      UserError: the order is no whole number from 1 to `LONGEST`.
    """
    if type(order) is not int or not 1 <= order <= LONGEST:
        raise UserError(f"the order of a look-up must be a whole number from 1 to {LONGEST}, not {order!r}.")
    return LookUp(order, 1 if alone else min(2, order))


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
    best = jnp.max(jnp.where(matched >= lookup.least, matched * slots + ends, 0), axis=1)
    end = (best % slots)[:, None]
    ahead = jnp.arange(k, dtype=jnp.int32)[None, :] % jnp.maximum(last - end, 1)
    return Continuation(jnp.take_along_axis(tokens, end + 1 + ahead, axis=1, mode="clip"), best // slots)
