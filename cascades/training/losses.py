"""Distances between a drafter's next-token distribution q and its verifier's p, each to be made small over q.

Every loss takes raw logits `[*b, v]` of both and returns `[*b]`, float32. Gradients are the drafter's alone: of the
verifier's logits none is asked. For a drafter that scores some tokens alone, KL and Jensen–Shannon compare with the
verifier's distribution over these, the other losses with all of it.

A loss whose attribute `whole` is not set sees what a drafter cannot say only as a sum, so that it may be given as one
column of p where q is zero.

Which distance suits which job: DistillSpec (arXiv 2310.08461), section 3; a draft is accepted with probability
1 - D_TV(p, q), which `total_variation` makes large at once.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from cascades import rules
from cascades.models.layers import MASKED
from cascades.rules import Pair, Rule
from cascades.typing import Array, Float, Int

Loss = Callable[[Float[Array, "*b v"], Float[Array, "*b v"]], Float[Array, "*b"]]
"""(drafter's logits, verifier's logits) -> loss of each position."""

__all__ = ["cross_entropy", "forward_kl", "jensen_shannon", "rejection", "reverse_kl", "total_variation"]


def forward_kl(drafter: Float[Array, "*b v"], verifier: Float[Array, "*b v"]) -> Float[Array, "*b"]:
    """KL(p, q): q must cover what p says. Its minimum is the plain cross-entropy's, less p's entropy."""
    log_q, log_p = _logs(drafter, _sayable(drafter, verifier))
    return jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)


def reverse_kl(drafter: Float[Array, "*b v"], verifier: Float[Array, "*b v"]) -> Float[Array, "*b"]:
    """KL(q, p): q says nothing that p would not; for text that the drafter wrote."""
    log_q, log_p = _logs(drafter, _sayable(drafter, verifier))
    return jnp.sum(jnp.exp(log_q) * (log_q - log_p), axis=-1)


def jensen_shannon(
    drafter: Float[Array, "*b v"], verifier: Float[Array, "*b v"], beta: float = 0.5
) -> Float[Array, "*b"]:
    """beta KL(p, m) + (1 - beta) KL(q, m) with m = beta p + (1 - beta) q; beta in (0, 1)."""
    log_q, log_p = _logs(drafter, _sayable(drafter, verifier))
    log_m = jnp.logaddexp(log_p + jnp.log(beta), log_q + jnp.log1p(-beta))
    p, q = jnp.exp(log_p), jnp.exp(log_q)
    return jnp.sum(beta * p * (log_p - log_m) + (1 - beta) * q * (log_q - log_m), axis=-1)


def total_variation(drafter: Float[Array, "*b v"], verifier: Float[Array, "*b v"]) -> Float[Array, "*b"]:
    """D_TV(p, q): the probability that a draft of temperature 1 is rejected."""
    log_q, log_p = _logs(drafter, verifier)
    return 0.5 * jnp.sum(jnp.abs(jnp.exp(log_p) - jnp.exp(log_q)), axis=-1)


def rejection(
    drafter: Float[Array, "*b v"],
    verifier: Float[Array, "*b v"],
    rule: Rule = rules.token_v3,
    alpha: float = 0.3,
) -> Float[Array, "*b"]:
    """D_TV(pi, q) at temperature 1: the probability that a draft is rejected under a deferral rule.

    What the rule decides counts as given: gradients go through q's mass, not through pi.
    """
    log_q, log_p = _logs(drafter, verifier)
    q, p = jnp.exp(log_q), jnp.exp(log_p)
    fixed = lax.stop_gradient(q)
    pi, _ = rule(Pair(fixed, p, fixed, p), jnp.full(q.shape[:-1], alpha, jnp.float32))
    return 0.5 * jnp.sum(jnp.abs(lax.stop_gradient(pi) - q), axis=-1)


rejection.whole = True  # rules look at single tokens  # pyright: ignore[reportFunctionMemberAccess]


def cross_entropy(logits: Float[Array, "*b v"], labels: Int[Array, "*b"]) -> Float[Array, "*b"]:
    """-log q(label), for training from text alone."""
    log_q = jax.nn.log_softmax(logits.astype(jnp.float32))
    return -jnp.take_along_axis(log_q, labels[..., None], axis=-1)[..., 0]


def mean(losses: Float[Array, "*b"], weight: Float[Array, "*b"]) -> Float[Array, ""]:
    """Weighted mean; 0 where nothing has weight."""
    return jnp.sum(losses * weight) / jnp.maximum(jnp.sum(weight), 1.0)


def _sayable(drafter: Float[Array, "*b v"], verifier: Float[Array, "*b v"]) -> Float[Array, "*b v"]:
    """The verifier's logits of what the drafter can say: beside it no KL divergence is finite."""
    return jnp.where(drafter > MASKED / 2, verifier, jnp.asarray(MASKED, verifier.dtype))


def _logs(
    drafter: Float[Array, "*b v"], verifier: Float[Array, "*b v"]
) -> tuple[Float[Array, "*b v"], Float[Array, "*b v"]]:
    log_q = jax.nn.log_softmax(drafter.astype(jnp.float32))
    return log_q, lax.stop_gradient(jax.nn.log_softmax(verifier.astype(jnp.float32)))
