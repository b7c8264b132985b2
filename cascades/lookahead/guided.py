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
    most,
    shared,
)
from cascades.typing import Array, Bool, Float, Int

_EDGES = (0.15, 0.3, 0.45, 0.6, 0.7, 0.8, 0.88, 0.94, 0.975, 0.99, 0.997)  # finer where drafts are mostly right
_MIDDLES = tuple((a + b) / 2 for a, b in zip((0.0, *_EDGES), (*_EDGES, 1.0), strict=True))
_MATCHED = (2, 3, 4, 6, 9, 14)  # tokens that a look-up matched: one, two, three, four or five, …
_FOUND = (0.3, 0.5, 0.57, 0.65, 0.77, 0.85, 0.9)  # how often it was right in answers of SmolLM2-135M
_MODEL, _LOOKUP = slice(0, len(_MIDDLES)), slice(len(_MIDDLES), None)  # of the tables: who drafted
_HOPE = 0.8  # acceptance before anything is known: high enough to try wherever drafting can pay at all
_DOUBT = 5.0  # drafts that what happened must outweigh before it is believed over what was expected, of all of them
_DOUBT_OF_A_BIN = 12.0  # and of a confidence alone
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

    right, liked, tries: `[b, bins]`, decayed drafts that were accepted, that were expected to be, and that were judged,
    by the drafter's confidence and behind that by how many tokens a look-up had matched.
    kept, hoped, judged: the same of the drafter's, over all confidences, decayed together.
    firsts: `[b, bins]`, decayed, how sure the drafter was of the first token of a round.
    tokens, time: decayed tokens emitted and time spent in the last rounds; a round without a draft takes 1.
    idle: rounds since the last draft. wait: rounds to stay idle before the next probe. rare: by how much the costs
    stretch them. probing: this round drafts one token to find out. survival: probability that the block drafted so far
    is accepted whole (this round).
    draft, verify: `[b]`, `[b, k_max + 1]`, see `Costs`.
    """

    right: Float[Array, "b bins"]
    liked: Float[Array, "b bins"]
    tries: Float[Array, "b bins"]
    kept: Float[Array, " b"]
    hoped: Float[Array, " b"]
    judged: Float[Array, " b"]
    firsts: Float[Array, "b bins"]
    tokens: Float[Array, " b"]
    time: Float[Array, " b"]
    idle: Int[Array, " b"]
    wait: Int[Array, " b"]
    rare: Float[Array, " b"]
    probing: Bool[Array, " b"]
    survival: Float[Array, " b"]
    draft: Float[Array, " b"]
    verify: Float[Array, "b m"]


def verifier_guided(
    memory: float | Any = 0.97, prior: float | Any = 2.0, patience: int | Any = 8, longest_wait: int | Any = 64
) -> DraftLength:
    """Drafts as long as the verifier's past verdicts say that it pays, by look-up or by model (this project's own).

    After a round the verifier's expected acceptance 1 - D_TV(pi, q) of every position it judged is known exactly, and
    whether the draft was accepted. A sampled row goes by what was expected. A greedy one goes by what happened, of
    which what was expected (at temperature 1) tells in advance: it is scaled by how many drafts were accepted over how
    many should have been. So come, decayed,

      A, the acceptance of the drafter's tokens; a(confidence), the same by how sure the drafter was;
      l(m), the acceptance of a token that a look-up found behind m tokens that matched.

    A unit of time is worth rho = max(1, max_k (1 + A + … + A^k) / (k c + v_k), tokens per unit of time of late). What a
    block gains over none is its tokens less rho times its time, so that a round looks at

      n tokens that were found:  l(m) + l(m) l(m + 1) + …  -  rho (v_n - v_0)
      a look at the drafter:     mean over its first confidences of
                                   max(0, max_n a(confidence) (1 + A + … + A^(n - 1)) - rho (v_n - v_0 + (n - 1) c))
                                 less rho c

    and takes the larger for the n that makes it largest, or drafts nothing if neither is positive. While the drafter
    drafts, with S = prod a(confidence) the chance that the block of i drafts stands, going on to n drafts is worth

      S (1 + A + … + A^(n - i)) - rho (v_n - v_(i - 1) + (n - i) c)

    The last token joins the block iff that is positive for some n >= i, and another is drafted iff it is largest at
    an n > i. (All of v_k is looked through, since a pass becomes dearer in jumps.) Rows that do not draft try one
    draft after `patience`, 2 `patience`, … at most `longest_wait` rounds, and again at once where the verifier liked
    it. Where a try that fails costs more than 2% of `patience` rounds, they wait longer by as much.

    Rows of a batch that are `peers` all wait for its longest draft, so that they decide as one: wherever tokens stand
    above it is their mean over the peers, a peer that does not draft having none, and rho is that of all of them.

    For example, of a drafter with c = 0.2 and a verifier whose passes all take 1, and at most 4 drafts: at first
    A = 0.8, so that rho = (1 + 0.8 + … + 0.8^4) / (4 c + 1) = 1.868, and a look is worth 0.8 (1 + 0.8 + 0.8^2 + 0.8^3)
    - 1.868 * 4 c = 0.867: the drafter is asked. If it is sure by 0.5 of its first token, a = A = 0.8 too: a block of it
    alone is worth 0.8, one of 4 drafts 0.8 (1 + 0.8 + … + 0.8^3) - 1.868 * 3 c = 1.241, so another is drafted. All 4
    are; the verifier rejects the first, of which it expected 0.1. Then 0.1 was expected of one draft, and none of it
    came: A = (1.552 + 5) / (1.652 + 5) * (0.97 * 1.6 + 0.1) / (0.97 * 2 + 1) = 0.553.

    >>> from cascades.lookahead import given_costs
    >>> controller = verifier_guided()
    >>> nothing = jnp.zeros((1,), jnp.int32)  # that a look-up matched
    >>> first = Drafted(jnp.int32(0), jnp.float32([0.5]), jnp.asarray([True]))
    >>> state, *_ = controller.propose(controller.init(1, given_costs(4, 0.2)), nothing, None)
    >>> _, keep, more = controller.step(state, first)
    >>> bool(keep[0]), bool(more[0])
    (True, True)
    >>> seen = {"expected": jnp.float32([[0.1, 0, 0, 0]]), "top": jnp.full((1, 4), 0.5, jnp.float32)}
    >>> told = seen | {"matched": jnp.zeros((1, 4), jnp.int32), "counted": jnp.asarray([True])}
    >>> taken = {"steps": jnp.int32([4]), "drafted": jnp.int32([4]), "accepted": jnp.int32([0])}
    >>> state = controller.update(state, Verdict(**taken, **told, decided=jnp.asarray([[True, False, False, False]])))
    >>> print(f"{average(state)[0]:.3f}")
    0.553

    Args:
      memory: decay of the averages per judged draft, from 0 to 1. prior: weight of the prior of a(confidence) and l(m),
        in drafts, from 0.001 to 1000.
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
        propose=Bound(_propose, tuning),
        step=Bound(_step, tuning),
        update=Bound(_update, tuning),
        recost=Bound(_recost, tuning),
        timed=True,
        learns=True,
        name="verifier_guided",
    )


