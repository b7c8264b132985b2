"""Controllers of a line or two: a constant, Hugging Face's schedule and confidence stop, BiLD's fallback.

A gin file may bind anything to an argument (`| Any`), which then is told in a sentence.
"""

from typing import Any

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


def fixed(k: int | Any = 4) -> DraftLength:
    """Always drafts k tokens (0 is verifier alone)."""
    check_whole("fixed.k", k, 0)
    return DraftLength(Bound(_constant, k), _as_it_is, _go_on, _unmoved, name=f"fixed({k})")


def heuristic(start: int | Any = 4) -> DraftLength:
    """Hugging Face's schedule: all accepted -> k + 2, else max(1, k - 1)."""
    check_whole("heuristic.start", start, 1)
    return DraftLength(Bound(_constant, start), _as_it_is, _go_on, _up_or_down, name=f"heuristic({start})")


def drafter_confidence(threshold: float | Any = 0.4) -> DraftLength:
    """Hugging Face's confidence stop: no further draft behind a token with q(token) < threshold."""
    check_number("drafter_confidence.threshold", threshold, 0.0, 1.0)
    name, drawn = f"drafter_confidence({threshold:g})", Bound(_sure_of_the_token, threshold)
    return DraftLength(Bound(_constant, UNLIMITED), _as_it_is, _go_on, _unmoved, drawn, name=name)


def bild_fallback(threshold: float | Any = 0.6) -> DraftLength:
    """BiLD's fallback: where max q < threshold the verifier writes the token. Use with the rule `bild`."""
    check_number("bild_fallback.threshold", threshold, 0.0, 1.0)
    step = Bound(_sure_of_the_position, threshold)
    return DraftLength(Bound(_constant, UNLIMITED), _as_it_is, step, _unmoved, name=f"bild_fallback({threshold:g})")


def _constant(k: int, batch: int, costs: Costs) -> Int[Array, " b"]:
    del costs
    return jnp.full((batch,), k, jnp.int32)


def _as_it_is(
    state: Int[Array, " b"], matched: Int[Array, " b"], peers: Bool[Array, " b"] | None
) -> tuple[Any, Int[Array, " b"], Int[Array, " b"]]:
    del peers
    return state, state, jnp.where(matched > 0, state, 0)


def _go_on(state: Any, drafted: Drafted) -> tuple[Any, Bool[Array, " b"], Bool[Array, " b"]]:
    yes = jnp.ones(drafted.top.shape, bool)
    return state, yes, yes


def _unmoved(state: Any, verdict: Verdict) -> Any:
    del verdict
    return state


def _up_or_down(state: Int[Array, " b"], verdict: Verdict) -> Int[Array, " b"]:
    full = (verdict.accepted == verdict.drafted) & (verdict.drafted == jnp.minimum(state, verdict.drafted))
    k_max = verdict.expected.shape[1]
    return jnp.minimum(jnp.where(full, state + 2, jnp.maximum(1, state - 1)), k_max).astype(jnp.int32)


def _sure_of_the_token(
    threshold: float, state: Any, drafted: Drafted, own: Float[Array, " b"]
) -> tuple[Any, Bool[Array, " b"]]:
    del drafted
    return state, own >= threshold


def _sure_of_the_position(
    threshold: float, state: Any, drafted: Drafted
) -> tuple[Any, Bool[Array, " b"], Bool[Array, " b"]]:
    sure = drafted.top >= threshold
    return state, sure, sure
