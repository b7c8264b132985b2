"""One block of drafts: which are accepted, and what is emitted at the first that is not.

No models, no loops, no rule names. The law of every emitted token, given its prefix, is exactly the target `pi`
(method: Leviathan et al. 2023 for `maximal`; Daliri, Musco, Suresh, arXiv 2408.07978 for `gumbel`).
"""

from collections.abc import Callable
from typing import Literal, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import lax

from cascades.distributions import Sampling, at, draw, greedy, log_normalizer, scaled, softmax, total_variation, uniform
from cascades.rules import Pair, Rule, Target, sees_verifier_alone
from cascades.typing import Array, Bool, Float, Int, Key

Coupling = Literal["maximal", "gumbel"]
Bonus = Literal["verifier", "target"]
Rows = TypeVar("Rows")  # a pytree whose leaves all lead with the batch axis


class Block(NamedTuple):
    """What became of a block of `k` draft positions.

    accepted: int32 `[b]`, leading drafts that were kept; at most the row's draft length.
    token: int32 `[b]`, the token emitted behind them: a correction, or the bonus if all were kept.
    lossless: `[b, k]`, whether lossless decoding with the same random numbers would have kept the draft.
    expected: `[b, k]`, acceptance probability of the position before the draft is drawn, 1 - D_TV(pi, q). Of a greedy
      row it is that of temperature 1: how close the two models were, where the bare outcome is 0 or 1.
    defer: `[b, k]`, the rule's share for the verifier.
    log_p: `[b, k + 1]`, the verifier's raw log-probability of each draft; of `token` at the last index.
    failed: `[b]`, the verifier's logits behind the accepted drafts are no distribution: there is no `token`.
    """

    accepted: Int[Array, " b"]
    token: Int[Array, " b"]
    lossless: Bool[Array, "b k"]
    expected: Float[Array, "b k"]
    defer: Float[Array, "b k"]
    log_p: Float[Array, "b m"]
    failed: Bool[Array, " b"]


class Kept(NamedTuple):
    """What became of the drafts of a block, without the token behind those that were kept.

    accepted, lossless, expected, defer: see `Block`. log_p: `[b, k]`, as there, of the drafts alone.
    p_end: `[b, v]`, the verifier's logits where the row's block ends.
    """

    accepted: Int[Array, " b"]
    lossless: Bool[Array, "b k"]
    expected: Float[Array, "b k"]
    defer: Float[Array, "b k"]
    log_p: Float[Array, "b k"]
    p_end: Float[Array, "b v"]


def no_verdict(batch: int, k: int, vocab_size: int) -> Kept:
    """Returns a `Kept` of `k` positions in which nothing was decided."""
    row, wide = jnp.zeros((batch,), jnp.int32), jnp.zeros((batch, k), jnp.float32)
    return Kept(row, jnp.zeros((batch, k), bool), wide, wide, wide, jnp.zeros((batch, vocab_size), jnp.float32))


class Keys(NamedTuple):
    """The random streams of a block, one key per position `n, n + 1, …` of each row.

    accept: `[b, k]`, for the acceptance test. token: `[b, k + 1]`, for what is emitted.
    """

    accept: Key[Array, "b k"]
    token: Key[Array, "b m"]


def residual(pi: Float[Array, "*b v"], q: Float[Array, "*b v"]) -> Float[Array, "*b v"]:
    """Returns norm(max(0, pi - q)), and pi where that is numerically empty (rejection then has probability 0)."""
    rest = jnp.maximum(pi - q, 0.0)
    mass = jnp.sum(rest, axis=-1, keepdims=True)
    return jnp.where(mass > 0, rest / jnp.where(mass > 0, mass, 1.0), pi)


def acceptance(pi: Float[Array, "*b"], q: Float[Array, "*b"]) -> Float[Array, "*b"]:
    """Returns min(1, pi / q) of a drafted token; q is positive, since the token was drawn from it."""
    return jnp.minimum(1.0, pi / jnp.where(q > 0, q, 1.0))


def pair_of(q_logits: Float[Array, "*b v"], p_logits: Float[Array, "*b v"], sampling: Sampling) -> Pair:
    """Returns the raw and scaled distributions of both models."""
    return Pair(softmax(q_logits), softmax(p_logits), scaled(q_logits, sampling), scaled(p_logits, sampling))


def by_rule(rules: tuple[Rule, ...], choice: Int[Array, " b"], evaluate: Callable[[Rule], Rows]) -> Rows:
    """Returns, for each row, what `evaluate` makes of the rule that the row has chosen.

    A rule that is alone is evaluated, and `choice` is not read. Of several each is evaluated only if a row has chosen
    it; in the same way for every row, so that a row's result does not depend on what the others chose. What `evaluate`
    reads of the size of the logits should be the logits as they are: what is made of them outside is stored whole.

    Args:
      choice: int32 `[b]`, places in `rules`. A row with -1 has chosen none, and gets zeros.
    """
    if len(rules) == 1:
        return evaluate(rules[0])
    result = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(lambda: evaluate(rules[0])))
    for index, rule in enumerate(rules):
        rows = choice == index

        def put(old: Rows, rule: Rule = rule, rows: Array = rows) -> Rows:
            def choose(a: Array, b: Array) -> Array:
                return jnp.where(rows.reshape(-1, *(1,) * (a.ndim - 1)), a, b)

            return jax.tree.map(choose, evaluate(rule), old)

        result = lax.cond(jnp.any(rows), put, lambda old: old, result)
    return result


