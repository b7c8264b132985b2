"""One step of training: scores of teacher and drafter along a batch of answers, a loss between them, an update."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from cascades.decoding import Plan, Request, compile_plan
from cascades.decoding.loop import FREE
from cascades.distributions import Sampling
from cascades.lookahead import fixed, given_costs
from cascades.rules import lossless
from cascades.training import losses
from cascades.training.data import Batch
from cascades.typing import Array, Float, Key, Model, Params


class State(NamedTuple):
    """What a checkpoint holds. params: float32, those that are trained. optimizer: of optax. step: int32."""

    params: Params
    optimizer: Any
    step: Array


def answer_logits(model: Model, params: Params, batch: Batch, vocabulary: int) -> Float[Array, "b n v"]:
    """Scores of every token of the answers, each given what stands before it (teacher forcing).

    As in decoding, the last token of a prompt is the first that `extend` is fed, be it a decoder's or the start of an
    encoder–decoder's answer.
    """
    rows, width = batch.prompt.shape
    cache = model.init_cache(rows, width + batch.answer.shape[1])
    cache = model.prefill(params, batch.prompt, batch.length - 1, cache)
    last = jnp.take_along_axis(batch.prompt, batch.length[:, None] - 1, axis=1)
    output, _ = model.extend(params, jnp.concatenate([last, batch.answer[:, :-1]], axis=1), cache)
    return output.logits[:, :, :vocabulary]


def optimizer(learning_rate: float, steps: int, warmup: int, weight_decay: float) -> optax.GradientTransformation:
    """AdamW with a linear warm-up and a cosine down to a tenth; gradients are clipped to a norm of 1."""
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, learning_rate, warmup, max(steps, warmup + 1), learning_rate / 10
    )
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, b2=0.98, weight_decay=weight_decay))


class Task(NamedTuple):
    """What is static in a step.

    drafter, verifier: models, whose dtype is what is computed in. like: shapes of the drafter's parameters in that
    dtype. vocabulary: logits that both share. loss: see `losses`. optimizer: of the parameters in float32.
    """

    drafter: Model
    verifier: Model
    like: Params
    vocabulary: int
    loss: losses.Loss
    optimizer: optax.GradientTransformation


def begin(task: Task, params: Params) -> State:
    return State(params, task.optimizer.init(params), jnp.int32(0))


def update(
    task: Task, state: State, frozen: Params, verifier: Params, batches: Batch
) -> tuple[State, dict[str, Float[Array, ""]]]:
    """Updates the drafter by the mean loss over all tokens of some batches, one after another (gradient accumulation).

    Args:
      state: is consumed. frozen: the rest of the drafter's parameters. verifier: its parameters.
      batches: with an axis in front of all others, over which gradients are accumulated.

    Returns:
      The next state, and figures: `loss` and others of `compare`, means over tokens; `gradient`, its norm before
      clipping.
    """
    weight = jnp.maximum(jnp.sum(batches.weight), 1.0)

    def part(params, batch):
        found = compare(task, params, frozen, verifier, batch)
        return found["loss"] / weight, found

    def accumulate(total, batch):
        gradients, found = jax.grad(part, has_aux=True)(state.params, batch)
        return jax.tree.map(jnp.add, total, gradients), found

    with jax.numpy_dtype_promotion("standard"):  # optax raises floats to integer steps
        zeros = jax.tree.map(jnp.zeros_like, state.params)
        gradients, found = lax.scan(accumulate, zeros, batches)
        updates, inner = task.optimizer.update(gradients, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
    means = {name: jnp.sum(values) / weight for name, values in found.items()}
    return State(params, inner, state.step + 1), means | {"gradient": optax.tree.norm(gradients)}


def compare(task: Task, params: Params, frozen: Params, verifier: Params, batch: Batch) -> dict[str, Float[Array, ""]]:
    """Sums over the tokens of a batch.

    loss: of the task. acceptance: 1 - D_TV, the probability that a draft of temperature 1 is accepted. agreement:
    whether both favour the same token, as greedy drafts need.
    """
    ours = answer_logits(task.drafter, whole(task, params, frozen), batch, task.vocabulary)
    theirs = lax.stop_gradient(answer_logits(task.verifier, verifier, batch, task.vocabulary))
    values = {
        "loss": task.loss(ours, theirs),
        "acceptance": 1 - losses.total_variation(ours, theirs),
        "agreement": (jnp.argmax(ours, axis=-1) == jnp.argmax(theirs, axis=-1)).astype(jnp.float32),
    }
    return {name: jnp.sum(each * batch.weight) for name, each in values.items()}


def whole(task: Task, params: Params, frozen: Params) -> Params:
    """Returns all of the drafter's parameters, as its passes compute with them."""
    return jax.tree.map(lambda leaf, like: leaf.astype(like.dtype), {**params, **frozen}, task.like)


def answers_of(model: Model, vocabulary: int, eos: tuple[int, ...], slots: int) -> Callable[..., Batch]:
    """Returns a function that lets a model answer prompts itself (on-policy): `(params, batch, key, temperature)`.

    It is the decoding loop of `launch/decode.py` with one model alone. The batch that it returns holds its answers, of
    at most as many tokens as there were.
    """
    plan = Plan(model, None, lossless, fixed(0), 0, vocabulary, eos)
    programs = compile_plan(plan)

    @jax.jit
    def finish(batch: Batch, tokens, length):
        rows, width = batch.answer.shape
        at = batch.length[:, None] + jnp.arange(width, dtype=jnp.int32)[None, :]
        answer = jnp.take_along_axis(tokens, jnp.minimum(at, slots - 1), axis=1)
        # A row without a weight is padding of a batch.
        there = (at < length[:, None]) & jnp.any(batch.weight > 0, axis=1)[:, None]
        return batch._replace(answer=jnp.where(there, answer, 0), weight=there.astype(jnp.float32))

    def answer(params: Params, batch: Batch, key: Key[Array, ""], temperature: float) -> Batch:
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
            alpha=each(0.0, jnp.float32),
        )
        initial = plan.lookahead.init(rows, given_costs(0, 0.0))
        state = programs.start(params, {}, jax.tree.map(jnp.copy, request), initial, slots)
        state = programs.run(params, {}, state, jnp.zeros((rows,), jnp.bool_), jnp.int32(slots), jnp.int32(FREE))
        return finish(batch, state.tokens, state.length)

    return answer
