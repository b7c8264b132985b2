"""How many tokens to draft next: `DraftLength(init, propose, step, update)`, one state per row.

The law of the output is kept because a length is chosen from PAST rounds, or by stopping on what the drafter says
at a drafted prefix; never from a drafted token's own fate.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp

from cascades.errors import UserError
from cascades.typing import Array, Bool, Float, Int

__all__ = ["fixed", "heuristic", "drafter_confidence", "bild_fallback", "verifier_guided"]

State = Any


class Drafted(NamedTuple):
    """What the drafter said at one position, before and after drawing its token.

    index: int32 scalar, 0 for the round's first draft. top: `[b]`, max of its raw distribution. own: `[b]`, raw
    probability of the token it drew. drafting: `[b]`, rows that are drafting at this index.
    """

    index: Int[Array, ""]
    top: Float[Array, " b"]
    own: Float[Array, " b"]
    drafting: Bool[Array, " b"]


class Verdict(NamedTuple):
    """What the verifier said of a round.

    steps: int32 `[b]`, drafter steps that the round took. drafted: those whose token joined the block. accepted: those
    kept. expected: `[b, k]`, 1 - D_TV(pi, q) per position, of a greedy row that of temperature 1. decided: `[b, k]`,
    positions up to and including the first rejection. top: `[b, k]`, the drafter's max raw probability there.
    """

    steps: Int[Array, " b"]
    drafted: Int[Array, " b"]
    accepted: Int[Array, " b"]
    expected: Float[Array, "b k"]
    decided: Bool[Array, "b k"]
    top: Float[Array, "b k"]


class Costs(NamedTuple):
    """What a round takes, in units of a verifier pass over one token; measured or given, never guessed.

    draft: c, one drafter step. verify: `[k_max + 1]`, v_k, a verifier pass over k drafts and the token before them.
    """

    draft: Float[Array, ""]
    verify: Float[Array, " m"]


class DraftLength(NamedTuple):
    """A controller of the draft length.

    init: `(batch, costs) -> state`, every leaf with a leading axis b.
    propose: `state -> (state, k)`, the most tokens to draft this round, `[b]`.
    step: `(state, Drafted) -> (state, keep, more)`: whether the token joins the block, and whether to draft another.
    update: `(state, Verdict) -> state`, called for rows that took part in a round.
    timed: whether `costs` are read, so that they are worth measuring.
    name: for people; two controllers that differ should differ in it.
    """

    init: Callable[[int, Costs], State]
    propose: Callable[[State], tuple[State, Int[Array, " b"]]]
    step: Callable[[State, Drafted], tuple[State, Bool[Array, " b"], Bool[Array, " b"]]]
    update: Callable[[State, Verdict], State]
    timed: bool = False
    name: str = "custom"


_UNLIMITED = 1 << 20  # the loop cuts every proposal to k_max and to the room that is left


def _go_on(state: State, drafted: Drafted):
    yes = jnp.ones(drafted.top.shape, bool)
    return state, yes, yes


def _as_it_is(state: State):
    return state, state


def _unmoved(state: State, verdict: Verdict):
    del verdict
    return state


def fixed(k: int = 4) -> DraftLength:
    """Always drafts k tokens (0 is verifier alone)."""
    return DraftLength(
        init=lambda batch, costs: jnp.full((batch,), k, jnp.int32),
        propose=_as_it_is,
        step=_go_on,
        update=_unmoved,
        name=f"fixed({k})",
    )


def heuristic(start: int = 4) -> DraftLength:
    """Hugging Face's schedule: all accepted -> k + 2, else max(1, k - 1)."""

    def update(state, verdict):
        full = (verdict.accepted == verdict.drafted) & (verdict.drafted == jnp.minimum(state, verdict.drafted))
        k_max = verdict.expected.shape[1]
        return jnp.minimum(jnp.where(full, state + 2, jnp.maximum(1, state - 1)), k_max).astype(jnp.int32)

    return DraftLength(
        init=lambda batch, costs: jnp.full((batch,), start, jnp.int32),
        propose=_as_it_is,
        step=_go_on,
        update=update,
        name="heuristic",
    )


