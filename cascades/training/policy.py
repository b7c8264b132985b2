"""Text of the drafter's own (on-policy): the decoding loop with one model alone."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from cascades.decoding import FREE, Plan, Request, compile_plan
from cascades.distributions import Sampling
from cascades.lookahead import fixed, given_costs
from cascades.rules import lossless
from cascades.training.data import Batch
from cascades.typing import Array, Key, Model, Params


def answers_of(
    model: Model, vocabulary: int, eos: tuple[int, ...], slots: int, temperature: float
) -> Callable[..., Batch]:
    """Returns a function that lets a model answer prompts itself (on-policy): `(params, batch, key) -> batch`.

    It is the decoding loop of `launch/decode.py` with one model alone. The batch that it returns holds its answers, of
    at most as many tokens as there were.
    """
    plan = Plan(model, None, (lossless,), fixed(0), 0, vocabulary, eos)
    programs = compile_plan(plan)

    @jax.jit
    def finish(batch: Batch, tokens, length):
        rows, width = batch.answer.shape
        at = batch.length[:, None] + jnp.arange(width, dtype=jnp.int32)[None, :]
        answer = jnp.take_along_axis(tokens, jnp.minimum(at, slots - 1), axis=1)
        # A row without a weight is padding of a batch.
        there = (at < length[:, None]) & jnp.any(batch.weight > 0, axis=1)[:, None]
        return Batch(batch.prompt, batch.length, jnp.where(there, answer, 0), there.astype(jnp.float32))

    def answer(params: Params, batch: Batch, key: Key[Array, ""]) -> Batch:
        batch = jax.tree.map(jnp.asarray, batch)
        rows, width = batch.answer.shape

        def each(value, dtype):
            return jnp.full((rows,), value, dtype)

        nothing = each(0, jnp.int32), each(1.0, jnp.float32), each(0.0, jnp.float32)
        request = Request(
            tokens=batch.prompt,
            length=batch.length,
            limit=batch.length + width,
            key=jax.random.split(key, rows),
            sampling=Sampling(each(temperature, jnp.float32), *nothing),
            rule=each(0, jnp.int32),
            alpha=each(0.0, jnp.float32),
            strict=each(0, jnp.int32),
            ignore_eos=each(False, jnp.bool_),
        )
        initial = plan.lookahead.init(rows, given_costs(0, 0.0))
        state = programs.start(params, {}, jax.tree.map(jnp.copy, request), initial, slots)
        state = programs.run(params, {}, state, jnp.zeros((rows,), jnp.bool_), jnp.int32(slots), jnp.int32(FREE))
        return finish(batch, state.tokens, state.length)

    return answer
