"""A drafter that learns from its verifier."""

import pathlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from cascades import checkpoints
from cascades.checkpoints import Checkpoint
from cascades.errors import UserError
from cascades.models import build
from cascades.models.layers import MASKED
from cascades.sharding import Layout
from cascades.tokenizers import Tokenizer
from cascades.training import drafters, learner, losses
from cascades.training.data import Batch, Example, Taught
from cascades.training.learner import Learner
from cascades.training.step import Measure, State, along_answers, fed
from cascades.typing import Array, Cache, Float, Key, Model, Output, Params

OWN_FEATURES = 0.5  # share of tokens at which a drafter that reads hidden states trains on its own


class Trainee(NamedTuple):
    """A drafter in training.

    model: its functions. shared: names of its parameters that are the verifier's own. width: of the verifier.
    """

    learner: Learner
    model: Model
    vocabulary: int
    shared: frozenset[str]
    width: int


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
    small = build(begun.config, dtype, layout, kernels=False)
    reads = small.reads is not None
    large = build(teacher.config, dtype, layout, kernels=False, features=reads)
    found, state = learner.begin(
        begun.config,
        begun.params,
        against(large, small, size, loss),
        optimizer,
        dtype=dtype,
        frozen=begun.frozen,
        teacher=teacher.params,
        teach=teach(large, size, reads),
        layout=layout,
    )
    return Trainee(found, small, size, begun.shared, teacher.config.d_model), state


def teach(verifier: Model, vocabulary: int, reads: bool) -> Callable[[Params, Batch], Batch]:
    """Returns what adds to a batch what the verifier makes of it; `reads`: its hidden states of prompts too."""

    def taught(params: Params, batch: Batch) -> Batch:
        output, cache = along_answers(verifier, params, batch)
        prompt = cache.features[:, 0, : batch.prompt.shape[1]] if reads else None
        assert output.features is not None, "models with weights have hidden states"
        scores = output.logits[:, :, :vocabulary]
        total, favourite = jax.nn.logsumexp(scores, axis=-1), jnp.argmax(scores, axis=-1).astype(jnp.int32)
        return batch._replace(taught=Taught(prompt, output.features, total, favourite))

    return taught


def against(verifier: Model, drafter: Model, vocabulary: int, loss: losses.Loss) -> Measure:
    """Returns what compares a drafter with its verifier at every token of an answer; batches are taught.

    acceptance: 1 - D_TV, the probability that a draft of temperature 1 is accepted. agreement: whether both favour the
    same token, as greedy drafts need.
    """

    def measure(params: Params, teacher: Params, batch: Batch):
        taught = batch.taught
        assert verifier.score and drafter.score and taught, "a verifier has scored the batch"
        read = along_answers if drafter.reads is None else reading
        output = read(drafter, params, batch)[0]
        ids = params.get("head_ids")
        if ids is None or getattr(loss, "whole", False):
            ours = output.logits[:, :, :vocabulary]
            theirs = lax.stop_gradient(verifier.score(teacher, taught.answer)[:, :, :vocabulary])
            chosen = jnp.argmax(ours, axis=-1)
        else:
            # Beside the tokens that the drafter can say, no loss asks for more than the sum of all the others.
            ours = drafter.score(params, output.features, ids)
            theirs = lax.stop_gradient(verifier.score(teacher, taught.answer, ids))
            chosen = ids[jnp.argmax(ours, axis=-1)]
            ours = jnp.pad(ours, ((0, 0), (0, 0), (0, 1)), constant_values=MASKED)
            theirs = jnp.concatenate([theirs, _others(theirs, taught.total)[:, :, None]], axis=-1)
        return {
            "loss": loss(ours, theirs),
            "acceptance": 1 - losses.total_variation(ours, theirs),
            "agreement": (chosen == taught.favourite).astype(jnp.float32),
        }

    return measure


def _others(some: Float[Array, "b n m"], total: Float[Array, "b n"]) -> Float[Array, "b n"]:
    """Log of the sum of the exponentials of the scores that are not among `some`; `total`: of all."""
    share = jnp.exp(jax.nn.logsumexp(some, axis=-1) - total)
    return total + jnp.log1p(-jnp.minimum(share, 1 - 1e-6))  # recalled states are rounded, totals are not


def reading(model: Model, params: Params, batch: Batch) -> tuple[Output, Cache]:
    """As `along_answers`, of a drafter that reads its verifier's hidden states.

    While it drafts it reads its own, so here too, at every other token or so: those of a pass before, which is not
    learned from.
    """
    assert batch.taught is not None and batch.taught.prompt is not None
    rows, width = batch.prompt.shape
    hidden = batch.taught.prompt
    cache = model.init_cache(rows, width + batch.answer.shape[1])
    shifted = jnp.pad(hidden, ((0, 0), (1, 0), (0, 0)))[:, :width]
    cache = model.prefill(params, batch.prompt, batch.length - 1, cache, shifted)
    last = jnp.take_along_axis(shifted, batch.length[:, None, None] - 1, axis=1)
    features = jnp.concatenate([last, batch.taught.answer[:, :-1]], axis=1)
    tokens = fed(batch)
    own = model.extend(params, tokens, cache, features=features)[0].features
    assert own is not None
    own = jnp.concatenate([last, lax.stop_gradient(own)[:, :-1].astype(last.dtype)], axis=1)
    key = jax.random.fold_in(jax.random.key(0), jnp.sum(batch.answer))
    drafted = jax.random.bernoulli(key, OWN_FEATURES, batch.answer.shape)[:, :, None]
    return model.extend(params, tokens, cache, features=jnp.where(drafted, own, features))


def save(trainee: Trainee, state: State, tokenizer_source: pathlib.Path, folder: pathlib.Path) -> None:
    """Writes the drafter in bfloat16, but for what is the verifier's; what a run that ended before wrote is kept."""
    if not (folder / "cascades.json").exists():
        params = trainee.learner.params(state, jnp.bfloat16)
        config, shared = trainee.learner.config, trainee.shared
        checkpoints.save(folder, config, params, tokenizer_source=tokenizer_source, shared=shared)
