"""What is planned of a kind is what `launch/distill.py` makes of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cascades import checkpoints
from cascades.errors import UserError
from cascades.models import decoder_preset
from cascades.planning.kinds import check_kind, config_of, described, name_of
from cascades.training.architectures import decoder
from cascades.training.drafters import eagle, own, shallow

KINDS = {
    "eagle": eagle(vocabulary=30),
    "shallow": shallow(layers=(0,)),
    "trimmed": shallow(layers=(-1, 0), vocabulary=40),
    "own": own(architecture=decoder(layers=1, d_model=32, d_ff=64, heads=2, kv_heads=2, head_dim=16), vocabulary=20),
}


@pytest.mark.parametrize("name", KINDS)
def test_a_shape_is_that_of_the_drafter_that_is_made(tiny_files, name):
    teacher = checkpoints.load(tiny_files.verifier, dtype=jnp.float32)
    made = KINDS[name](teacher, np.arange(teacher.config.vocab_size), jax.random.key(0))
    assert config_of(KINDS[name], teacher.config) == made.config


def test_no_weights_are_made_of_a_large_verifier():
    """In float32 the layers alone would be 7 GB."""
    config = config_of(shallow(layers=tuple(range(0, 8))), decoder_preset("gemma2_27b"))
    assert (config.num_layers, config.d_model, config.local_layers[:2]) == (8, 4608, (True, False))


def test_a_kind_goes_by_its_name_in_gin_files():
    named = {name: name_of(kind) for name, kind in KINDS.items()}
    assert named == {"eagle": "eagle", "shallow": "shallow", "trimmed": "shallow", "own": "own"}
    assert described("eagle", config_of(eagle(), decoder_preset("gemma2_9b"))) == "eagle 1x3584, 8192 tokens"
    assert described("shallow", config_of(shallow(), decoder_preset("gemma2_9b"))) == "shallow 2x3584"


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        (eagle, "kinds of drafter with their brackets"),
        ("eagle", "kinds of drafter with their brackets"),
        (eagle(uri="shipped://smollm2-135m-eagle"), "leave eagle.uri None"),
        (own(uri="hf://some/where"), "leave own.uri None"),
    ],
)
def test_what_is_no_kind_or_would_read_weights_is_refused(kind, sentence):
    with pytest.raises(UserError, match=sentence):
        check_kind(kind)


def test_a_layer_that_is_not_there_is_refused():
    with pytest.raises(UserError, match=r"shallow\.layers must name some of the verifier's layers"):
        config_of(eagle(layers=(99,)), decoder_preset("gemma2_9b"))
