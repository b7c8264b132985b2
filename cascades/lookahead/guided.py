"""The controller that the verifier's past verdicts guide; this project's own."""

from typing import Any, NamedTuple

import jax.numpy as jnp

from cascades.lookahead.contract import (
    UNLIMITED,
    Bound,
    Costs,
    Drafted,
    DraftLength,
    Verdict,
    check_number,
    check_whole,
)
from cascades.typing import Array, Bool, Float, Int

_EDGES = (0.15, 0.3, 0.45, 0.6, 0.7, 0.8, 0.88, 0.94, 0.975, 0.99, 0.997)  # finer where drafts are mostly right
_MIDDLES = tuple((a + b) / 2 for a, b in zip((0.0, *_EDGES), (*_EDGES, 1.0), strict=True))
_HOPE = 0.8  # acceptance before anything is known: high enough to try wherever drafting can pay at all
_MEMORY_OF_SPEED = 0.95
_PROBING = 0.02  # most of the time that probes may cost where drafting does not pay


class Tuning(NamedTuple):
    """The arguments of `verifier_guided`."""

    memory: float
    prior: float
    patience: int
    longest_wait: int


class Guided(NamedTuple):
    """State of `verifier_guided`, all `[b]` but the tables.

    hits, tries: `[b, bins]`, decayed acceptance and number of judged drafts, by the drafter's confidence.
    kept, judged: the same over all confidences, decayed together. right: the drafts that were in fact accepted.
    tokens, time: decayed tokens emitted and time spent in rounds that drafted; a round without a draft takes 1.
    idle: rounds since the last draft. wait: rounds to stay idle before the next probe. rare: by how much the costs
    stretch them. pays: this round drafts because it should pay. probing: it drafts to find out. survival: probability
    that the block drafted so far is accepted whole (this round).
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


def verifier_guided(
    memory: float | Any = 0.97, prior: float | Any = 2.0, patience: int | Any = 8, longest_wait: int | Any = 64
) -> DraftLength:
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

    For example, of a drafter with c = 0.2 and a verifier whose passes all take 1, and at most 4 drafts: at first
    A = 0.8, so that rho = (1 + 0.8 + … + 0.8^4) / (4 c + 1) = 1.868, and the round drafts. Of a drafter that is sure
    by 0.5 of its first token, a = A = 0.8 too: a block of it alone is worth 0.8, one of 4 drafts 0.8 (1 + 0.8 + … +
    0.8^3) - 1.868 * 3 c = 1.241, so another is drafted. All 4 are; the verifier rejects the first, of which it expected
    0.1. Then A = (0.97 * 1.6 + 0.1) / (0.97 * 2 + 1) = 0.562 and rho = (1 + A + A^2) / (2 c + 1) = 1.341;
    a(0.5) = (0.1 + 2 A) / (1 + 2) = 0.408, and a block of one such token is worth more than one of 2, 0.408 (1 + A) -
    1.341 c = 0.369. The next round drafts it and no other.

    >>> from cascades.lookahead import given_costs
    >>> controller = verifier_guided()
    >>> first = Drafted(jnp.int32(0), jnp.float32([0.5]), jnp.asarray([True]))
    >>> state, _ = controller.propose(controller.init(1, given_costs(4, 0.2)))
    >>> _, keep, more = controller.step(state, first)
    >>> bool(keep[0]), bool(more[0])
    (True, True)
    >>> seen = {"expected": jnp.float32([[0.1, 0, 0, 0]]), "top": jnp.full((1, 4), 0.5, jnp.float32)}
    >>> taken = {"steps": jnp.int32([4]), "drafted": jnp.int32([4]), "accepted": jnp.int32([0])}
    >>> state = controller.update(state, Verdict(**taken, **seen, decided=jnp.asarray([[True, False, False, False]])))
    >>> print(f"{state.kept[0] / state.judged[0]:.3f}")
    0.562
    >>> state, _ = controller.propose(state)
    >>> state, keep, more = controller.step(state, first)
    >>> bool(keep[0]), bool(more[0]), f"{state.survival[0]:.3f}"
    (True, False, '0.408')

    Args:
      memory: decay of the averages per judged draft, from 0 to 1. prior: weight of the prior of a(confidence), in
        drafts, from 0.001 to 1000; it is the confidence itself, or A if that is more.
      patience, longest_wait: rounds between probes, from 1.

    Raises:
      UserError: an argument is out of its range.
    """
    check_number("verifier_guided.memory", memory, 0.0, 1.0)
    check_number("verifier_guided.prior", prior, 0.001, 1000.0)
    check_whole("verifier_guided.patience", patience, 1)
    check_whole("verifier_guided.longest_wait", longest_wait, 1)
    tuning = Tuning(float(memory), float(prior), patience, longest_wait)
    return DraftLength(
        init=Bound(_init, tuning),
        propose=_propose,
        step=Bound(_step, tuning),
        update=Bound(_update, tuning),
        recost=Bound(_recost, tuning),
        timed=True,
        name="verifier_guided",
    )


