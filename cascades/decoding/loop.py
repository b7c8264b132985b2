"""The generation as slots: rows are prefilled, inserted beside others, and run by one `lax.while_loop`."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from cascades.decoding.control import run_if
from cascades.decoding.draft import before
from cascades.decoding.round import Plan, advance
from cascades.decoding.state import Finish, Origin, Request, State, empty_info, placed, stopped_clock
from cascades.distributions import Sampling
from cascades.typing import Array, Bool, Int, Params

Advance = Callable[..., State]

FREE = -1  # the value of `forced` that leaves the draft length to the lookahead


class Programs(NamedTuple):
    """A plan, compiled on first use for each shape.

    A batch is `start` and `run`. Rows that come and go are `vacant`, then for each request `start` of one row and
    `insert`, and `run` between them; a row that has ended is free again.

    start: `(verifier_params, drafter_params, request, lookahead, slots) -> state`: prefills the rows of a request.
      `lookahead` is what `plan.lookahead.init` returns; it stays outside, so that one program serves every draft
      length. `slots`, static, is the length of every buffer; at least the largest limit and the padded prompt.
    vacant: `(lookahead, slots) -> state`: as many rows as the lookahead has, with nobody in them.
    insert: `(state, row, slot) -> state`: puts a state of one row, with buffers of the same length, in the place of row
      `slot` (traced), whoever sat there. The state is donated.
    run: `(verifier_params, drafter_params, state, stop, rounds, forced, eager) -> state`: rounds until every row has
      ended, or `rounds` of them (traced: a stream asks for a few at a time); if `eager` until one has. `stop` `[b]`
      ends rows on the host's word. The state is donated. `forced` is `FREE`, or the draft length of every row.
    """

    plan: Plan
    start: Any
    vacant: Any
    insert: Any
    run: Any


def compile_plan(plan: Plan, advance: Advance = advance) -> Programs:
    """Returns the programs of a plan. They serve streaming, batches, sweeps and benchmarks alike.

    Args:
      plan: what is static. advance: one round; `sequential.advance_sequential` makes a token cascade.
    """

    def start(verifier_params, drafter_params, request: Request, lookahead: Any, slots: int) -> State:
        return _start(plan, verifier_params, drafter_params, request, lookahead, slots)

    def vacant(lookahead: Any, slots: int) -> State:
        return _vacant(plan, lookahead, slots)

    def insert(state: State, row: State, slot: Int[Array, ""]) -> State:
        return placed(_insert(state, row, slot), plan.layout)

    def run(verifier_params, drafter_params, state: State, stop, rounds, forced, eager=False) -> State:
        step = partial(advance, plan, verifier_params, drafter_params, forced=forced)
        return _run(lambda state: placed(step(state=state), plan.layout), state, stop, rounds, eager)

    return Programs(
        plan,
        jax.jit(start, static_argnames="slots"),
        jax.jit(vacant, static_argnames="slots"),
        jax.jit(insert, donate_argnums=0),
        jax.jit(run, donate_argnums=2),
    )


def _vacant(plan: Plan, lookahead: Any, slots: int) -> State:
    batch = jax.tree.leaves(lookahead)[0].shape[0]
    number, real = jnp.ones((batch,), jnp.int32), jnp.zeros((batch,), jnp.float32)
    none = jnp.zeros((batch,), bool)
    request = Request(
        tokens=jnp.zeros((batch, slots), jnp.int32),
        length=number,  # of one token, which no cache holds
        limit=number,
        key=jnp.broadcast_to(jax.random.key(0), (batch,)),
        sampling=Sampling(real, 0 * number, real + 1, real),
        rule=0 * number,
        alpha=real,
        strict=0 * number,
        ignore_eos=none,
    )
    state = _state(plan, request, lookahead, *_caches(plan, batch, slots))
    return placed(state._replace(finish=jnp.full((batch,), int(Finish.VACANT), jnp.int8)), plan.layout)


def _caches(plan: Plan, batch: int, slots: int) -> tuple[Any, Any]:
    """Empty ones. A drafter with a shorter context than the rows' has a shorter cache."""
    room = min(slots, plan.drafter.context_length) if plan.drafter else 0
    return plan.verifier.init_cache(batch, slots), plan.drafter.init_cache(batch, room) if plan.drafter else None


