"""The generation: prefill, then one `lax.while_loop` of rounds on the device."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from cascades.decoding.control import when
from cascades.decoding.draft import before
from cascades.decoding.round import Plan, advance
from cascades.decoding.state import Finish, Origin, Request, State, empty_info, placed
from cascades.typing import Array, Bool, Int, Params

Advance = Callable[..., State]

FREE = -1  # the value of `forced` that leaves the draft length to the lookahead


class Programs(NamedTuple):
    """A plan, compiled on first use for each shape.

    start: `(verifier_params, drafter_params, request, lookahead, slots) -> state`: prefills both caches. `lookahead` is
      what `plan.lookahead.init` returns; it stays outside, so that one program serves every draft length. `slots`,
      static, is the length of every buffer; at least the largest limit and the padded prompt.
    run: `(verifier_params, drafter_params, state, stop, rounds, forced) -> state`: rounds until every row has ended, or
      `rounds` of them (traced: a stream asks for a few at a time). `stop` `[b]` ends rows on the host's word. The
      state is donated. `forced` is `FREE`, or the draft length of every row.
    """

    plan: Plan
    start: Any
    run: Any


def compile_plan(plan: Plan, advance: Advance = advance) -> Programs:
    """Returns the two programs of a plan. One pair serves streaming, batches, sweeps and benchmarks alike.

    Args:
      plan: what is static. advance: one round; `sequential.advance_sequential` makes a token cascade.
    """

    def start(verifier_params, drafter_params, request: Request, lookahead: Any, slots: int) -> State:
        return _start(plan, verifier_params, drafter_params, request, lookahead, slots)

    def run(verifier_params, drafter_params, state: State, stop, rounds, forced) -> State:
        step = partial(advance, plan, verifier_params, drafter_params, forced=forced)
        return _run(lambda state: placed(step(state=state), plan.layout), state, stop, rounds)

    return Programs(plan, jax.jit(start, static_argnames="slots"), jax.jit(run, donate_argnums=2))


def _start(
    plan: Plan, verifier_params: Params, drafter_params: Params, request: Request, lookahead: Any, slots: int
) -> State:
    """Prefills both caches. A drafter with a shorter context than the rows' has a shorter cache, and reads no more of a
    prompt than that holds: it never drafts behind a prompt that is longer.
    """
    batch, width = request.tokens.shape
    k_max = plan.k_max if plan.drafter else 0
    tokens = jnp.pad(request.tokens, ((0, 0), (0, slots - width)))
    held = request.length - 1  # the last token of the prompt is pending
    # Padding is a token of the row: one that the model cannot score would leave NaN behind the row's end.
    there = jnp.arange(width, dtype=jnp.int32)[None, :] < request.length[:, None]
    fed = jnp.where(there, request.tokens, request.tokens[:, :1])

    def prefill(model, params, cache, room, *features):
        return model.prefill(params, fed[:, :room], jnp.minimum(held, room), cache, *features)

    verifier_cache = prefill(plan.verifier, verifier_params, plan.verifier.init_cache(batch, slots), slots)
    # A drafter that is not asked at first reads the prompt when it is: its first draft catches up.
    _, length = plan.lookahead.propose(lookahead)
    asked = jnp.any(length > 0) | (plan.bonus == "target")
    asked |= plan.drafter is not None and plan.drafter.start is not None  # an encoder reads all of it at once
    drafter_cache = None
    if plan.drafter:
        room = min(slots, plan.drafter.context_length)
        asked &= jnp.any(request.length < plan.drafter.context_length)
        given = ()
        if plan.drafter.reads is not None:
            given = (before(verifier_cache.features, jnp.zeros_like(held), min(width, room)),)

        def read(cache):
            return prefill(plan.drafter, drafter_params, cache, room, *given)

        drafter_cache = when(asked, read, plan.drafter.init_cache(batch, room))

    state = State(
        tokens=tokens,
        origins=jnp.full(tokens.shape, int(Origin.PROMPT), jnp.int8),
        length=request.length,
        limit=request.limit,
        finish=jnp.where(request.length < request.limit, int(Finish.RUNNING), int(Finish.LENGTH)).astype(jnp.int8),
        key=request.key,
        sampling=request.sampling,
        alpha=request.alpha,
        verifier_cache=verifier_cache,
        drafter_cache=drafter_cache,
        draft_logits=jnp.zeros((batch, k_max + 1, plan.vocab_size if plan.drafter else 1), jnp.float32),
        lookahead=lookahead,
        silent=jnp.zeros((batch,), bool),
        info=empty_info(batch, k_max),
    )
    return placed(state, plan.layout)


def _run(step: Callable[[State], State], state: State, stop: Bool[Array, " b"], rounds: Int[Array, ""]) -> State:
    finish = jnp.where(stop & state.running, int(Finish.STOP), state.finish).astype(jnp.int8)

    def more(carry):
        done, state = carry
        return (done < rounds) & jnp.any(state.running)

    def body(carry):
        done, state = carry
        return done + 1, step(state)

    _, state = lax.while_loop(more, body, (jnp.int32(0), state._replace(finish=finish)))
    return state
