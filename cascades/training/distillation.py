"""A drafter that learns from its verifier."""

import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from cascades import checkpoints
from cascades.cache import rewind
from cascades.checkpoints import Checkpoint
from cascades.errors import UserError
from cascades.models import build
from cascades.models.api import WHOLE
from cascades.models.layers import MASKED
from cascades.sharding import Layout
from cascades.tokenizers import Tokenizer
from cascades.training import drafters, learner, losses
from cascades.training.data import Batch, Example, Taught
from cascades.training.learner import Learner
from cascades.training.step import Measure, TrainState, along_answers, fed
from cascades.typing import Array, Bool, Branch, Float, Key, Model, Output, Params

DECAY = 0.8  # weight of a token drafted one step deeper


class Trainee(NamedTuple):
    """A drafter in training.

    model, verifier: functions of the two. shared: names of its parameters that are the verifier's own. width: of the
    verifier.
    """

    learner: Learner
    model: Model
    verifier: Model
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
    depth: int = 1,
    optimizer: optax.GradientTransformation,
    dtype,
    layout: Layout | None = None,
) -> tuple[Trainee, TrainState]:
    """Begins a verifier's drafter; returns it and its first state.

    Args:
      examples: what it is trained on. depth: see `against`.
    """
    counts = np.bincount([token for each in examples for token in each.answer], minlength=teacher.config.vocab_size)
    begun = drafter(teacher, counts, key)
    size = min(tokenizer.vocab_size, teacher.config.vocab_size)
    if begun.config.vocab_size < size:
        raise UserError(
            f"a drafter must know the verifier's {size} tokens, but this one has {begun.config.vocab_size}: begin with "
            "a model of the same vocabulary"
        )
    small = build(begun.config, dtype, layout, kernels=False, chunk=WHOLE)
    reads = small.feature_width is not None
    large = build(teacher.config, dtype, layout, kernels=False, features=reads, chunk=WHOLE)
    student, state = learner.begin(
        begun.config,
        begun.params,
        against(large, small, size, loss, depth),
        optimizer,
        dtype=dtype,
        frozen=begun.frozen,
        teacher=teacher.params,
        teach=teach(large, size, reads),
        layout=layout,
    )
    return Trainee(student, small, large, size, begun.shared, teacher.config.d_model), state


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


def against(verifier: Model, drafter: Model, vocabulary: int, loss: losses.Loss, depth: int = 1) -> Measure:
    """Returns what compares a drafter with its verifier at every token of an answer; batches are taught.

    acceptance: 1 - D_TV, the probability that a draft of temperature 1 is accepted. agreement: whether both favour the
    same token, as greedy drafts need. `acceptance_2`, `agreement_2`, …: of the second draft of a round and on, where
    those before it stand.

    Args:
      depth: drafts of a round that a drafter which reads hidden states is trained on; the first tokens of an answer
        have fewer before them. Another drafter says the same whatever was drafted.
    """
    compare = scores(verifier, drafter, vocabulary, depth, whole=getattr(loss, "whole", False))

    def measure(params: Params, teacher: Params, batch: Batch):
        assert batch.taught, "a verifier has scored the batch"
        column = jnp.arange(batch.answer.shape[1], dtype=jnp.int32)[None, :]
        per_token, figures, share = {}, {}, 0.0
        for at, (ours, theirs, chosen) in enumerate(compare(params, teacher, batch)):
            new = {
                "loss": loss(ours, theirs),
                "acceptance": 1 - losses.total_variation(ours, theirs),
                "agreement": (chosen == batch.taught.favourite).astype(jnp.float32),
            }
            if at:
                new = {name: jnp.where(column >= at, each, per_token[name]) for name, each in new.items()}
            per_token = new
            weight = DECAY**at
            figures |= {name if not at else f"{name}_{at + 1}": per_token[name] for name in ("acceptance", "agreement")}
            figures["loss"] = figures.get("loss", 0.0) + weight * per_token["loss"]
            share += weight
        return figures | {"loss": figures["loss"] / share}

    return measure