def judge(
    drafts: Int[Array, "b k"],
    lengths: Int[Array, " b"],
    q_logits: Float[Array, "b m u"] | None,
    p_logits: Float[Array, "b m v"],
    keys: Keys,
    rules: tuple[Rule, ...],
    choice: Int[Array, " b"],
    alpha: Float[Array, " b"],
    sampling: Sampling,
    coupling: Coupling,
    bonus: Bonus,
    scored: Bool[Array, " b"] | None = None,
    found: Bool[Array, "b k"] | None = None,
    strict: Int[Array, " b"] | None = None,
) -> Block:
    """Decides a block: `keep`, then `conclude`.

    A token that a look-up `found` was drawn from a q that holds nothing else, and no model believes it. There a rule
    that compares beliefs has none to compare, and the target is the verifier's own law; a rule that looks at the
    verifier's beliefs alone decides as anywhere.

    A draft at which the verifier's logits are NaN, infinite or all -inf is not kept, and the row has `failed` there;
    the other rows do not notice. The drafter's are all finite, or -inf for some tokens.

    Args:
      drafts: int32 `[b, k]`; behind `lengths[b]` they are padding.
      lengths: int32 `[b]`, drafts of each row, 0 to k.
      q_logits: the drafter's raw logits at the k positions, and at k + 1 (read with `bonus='target'` only); there may
        be more, which are not read. `u` is v, but where none of them is read (k = 0 and `bonus='verifier'`). None where
        there is no drafter, and all drafts were found.
      p_logits: the verifier's, `[b, k + 1, v]`.
      keys: see `Keys`.
      rules: the deferral rules that are compiled in, at least one. choice, alpha: the row's rule among them, see
        `by_rule`, and its threshold.
      sampling: per row.
      coupling: how draft and target are coupled. bonus: what law the token behind a kept block follows.
      scored: `[b]`, rows of which the drafter scored that token, all if None. With `bonus='target'` it follows the
        verifier's own law in the others: where there is no q, pi = p, whatever the rule is.
      found: `[b, k]`, drafts that a look-up found; None where there is no look-up.
      strict: int32 `[b]`, leading positions of the block at which the target is the verifier's own law, whatever the
        rule is; None is none.
    """
    given = keys, rules, choice, alpha, sampling, coupling
    kept = keep(drafts, lengths, q_logits, p_logits, *given, found, strict)
    reads = drafts.shape[1] > 0 or bonus == "target"
    return conclude(kept, drafts, lengths, q_logits if reads else None, *given, bonus, scored, found, strict)


def keep(
    drafts: Int[Array, "b k"],
    lengths: Int[Array, " b"],
    q_logits: Float[Array, "b m u"] | None,
    p_logits: Float[Array, "b n v"],
    keys: Keys,
    rules: tuple[Rule, ...],
    choice: Int[Array, " b"],
    alpha: Float[Array, " b"],
    sampling: Sampling,
    coupling: Coupling,
    found: Bool[Array, "b k"] | None = None,
    strict: Int[Array, " b"] | None = None,
) -> Kept:
    """Decides which drafts of a block are kept; for the arguments see `judge`.

    The target is evaluated as scalars per position, which fuse into reductions, and never whole.
    """
    count = drafts.shape[1]
    if not count:
        none = jnp.zeros(drafts.shape, jnp.float32)
        return Kept(jnp.zeros_like(lengths), none > 0, none, none, none, p_logits[:, 0])
    column = jnp.arange(count, dtype=jnp.int32)[None, :]
    bound = None if strict is None else column < strict[:, None]

    def decide(rule: Rule):
        p = p_logits[:, :count]
        pair = pair_of(p if q_logits is None else q_logits[:, :count], p, _broadcast(sampling, count))
        if found is not None:
            pair = drawn_from(pair, drafts, found)
        pi, defer = target(rule, pair, jnp.broadcast_to(alpha[:, None], drafts.shape), found, bound)
        if coupling == "maximal":
            q_x = at(pair.q, drafts)
            u = uniform(keys.accept)
            kept = u < acceptance(at(pi, drafts), q_x)
            lossless = u < acceptance(at(pair.p, drafts), q_x)
        else:
            kept = draw(pi, keys.token[:, :count]) == drafts
            lossless = draw(pair.p, keys.token[:, :count]) == drafts
        return kept, lossless, _expected(rule, pair, alpha, sampling, found, bound), defer

    kept, lossless, expected, defer = by_rule(rules, choice, decide)
    normalizer = log_normalizer(p_logits[:, :count])
    sound = jnp.isfinite(normalizer)
    accepted = jnp.min(jnp.where(kept & sound & (column < lengths[:, None]), count, column), axis=1)
    return Kept(
        accepted=accepted,
        lossless=lossless,
        expected=jnp.where(sound, expected, 0.0),
        defer=jnp.where(sound, defer, 0.0),
        log_p=at(p_logits[:, :count], drafts) - normalizer,
        p_end=_row(p_logits, accepted),
    )


