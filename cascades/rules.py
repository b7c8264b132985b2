"""Deferral rules: from the drafter's and the verifier's distributions at a position to the target `pi`.

A rule is a pure function `(pair, alpha) -> Target`. Acceptance, residual, bonus and loop never know which one it
is: the emitted token follows `Target.pi`. A rule of your own is one such function, named in a gin file.

Thresholds (max q, max p, entropies, membership of a token) look at the RAW distributions, also when decoding
greedily; total variation and the mass inside pi use the SCALED ones, which are sampled.

Sources: Narasimhan et al., "Faster Cascades via Speculative Decoding", ICLR 2025, arXiv 2405.19261 (equation
numbers as in the authors' notebook, where alpha is called `lenience`); Leviathan et al. 2023 (lossy); Kim et al.
2023 (BiLD); Cai et al. 2024, arXiv 2401.10774 (typical acceptance); Hao and Mou 2026, arXiv 2604.04987 (Cactus).
"""

import inspect
import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax.numpy as jnp

from cascades.distributions import argmax, at, entropy, total_variation
from cascades.typing import Array, Bool, Float

__all__ = [
    "lossless",
    "chow",
    "chow_log",
    "diff",
    "opt",
    "diff_log",
    "opt_log",
    "token_v1",
    "token_v2",
    "token_v3",
    "lossy",
    "bild",
    "typical",
    "cactus",
]


class Pair(NamedTuple):
    """The two next-token distributions at a position: `q` the drafter's, `p` the verifier's.

    *_raw: softmax of the logits. q, p: after temperature and truncation, as they are sampled.
    """

    q_raw: Float[Array, "*b v"]
    p_raw: Float[Array, "*b v"]
    q: Float[Array, "*b v"]
    p: Float[Array, "*b v"]


class Target(NamedTuple):
    """What a rule decides.

    pi: the distribution that the emitted token follows.
    defer: in [0, 1], how much of the position was handed to the verifier: r of a position rule, eta of a token
      rule (the drafter's mass on unacceptable tokens), 1 where the verifier alone decides.
    """

    pi: Float[Array, "*b v"]
    defer: Float[Array, "*b"]


Rule = Callable[[Pair, Float[Array, "*b"]], Target]


def lossless(pair: Pair, alpha: Float[Array, "*b"]) -> Target:
    """Speculative decoding: pi = p, the verifier's own law. `alpha` is not used."""
    del alpha
    return Target(pair.p, jnp.ones(pair.p.shape[:-1], jnp.float32))


def chow(pair: Pair, alpha: Float[Array, "*b"]) -> Target:
    """Defers where the drafter is unsure: max q < 1 - alpha (eq. 2). alpha from 0 (lossless) to 1 (drafter only)."""
    return _position(pair, _top(pair.q_raw) < 1.0 - alpha)


def chow_log(pair: Pair, alpha: Float[Array, "*b"]) -> Target:
    """Defers where the drafter's entropy exceeds alpha, in nats; from 0 to log V. Not confirmed in the paper."""
    return _position(pair, entropy(pair.q_raw) > alpha)


def diff(pair: Pair, alpha: Float[Array, "*b"]) -> Target:
    """Defers where max q < max p - alpha (eq. 5). alpha from -1 (lossless) to 1 (drafter only)."""
    return _position(pair, _top(pair.q_raw) < _top(pair.p_raw) - alpha)


def opt(pair: Pair, alpha: Float[Array, "*b"]) -> Target:
    """Defers where max q < max p - alpha D_TV(p, q) (eq. 10): the plug-in of the optimal rule for 0-1 loss.

    More disagreement means LESS deferral, since deferring there costs a likely rejection. alpha from -inf
    (lossless) to inf (drafter only).
    """
    return _position(pair, _top(pair.q_raw) < _top(pair.p_raw) - _disagreement(pair, alpha))


def diff_log(pair: Pair, alpha: Float[Array, "*b"]) -> Target:
    """The log-loss twin of `diff`: defers where H(q) > H(p) + alpha. alpha from -log V to log V."""
    return _position(pair, entropy(pair.q_raw) > entropy(pair.p_raw) + alpha)


def opt_log(pair: Pair, alpha: Float[Array, "*b"]) -> Target:
    """The log-loss twin of `opt`: defers where H(q) > H(p) + alpha D_TV(p, q). alpha from -inf to inf."""
    return _position(pair, entropy(pair.q_raw) > entropy(pair.p_raw) + _disagreement(pair, alpha))


