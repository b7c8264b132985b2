"""The drafting half of a round: catch up with what was decided, then draft up to each row's length."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax

from cascades import cache as caches
from cascades.decoding.control import when
from cascades.decoding.lookup import find, mixed
from cascades.decoding.plan import Plan
from cascades.decoding.state import State
from cascades.distributions import at, draw, scaled, softmax
from cascades.lookahead import Drafted
from cascades.typing import Array, Bool, Cache, Float, Int, Key, Model, Params


class Draft(NamedTuple):
    """Drafts of a round.

    tokens: int32 `[b, k_max]`. length: int32 `[b]`, drafts of each row. steps: int32 `[b]`, drafter steps taken. top:
    `[b, k_max]`, the drafter's max raw probability. logits: `[b, k_max + 1, v]`. cached: int32 `[b]`, leading drafts
    that the drafter's cache holds behind the row's decided tokens; -1 where a row did not take part. What a drafter
    that reads features holds of its drafts is of its own features, and does not stay. scored: `[b]`, whether the
    drafter also scored the position behind the drafts. silent: `[b]`, as in `State`, this round included.
    """

    tokens: Int[Array, "b k"]
    length: Int[Array, " b"]
    steps: Int[Array, " b"]
    top: Float[Array, "b k"]
    logits: Float[Array, "b m v"]
    cached: Int[Array, " b"]
    scored: Bool[Array, " b"]
    silent: Bool[Array, " b"]


class Said(NamedTuple):
    """What a model says of the next token of each row.

    logits: `[b, v]`. features: `[b, 1, d]`, what it was made of, for a drafter that reads it; else None.
    """

    logits: Float[Array, "b v"]
    features: Float[Array, "b 1 d"] | None = None


def no_drafts(state: State, length: Int[Array, " b"]) -> Draft:
    """Returns a round's drafts before any is made; padding repeats the row's last token, which every model has read."""
    rows, k_max = length.shape[0], state.draft_logits.shape[1] - 1
    zeros, pending = jnp.zeros_like(length), window(state.tokens, state.length - 1, 1, state.length)
    return Draft(
        tokens=jnp.broadcast_to(pending, (rows, k_max)),
        length=length,
        steps=zeros,
        top=jnp.zeros((rows, k_max), jnp.float32),
        logits=state.draft_logits,
        cached=zeros - 1,
        scored=jnp.zeros((rows,), bool),
        silent=state.silent,
    )


def window(tokens: Int[Array, "b n"], start: Int[Array, " b"], width: int, end: Int[Array, " b"]) -> Int[Array, "b w"]:
    """Returns `tokens[b, start[b] : start[b] + width]`; from `end[b]` on the last token before it is repeated."""
    index = start[:, None] + jnp.arange(width, dtype=jnp.int32)[None, :]
    return jnp.take_along_axis(tokens, jnp.minimum(index, end[:, None] - 1), axis=1)


def before(features: Float[Array, "b 1 t d"] | None, start: Int[Array, " b"], width: int) -> Float[Array, "b w d"]:
    """Returns, for `width` tokens from `start[b]`, the features of the token before each; zeros before the first."""
    assert features is not None, "a verifier's cache keeps what its drafter reads"
    index = start[:, None] - 1 + jnp.arange(width, dtype=jnp.int32)[None, :]
    found = jnp.take_along_axis(features[:, 0], jnp.clip(index, 0, features.shape[2] - 1)[:, :, None], axis=1)
    return jnp.where(index[:, :, None] >= 0, found, 0)


def extend(
    model: Model, params: Params, tokens: Int[Array, "b s"], cache: Cache, said: Said, select=None, features=None
) -> tuple[Said, Cache]:
    """Feeds tokens and returns what a model says behind them, shaped as `said` is, which it said before."""
    given = {} if features is None else {"features": features}
    output, cache = model.extend(params, tokens, cache, select, **given)
    logits = output.logits[:, 0, : said.logits.shape[1]]
    if said.features is None:
        return Said(logits), cache
    assert output.features is not None, "a model that reads features has its own"
    return Said(logits, output.features.astype(said.features.dtype)), cache


def catch_up(
    model: Model,
    params: Params,
    state: State,
    rows: Bool[Array, " b"],
    said: Said,
    cache: Cache,
    width: int,
) -> tuple[Said, Cache]:
    """Feeds the tokens of `rows` that a cache does not hold yet, `width` a pass, and scores what follows the last.

    A width above 1 does nothing about a single token, nor about the last of many where all else was read: a pass of
    width 1 does. The caches of other rows stay as long as they are.

    Args:
      said: of the rows that lack nothing, which are none or all of `rows`.

    Returns:
      What the model says behind `state.length` tokens of each of `rows`, and the cache; both as given if none lags.
    """

    def behind(cache: Cache) -> Array:
        return jnp.where(rows, state.length - cache.length, 0)

    def feed(carry):
        said, cache = carry
        lag, start = behind(cache), cache.length
        tokens = window(state.tokens, start, width, state.length)
        features = None if said.features is None else before(state.verifier_cache.features, start, width)
        said, cache = extend(model, params, tokens, cache, said, jnp.clip(lag - 1, 0, width - 1), features)
        # The last token is left to the last pass, in which every row says what follows.
        taken = jnp.where(jnp.max(lag) <= width, lag, jnp.clip(lag - 1, 0, width))
        return said, caches.rewind(cache, start + taken)

    return lax.while_loop(lambda carry: jnp.max(behind(carry[1])) >= min(width, 2), feed, (said, cache))


def draft(
    plan: Plan,
    params: Params,
    state: State,
    length: Int[Array, " b"],
    keys: Key[Array, "b m"],
    eager: Bool[Array, ""],
) -> tuple[Draft, Cache, Any]:
    """Drafts at most `length[b]` tokens a row.

    A turn of its loop is a pass of the drafter over one token, or first over all that it lacks, and a decision.

    With `bonus='target'` the drafter also scores the position behind the block. `eager` overrides the lookahead's wish
    to stop early. The drafter holds and scores no token behind its own context: there is none to draft, or score, at
    position `context_length` and on. Where its logits are NaN, infinite or all -inf nothing is drafted, and the row is
    `silent` from then on.

    Args:
      keys: of each of the round's draws.

    Returns:
      The drafts, the drafter's cache (rewound by the caller), and the lookahead's state.
    """
    model, lookahead = plan.drafter, plan.lookahead
    assert model is not None
    k_max = plan.k_max
    reads = model.reads is not None
    zeros = jnp.zeros(length.shape, jnp.int32)
    left = model.context_length - state.length
    found = find(plan.lookup, state.tokens, state.length, k_max) if plan.lookup else None

    def end(length: Array) -> Array:
        """Positions of this round that the drafter scores."""
        return length + (length < left).astype(jnp.int32) if plan.bonus == "target" else length

    length = jnp.where(state.silent, 0, jnp.clip(length, 0, jnp.maximum(left, 0)))
    rows = state.running & ~state.silent & (end(length) > 0)

    def decide(index: Array, logits: Float[Array, "b v"], draft: Draft, lookahead_state):
        raw = softmax(logits)
        sound = jnp.max(raw, axis=-1) > 0  # else all of it is NaN
        if plan.lookup and found:
            logits, raw = mixed(plan.lookup, found, draft.tokens, index, logits, raw)
        asked = rows & (index < end(draft.length))
        drafting = rows & (index < draft.length)
        silent = draft.silent | (asked & ~sound)
        logits, raw = jnp.where(sound[:, None], logits, 0.0), jnp.where(sound[:, None], raw, 0.0)
        draft = draft._replace(length=jnp.where(drafting & ~sound, index, draft.length))
        drafting &= sound
        token = draw(scaled(logits, state.sampling), lax.dynamic_index_in_dim(keys, index, 1, keepdims=False))
        said = Drafted(index, jnp.max(raw, axis=-1), drafting)
        lookahead_state, keep, more = lookahead.step(lookahead_state, said)
        lookahead_state, another = lookahead.drawn(lookahead_state, said, at(raw, token))
        stop = jnp.where(keep | eager, index + 1, index)
        ended = drafting & ~((more & another) | eager)
        column = jnp.minimum(index, k_max - 1)
        length = jnp.where(ended, jnp.minimum(draft.length, stop), draft.length).astype(jnp.int32)

        def put(buffer, value):
            old = lax.dynamic_slice_in_dim(buffer, column, 1, axis=1)
            return lax.dynamic_update_slice(buffer, jnp.where(drafting[:, None], value[:, None], old), (0, column))

        return (
            Draft(
                tokens=put(draft.tokens, token),
                length=length,
                steps=draft.steps + asked.astype(jnp.int32),
                top=put(draft.top, said.top),
                logits=lax.dynamic_update_slice(draft.logits, logits[:, None], (0, index, 0)),
                cached=draft.cached,
                scored=draft.scored | (asked & sound & (index == length)),
                silent=silent,
            ),
            lookahead_state,
        )

    def wanted(carry) -> Array:
        index, draft, *_ = carry
        return jnp.any(rows & ~draft.silent & (index < end(draft.length)))

    def turn(carry):
        index, draft, said, cache, lookahead_state = carry
        late = rows & (index == 0)
        said, cache = catch_up(model, params, state, late, said, cache, plan.catch_up)

        def step(carry):
            said, cache = carry
            # The pending token at first: it is what pads the drafts.
            fed = lax.dynamic_slice_in_dim(draft.tokens, jnp.maximum(index - 1, 0), 1, axis=1)
            return extend(model, params, fed, cache, said, features=said.features)

        due = (index > 0) | jnp.any(late & (cache.length < state.length))
        said, cache = when(due, step, (said, cache))
        draft, lookahead_state = decide(index, said.logits, draft, lookahead_state)
        return index + 1, draft, said, cache, lookahead_state

    features = before(state.verifier_cache.features, state.length - 1, 1) if reads else None
    said = Said(state.draft_logits[:, 0], features)  # logits of the same shape and place; none of them is read
    carry = jnp.int32(0), no_drafts(state, length), said, state.drafter_cache, state.lookahead
    turns, draft, _, cache, lookahead_state = lax.while_loop(wanted, turn, carry)
    cached = zeros if reads else jnp.minimum(turns - 1, draft.length)
    return draft._replace(cached=jnp.where(rows, cached, -1)), cache, lookahead_state