def _init(tuning: Tuning, batch: int, costs: Costs) -> Guided:
    # A probe in vain takes c + v_1 for the one token that a round without it gives in a time of 1.
    lost = costs.draft + jnp.take(costs.verify, 1, mode="clip") - 1.0
    rare = jnp.maximum(lost / (_PROBING * tuning.patience), 1.0)
    nothing = jnp.zeros((batch, len(_MIDDLES)), jnp.float32)
    row = jnp.ones((batch,), jnp.float32)
    return Guided(
        hits=nothing,
        tries=nothing,
        kept=tuning.prior * _HOPE * row,
        judged=tuning.prior * row,
        right=tuning.prior * _HOPE * row,
        tokens=0.99 * row,
        time=row,
        idle=jnp.zeros((batch,), jnp.int32),
        wait=(tuning.patience * rare * row).astype(jnp.int32),
        rare=rare * row,
        pays=jnp.zeros((batch,), bool),
        probing=jnp.zeros((batch,), bool),
        survival=row,
        draft=row * costs.draft,
        verify=jnp.broadcast_to(costs.verify[None, :], (batch, costs.verify.shape[0])).astype(jnp.float32),
    )


def _recost(tuning: Tuning, state: Guided, costs: Costs) -> Guided:
    first = _init(tuning, state.draft.shape[0], costs)
    return state._replace(rare=first.rare, draft=first.draft, verify=first.verify)


def _propose(state: Guided) -> tuple[Guided, Int[Array, " b"]]:
    pays = _speed(state) >= 1
    probing = ~pays & (state.idle >= state.wait)
    state = state._replace(survival=jnp.ones_like(state.survival), pays=pays, probing=probing)
    return state, jnp.where(pays, UNLIMITED, jnp.where(probing, 1, 0)).astype(jnp.int32)


def _step(tuning: Tuning, state: Guided, drafted: Drafted) -> tuple[Guided, Bool[Array, " b"], Bool[Array, " b"]]:
    """Weighs a block that ends here, at each later place, and before here."""
    trust = _trust(state)
    mean = trust * state.kept / state.judged
    # What is known of a confidence is little at first: the better of it and of the mean, or it is never tried.
    hope = tuning.prior * jnp.maximum(jnp.asarray(_MIDDLES, jnp.float32)[None, :], mean[:, None])
    rate = (trust[:, None] * state.hits + hope) / (state.tries + tuning.prior)
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


def _update(tuning: Tuning, state: Guided, verdict: Verdict) -> Guided:
    """Adds a round's verdict to the averages, and says when to probe next."""
    bins = _bin(verdict.top)[..., None] == jnp.arange(len(_MIDDLES), dtype=jnp.int32)[None, None, :]
    weight = (bins & verdict.decided[..., None]).astype(jnp.float32)
    judged = jnp.sum(weight, axis=(1, 2))
    # The expected acceptance of what was judged: less noise than a count, and it tells a near miss from a far one.
    liked = jnp.sum(jnp.where(verdict.decided, verdict.expected, 0.0), axis=1)
    # What is not seen fades slowly, so that a confidence once found bad is tried again.
    decay, fade = tuning.memory ** (jnp.sum(weight, axis=1) + 0.05 * judged[:, None]), tuning.memory**judged
    steps, accepted = verdict.steps.astype(jnp.float32), verdict.accepted.astype(jnp.float32)
    tried = state.pays | state.probing
    cost = _lookup(state.verify, verdict.drafted) + state.draft * steps
    again = state.probing & (_best_fixed(state, _trust(state) * liked / jnp.maximum(judged, 1.0)) >= 1)
    longest = (tuning.longest_wait * state.rare).astype(jnp.int32)
    longer = jnp.where(state.probing, jnp.minimum(2 * state.wait, longest), state.wait)
    wait = jnp.where(state.pays | again, (tuning.patience * state.rare).astype(jnp.int32), longer)
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


def _bin(confidence: Float[Array, "*b"]) -> Int[Array, "*b"]:
    edges = jnp.asarray(_EDGES, jnp.float32)
    return jnp.searchsorted(edges, confidence, side="right", method="compare_all").astype(jnp.int32)


def _lookup(table: Float[Array, "b bins"], index: Array) -> Float[Array, " b"]:
    index = jnp.broadcast_to(index, table.shape[:1])
    return jnp.take_along_axis(table, index[:, None].astype(jnp.int32), axis=1)[:, 0]


def _running_sum(x: Float[Array, "b m"]) -> Float[Array, "b m"]:
    """The cumulative sum of a few numbers, as one reduction: XLA on CPUs makes several programs of its own."""
    number = jnp.arange(x.shape[1], dtype=jnp.int32)
    return jnp.sum(jnp.where(number[None, None, :] <= number[None, :, None], x[:, None, :], 0.0), axis=2)
