"""How sure a drafter is, and the temperature that makes it as sure as it is right."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cascades import checkpoints, tokenizers
from cascades.training import calibration, distillation, drafters, losses
from cascades.training.data import BatchShape, padded, tokenized
from cascades.training.step import optimizer


def confidences(logits):
    return np.stack([jax.nn.softmax(logits / t, axis=-1).max(axis=-1) for t in calibration.TEMPERATURES])


@pytest.mark.parametrize("true", [0.6, 1.0, 1.7, 2.5])
def test_the_temperature_of_text_drawn_at_another_one_is_found(true):
    """A drafter whose logits are `true` times too large is right as often as its divided logits say."""
    logits = 3 * np.random.default_rng(0).standard_normal((4000, 20)).astype(np.float32)
    right = np.asarray(jax.nn.softmax(logits / true, axis=-1).max(axis=-1))
    found = calibration.fit(confidences(logits), right)
    assert found.temperature == pytest.approx(true, rel=0.03)
    assert found.after < 0.01
    assert found.after < found.before / 5 or true == 1.0


def test_the_error_is_the_distance_of_confidence_and_truth():
    assert calibration.error(np.array([0.9, 0.9, 0.3]), np.array([1.0, 0.0, 0.3])) == pytest.approx(0.8 / 3)
    assert calibration.error(np.array([0.2, 0.8]), np.array([0.2, 0.8])) == pytest.approx(0.0)


def test_the_temperature_is_folded_into_the_logits(tmp_path, trainee):
    """What is saved scores as the trained drafter does, divided by the temperature."""
    found, state, batch, source = trainee
    drafted = jax.jit(lambda *given: next(distillation.drafted(found.model, *given, 1)).logits)
    outputs = []
    for temperature in (1.0, 2.0):
        distillation.save(found, state, temperature, source, tmp_path / str(temperature))
        config, params, _ = checkpoints.load(tmp_path / str(temperature), verifier=found.learner.teacher)
        assert config == found.learner.config
        outputs.append(drafted(params, batch))
    known = np.asarray(outputs[0]) > -1e29
    np.testing.assert_allclose(outputs[1][known], outputs[0][known] / 2, rtol=2e-2, atol=2e-2)
    assert np.abs(outputs[0][known]).max() > 0.1


@pytest.fixture
def trainee(tiny_files):
    teacher = checkpoints.load(tiny_files.verifier, dtype=jnp.float32)
    tokenizer = tokenizers.load(teacher.path)
    examples = tokenized([{"prompt": "the quick", "text": "brown fox jumps"}] * 2, tokenizer, None, raw=True)
    found, state = distillation.prepare(
        teacher,
        tokenizer,
        drafters.eagle(vocabulary=40),
        examples,
        jax.random.key(0),
        loss=losses.forward_kl,
        depth=2,
        optimizer=optimizer(1e-3, 10, 1, 0.0),
        dtype=jnp.float32,
    )
    sizes = BatchShape(2, max(len(each.prompt) for each in examples), 4)
    batch = jax.tree.map(jnp.asarray, padded([each._replace(answer=each.answer[:4]) for each in examples], sizes))
    return found, state, found.learner.teach(found.learner.teacher, batch), teacher.path