def drafter_confidence(threshold: float = 0.4) -> DraftLength:
    """Hugging Face's confidence stop: no further draft behind a token with q(token) < threshold."""

    def step(state, drafted):
        return state, jnp.ones(drafted.own.shape, bool), drafted.own >= threshold

    return DraftLength(
        init=lambda batch, costs: jnp.full((batch,), _UNLIMITED, jnp.int32),
        propose=_as_it_is,
        step=step,
        update=_unmoved,
        name=f"drafter_confidence({threshold:g})",
    )


def bild_fallback(threshold: float = 0.6) -> DraftLength:
    """BiLD's fallback: where max q < threshold the verifier writes the token. Use with the rule `bild`."""

    def step(state, drafted):
        sure = drafted.top >= threshold
        return state, sure, sure

    return DraftLength(
        init=lambda batch, costs: jnp.full((batch,), _UNLIMITED, jnp.int32),
        propose=_as_it_is,
        step=step,
        update=_unmoved,
        name=f"bild_fallback({threshold:g})",
    )


class Guided(NamedTuple):
    """State of `verifier_guided`, all `[b]` but the tables.

    hits, tries: `[b, bins]`, decayed acceptance and number of judged drafts, by the drafter's confidence.
    kept, judged: the same over all confidences, decayed together. right: the drafts that were in fact accepted.
    tokens, time: decayed tokens emitted and time spent in rounds that drafted; a round without a draft takes 1.
    idle: rounds since the last draft. wait: rounds to stay idle before the next probe. rare: by how much the costs
    stretch them. pays: this round drafts because
    it should pay. probing: it drafts to find out.
    survival: probability that the block drafted so far is accepted whole (this round).
    draft, verify: `[b]`, `[b, k_max + 1]`, see `Costs`.
    """

    hits: Float[Array, "b bins"]
    tries: Float[Array, "b bins"]
    kept: Float[Array, " b"]
    judged: Float[Array, " b"]
    right: Float[Array, " b"]
    tokens: Float[Array, " b"]
    time: Float[Array, " b"]
    idle: Int[Array, " b"]
    wait: Int[Array, " b"]
    rare: Float[Array, " b"]
    pays: Bool[Array, " b"]
    probing: Bool[Array, " b"]
    survival: Float[Array, " b"]
    draft: Float[Array, " b"]
    verify: Float[Array, "b m"]


_EDGES = (0.15, 0.3, 0.45, 0.6, 0.7, 0.8, 0.88, 0.94, 0.975, 0.99, 0.997)  # finer where drafts are mostly right
_HOPE = 0.8  # acceptance before anything is known: high enough to try wherever drafting can pay at all
_MEMORY_OF_SPEED = 0.95
_PROBING = 0.02  # most of the time that probes may cost where drafting does not pay