def average(state: Guided) -> Float[Array, " b"]:
    """A: the acceptance of the drafter's tokens, whatever its confidence."""
    return jnp.minimum(_scale(state.kept, state.hoped) * state.hoped / state.judged, 1.0)


def _init(tuning: Tuning, batch: int, costs: Costs) -> Guided:
    # A probe in vain takes c + v_1 for the one token that a round without it gives in a time of 1.
    lost = costs.draft + jnp.take(costs.verify, 1, mode="clip") - 1.0
    rare = jnp.maximum(lost / (_PROBING * tuning.patience), 1.0)
    nothing = jnp.zeros((batch, len(_MIDDLES) + len(_FOUND)), jnp.float32)
    row = jnp.ones((batch,), jnp.float32)
    return Guided(
        right=nothing,
        liked=nothing,
        tries=nothing,
        kept=tuning.prior * _HOPE * row,
        hoped=tuning.prior * _HOPE * row,
        judged=tuning.prior * row,
        firsts=nothing[:, _MODEL],
        tokens=0.99 * row,
        time=row,
        idle=jnp.zeros((batch,), jnp.int32),
        wait=(tuning.patience * rare * row).astype(jnp.int32),
        rare=rare * row,
        probing=jnp.zeros((batch,), bool),
        survival=row,
        draft=row * costs.draft,
        verify=jnp.broadcast_to(costs.verify[None, :], (batch, costs.verify.shape[0])).astype(jnp.float32),
    )