def token_v1(pair: Pair, alpha: Float[Array, "*b"]) -> Target:
    """Keeps tokens with q(v) >= max p - alpha (eq. 13). alpha from -1 (lossless) to 1 (drafter only)."""
    return _token(pair, pair.q_raw >= (_top(pair.p_raw) - alpha)[..., None])


def token_v2(pair: Pair, alpha: Float[Array, "*b"]) -> Target:
    """Keeps tokens with p(v) >= max p - alpha (eq. 14). alpha from -1 (lossless) to 1 (drafter only)."""
    return _token(pair, pair.p_raw >= (_top(pair.p_raw) - alpha)[..., None])


def token_v3(pair: Pair, alpha: Float[Array, "*b"]) -> Target:
    """Keeps tokens with p(v) >= (1 - alpha) max p (eq. 15): the paper's headline rule.

    alpha from 0 to 1 (drafter only). At alpha = 0 it is lossless when decoding greedily, NOT when sampling. The
    kept set is the verifier's min-p set with min_p = 1 - alpha.
    """
    return _token(pair, pair.p_raw >= ((1.0 - alpha) * _top(pair.p_raw))[..., None])


def lossy(pair: Pair, alpha: Float[Array, "*b"], beta: float = 1.0) -> Target:
    """Lossy speculative decoding: accept with min(1, p / ((1 - alpha) q)), residual norm(max(0, p / beta - q)).

    alpha from 0 (lossless) to 1 (drafter only). beta = 1 is the authors' one-parameter form.
    """
    slack = (1.0 - alpha)[..., None]
    kept = jnp.where(pair.p >= slack * pair.q, pair.q, pair.p / jnp.maximum(slack, jnp.finfo(jnp.float32).tiny))
    return _corrected(pair, kept, jnp.maximum(pair.p / beta - pair.q, 0.0))


def bild(pair: Pair, alpha: Float[Array, "*b"]) -> Target:
    """BiLD's rollback as a position rule: defers where -log p(argmax q) > alpha. alpha from 0 to inf.

    With `lookahead.bild_fallback` it is Big Little Decoder; with a fixed draft length the variant BiLD*.
    """
    best = argmax(pair.q_raw)
    return _position(pair, -jnp.log(at(pair.p_raw, best)) > alpha)


def typical(pair: Pair, alpha: Float[Array, "*b"], delta: float | None = None) -> Target:
    """Medusa's typical acceptance: keeps tokens with p(v) > min(eps, delta exp(-H(p))), where eps = 1 - alpha.

    alpha from 0 to 1 (drafter only), so that it grows with lenience as elsewhere: Medusa's usual eps of 0.09 is 0.91.
    delta None is sqrt(eps), as there. Nowhere lossless.
    """
    eps = 1.0 - alpha
    least = jnp.minimum(eps, (jnp.sqrt(eps) if delta is None else delta) * jnp.exp(-entropy(pair.p_raw)))
    return _token(pair, pair.p_raw > least[..., None])


def cactus(pair: Pair, alpha: Float[Array, "*b"]) -> Target:
    """Cactus: a draft n is judged against a law h_n that is p with more on n, and so much less on all others.

    h_n(n) = min(1, p(n) + sqrt(2 alpha p(n) (1 - p(n)))) and h_n(v) = p(v) (1 - h_n(n)) / (1 - p(n)): accept with
    min(1, h_n(n) / q(n)), residual norm(max(0, h_n - q)). pi is the law that comes of it, over all n. Two sorts of the
    vocabulary make it slower than the other rules.

    alpha bounds the divergence of each h_n from p (the paper's delta), from 0 (lossless) to inf. Greedy rows are
    lossless at any alpha, as their p is 0 or 1.
    """
    p, q = pair.p, pair.q
    spread = 2.0 * p * (1.0 - p)
    spread = jnp.where(spread > 0, alpha[..., None] * spread, 0.0)  # an infinite alpha times 0 would be NaN
    h = jnp.minimum(p + jnp.sqrt(spread), 1.0)
    rejected = jnp.maximum(q - h, 0.0)
    # Where n is rejected, v is left max(0, scale p(v) - q(v)), which is above 0 where q(v) / p(v) is below scale.
    scale = jnp.where(p < 1.0, (1.0 - h) / jnp.where(p < 1.0, 1.0 - p, 1.0), 0.0)
    ratio = jnp.where(p > 0, q / jnp.where(p > 0, p, 1.0), jnp.inf)
    of_p, of_q = _summed_below(ratio, scale, p, q)
    left = scale * of_p - of_q  # at least what was rejected, as n itself is left nothing
    weight = jnp.where(rejected > 0, rejected / jnp.maximum(left, rejected), 0.0)
    of_scale, of_weight = _summed_below(-scale, -ratio, weight * scale, weight)
    return _corrected(pair, jnp.minimum(q, h), jnp.maximum(p * of_scale - q * of_weight, 0.0))