def verifier_guided(memory: float = 0.97, prior: float = 2.0, patience: int = 8, longest_wait: int = 64) -> DraftLength:
    """Drafts as long as the verifier's past verdicts say that it pays (this project's own).

    After a round the verifier's expected acceptance a = 1 - D_TV(pi, q) of every position it judged is known
    exactly. It is averaged, decayed, over all positions (A) and by how confident the drafter was (a(confidence)). Of
    greedy rows it is that of temperature 1, which tells after a few drafts what 0s and 1s tell after many.

      rho = max(1, max_k (1 + A + … + A^k) / (k c + v_k), tokens per unit of time in the last rounds that drafted)

    is what a unit of time is worth; A and a(confidence) are scaled down where less was in fact accepted. A round
    drafts iff one of the last two is at least 1. While drafting, with
    S = prod a(confidence) the chance that the block of i drafts stands, going on to n drafts is worth

      S (1 + A + … + A^(n - i)) - rho (v_n - v_(i - 1) + (n - i) c)

    The last token joins the block iff that is positive for some n >= i, and another is drafted iff it is largest at
    an n > i. (All of v_k is looked through, since a pass becomes dearer in jumps.) Rows that do not draft try one
    draft after `patience`, 2 `patience`, … at most `longest_wait` rounds, and again at once where the verifier liked
    it. Where a try that fails costs more than 2% of `patience` rounds, they wait longer by as much.

    Args:
      memory: decay of the averages per judged draft. prior: weight of the prior of a(confidence), in drafts; it is the
        confidence itself, or A if that is more.
      patience, longest_wait: rounds between probes.
    """
    edges = (0.0, *_EDGES, 1.0)
    middles = [(a + b) / 2 for a, b in zip(edges, edges[1:], strict=False)]

    def init(batch, costs):
        # A probe in vain takes c + v_1 for the one token that a round without it gives in a time of 1.
        lost = costs.draft + jnp.take(costs.verify, 1, mode="clip") - 1.0
        rare = jnp.maximum(lost / (_PROBING * patience), 1.0)
        nothing = jnp.zeros((batch, len(middles)), jnp.float32)
        row = jnp.ones((batch,), jnp.float32)
        return Guided(
            hits=nothing,
            tries=nothing,
            kept=prior * _HOPE * row,
            judged=prior * row,
            right=prior * _HOPE * row,
            tokens=0.99 * row,
            time=row,
            idle=jnp.zeros((batch,), jnp.int32),
            wait=(patience * rare * row).astype(jnp.int32),
            rare=rare * row,
            pays=jnp.zeros((batch,), bool),
            probing=jnp.zeros((batch,), bool),
            survival=row,
            draft=row * costs.draft,
            verify=jnp.broadcast_to(costs.verify[None, :], (batch, costs.verify.shape[0])).astype(jnp.float32),
        )

    def propose(state):
        pays = _speed(state) >= 1
        probing = ~pays & (state.idle >= state.wait)
        state = state._replace(survival=jnp.ones_like(state.survival), pays=pays, probing=probing)
        return state, jnp.where(pays, _UNLIMITED, jnp.where(probing, 1, 0)).astype(jnp.int32)

    def step(state, drafted):
        trust = _trust(state)
        mean = trust * state.kept / state.judged
        # What is known of a confidence is little at first: the better of it and of the mean, or it is never tried.
        hope = prior * jnp.maximum(jnp.asarray(middles, jnp.float32)[None, :], mean[:, None])
        rate = (trust[:, None] * state.hits + hope) / (state.tries + prior)
        survival = state.survival * _lookup(rate, _bin(drafted.top))
        speed = jnp.maximum(_speed(state), 1.0)[:, None]
        ahead = jnp.arange(state.verify.shape[1], dtype=jnp.int32)[None, :] - (drafted.index + 1)
        # Sums over 0 .. ahead of powers of the mean, without dividing by 1 - mean.
        powers = jnp.where(ahead >= 0, mean[:, None] ** jnp.maximum(ahead, 0).astype(jnp.float32), 0.0)
        tokens = survival[:, None] * _running_sum(powers)
        passed = state.verify - _lookup(state.verify, drafted.index)[:, None]
        value = tokens - speed * (passed + jnp.maximum(ahead, 0).astype(jnp.float32) * state.draft[:, None])
        now = jnp.max(jnp.where(ahead == 0, value, 0.0), axis=1)
        later = jnp.max(jnp.where(ahead > 0, value, 0.0), axis=1)
        more = later > now
        keep = (now > 0) | more | state.probing
        return state._replace(survival=jnp.where(drafted.drafting, survival, state.survival)), keep, more

    def update(state, verdict):
        bins = _bin(verdict.top)[..., None] == jnp.arange(len(middles), dtype=jnp.int32)[None, None, :]
        weight = (bins & verdict.decided[..., None]).astype(jnp.float32)
        judged = jnp.sum(weight, axis=(1, 2))
        # The expected acceptance of what was judged: less noise than a count, and it tells a near miss from a far one.
        liked = jnp.sum(jnp.where(verdict.decided, verdict.expected, 0.0), axis=1)
        # What is not seen fades slowly, so that a confidence once found bad is tried again.
        decay, fade = memory ** (jnp.sum(weight, axis=1) + 0.05 * judged[:, None]), memory**judged
        steps, accepted = verdict.steps.astype(jnp.float32), verdict.accepted.astype(jnp.float32)
        tried = state.pays | state.probing
        cost = _lookup(state.verify, verdict.drafted) + state.draft * steps
        again = state.probing & (_best_fixed(state, _trust(state) * liked / jnp.maximum(judged, 1.0)) >= 1)
        longest = (longest_wait * state.rare).astype(jnp.int32)
        longer = jnp.where(state.probing, jnp.minimum(2 * state.wait, longest), state.wait)
        wait = jnp.where(state.pays | again, (patience * state.rare).astype(jnp.int32), longer)
        return state._replace(
            hits=decay * state.hits + jnp.sum(weight * verdict.expected[..., None], axis=1),
            tries=decay * state.tries + jnp.sum(weight, axis=1),
            kept=fade * state.kept + liked,
            judged=fade * state.judged + judged,
            right=fade * state.right + accepted,
            tokens=jnp.where(tried, _MEMORY_OF_SPEED * state.tokens + 1.0 + accepted, state.tokens),
            time=jnp.where(tried, _MEMORY_OF_SPEED * state.time + cost, state.time),
            idle=jnp.where(again, wait, jnp.where(tried, 0, state.idle + 1)),
            wait=wait,
        )

    return DraftLength(init, propose, step, update, timed=True, name="verifier_guided")