def _recost(tuning: Tuning, state: Guided, costs: Costs) -> Guided:
    first = _init(tuning, state.draft.shape[0], costs)
    return state._replace(rare=first.rare, draft=first.draft, verify=first.verify)


def _propose(
    tuning: Tuning, state: Guided, matched: Int[Array, " b"], peers: Bool[Array, " b"] | None
) -> tuple[Guided, Int[Array, " b"], Int[Array, " b"]]:
    rate, mean, speed = _rates(tuning, state), average(state), _speed(state, peers)
    found, count = _found(state, rate, speed, matched, peers)
    look = _look(tuning, state, rate[:, _MODEL], mean, speed, peers)
    pays = jnp.maximum(found, look) > 0
    probing = ~pays & (shared(peers, (state.idle - state.wait).astype(jnp.float32)) >= 0)
    by_lookup = (matched > 0) & (found >= look)
    most = jnp.where(pays, UNLIMITED, jnp.where(probing, 1, 0)).astype(jnp.int32)
    state = state._replace(survival=jnp.ones_like(state.survival), probing=probing)
    return state, jnp.where(by_lookup, 0, most), jnp.where(by_lookup, jnp.minimum(most, count), 0)


def _found(
    state: Guided,
    rate: Float[Array, "b bins"],
    speed: Float[Array, " b"],
    matched: Int[Array, " b"],
    peers: Bool[Array, " b"] | None,
) -> tuple[Float[Array, " b"], Int[Array, " b"]]:
    """Returns what the best number of found tokens gains, and that number, from 1."""
    k_max = state.verify.shape[1] - 1
    ahead = jnp.arange(k_max, dtype=jnp.int32)[None, :]
    each = jnp.take_along_axis(rate[:, _LOOKUP], _bin(_MATCHED, matched[:, None] + ahead), axis=1)
    tokens = _running_sum(jnp.exp(_running_sum(jnp.log(jnp.maximum(each, 1e-6)))))
    tokens = shared(peers, jnp.where(matched[:, None] > 0, tokens, 0.0))
    gain = tokens - speed[:, None] * (state.verify[:, 1:] - state.verify[:, :1])
    best = jnp.max(gain, axis=1, initial=-jnp.inf)
    count = jnp.max(jnp.where(gain == best[:, None], ahead + 1, 1), axis=1, initial=1)
    somewhere = shared(peers, (matched > 0).astype(jnp.float32)) > 0
    return jnp.where(somewhere, best, -jnp.inf), count.astype(jnp.int32)


def _look(
    tuning: Tuning,
    state: Guided,
    rate: Float[Array, "b bins"],
    mean: Float[Array, " b"],
    speed: Float[Array, " b"],
    peers: Bool[Array, " b"] | None,
) -> Float[Array, " b"]:
    """Returns what it gains to ask the drafter for a token, and for more where its confidence then says so.

    All `[b]` but rate, the drafter's part of the table. A row knows of its peers only what they say on the average.
    """
    count = jnp.arange(state.verify.shape[1] - 1, dtype=jnp.float32)[None, :]
    tokens = _running_sum(mean[:, None] ** count)
    time = state.verify[:, 1:] - state.verify[:, :1] + count * state.draft[:, None]
    chance = jnp.concatenate([rate, mean[:, None]], axis=1)  # the last for a confidence that is not yet known
    weight = jnp.concatenate([state.firsts, jnp.full_like(mean[:, None], tuning.prior)], axis=1)
    usual = jnp.sum(weight * chance, axis=1) / jnp.sum(weight, axis=1)
    block = chance[:, :, None] * tokens[:, None, :]
    if peers is not None:
        share = peers.astype(jnp.float32)[:, None]
        share = share / jnp.maximum(jnp.sum(share), 1.0)
        of_row = usual[:, None] * tokens
        of_others = shared(peers, of_row) - share * of_row
        block = share[:, :, None] * block + of_others[:, None, :]
    gain = block - speed[:, None, None] * time[:, None, :]
    gain = jnp.maximum(jnp.max(gain, axis=2, initial=-jnp.inf), 0.0)
    return shared(peers, jnp.sum(weight * gain, axis=1) / jnp.sum(weight, axis=1)) - speed * state.draft


