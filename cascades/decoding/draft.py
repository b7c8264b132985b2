"""The drafting half of a round: catch up with what was decided, then draft up to each row's length."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from cascades import cache as caches
from cascades.decoding.control import when
from cascades.decoding.state import State
from cascades.distributions import Purpose, at, draw, scaled, softmax, stream
from cascades.lookahead import Drafted, DraftLength
from cascades.speculation import Bonus, Coupling
from cascades.typing import Array, Bool, Cache, Float, Int, Key, Model, Output, Params

CATCH_UP = 16  # tokens of one catch-up pass: what a drafter that idled for a while has to read
WIDTHS = (1, 2, CATCH_UP)  # of its last pass: one token, or two behind a block that was kept whole, or more
READER_WIDTHS = (1, 2, 4, 8, CATCH_UP)  # a drafter that reads features reads every block anew, with the verifier's


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


def catch_up(
    model: Model,
    params: Params,
    tokens: Int[Array, "b n"],
    length: Int[Array, " b"],
    cache: Cache,
    rows: Bool[Array, " b"],
    features: Float[Array, "b 1 t d"] | None = None,
) -> tuple[Output, Cache]:
    """Feeds every token of `rows` that a cache does not hold yet, and scores what follows the last.

    One token is the rule, two follow a block that was kept whole, more a time without drafts. The cache of other rows
    keeps its length. At least one token of each of `rows` must be pending. `features` is what the verifier's cache
    keeps, for a model that reads it.

    Returns:
      The output at token `length - 1`, of one position (of `rows`; garbage elsewhere), and the cache.
    """
    was = cache.length
    reads = model.reads is not None

    def fed(cache: Cache, width: int, select: Int[Array, " b"]) -> tuple[Output, Cache]:
        given = {"features": before(features, cache.length, width)} if reads else {}
        return model.extend(params, window(tokens, cache.length, width, length), cache, select, **given)

    def behind(cache: Cache) -> Array:
        return jnp.where(rows, length - cache.length, 1)

    def chunk(cache: Cache) -> Cache:
        start = cache.length
        taken = jnp.minimum(behind(cache) - 1, CATCH_UP)
        _, cache = fed(cache, CATCH_UP, jnp.zeros_like(start))
        return caches.rewind(cache, start + taken)

    cache = lax.while_loop(lambda cache: jnp.max(behind(cache)) > CATCH_UP, chunk, cache)

    def last(width: int):
        def feed(carry):
            _, cache = carry
            return fed(cache, width, jnp.clip(behind(cache) - 1, 0, width - 1))

        return feed

    lag = jnp.max(behind(cache))
    widths = READER_WIDTHS if reads else WIDTHS
    shapes, _ = jax.eval_shape(last(1), (None, cache))
    carry = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes), cache
    for low, width in zip((0, *widths), widths, strict=False):
        carry = when((lag > low) & (lag <= width), last(width), carry)
    output, cache = carry
    return output, caches.rewind(cache, jnp.where(rows, length, was))


def draft_keys(state: State, index: Int[Array, ""], coupling: Coupling) -> Key[Array, " b"]:
    """Returns the keys of a round's draft number `index`.

    Under the maximal coupling no two rounds share one, though a rejection makes them draft the same position again: the
    draft length may then depend on how long an earlier draft was, hence on tokens that were dropped unjudged.
    """
    if coupling == "gumbel":
        return stream(state.key, state.length + index, Purpose.TOKEN)
    return jax.vmap(jax.random.fold_in, (0, None))(stream(state.key, state.length, Purpose.DRAFT), index)


def draft(
    model: Model,
    params: Params,
    state: State,
    length: Int[Array, " b"],
    lookahead: DraftLength,
    coupling: Coupling,
    bonus: Bonus,
    vocab_size: int,
    eager: Bool[Array, ""],
) -> tuple[Draft, Cache, Any]:
    """Drafts at most `length[b]` tokens a row.

    With `bonus='target'` the drafter also scores the position behind the block. `eager` overrides the lookahead's wish
    to stop early. The drafter holds and scores no token behind its own context: there is none to draft, or score, at
    position `context_length` and on. Where its logits are NaN, infinite or all -inf nothing is drafted, and the row is
    `silent` from then on.

    Returns:
      The drafts, the drafter's cache (rewound by the caller), and the lookahead's state.
    """
    k_max = state.draft_logits.shape[1] - 1
    reads = model.reads is not None
    zeros = jnp.zeros(length.shape, jnp.int32)
    left = model.context_length - state.length

    def end(length: Array) -> Array:
        """Positions of this round that the drafter scores."""
        return length + (length < left).astype(jnp.int32) if bonus == "target" else length

    length = jnp.where(state.silent, 0, jnp.clip(length, 0, jnp.maximum(left, 0)))
    rows = state.running & ~state.silent & (end(length) > 0)

    def decide(index: Array, logits: Float[Array, "b v"], draft: Draft, lookahead_state):
        raw = softmax(logits)
        sound = jnp.max(raw, axis=-1) > 0  # else all of it is NaN
        asked = rows & (index < end(draft.length))
        drafting = rows & (index < draft.length)
        silent = draft.silent | (asked & ~sound)
        logits, raw = jnp.where(sound[:, None], logits, 0.0), jnp.where(sound[:, None], raw, 0.0)
        draft = draft._replace(length=jnp.where(drafting & ~sound, index, draft.length))
        drafting &= sound
        token = draw(scaled(logits, state.sampling), draft_keys(state, index, coupling))
        said = Drafted(index, jnp.max(raw, axis=-1), at(raw, token), drafting)
        lookahead_state, keep, more = lookahead.step(lookahead_state, said)
        stop = jnp.where(keep | eager, index + 1, index)
        ended = drafting & ~(more | eager)
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

    def wanted(index: Array, draft: Draft) -> Array:
        return jnp.any(rows & ~draft.silent & (index < end(draft.length)))

    def step(carry):
        index, draft, cache, lookahead_state, features = carry
        column = jnp.minimum(index, k_max) - 1
        fed = lax.dynamic_slice_in_dim(draft.tokens, column, 1, axis=1)
        given = {"features": features} if reads else {}
        output, cache = model.extend(params, fed, cache, zeros, **given)
        draft, lookahead_state = decide(index, output.logits[:, 0, :vocab_size], draft, lookahead_state)
        return index + 1, draft, cache, lookahead_state, output.features if reads else None

    def begin(operand):
        draft, cache, lookahead_state = operand
        kept = state.verifier_cache.features if reads else None
        output, cache = catch_up(model, params, state.tokens, state.length, cache, rows, kept)
        draft, lookahead_state = decide(jnp.int32(0), output.logits[:, 0, :vocab_size], draft, lookahead_state)
        features = output.features if reads else None
        index, draft, cache, lookahead_state, _ = lax.while_loop(
            lambda carry: wanted(carry[0], carry[1]), step, (jnp.int32(1), draft, cache, lookahead_state, features)
        )
        cached = zeros if reads else jnp.minimum(index - 1, draft.length)
        return draft._replace(cached=jnp.where(rows, cached, -1)), cache, lookahead_state

    operand = (no_drafts(state, length), state.drafter_cache, state.lookahead)
    return when(jnp.any(rows), begin, operand)
