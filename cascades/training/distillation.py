"""A drafter that learns from its verifier."""

import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from cascades import checkpoints
from cascades.checkpoints import Checkpoint
from cascades.errors import UserError
from cascades.models import build
from cascades.sharding import Layout
from cascades.tokenizers import Tokenizer
from cascades.training import drafters, learner, losses
from cascades.training.data import Batch, Example
from cascades.training.learner import Learner
from cascades.training.step import Measure, State, answer_logits
from cascades.typing import Array, Key, Model, Params


class Trainee(NamedTuple):
    """A drafter in training. model: its functions. shared: names of its parameters that are the verifier's own."""

    learner: Learner
    model: Model
    vocabulary: int
    shared: frozenset[str]


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
    """Begins a verifier's drafter; returns it and its first state. examples: what it is trained on."""
    counts = np.bincount([token for each in examples for token in each.answer], minlength=teacher.config.vocab_size)
    begun = drafter(teacher, counts, key)
    size = min(tokenizer.vocab_size, teacher.config.vocab_size)
    if begun.config.vocab_size < size:
        raise UserError(
            f"a drafter must know the verifier's {size} tokens, but this one has {begun.config.vocab_size}: begin with "
            "a model of the same vocabulary"
        )
    large, small = (build(config, dtype, layout, kernels=False) for config in (teacher.config, begun.config))
    found, state = learner.begin(
        begun.config,
        begun.params,
        against(large, small, size, loss),
        optimizer,
        dtype=dtype,
        frozen=begun.frozen,
        teacher=teacher.params,
        layout=layout,
    )
    return Trainee(found, small, size, begun.shared), state


def against(verifier: Model, drafter: Model, vocabulary: int, loss: losses.Loss) -> Measure:
    """Returns what compares a drafter with its verifier at every token of an answer.

    acceptance: 1 - D_TV, the probability that a draft of temperature 1 is accepted. agreement: whether both favour the
    same token, as greedy drafts need.
    """

    def measure(params: Params, teacher: Params, batch: Batch):
        ours = answer_logits(drafter, params, batch, vocabulary)
        theirs = lax.stop_gradient(answer_logits(verifier, teacher, batch, vocabulary))
        return {
            "loss": loss(ours, theirs),
            "acceptance": 1 - losses.total_variation(ours, theirs),
            "agreement": (jnp.argmax(ours, axis=-1) == jnp.argmax(theirs, axis=-1)).astype(jnp.float32),
        }

    return measure


def save(trainee: Trainee, state: State, tokenizer_source: pathlib.Path, folder: pathlib.Path) -> None:
    """Writes the drafter in bfloat16, but for what is the verifier's; what a run that ended before wrote is kept."""
    if not (folder / "cascades.json").exists():
        params = trainee.learner.params(state, jnp.bfloat16)
        config, shared = trainee.learner.config, trainee.shared
        checkpoints.save(folder, config, params, tokenizer_source=tokenizer_source, shared=shared)