def _step(tuning: Tuning, state: Guided, drafted: Drafted) -> tuple[Guided, Bool[Array, " b"], Bool[Array, " b"]]:
    """Weighs a block that ends here, at each later place, and before here."""
    mean, rate = average(state), _rates(tuning, state)
    survival = state.survival * _lookup(rate, _bin(_EDGES, drafted.top))
    speed = _speed(state, drafted.peers)[:, None]
    ahead = jnp.arange(state.verify.shape[1], dtype=jnp.int32)[None, :] - (drafted.index + 1)
    # Sums over 0 .. ahead of powers of the mean, without dividing by 1 - mean.
    powers = jnp.where(ahead >= 0, mean[:, None] ** jnp.maximum(ahead, 0).astype(jnp.float32), 0.0)
    tokens = survival[:, None] * _running_sum(powers)
    tokens = shared(drafted.peers, jnp.where(drafted.drafting[:, None], tokens, 0.0))
    passed = state.verify - _lookup(state.verify, drafted.index)[:, None]
    value = tokens - speed * (passed + jnp.maximum(ahead, 0).astype(jnp.float32) * state.draft[:, None])
    now = jnp.max(jnp.where(ahead == 0, value, 0.0), axis=1)
    later = jnp.max(jnp.where(ahead > 0, value, 0.0), axis=1)
    more = later > now
    keep = (now > 0) | more | state.probing
    return state._replace(survival=jnp.where(drafted.drafting, survival, state.survival)), keep, more


def _update(tuning: Tuning, state: Guided, verdict: Verdict) -> Guided:
    """Adds a round's verdict to the averages, and says when to probe next."""
    confidence, matched = _bin(_EDGES, verdict.top), _bin(_MATCHED, verdict.matched)
    of_model = verdict.matched == 0
    place = jnp.where(of_model, confidence, len(_MIDDLES) + matched)
    bins = place[..., None] == jnp.arange(state.tries.shape[1], dtype=jnp.int32)[None, None, :]
    weight = (bins & verdict.decided[..., None]).astype(jnp.float32)
    column = jnp.arange(verdict.top.shape[1], dtype=jnp.int32)[None, :]
    liked = jnp.where(verdict.decided, verdict.expected, 0.0)
    outcome = (verdict.decided & (column < verdict.accepted[:, None])).astype(jnp.float32)
    right = jnp.where(verdict.counted[:, None], outcome, liked)
    judged = jnp.sum(weight, axis=(1, 2))
    # What is not seen fades slowly, so that a confidence once found bad is tried again.
    decay = tuning.memory ** (jnp.sum(weight, axis=1) + 0.05 * judged[:, None])
    by_model = jnp.sum(weight[..., _MODEL], axis=(1, 2))
    fade = tuning.memory**by_model
    looked = of_model[:, 0] & (verdict.steps > 0)
    first = looked[:, None] & (confidence[:, :1] == jnp.arange(len(_MIDDLES), dtype=jnp.int32)[None, :])
    steps = most(verdict.peers, verdict.steps).astype(jnp.float32)
    spent = _lookup(state.verify, most(verdict.peers, verdict.drafted)) + state.draft * steps
    drafted = (verdict.steps > 0) | (verdict.drafted > 0)
    # A draft that the verifier liked is worth another look at once, whatever became of it.
    chance = jnp.sum(liked, axis=1) / jnp.maximum(judged, 1.0)
    again = state.probing & drafted & (_best_fixed(state, chance * _scale(state.kept, state.hoped), verdict.peers) >= 1)
    longest = (tuning.longest_wait * state.rare).astype(jnp.int32)
    longer = jnp.where(state.probing & drafted, jnp.minimum(2 * state.wait, longest), state.wait)
    wait = jnp.where((drafted & ~state.probing) | again, (tuning.patience * state.rare).astype(jnp.int32), longer)
    return state._replace(
        right=decay * state.right + jnp.sum(weight * right[..., None], axis=1),
        liked=decay * state.liked + jnp.sum(weight * liked[..., None], axis=1),
        tries=decay * state.tries + jnp.sum(weight, axis=1),
        kept=fade * state.kept + jnp.sum(jnp.where(of_model, right, 0.0), axis=1),
        hoped=fade * state.hoped + jnp.sum(jnp.where(of_model, liked, 0.0), axis=1),
        judged=fade * state.judged + by_model,
        firsts=jnp.where(looked[:, None], tuning.memory * state.firsts, state.firsts) + first.astype(jnp.float32),
        tokens=_MEMORY_OF_SPEED * state.tokens + 1.0 + verdict.accepted.astype(jnp.float32),
        time=_MEMORY_OF_SPEED * state.time + spent,
        idle=jnp.where(again, wait, jnp.where(drafted, 0, state.idle + 1)),
        wait=wait,
    )


