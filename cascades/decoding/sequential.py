"""The token cascade: one token at a time, and the verifier is asked only where a rule that sees q alone defers.

The other sequential baselines need no code of their own: an oracle cascade is a round that drafts nothing with the
bonus drawn from the target; a sequence cascade is two generations, chosen between on the host.
"""

import jax.numpy as jnp
import numpy as np

from cascades.decoding.draft import Said, catch_up
from cascades.decoding.plan import Plan
from cascades.decoding.round import append, choice
from cascades.decoding.state import Origin, State
from cascades.distributions import Purpose, at, draw, log_normalizer, scaled, softmax, stream
from cascades.rules import Pair, Rule
from cascades.speculation import by_rule
from cascades.typing import Array, Int, Params


def sees_drafter_only(rule: Rule) -> bool:
    """Tells whether a rule's decision to defer is the same whatever the verifier says (tried on random pairs)."""
    rng = np.random.default_rng(0)

    def draw():
        return jnp.asarray(rng.dirichlet(np.ones(5), size=256), jnp.float32)

    q, alpha = draw(), jnp.asarray(rng.uniform(0, 1, 256), jnp.float32)
    first, second = (rule(Pair(q, p, q, p), alpha).defer for p in (draw(), draw()))
    whole = bool(jnp.all((first == 0) | (first == 1)))
    return whole and bool(jnp.all(first == second)) and bool(jnp.any(first == 0))


def advance_sequential(
    plan: Plan, verifier_params: Params, drafter_params: Params, state: State, forced: Int[Array, ""]
) -> State:
    """Decides one token of every running row; takes and returns what `round.advance` does (`forced` is not used).

    A row whose drafter gives no distribution (NaN) goes on with the verifier alone.
    """
    del forced
    assert plan.drafter is not None
    running = state.running
    asked = running & ~state.silent
    said, cache = Said(state.draft_logits[:, 0]), state.drafter_cache
    (q_logits, _), drafter_cache, _ = catch_up(plan.drafter, drafter_params, state, asked, said, cache, width=1)
    silent = state.silent | (asked & ~jnp.isfinite(log_normalizer(q_logits)))
    q_logits = jnp.where(silent[:, None], 0.0, q_logits)
    q_raw, q = softmax(q_logits), scaled(q_logits, state.sampling)
    pair = Pair(q_raw, q_raw, q, q)
    share = by_rule(plan.rules, choice(plan, state), lambda rule: rule(pair, state.alpha).defer)
    defer = running & (silent | (state.length < state.strict) | (share > 0.5))

    cache = state.verifier_cache
    for width in (plan.catch_up(running.shape[0]), 1):
        said, cache, _ = catch_up(plan.verifier, verifier_params, state, defer, said, cache, width)
    logits = jnp.where(defer[:, None], said.logits, q_logits)
    normalizer = log_normalizer(logits)
    failed = running & ~jnp.isfinite(normalizer)
    token = draw(scaled(logits, state.sampling), stream(state.key, state.length, Purpose.TOKEN))
    origin = jnp.where(defer, int(Origin.VERIFIER), int(Origin.DRAFTER))
    written = jnp.where(failed, 0, 1)
    new, emitted = append(state, token[:, None], origin[:, None], written, plan.eos, failed)

    one, deferred = running.astype(jnp.int32), defer.astype(jnp.int32)
    info = state.info
    return new._replace(
        verifier_cache=cache,
        drafter_cache=drafter_cache,
        silent=silent,
        info=info._replace(
            rounds=info.rounds + one,
            verifier_calls=info.verifier_calls + deferred,
            drafter_steps=info.drafter_steps + asked.astype(jnp.int32),
            deferred=info.deferred + deferred.astype(jnp.float32),
            decided=info.decided + one,
            log_p=info.log_p + jnp.where(emitted[:, 0], at(logits, token) - normalizer, 0.0),
            drafter_nan=info.drafter_nan + (silent & ~state.silent).astype(jnp.int32),
        ),
    )
