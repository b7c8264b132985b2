"""The drafting half of a round: catch up with what was decided, then draft up to each row's length."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from cascades import cache as caches
from cascades.decoding.control import run_if
from cascades.decoding.lookup import Continuation
from cascades.decoding.plan import CHOICE, Plan
from cascades.decoding.state import Clock, State
from cascades.distributions import Sampling, at, draw, scaled, softmax
from cascades.lookahead import Drafted
from cascades.typing import Array, Bool, Cache, Float, Int, Key, Model, Params, UInt


class Draft(NamedTuple):
    """Drafts of a round.

    tokens: int32 `[b, k_max]`. length: int32 `[b]`, drafts of each row. matched: int32 `[b, k_max]`, where a look-up
    drafted, how many tokens before that draft had occurred before, at least 1; else 0. steps: int32 `[b]`, drafter
    steps taken. top: `[b, k_max]`, the drafter's max raw probability. logits: `[b, k_max + 1, v]`. cached: int32
    `[b]`, leading drafts that the drafter's cache holds behind the row's decided tokens; -1 where a row did not take
    part. What a drafter that reads features holds of its drafts is of its own features, and does not stay. scored:
    `[b]`, whether the drafter also scored the position behind the drafts. silent: `[b]`, as in `State`, this round
    included.
    """

    tokens: Int[Array, "b k"]
    length: Int[Array, " b"]
    matched: Int[Array, "b k"]
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
        matched=jnp.zeros((rows, k_max), jnp.int32),
        steps=zeros,
        top=jnp.zeros((rows, k_max), jnp.float32),
        logits=state.draft_logits,
        cached=zeros - 1,
        scored=jnp.zeros((rows,), bool),
        silent=state.silent,
    )


def looked_up(drafts: Draft, continuation: Continuation, count: Int[Array, " b"]) -> Draft:
    """Returns a round's drafts with those that a look-up makes: of each row the first `count[b]` that it found.

    A row of which it drafts none stays as it is.
    """
    column = jnp.arange(drafts.tokens.shape[1], dtype=jnp.int32)[None, :]
    here = column < count[:, None]
    return drafts._replace(
        tokens=jnp.where(here, continuation.tokens, drafts.tokens),
        length=jnp.where(count > 0, count, drafts.length),
        matched=jnp.where(here, jnp.maximum(continuation.matched[:, None] + column, 1), 0),
    )


def window(tokens: Int[Array, "b n"], start: Int[Array, " b"], width: int, end: Int[Array, " b"]) -> Int[Array, "b w"]:
    """Returns `tokens[b, start[b] : start[b] + width]`; from `end[b]` on the last token before it is repeated."""
    index = start[:, None] + jnp.arange(width, dtype=jnp.int32)[None, :]
    return jnp.take_along_axis(tokens, jnp.minimum(index, end[:, None] - 1), axis=1)


def before(
    features: Float[Array, "b 1 t d"] | UInt[Array, "b 1 t d"] | None, start: Int[Array, " b"], width: int
) -> Float[Array, "b w d"]:
    """Returns, for `width` tokens from `start[b]`, the features of the token before each; zeros before the first."""
    assert features is not None, "a verifier's cache keeps what its drafter reads"
    index = start[:, None] - 1 + jnp.arange(width, dtype=jnp.int32)[None, :]
    taken = jnp.take_along_axis(features[:, 0], jnp.clip(index, 0, features.shape[2] - 1)[:, :, None], axis=1)
    return jnp.where(index[:, :, None] >= 0, caches.loaded(taken), 0)


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
) -> tuple[Said, Cache, Int[Array, ""]]:
    """Feeds the tokens of `rows` that a cache does not hold yet, `width` a pass, and scores what follows the last.

    A width above 1 does nothing about a single token, nor about the last of many where all else was read: a pass of
    width 1 does. The caches of other rows stay as long as they are.

    Args:
      said: of the rows that lack nothing, which are none or all of `rows`.

    Returns:
      What the model says behind `state.length` tokens of each of `rows`, and the cache; both as given if none lags.
      How many passes that took.
    """

    def behind(cache: Cache) -> Array:
        return jnp.where(rows, state.length - cache.length, 0)

    def feed(carry):
        said, cache, passes = carry
        lag, start = behind(cache), cache.length
        tokens = window(state.tokens, start, width, state.length)
        features = None if said.features is None else before(state.verifier_cache.features, start, width)
        said, cache = extend(model, params, tokens, cache, said, jnp.clip(lag - 1, 0, width - 1), features)
        # The last token is left to the last pass, in which every row says what follows.
        taken = jnp.where(jnp.max(lag) <= width, lag, jnp.clip(lag - 1, 0, width))
        return said, caches.rewind(cache, start + taken), passes + 1

    carry = said, cache, jnp.int32(0)
    return lax.while_loop(lambda carry: jnp.max(behind(carry[1])) >= min(width, 2), feed, carry)


class Asked(NamedTuple):
    """What the steps of a round's drafting share.

    rows: `[b]`, that ask the drafter. left: `[b]`, positions that its context still holds. keys, peers, eager: see
    `draft`. sampling: per row.
    """

    rows: Bool[Array, " b"]
    left: Int[Array, " b"]
    keys: Key[Array, "b m"]
    peers: Bool[Array, " b"] | None
    eager: Bool[Array, ""]
    sampling: Sampling


class Drafting(NamedTuple):
    """What a step of the drafter hands to the next.

    index: int32 scalar, of the next draft. drafts: so far. said: by the drafter's last pass. cache: the drafter's.
    lookahead: the state of the `DraftLength`. clock: the loop's, these steps included.
    """

    index: Int[Array, ""]
    drafts: Draft
    said: Said
    cache: Cache
    lookahead: Any
    clock: Clock


def draft(
    plan: Plan,
    params: Params,
    state: State,
    drafts: Draft,
    keys: Key[Array, "b m"],
    peers: Bool[Array, " b"] | None,
    eager: Bool[Array, ""],
) -> tuple[Draft, Cache, Any, Clock]:
    """Drafts with the drafter, at most `drafts.length[b]` tokens a row; for a row with tokens of a look-up none.

    A turn of its loop is a `drafter_step`; the first reads all that the drafter lacks.

    With `bonus='target'` the drafter also scores the position behind the block. `eager` overrides the lookahead's wish
    to stop early. The drafter holds and scores no token behind its own context: there is none to draft, or score, at
    position `context_length` and on. Where its logits are NaN, infinite or all -inf nothing is drafted, and the row is
    `silent` from then on.

    Args:
      drafts: see `no_drafts` and `looked_up`. keys: of each of the round's draws. peers: see `DraftLength`.

    Returns:
      The drafts, the drafter's cache (rewound by the caller), the lookahead's state, and the clock.
    """
    model = plan.drafter
    assert model is not None
    reads = model.feature_width is not None
    left = model.context_length - state.length
    unasked = jnp.any(drafts.matched > 0, axis=1)
    length = jnp.where(state.silent, 0, jnp.clip(drafts.length, 0, jnp.maximum(left, 0)))
    drafts = drafts._replace(length=jnp.where(unasked, drafts.length, length))
    rows = state.running & ~state.silent & ~unasked & (_end(plan, length, left) > 0)
    asked = Asked(rows, left, keys, peers, eager, state.sampling)

    def wanted(now: Drafting) -> Array:
        return jnp.any(rows & ~now.drafts.silent & (now.index < _end(plan, now.drafts.length, left)))

    def turn(now: Drafting) -> Drafting:
        late = rows & (now.index == 0)
        width = plan.catch_up(late.shape[0])
        said, cache, missed = catch_up(model, params, state, late, now.said, now.cache, width)
        due = (now.index > 0) | jnp.any(late & (cache.length < state.length))
        steps = now.clock.steps + due.astype(jnp.int32)
        clock = now.clock._replace(steps=steps, catch_ups=now.clock.catch_ups + missed)
        return drafter_step(plan, params, asked, now._replace(said=said, cache=cache, clock=clock), due)

    features = before(state.verifier_cache.features, state.length - 1, 1) if reads else None
    said = Said(state.draft_logits[:, 0], features)  # logits of the same shape and place; none of them is read
    now = Drafting(jnp.int32(0), drafts, said, state.drafter_cache, state.lookahead, state.clock)
    now = lax.while_loop(wanted, turn, now)
    cached = jnp.zeros_like(length) if reads else jnp.minimum(now.index - 1, now.drafts.length)
    return now.drafts._replace(cached=jnp.where(rows, cached, -1)), now.cache, now.lookahead, now.clock


def drafter_step(plan: Plan, params: Params, asked: Asked, now: Drafting, due: Bool[Array, ""]) -> Drafting:
    """One step of the drafter: a pass over the last draft of each row, where that is `due`, and the choice of the next.

    What a step costs is planned by compiling this function alone.
    """
    model = plan.drafter
    assert model is not None

    def read(carry):
        said, cache = carry
        # The pending token at first: it is what pads the drafts.
        fed = lax.dynamic_slice_in_dim(now.drafts.tokens, jnp.maximum(now.index - 1, 0), 1, axis=1)
        return extend(model, params, fed, cache, said, features=said.features)

    said, cache = run_if(due, read, (now.said, now.cache))
    with jax.named_scope(CHOICE):
        drafts, lookahead = _choose(plan, asked, now, said.logits)
    return Drafting(now.index + 1, drafts, said, cache, lookahead, now.clock)


def _choose(plan: Plan, asked: Asked, now: Drafting, logits: Float[Array, "b v"]) -> tuple[Draft, Any]:
    """Draws a token a row, and asks the lookahead whether it joins the block and whether another is wanted."""
    index, drafts, lookahead = now.index, now.drafts, plan.lookahead
    raw = softmax(logits)
    sound = jnp.max(raw, axis=-1) > 0  # else all of it is NaN
    scoring = asked.rows & (index < _end(plan, drafts.length, asked.left))
    drafting = asked.rows & (index < drafts.length)
    silent = drafts.silent | (scoring & ~sound)
    logits, raw = jnp.where(sound[:, None], logits, 0.0), jnp.where(sound[:, None], raw, 0.0)
    wished = jnp.where(drafting & ~sound, index, drafts.length)
    drafting &= sound
    key = lax.dynamic_index_in_dim(asked.keys, index, 1, keepdims=False)
    token = draw(scaled(logits, asked.sampling), key)
    drafted = Drafted(index, jnp.max(raw, axis=-1), drafting, asked.peers)
    state, keep, more = lookahead.step(now.lookahead, drafted)
    state, another = lookahead.drawn(state, drafted, at(raw, token))
    stop = jnp.where(keep | asked.eager, index + 1, index)
    ended = drafting & ~((more & another) | asked.eager)
    column = jnp.minimum(index, plan.k_max - 1)
    length = jnp.where(ended, jnp.minimum(wished, stop), wished).astype(jnp.int32)

    def put(buffer, value):
        old = lax.dynamic_slice_in_dim(buffer, column, 1, axis=1)
        return lax.dynamic_update_slice(buffer, jnp.where(drafting[:, None], value[:, None], old), (0, column))

    return (
        Draft(
            tokens=put(drafts.tokens, token),
            length=length,
            matched=drafts.matched,
            steps=drafts.steps + scoring.astype(jnp.int32),
            top=put(drafts.top, drafted.top),
            logits=lax.dynamic_update_slice(drafts.logits, logits[:, None], (0, index, 0)),
            cached=drafts.cached,
            scored=drafts.scored | (scoring & sound & (index == length)),
            silent=silent,
        ),
        state,
    )


def _end(plan: Plan, length: Int[Array, " b"], left: Int[Array, " b"]) -> Int[Array, " b"]:
    """Positions of a round that the drafter scores."""
    return length + (length < left).astype(jnp.int32) if plan.bonus == "target" else length