def conclude(
    kept: Kept,
    drafts: Int[Array, "b k"],
    lengths: Int[Array, " b"],
    q_logits: Float[Array, "b m v"] | None,
    keys: Keys,
    rules: tuple[Rule, ...],
    choice: Int[Array, " b"],
    alpha: Float[Array, " b"],
    sampling: Sampling,
    coupling: Coupling,
    bonus: Bonus,
    scored: Bool[Array, " b"] | None = None,
    found: Bool[Array, "b k"] | None = None,
    strict: Int[Array, " b"] | None = None,
) -> Block:
    """Draws the token behind the drafts that were kept; for the arguments see `judge`.

    `q_logits` may be longer than the block. Without them, and without a look-up, the token is the verifier's.
    """
    ends, p_end = kept.accepted, kept.p_end
    normalizer = log_normalizer(p_end)
    if q_logits is None and found is None:
        law = scaled(p_end, sampling)
    else:
        logits = jnp.stack([p_end if q_logits is None else _row(q_logits, ends), p_end])
        (q_raw, p_raw), (q, p) = softmax(logits), scaled(logits, Sampling(*(jnp.stack([x, x]) for x in sampling)))
        pair, there = Pair(q_raw, p_raw, q, p), None
        if found is not None:  # of the draft that was rejected
            column = jnp.arange(drafts.shape[1], dtype=jnp.int32)[None, :]
            here = (column == ends[:, None]) & (column < lengths[:, None])
            there = jnp.any(here & found, axis=1)
            pair = drawn_from(pair, jnp.sum(jnp.where(here, drafts, 0), axis=1), there)
        bound = None if strict is None else ends < strict
        pi = by_rule(rules, choice, lambda rule: target(rule, pair, alpha, there, bound).pi)
        correction = residual(pi, pair.q) if coupling == "maximal" else pi
        behind = p
        if bonus == "target":
            behind = pi if scored is None else jnp.where(scored[:, None], pi, p)
        law = jnp.where((ends < lengths)[:, None], correction, behind)
    token = draw(law, jnp.take_along_axis(keys.token, ends[:, None], axis=1)[:, 0])
    log_p = jnp.concatenate([kept.log_p, (at(p_end, token) - normalizer)[:, None]], axis=1)
    return Block(ends, token, kept.lossless, kept.expected, kept.defer, log_p, ~jnp.isfinite(normalizer))


def drawn_from(pair: Pair, tokens: Int[Array, "*b"], found: Bool[Array, "*b"]) -> Pair:
    """Returns a pair whose q, where the token was found and not drafted by a model, holds that token alone."""
    one = lax.broadcasted_iota(jnp.int32, pair.q.shape, pair.q.ndim - 1) == tokens[..., None]
    q_raw, q = (jnp.where(found[..., None], one.astype(jnp.float32), each) for each in (pair.q_raw, pair.q))
    return pair._replace(q_raw=q_raw, q=q)


def target(
    rule: Rule,
    pair: Pair,
    alpha: Float[Array, "*b"],
    found: Bool[Array, "*b"] | None = None,
    strict: Bool[Array, "*b"] | None = None,
) -> Target:
    """Returns what a rule decides; the verifier's own law where it is `strict`, and where a look-up `found` the draft
    if the rule asks what a drafter believes.
    """
    decided = rule(pair, alpha)
    masks = [strict, None if sees_verifier_alone(rule) else found]
    for own in masks:
        if own is not None:
            pi = jnp.where(own[..., None], pair.p, decided.pi)
            decided = Target(pi, jnp.where(own, 1.0, decided.defer))
    return decided


def _expected(
    rule: Rule,
    pair: Pair,
    alpha: Float[Array, " b"],
    sampling: Sampling,
    found: Bool[Array, "b k"] | None,
    strict: Bool[Array, "b k"] | None,
) -> Float[Array, "b k"]:
    """Returns 1 - D_TV(pi, q) of every position, with the raw distributions in the place of a greedy row's."""
    cold = greedy(sampling)[:, None, None]
    q, p = jnp.where(cold, pair.q_raw, pair.q), jnp.where(cold, pair.p_raw, pair.p)
    pi = target(rule, pair._replace(q=q, p=p), jnp.broadcast_to(alpha[:, None], q.shape[:2]), found, strict).pi
    return 1.0 - total_variation(pi, q)


def _row(logits: Float[Array, "b m v"], index: Int[Array, " b"]) -> Float[Array, "b v"]:
    return jnp.take_along_axis(logits, index[:, None, None], axis=1)[:, 0]


def _broadcast(sampling: Sampling, count: int) -> Sampling:
    return Sampling(*(jnp.broadcast_to(x[:, None], (x.shape[0], count)) for x in sampling))
