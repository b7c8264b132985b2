"""A model that learns: what a step and an evaluation of it are, for `fit`."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from cascades import hosts
from cascades.models import Config, abstract_params, logical_axes
from cascades.sharding import Layout, Logical
from cascades.training import data
from cascades.training import step as steps
from cascades.training.data import Batch, BatchShape, Example
from cascades.training.step import Measure, Task, TrainState
from cascades.typing import Array, Key, Params


class Learner(NamedTuple):
    """A model in training, but for what is trained.

    config: its shape. frozen: the part of its parameters that stays. teacher: parameters of a model that it learns
    from, or nothing. layout: where all of it lives. teach: `(teacher, batch) -> batch` with what the teacher makes of
    it; None without a teacher.
    """

    task: Task
    config: Config
    frozen: Params
    teacher: Params
    layout: Layout | None
    teach: Callable[[Params, Batch], Batch] | None = None

    def params(self, state: TrainState, dtype) -> Params:
        """Returns all of its parameters, kernels in `dtype`."""
        like = abstract_params(self.config, dtype)
        return jax.tree.map(lambda x, y: x.astype(y.dtype), {**state.params, **self.frozen}, like)


def begin(
    config: Config,
    params: Params,
    measure: Measure,
    optimizer: optax.GradientTransformation,
    *,
    dtype,
    frozen: frozenset[str] = frozenset(),
    teacher: Params = None,
    teach: Callable[[Params, Batch], Batch] | None = None,
    layout: Layout | None = None,
) -> tuple[Learner, TrainState]:
    """Returns a learner and its first state.

    Args:
      params: all parameters, float32 but for those under the names in `frozen`. dtype: of what is computed. teacher,
        teach: see `Learner`.
    """
    if layout is not None:
        params = jax.device_put(params, layout.shardings(logical_axes(params), params))
    still = {name: leaf for name, leaf in params.items() if name in frozen}
    trained = {name: leaf for name, leaf in params.items() if name not in frozen}
    task = Task(measure, abstract_params(config, dtype), optimizer)
    known = teach and jax.jit(teach)
    state = steps.begin(task, trained)
    if layout is not None:  # also its counts, so that a state that is read from a checkpoint is put back there
        state = jax.tree.map(lambda leaf: leaf if leaf.ndim else hosts.everywhere(leaf, layout.mesh), state)
    return Learner(task, config, still, teacher or {}, layout, known), state


def stepper(
    learner: Learner,
    examples: list[Example],
    sizes: BatchShape,
    key: Key[Array, ""],
    *,
    accumulate: int = 1,
    answer: Callable[..., Batch] | None = None,
    on_policy: float = 0.0,
) -> Callable[[TrainState, int], tuple[TrainState, dict[str, Any]]]:
    """Returns what `fit` calls: a step's number alone decides its examples, and whether the model answers itself.

    Args:
      answer: `(params, batch, key) -> batch`, see `policy`. on_policy: the share of steps that use it.
    """
    task = learner.task
    update = jax.jit(partial(steps.update, task), donate_argnums=0)
    whole = jax.jit(partial(steps.whole, task))
    seed = int(jax.random.key_data(key)[-1])

    def step(state: TrainState, number: int) -> tuple[TrainState, dict[str, Any]]:
        parts = [data.batch_at(examples, sizes, seed, number * accumulate + part) for part in range(accumulate)]
        if answer is not None and np.random.default_rng((seed, 1, number)).random() < on_policy:
            params, step_key = whole(state.params, learner.frozen), jax.random.fold_in(key, number)
            keys = jax.random.split(step_key, accumulate)
            parts = [answer(params, part, each) for part, each in zip(parts, keys, strict=True)]
        parts = [taught(learner, part) for part in parts]
        batches = jax.tree.map(lambda *each: jnp.stack([jnp.asarray(part) for part in each]), *parts)
        return update(state, learner.frozen, learner.teacher, placed(batches, learner.layout, (None, "batch")))

    return step


def evaluator(learner: Learner, examples: list[Example], sizes: BatchShape) -> Callable[[TrainState], dict[str, float]]:
    """Returns what `fit` calls: means over the tokens of all held-out examples."""
    totals = jax.jit(partial(steps.totals, learner.task))

    def evaluate(state: TrainState) -> dict[str, float]:
        sums: dict[str, float] = {}
        weight = 0.0
        for first in range(0, len(examples), sizes.batch):
            batch = data.padded(examples[first : first + sizes.batch], sizes)
            weight += float(np.sum(batch.weight))
            batch = placed(taught(learner, batch), learner.layout, ("batch",))
            of_batch = totals(state.params, learner.frozen, learner.teacher, batch)
            for name, value in jax.device_get(of_batch).items():
                sums[name] = sums.get(name, 0.0) + float(value)
        return {name: value / weight for name, value in sums.items()}

    return evaluate


def taught(learner: Learner, batch: Batch) -> Batch:
    """A batch with what the teacher makes of it, which it may hold already."""
    if learner.teach is None or batch.taught is not None:
        return batch
    return learner.teach(learner.teacher, placed(batch, learner.layout, ("batch",)))


def placed(batch: Batch, layout: Layout | None, leading: Logical) -> Batch:
    """A batch, or several with an axis in front, on the devices: rows over the data axis of a mesh."""
    if layout is None:
        return jax.tree.map(jnp.asarray, batch)

    def place(x):
        names = (*leading, *(None,) * x.ndim)[: x.ndim]
        return jax.device_put(x, layout.sharding(names, x.shape))

    return jax.tree.map(place, batch)
