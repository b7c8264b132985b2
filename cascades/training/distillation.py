"""A drafter that learns from its verifier: both in memory, a step, an evaluation, what is left of it."""

import pathlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from cascades import checkpoints
from cascades.checkpoints import Checkpoint
from cascades.errors import UserError
from cascades.models import abstract_params, build, logical_axes
from cascades.sharding import Layout, Logical
from cascades.tokenizers import Tokenizer
from cascades.training import data, drafters, losses
from cascades.training import step as steps
from cascades.training.data import Batch, Example, Sizes
from cascades.training.step import State, Task
from cascades.typing import Array, Key, Params


class Trainee(NamedTuple):
    """A verifier and the drafter that learns from it.

    verifier: its parameters. frozen: the part of the drafter's that stays. layout: where all of it lives.
    """

    task: Task
    teacher: Checkpoint
    drafter: drafters.Drafter
    verifier: Params
    frozen: Params
    eos: tuple[int, ...]
    layout: Layout | None


def prepare(
    teacher: Checkpoint,
    tokenizer: Tokenizer,
    drafter: drafters.Kind,
    examples: Sequence[Example],
    key: Key[Array, ""],
    *,
    loss: losses.Loss,
    optimizer: optax.GradientTransformation,
    dtype,
    layout: Layout | None = None,
) -> tuple[Trainee, State]:
    """Begins a verifier's drafter; returns both, and the first state. examples: what is trained on."""
    counts = np.bincount([token for each in examples for token in each.answer], minlength=teacher.config.vocab_size)
    begun = drafter(teacher, counts, key)
    size = min(tokenizer.vocab_size, teacher.config.vocab_size)
    if begun.config.vocab_size < size:
        raise UserError(
            f"a drafter must know the verifier's {size} tokens, but this one has {begun.config.vocab_size}: begin with "
            "a model of the same vocabulary"
        )
    large, small = (build(config, dtype, layout, kernels=False) for config in (teacher.config, begun.config))
    if layout is not None:
        places = layout.shardings(logical_axes(begun.params), begun.params)
        begun = begun._replace(params=jax.device_put(begun.params, places))
    frozen = {name: leaf for name, leaf in begun.params.items() if name in begun.frozen}
    params = {name: leaf for name, leaf in begun.params.items() if name not in begun.frozen}
    task = Task(small, large, abstract_params(begun.config, dtype), size, loss, optimizer)
    eos = tuple(tokenizer.eos_ids)
    return Trainee(task, teacher, begun, teacher.params, frozen, eos, layout), steps.begin(task, params)


def stepper(
    trainee: Trainee,
    examples: list[Example],
    sizes: Sizes,
    key: Key[Array, ""],
    *,
    accumulate: int,
    on_policy: float,
    temperature: float,
) -> Callable[[State, int], tuple[State, dict[str, Any]]]:
    """Returns what `fit` calls: a step's number alone decides its examples, and whether the drafter answers itself."""
    task = trainee.task
    update = jax.jit(partial(steps.update, task), donate_argnums=0)
    slots = sizes.prompt + sizes.answer
    answer = steps.answers_of(task.drafter, task.vocabulary, trainee.eos, slots) if on_policy else None
    whole = jax.jit(partial(steps.whole, task))
    seed = int(jax.random.key_data(key)[-1])

    def step(state: State, number: int) -> tuple[State, dict[str, Any]]:
        parts = [data.batch_at(examples, sizes, seed, number * accumulate + part) for part in range(accumulate)]
        if answer is not None and np.random.default_rng((seed, 1, number)).random() < on_policy:
            params, mine = whole(state.params, trainee.frozen), jax.random.fold_in(key, number)
            keys = jax.random.split(mine, accumulate)
            parts = [answer(params, part, each, temperature) for part, each in zip(parts, keys, strict=True)]
        batches = jax.tree.map(lambda *each: jnp.stack([jnp.asarray(part) for part in each]), *parts)
        return update(state, trainee.frozen, trainee.verifier, _placed(batches, trainee.layout, (None, "batch")))

    return step


def evaluator(trainee: Trainee, examples: list[Example], sizes: Sizes) -> Callable[[State], dict[str, float]]:
    """Returns what `fit` calls: means over the tokens of all held-out examples."""
    compare = jax.jit(partial(steps.compare, trainee.task))

    def evaluate(state: State) -> dict[str, float]:
        totals: dict[str, float] = {}
        weight = 0.0
        for first in range(0, len(examples), sizes.batch):
            batch = data.padded(examples[first : first + sizes.batch], sizes)
            weight += float(np.sum(batch.weight))
            batch = _placed(batch, trainee.layout, ("batch",))
            found = compare(state.params, trainee.frozen, trainee.verifier, batch)
            for name, value in jax.device_get(found).items():
                totals[name] = totals.get(name, 0.0) + float(value)
        return {name: value / weight for name, value in totals.items()}

    return evaluate


def save(trainee: Trainee, state: State, folder: pathlib.Path) -> None:
    """Writes the drafter in bfloat16, but for what is the verifier's; what a run that ended before wrote is kept."""
    if (folder / "cascades.json").exists():
        return
    like = abstract_params(trainee.drafter.config, jnp.bfloat16)
    params = jax.tree.map(lambda x, y: x.astype(y.dtype), {**state.params, **trainee.frozen}, like)
    shared = trainee.drafter.shared
    checkpoints.save(folder, trainee.drafter.config, params, tokenizer_source=trainee.teacher.path, shared=shared)


def _placed(batch: Batch, layout: Layout | None, leading: Logical) -> Batch:
    """A batch, or several with an axis in front, on the devices: rows over the data axis of a mesh."""
    if layout is None:
        return jax.tree.map(jnp.asarray, batch)
    return jax.tree.map(lambda x: jax.device_put(x, layout.sharding((*leading, None)[: x.ndim], x.shape)), batch)
