"""How sure a drafter is against how often it is right, and the temperature that makes the two agree.

A deferral rule compares what two models believe of themselves, so a drafter that is surer than it is right is trusted
too often. One temperature for all logits, fitted on text that was not trained on, mends most of it and costs nothing
(temperature scaling: Guo et al., arXiv 1706.04599).
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from cascades.models import DecoderConfig
from cascades.training import data, distillation
from cascades.training.data import Batch, BatchShape, Example
from cascades.training.distillation import Trainee
from cascades.training.learner import placed, taught
from cascades.training.step import TrainState, whole
from cascades.typing import Array, Float, Params

TEMPERATURES = np.geomspace(0.5, 4.0, 61).astype(np.float32)
_BINS = 15


class Calibration(NamedTuple):
    """temperature: that logits are divided by. before, after: expected calibration error without and with it."""

    temperature: float
    before: float
    after: float


def calibrate(
    trainee: Trainee, state: TrainState, examples: Sequence[Example], sizes: BatchShape, depth: int
) -> Calibration:
    """Fits the temperature at which the drafter's largest probability is the verifier's probability of that token.

    Args:
      examples: held out. depth: drafts of a round that count, see `distillation.against`.
    """
    if not foldable(trainee):
        return Calibration(1.0, *(2 * (float("nan"),)))
    sure = jax.jit(partial(_sure, trainee, depth))
    rows = []
    learner = trainee.learner
    for first in range(0, len(examples), sizes.batch):
        batch = data.padded(examples[first : first + sizes.batch], sizes)
        batch = placed(taught(learner, batch), learner.layout, ("batch",))
        surest = np.asarray(sure(whole(learner.task, state.params, learner.frozen), learner.teacher, batch))
        rows.append(surest[:, np.tile(np.asarray(batch.weight).ravel() > 0, depth_of(trainee, depth))])
    right, *confidences = np.concatenate(rows, axis=1).astype(np.float64)
    return fit(np.asarray(confidences), right)


def fit(confidences: Float[np.ndarray, "m n"], right: Float[np.ndarray, " n"]) -> Calibration:
    """Chooses among `TEMPERATURES` by the log loss of confidences at each, given how probably each was right."""
    sure = np.clip(confidences, 1e-6, 1 - 1e-6)
    loss = -(right * np.log(sure) + (1 - right) * np.log1p(-sure)).mean(axis=1)
    best = int(np.argmin(loss))
    as_it_is = int(np.argmin(np.abs(TEMPERATURES - 1)))
    return Calibration(float(TEMPERATURES[best]), error(confidences[as_it_is], right), error(confidences[best], right))


def error(confidence: Float[np.ndarray, " n"], right: Float[np.ndarray, " n"]) -> float:
    """Expected calibration error: the mean distance between confidence and being right, in 15 bins of confidence."""
    bins = np.minimum((confidence * _BINS).astype(int), _BINS - 1)
    apart = np.bincount(bins, confidence - right, minlength=_BINS)
    return float(np.abs(apart).sum() / len(confidence))


def foldable(trainee: Trainee) -> bool:
    """Whether a temperature can be stored in the scale of the drafter's last norm."""
    config = trainee.learner.config
    return isinstance(config, DecoderConfig) and config.final_softcap is None


def depth_of(trainee: Trainee, depth: int) -> int:
    """How many drafts of a round differ."""
    return 1 if trainee.model.feature_width is None else depth


def _sure(trainee: Trainee, depth: int, params: Params, teacher: Params, batch: Batch) -> Float[Array, "m n"]:
    """Of the drafter's favourite at every token and draft of a round: the verifier's probability, and its own at every
    temperature."""
    parts = []
    compare = distillation.scores(trainee.verifier, trainee.model, trainee.vocabulary, depth, whole=False)
    for ours, theirs, _ in compare(params, teacher, batch):
        at = jnp.argmax(ours, axis=-1)[:, :, None]
        right = jnp.exp(jnp.take_along_axis(theirs, at, axis=-1)[:, :, 0] - jax.nn.logsumexp(theirs, axis=-1))
        behind = ours - jnp.max(ours, axis=-1, keepdims=True)
        sure = lax.map(lambda t, x=behind: 1 / jnp.sum(jnp.exp(x / t), axis=-1), jnp.asarray(TEMPERATURES))
        parts.append(jnp.concatenate([right[None], sure]).reshape(1 + len(TEMPERATURES), -1))
    return jnp.concatenate(parts, axis=1)
