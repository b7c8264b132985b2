import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from checkpoint_files import CONFIGS

from cascades import checkpoints
from cascades.checkpoints import configs
from cascades.errors import UserError
from cascades.models import PRESETS


@pytest.fixture(params=["gemma", "gemma2", "gemma3"])
def gemma_model(request, build, monkeypatch):
    """A tiny Gemma whose sizes are those of a preset."""
    model = build(request.param)
    monkeypatch.setitem(PRESETS, "tiny", dataclasses.replace(model.config, vocab_size=7))
    return model


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("transposed", [False, True])
def test_every_layout_comes_back_exactly(gemma_model, write_gemma, assert_params, nested, transposed):
    directory = write_gemma(gemma_model, nested=nested, transposed=transposed)
    loaded = checkpoints.load(directory)
    assert loaded.config == gemma_model.config  # with the vocabulary of the file
    assert_params(loaded.params, gemma_model.params)


def test_as_many_key_heads_as_query_heads(build, write_gemma, assert_params, monkeypatch):
    many = dataclasses.replace(CONFIGS["gemma"], num_kv_heads=4)
    monkeypatch.setitem(CONFIGS, "gemma", many)
    monkeypatch.setitem(PRESETS, "tiny", many)
    model = build("gemma")
    loaded = checkpoints.load(write_gemma(model), dtype=jnp.bfloat16)
    assert loaded.config == many
    assert_params(loaded.params, model.params, jnp.bfloat16)


def test_unknown_sizes_need_a_preset(build, write_gemma, monkeypatch, assert_params):
    model = build("gemma2")
    directory = write_gemma(model)
    with pytest.raises(UserError, match="2 layers of width 64 with 4 heads of 32.*name its preset"):
        checkpoints.load(directory)
    with pytest.raises(UserError, match=r"embedder/input_embedding is \[48, 64\], expected \[48, 2304\]"):
        checkpoints.load(directory, preset="gemma2_2b")
    monkeypatch.setitem(PRESETS, "other", model.config)
    assert_params(checkpoints.load(directory, preset="other").params, model.params)


@pytest.mark.parametrize("name", ["embedder/input_embedding", "layer_0/attn/attn_vec_einsum/w"])
@pytest.mark.parametrize("shape", [(), (8,), (1, 2, 3, 4)])
def test_tensors_of_other_axes_are_no_gemma(name, shape):
    shapes = {"embedder/input_embedding": (48, 64), "layer_0/attn/attn_vec_einsum/w": (4, 32, 64)}
    with pytest.raises(UserError, match="flax should be a released Gemma checkpoint"):
        configs.from_gemma(shapes | {name: shape}, "flax")


def test_the_vision_encoder_is_left_out(gemma_model, write_gemma, assert_params):
    extra = {
        "SigLiPFromPatches_0/encoder": {"w": np.zeros((2, 2), np.float32)},
        "transformer/embedder/mm_input_projection": {"w": np.zeros((2, 2), np.float32)},
    }
    assert_params(checkpoints.load(write_gemma(gemma_model, extra=extra)).params, gemma_model.params)


def test_a_checkpoint_in_one_more_directory(gemma_model, write_gemma, assert_params):
    directory = write_gemma(gemma_model, "archive/flax")
    (directory.parent / "tokenizer.model").write_bytes(b"a SentencePiece model")
    assert_params(checkpoints.load(directory.parent).params, gemma_model.params)


def test_a_damaged_checkpoint(gemma_model, write_gemma):
    directory = write_gemma(gemma_model)
    (directory / "_METADATA").write_text('{"tree_metadata": {')
    with pytest.raises(UserError, match="damaged"):
        checkpoints.load(directory)


def test_tensors_left_over_are_named(gemma_model, write_gemma):
    directory = write_gemma(gemma_model, extra={"transformer/layer_0/attn/odd": {"w": np.zeros(3, np.float32)}})
    with pytest.raises(UserError, match="not used: layer_0/attn/odd/w"):
        checkpoints.load(directory)
