"""One step of training: scores along a batch of answers, a loss, an update."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from cascades.training.data import Batch
from cascades.typing import Array, Cache, Float, Int, Model, Output, Params


class TrainState(NamedTuple):
    """What a checkpoint holds. params: float32, those that are trained. optimizer: of optax. step: int32."""

    params: Params
    optimizer: Any
    step: Array


def along_answers(model: Model, params: Params, batch: Batch) -> tuple[Output, Cache]:
    """What a model says of every token of the answers, each given what stands before it (teacher forcing).

    As in decoding, the last token of a prompt is the first that `extend` is fed, be it a decoder's or the start of an
    encoder–decoder's answer.
    """
    rows, width = batch.prompt.shape
    cache = model.init_cache(rows, width + batch.answer.shape[1])
    cache = model.prefill(params, batch.prompt, batch.length - 1, cache)
    return model.extend(params, fed(batch), cache)


def fed(batch: Batch) -> Int[Array, "b n"]:
    """The tokens behind which those of the answers stand: the last of each prompt, then the answer's own."""
    last = jnp.take_along_axis(batch.prompt, batch.length[:, None] - 1, axis=1)
    return jnp.concatenate([last, batch.answer[:, :-1]], axis=1)


def optimizer(
    learning_rate: float, steps: int, warmup: int, weight_decay: float, *, relative: bool = False
) -> optax.GradientTransformation:
    """AdamW with a linear warm-up and a cosine down to a tenth; gradients are clipped to a norm of 1.

    relative: the rate is a share of each array's own size, as in Adafactor (arXiv 1804.04235, section 8), for models
    whose arrays begin in very different ones.
    """
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, learning_rate, warmup, max(steps, warmup + 1), learning_rate / 10
    )
    return optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.scale_by_adam(b2=0.98),
        optax.scale_by_param_block_rms() if relative else optax.identity(),
        optax.add_decayed_weights(weight_decay),
        optax.scale_by_learning_rate(schedule),
    )


Measure = Callable[[Params, Params, Batch], dict[str, Float[Array, "b n"]]]
"""(all parameters of a model, those of another that teaches it, batch) -> figures of every token, `loss` among them."""


class Task(NamedTuple):
    """What is static in a step.

    measure: what is made small, and what is told beside it. like: shapes of the model's parameters in the dtype that is
    computed in. optimizer: of the parameters in float32.
    """

    measure: Measure
    like: Params
    optimizer: optax.GradientTransformation


def begin(task: Task, params: Params) -> TrainState:
    return TrainState(params, task.optimizer.init(params), jnp.int32(0))


def update(
    task: Task, state: TrainState, frozen: Params, teacher: Params, batches: Batch
) -> tuple[TrainState, dict[str, Float[Array, ""]]]:
    """Updates a model by the mean loss over all tokens of some batches, one after another (gradient accumulation).

    Args:
      state: is consumed. frozen: the rest of the model's parameters. teacher: those of the model that it learns from.
      batches: with an axis in front of all others, over which gradients are accumulated.

    Returns:
      The next state, and figures: those of `Task.measure`, means over tokens; `gradient`, its norm before clipping.
    """
    weight = jnp.maximum(jnp.sum(batches.weight), 1.0)

    def part(params, batch):
        sums = totals(task, params, frozen, teacher, batch)
        return sums["loss"] / weight, sums

    def accumulate(total, batch):
        gradients, sums = jax.grad(part, has_aux=True)(state.params, batch)
        return jax.tree.map(jnp.add, total, gradients), sums

    with jax.numpy_dtype_promotion("standard"):  # optax raises floats to integer steps
        zeros = jax.tree.map(jnp.zeros_like, state.params)
        gradients, sums = lax.scan(accumulate, zeros, batches)
        updates, inner = task.optimizer.update(gradients, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
    means = {name: jnp.sum(values) / weight for name, values in sums.items()}
    return TrainState(params, inner, state.step + 1), means | {"gradient": optax.tree.norm(gradients)}


def totals(task: Task, params: Params, frozen: Params, teacher: Params, batch: Batch) -> dict[str, Float[Array, ""]]:
    """Sums of the figures of `Task.measure` over the tokens of a batch."""
    measured = task.measure(whole(task, params, frozen), teacher, batch)
    return {name: jnp.sum(each * batch.weight) for name, each in measured.items()}


def whole(task: Task, params: Params, frozen: Params) -> Params:
    """Returns all of a model's parameters, as its passes compute with them."""
    return jax.tree.map(lambda leaf, like: leaf.astype(like.dtype), {**params, **frozen}, task.like)