def _start(
    plan: Plan, verifier_params: Params, drafter_params: Params, request: Request, lookahead: Any, slots: int
) -> State:
    """Prefills both caches. A drafter reads no more of a prompt than its cache holds: it never drafts behind a prompt
    that is longer.
    """
    batch, width = request.tokens.shape
    held = request.length - 1  # the last token of the prompt is pending
    # Padding is a token of the row: one that the model cannot score would leave NaN behind the row's end.
    there = jnp.arange(width, dtype=jnp.int32)[None, :] < request.length[:, None]
    fed = jnp.where(there, request.tokens, request.tokens[:, :1])
    verifier_cache, drafter_cache = _caches(plan, batch, slots)
    verifier_cache = plan.verifier.prefill(verifier_params, fed, held, verifier_cache)
    if plan.drafter:
        drafter, room = plan.drafter, min(width, slots, plan.drafter.context_length)
        # Also of a row that does not draft at first: sooner or later it tries, and would catch up in many short passes.
        fits = jnp.any(request.length < drafter.context_length)
        given = ()
        if drafter.feature_width is not None:
            given = (before(verifier_cache.features, jnp.zeros_like(held), room),)

        def read(cache):
            return drafter.prefill(drafter_params, fed[:, :room], jnp.minimum(held, room), cache, *given)

        drafter_cache = run_if(fits, read, drafter_cache)
    request = request._replace(tokens=jnp.pad(request.tokens, ((0, 0), (0, slots - width))))
    return placed(_state(plan, request, lookahead, verifier_cache, drafter_cache), plan.layout)


def _state(plan: Plan, request: Request, lookahead: Any, verifier_cache: Any, drafter_cache: Any) -> State:
    batch = request.length.shape[0]
    k_max = plan.longest
    return State(
        tokens=request.tokens,
        origins=jnp.full(request.tokens.shape, int(Origin.PROMPT), jnp.int8),
        length=request.length,
        limit=request.limit,
        finish=jnp.where(request.length < request.limit, int(Finish.RUNNING), int(Finish.LENGTH)).astype(jnp.int8),
        key=request.key,
        sampling=request.sampling,
        rule=request.rule,
        alpha=request.alpha,
        strict=request.strict,
        ignore_eos=request.ignore_eos,
        verifier_cache=verifier_cache,
        drafter_cache=drafter_cache,
        draft_logits=jnp.zeros((batch, k_max + 1, plan.vocab_size if plan.drafter else 1), jnp.float32),
        lookahead=lookahead,
        silent=jnp.zeros((batch,), bool),
        info=empty_info(batch, k_max),
        clock=stopped_clock(len(plan.passes)),
    )


def _insert(state: State, row: State, slot: Int[Array, ""]) -> State:
    """All of a row is replaced, so that nothing of who sat there is left; scratch and clock are nobody's."""

    def put(old: Array, new: Array) -> Array:
        return lax.dynamic_update_slice_in_dim(old, new, slot, axis=0)

    nobodys = {"draft_logits": state.draft_logits, "clock": state.clock}
    none = dict.fromkeys(nobodys)
    return jax.tree.map(put, state._replace(**none), row._replace(**none))._replace(**nobodys)


def _run(
    step: Callable[[State], State],
    state: State,
    stop: Bool[Array, " b"],
    rounds: Int[Array, ""],
    eager: Bool[Array, ""] | bool,
) -> State:
    finish = jnp.where(stop & state.running, int(Finish.STOP), state.finish).astype(jnp.int8)
    state = state._replace(finish=finish)
    began = state.running

    def more(carry):
        done, state = carry
        ended = jnp.any(began & ~state.running)
        return (done < rounds) & jnp.any(state.running) & ~(ended & eager)

    def body(carry):
        done, state = carry
        return done + 1, step(state)

    _, state = lax.while_loop(more, body, (jnp.int32(0), state))
    return state