def _rates(tuning: Tuning, state: Guided) -> Float[Array, "b bins"]:
    """The acceptance of each confidence and of each number of matched tokens."""
    mean = average(state)[:, None]
    # What is known of a confidence is little at first: the better of it and of the mean, or it is never tried.
    of_model = jnp.maximum(jnp.asarray(_MIDDLES, jnp.float32)[None, :], mean)
    of_lookup = jnp.broadcast_to(jnp.asarray(_FOUND, jnp.float32)[None, :], (mean.shape[0], len(_FOUND)))
    prior = tuning.prior * jnp.concatenate([of_model, of_lookup], axis=1)
    expected = (state.liked + prior) / (state.tries + tuning.prior)
    by_model = _scale(state.kept, state.hoped)[:, None]
    by_lookup = _scale(*(jnp.sum(each[:, _LOOKUP], axis=1) for each in (state.right, state.liked)))[:, None]
    scale = jnp.concatenate([by_model + 0 * of_model, by_lookup + 0 * of_lookup], axis=1)
    return (state.right + _DOUBT_OF_A_BIN * jnp.minimum(scale * expected, 1.0)) / (state.tries + _DOUBT_OF_A_BIN)


def _best_fixed(state: Guided, mean: Float[Array, " b"], peers: Bool[Array, " b"] | None) -> Float[Array, " b"]:
    """Tokens per unit of time of the best fixed length from 1, if each draft is accepted with probability `mean`."""
    k = jnp.arange(state.verify.shape[1], dtype=jnp.float32)[None, :]
    tokens = shared(peers, _running_sum(jnp.minimum(mean, 1.0)[:, None] ** k))
    return jnp.max((tokens / (k * state.draft[:, None] + state.verify))[:, 1:], axis=1, initial=0.0)


def _speed(state: Guided, peers: Bool[Array, " b"] | None) -> Float[Array, " b"]:
    """rho: what a unit of time is worth, in tokens."""
    lately = shared(peers, state.tokens) / shared(peers, state.time)
    return jnp.maximum(jnp.maximum(_best_fixed(state, average(state), peers), lately), 1.0)


def _scale(right: Float[Array, " b"], liked: Float[Array, " b"]) -> Float[Array, " b"]:
    """What was accepted over what was expected to be."""
    return (right + _DOUBT) / (liked + _DOUBT)


def _bin(edges: tuple[float | int, ...], value: Array) -> Int[Array, "*b"]:
    table = jnp.asarray(edges, value.dtype)
    return jnp.searchsorted(table, value, side="right", method="compare_all").astype(jnp.int32)


def _lookup(table: Float[Array, "b bins"], index: Array) -> Float[Array, " b"]:
    index = jnp.broadcast_to(index, table.shape[:1])
    return jnp.take_along_axis(table, index[:, None].astype(jnp.int32), axis=1)[:, 0]


def _running_sum(x: Float[Array, "b m"]) -> Float[Array, "b m"]:
    """The cumulative sum of a few numbers, as one reduction: XLA on CPUs makes several programs of its own."""
    number = jnp.arange(x.shape[1], dtype=jnp.int32)
    return jnp.sum(jnp.where(number[None, None, :] <= number[None, :, None], x[:, None, :], 0.0), axis=2)