def scores(
    verifier: Model, drafter: Model, vocabulary: int, depth: int, *, whole: bool
) -> Callable[[Params, Params, Batch], Iterator[tuple[Array, Array, Array]]]:
    """Returns what scores every token of a taught batch as each draft of a round.

    Args:
      depth: see `against`. whole: score all tokens, where the drafter can say only some; else only these, and all the
        others as one column, of which no loss asks for more.

    Returns:
      `(params, teacher, batch) -> ` for each draft of a round: logits of drafter and verifier, `[b, n, v]` or
      `[b, n, m + 1]`, and the drafter's favourite, int32 `[b, n]`.
    """
    assert verifier.score and drafter.score
    score, judge = drafter.score, verifier.score

    def compare(params: Params, teacher: Params, batch: Batch):
        taught = batch.taught
        assert taught, "a verifier has scored the batch"
        ids = None if whole else params.get("head_ids")
        theirs = lax.stop_gradient(judge(teacher, taught.answer, ids))
        if ids is None:
            theirs = theirs[:, :, :vocabulary]
        else:
            theirs = jnp.concatenate([theirs, _others(theirs, taught.total)[:, :, None]], axis=-1)
        if drafter.feature_width is None:
            outputs = iter([along_answers(drafter, params, batch)[0]])
        else:
            outputs = drafted(drafter, params, batch, depth)
        for output in outputs:
            if ids is None:
                ours = output.logits[:, :, :vocabulary]
                yield ours, theirs, jnp.argmax(ours, axis=-1).astype(jnp.int32)
            else:
                ours = score(params, output.features, ids)
                yield (
                    jnp.pad(ours, ((0, 0), (0, 0), (0, 1)), constant_values=MASKED),
                    theirs,
                    ids[jnp.argmax(ours, axis=-1)],
                )

    return compare


def _others(some: Float[Array, "b n m"], total: Float[Array, "b n"]) -> Float[Array, "b n"]:
    """Log of the sum of the exponentials of the scores that are not among `some`; `total`: of all."""
    share = jnp.exp(jax.nn.logsumexp(some, axis=-1) - total)
    return total + jnp.log1p(-jnp.minimum(share, 1 - 1e-6))  # recalled states are rounded, totals are not


def drafted(model: Model, params: Params, batch: Batch, depth: int) -> Iterator[Output]:
    """As `along_answers`, of a drafter that reads its verifier's hidden states; every token as each draft of a round.

    The first draft of a round reads the verifier's hidden state of the token before it, the next its own of the one
    before (the training-time test of EAGLE-3, arXiv 2503.01840). What it holds of the tokens before the round is of the
    verifier's states, and of those in the round of its own, as in the loop. Every depth has slots of its own behind
    those of the text.
    """
    assert batch.taught is not None and batch.taught.prompt is not None
    rows, width = batch.prompt.shape
    length = batch.answer.shape[1]
    room = width + length
    hidden = batch.taught.prompt
    cache = model.init_cache(rows, room + (depth - 1) * length)
    shifted = jnp.pad(hidden, ((0, 0), (1, 0), (0, 0)))[:, :width]
    cache = model.prefill(params, batch.prompt, batch.length - 1, cache, shifted)
    last = jnp.take_along_axis(shifted, batch.length[:, None, None] - 1, axis=1)
    tokens = fed(batch)
    features = jnp.concatenate([last, batch.taught.answer[:, :-1]], axis=1)
    output, cache = model.extend(params, tokens, cache, features=features)
    yield output

    column = jnp.arange(length, dtype=jnp.int32)
    positions = batch.length[:, None] - 1 + column[None, :]
    slot = jnp.arange(room + (depth - 1) * length, dtype=jnp.int32)[None, None, :]
    for at in range(1, depth):

        def visible(window: int | None, at: int = at) -> Bool[Array, "b s t"]:
            distance = positions[:, :, None] - slot
            seen = (slot < room) & (distance >= at)
            if window is not None:
                seen &= distance < window
            for own in range(1, at + 1) if window is None else range(max(1, at + 1 - window), at + 1):
                before = column[None, :, None] - at + own
                seen |= (slot == room + (own - 1) * length + before) & (before >= 0)
            return seen

        assert output.features is not None
        features = jnp.concatenate([last, output.features[:, :-1].astype(last.dtype)], axis=1)
        cache = rewind(cache, jnp.full((rows,), room + (at - 1) * length, jnp.int32))
        branch = Branch(positions, visible)
        output, cache = model.extend(params, tokens, cache, features=features, branch=branch)
        yield output


def save(
    trainee: Trainee, state: TrainState, temperature: float, tokenizer_source: pathlib.Path, folder: pathlib.Path
) -> None:
    """Writes the drafter in bfloat16, but for what is the verifier's; what a run that ended before wrote is kept.

    Args:
      temperature: by which its logits are divided for good, through the scale of the norm before its head.
    """
    if not (folder / "cascades.json").exists():
        params = trainee.learner.params(state, jnp.bfloat16)
        if temperature != 1.0:
            params["final_norm"] = jax.tree.map(lambda scale: scale / temperature, params["final_norm"])
        config, shared = trainee.learner.config, trainee.shared
        checkpoints.save(folder, config, params, tokenizer_source=tokenizer_source, shared=shared)
