"""What a training run is told: which knobs are refused, and with which sentence."""

import dataclasses
import json
import math

import jaxtyping
import pytest

from cascades.errors import UserError
from cascades.runs import training_run
from cascades.training.spec import TrainingSpec

WHOLE = ("steps", "batch_size", "accumulate", "prompt_tokens", "answer_tokens", "evaluate_every", "save_every")


@pytest.fixture(autouse=True)
def no_type_checks(monkeypatch):
    """A user's values meet the spec's own checks, not those of the tests."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.mark.parametrize(
    ("knobs", "sentence"),
    [({name: 0}, f"{name.upper()} must be a whole number from 1, not 0") for name in WHOLE]
    + [
        ({"steps": 2.0}, "STEPS must be a whole number from 1, not 2.0"),
        ({"learning_rate": 0}, "LEARNING_RATE must be a number above 0, not 0"),
        ({"learning_rate": math.nan}, "LEARNING_RATE must be a number above 0, not nan"),
        ({"warmup": -1}, "WARMUP must be a whole number from 0, not -1"),
        ({"weight_decay": -0.1}, "WEIGHT_DECAY must be a number from 0, not -0.1"),
        ({"held_out": 1.5}, "HELD_OUT must be a number from 0 to 1, not 1.5"),
        ({"seed": 2**31}, "SEED must be a whole number from 0 to 2147483647, not 2147483648"),
        ({"dtype": "int8"}, "DTYPE must be one of float32, bfloat16, not 'int8'"),
        ({"strategy": None}, "STRATEGY must be one of"),
        ({"mesh": (0, 1)}, "MESH must be (data, model)"),
        ({"tensorboard": "yes"}, "TENSORBOARD must be True or False, not 'yes'"),
    ],
)
def test_a_run_that_cannot_be(knobs, sentence):
    with pytest.raises(UserError) as caught:
        TrainingSpec(**knobs)
    assert str(caught.value).startswith(sentence) and "\n" not in str(caught.value)


def test_the_rows_must_fit_the_mesh():
    assert TrainingSpec().layout() is None
    with pytest.raises(UserError, match="BATCH_SIZE must be a multiple of the 3 ways that MESH splits a batch, not 8"):
        TrainingSpec(mesh=(3, 1)).layout()


def test_a_run_is_known_by_what_decides_its_curve(tmp_path):
    run = TrainingSpec(steps=3)
    about = training_run.described(run, loss=max, keys=("a", "b"))
    assert about["steps"] == 3 and about["keys"] == ["a", "b"] and "tensorboard" not in about
    for free in ({"tensorboard": False}, {"save_every": 7}, {"evaluate_every": 7}):
        assert training_run.described(dataclasses.replace(run, **free), loss=max, keys=("a", "b")) == about
    folder = training_run.folder_of(str(tmp_path / "run"), about)
    (folder / training_run.RUN).write_text(json.dumps(about))
    assert training_run.folder_of(str(folder), about) == folder
    other = training_run.described(dataclasses.replace(run, seed=1), loss=min, keys=("a", "b"))
    with pytest.raises(UserError, match="holds a run with another SEED, LOSS: give the same, or another OUTPUT_DIR"):
        training_run.folder_of(str(folder), other)