ALPHA_RANGE: dict[Callable, tuple[float, float]] = {
    lossless: (-math.inf, math.inf),
    chow: (0.0, 1.0),
    chow_log: (0.0, math.inf),
    diff: (-1.0, 1.0),
    opt: (-math.inf, math.inf),
    diff_log: (-math.inf, math.inf),
    opt_log: (-math.inf, math.inf),
    token_v1: (-1.0, 1.0),
    token_v2: (-1.0, 1.0),
    token_v3: (0.0, 1.0),
    lossy: (0.0, 1.0),
    bild: (0.0, math.inf),
    typical: (0.0, 1.0),
    cactus: (0.0, math.inf),
}
"""Where alpha may lie, ends included. A rule of one's own is not in it: any number but NaN is taken."""


_SEES_VERIFIER_ALONE = (lossless, token_v2, token_v3, typical)


def plain(rule: Callable) -> Callable:
    """Returns the rule itself, which gin wraps."""
    return inspect.unwrap(rule, stop=lambda function: function in ALPHA_RANGE)


def sees_verifier_alone(rule: Callable) -> bool:
    """Tells whether which tokens a rule finds good enough is the same whatever the drafter believes.

    Of a rule of one's own it is not known, and taken to be false.
    """
    return plain(rule) in _SEES_VERIFIER_ALONE


def _top(probs: Float[Array, "*b v"]) -> Float[Array, "*b"]:
    return jnp.max(probs, axis=-1)


def _disagreement(pair: Pair, alpha: Float[Array, "*b"]) -> Float[Array, "*b"]:
    distance = total_variation(pair.p, pair.q)
    return jnp.where(distance > 0, alpha * distance, 0.0)  # an infinite alpha times 0 would be NaN


def _position(pair: Pair, defer: Bool[Array, "*b"]) -> Target:
    """r = 1: the verifier's distribution; r = 0: the drafter's."""
    return Target(jnp.where(defer[..., None], pair.p, pair.q), defer.astype(jnp.float32))


def _corrected(pair: Pair, kept: Float[Array, "*b v"], rest: Float[Array, "*b v"]) -> Target:
    """pi = what is kept of q, and the mass that is rejected spread as `rest` is, over p where nothing is left of it."""
    rejected = jnp.maximum(1.0 - jnp.sum(kept, axis=-1), 0.0)
    mass = jnp.sum(rest, axis=-1, keepdims=True)
    rest = jnp.where(mass > 0, rest / jnp.where(mass > 0, mass, 1.0), pair.p)
    return Target(kept + rejected[..., None] * rest, rejected)


def _summed_below(
    keys: Float[Array, "*b v"], bounds: Float[Array, "*b v"], *values: Float[Array, "*b v"]
) -> list[Float[Array, "*b v"]]:
    """For each bound the sums of the values whose keys are below it."""
    order = jnp.argsort(keys, axis=-1)
    search = jnp.vectorize(partial(jnp.searchsorted, side="left"), signature="(v),(v)->(v)")
    count = search(jnp.take_along_axis(keys, order, axis=-1), bounds)
    sums = (jnp.cumsum(jnp.take_along_axis(each, order, axis=-1), axis=-1) for each in values)
    last = jnp.maximum(count - 1, 0)
    return [jnp.where(count > 0, jnp.take_along_axis(each, last, axis=-1), 0.0) for each in sums]


def _token(pair: Pair, acceptable: Bool[Array, "*b v"]) -> Target:
    """pi = q on acceptable tokens, and the drafter's remaining mass eta handed to p, over EVERY token."""
    eta = jnp.sum(jnp.where(acceptable, 0.0, pair.q), axis=-1)
    return Target(jnp.where(acceptable, pair.q, 0.0) + eta[..., None] * pair.p, eta)