def _best_fixed(state: Guided, mean: Float[Array, " b"]) -> Float[Array, " b"]:
    """Tokens per unit of time of the best fixed length from 1, if each draft is accepted with probability `mean`."""
    k = jnp.arange(state.verify.shape[1], dtype=jnp.float32)[None, :]
    tokens = _running_sum(mean[:, None] ** k)
    return jnp.max((tokens / (k * state.draft[:, None] + state.verify))[:, 1:], axis=1, initial=0.0)


def _speed(state: Guided) -> Float[Array, " b"]:
    """Tokens per unit of time that drafting gives: by the average acceptance, or as it went if that is better."""
    return jnp.maximum(_best_fixed(state, _trust(state) * state.kept / state.judged), state.tokens / state.time)


def _trust(state: Guided) -> Float[Array, " b"]:
    """At most 1: what was accepted, and a standard deviation above it, over what was expected."""
    return jnp.minimum((state.right + 0.5 * jnp.sqrt(state.judged)) / state.kept, 1.0)


def _running_sum(x: Float[Array, "b m"]) -> Float[Array, "b m"]:
    """The cumulative sum of a few numbers, as one reduction: XLA on CPUs makes several programs of its own."""
    number = jnp.arange(x.shape[1], dtype=jnp.int32)
    return jnp.sum(jnp.where(number[None, None, :] <= number[None, :, None], x[:, None, :], 0.0), axis=2)


def _bin(confidence: Float[Array, "*b"]) -> Int[Array, "*b"]:
    return jnp.sum(confidence[..., None] >= jnp.asarray(_EDGES, jnp.float32), axis=-1, dtype=jnp.int32)


def _lookup(table: Float[Array, "b bins"], index: Array) -> Float[Array, " b"]:
    index = jnp.broadcast_to(index, table.shape[:1])
    return jnp.take_along_axis(table, index[:, None].astype(jnp.int32), axis=1)[:, 0]


def given_costs(k_max: int, draft: float, verify: tuple[float, ...] = ()) -> Costs:
    """Returns `Costs` from figures: c, and v_0 … v_k_max in any unit of its own (empty: 1 for each).

    Raises:
      UserError: a figure is not a positive number, or `verify` is not of length k_max + 1.
    """
    passes = tuple(verify) or (1.0,) * (k_max + 1)
    if len(passes) != k_max + 1 or not all(math.isfinite(x) and x > 0 for x in passes):
        raise UserError(f"verify costs must be {k_max + 1} positive numbers, one for each k from 0, not {passes}")
    if not (math.isfinite(draft) and draft >= 0):
        raise UserError(f"the cost of a drafter step must be a number from 0, not {draft}")
    return Costs(jnp.asarray(draft / passes[0], jnp.float32), jnp.asarray([x / passes[0] for x in passes], jnp.float32))
