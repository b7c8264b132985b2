"""T5 as transformers and T5X write it."""

import dataclasses
import json
import pathlib
import sys

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import tensorstore as ts
from flax import serialization
from safetensors.numpy import load_file, save_file

from cascades import checkpoints
from cascades.checkpoints import huggingface_configs, t5
from cascades.errors import UserError
from cascades.models import T5Config, preset

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "golden"))
import t5_cases

CASES = list(t5_cases.CASES)
# Published in config.json of google-t5/t5-small and google/flan-t5-xl, without what does not matter here.
SMALL = {
    "model_type": "t5", "d_ff": 2048, "d_kv": 64, "d_model": 512, "decoder_start_token_id": 0, "num_heads": 8,
    "num_layers": 6, "relative_attention_num_buckets": 32, "vocab_size": 32128, "layer_norm_epsilon": 1e-6,
}  # fmt: skip
FLAN_XL = SMALL | {
    "d_ff": 5120, "d_model": 2048, "feed_forward_proj": "gated-gelu", "num_decoder_layers": 24, "num_heads": 32,
    "num_layers": 24, "relative_attention_max_distance": 128, "tie_word_embeddings": False,
}  # fmt: skip


def config_of(name, **changes) -> T5Config:
    return T5Config(**(t5_cases.CASES[name] | changes))


def write_huggingface(directory, name, *, extra=(), **changes):
    directory.mkdir()
    tensors = t5_cases.huggingface_tensors(name, t5_cases.make_params(name)) | dict(extra)
    save_file({key: np.ascontiguousarray(value) for key, value in tensors.items()}, directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps(t5_cases.huggingface_config(name) | changes))
    return directory


def write_t5x(directory, name, *, dtype=np.float32, inline=("scale",), relative=True):
    """As T5X does: large tensors as zarr arrays, those with an end in `inline` in the index."""
    directory.mkdir()

    def leaf(path, value):
        value = np.asarray(value).astype(dtype)
        if path[-1] in inline:
            return np.asarray(value, np.float32)
        file = ".".join(("target", *path))
        spec = {
            "driver": "zarr",
            "kvstore": {"driver": "file", "path": f"{directory}/{file}/"},
            "metadata": {"shape": value.shape, "chunks": [min(16, n) for n in value.shape]},
            "dtype": value.dtype.name,
        }
        ts.open(spec, create=True).result().write(value).result()
        if relative:
            return spec | {"kvstore": {"driver": "file", "path": file}, "metadata": {"shape": list(value.shape)}}
        return {"driver": "zarr", "kvstore": {"driver": "gcs", "bucket": "t5x-dummy-bucket"}, "path": file}

    def walk(tree, path=()):
        return {
            key: walk(value, (*path, key)) if isinstance(value, dict) else leaf((*path, key), value)
            for key, value in tree.items()
        }

    state = {"step": np.int32(7), "param_states": {"decoder": {"m": np.zeros(3, np.float32)}}}
    content = {
        "version": 3,
        "optimizer": {"target": walk(t5_cases.t5x_tree(t5_cases.make_params(name))), "state": state},
    }
    (directory / "checkpoint").write_bytes(serialization.msgpack_serialize(jax.tree.map(lambda x: x, content)))
    return directory


def assert_same(actual, name, dtype=jnp.float32):
    wanted = t5_cases.make_params(name)
    assert jax.tree.structure(actual) == jax.tree.structure(wanted)
    for (path, leaf), like in zip(jax.tree_util.tree_leaves_with_path(actual), jax.tree.leaves(wanted), strict=True):
        kind = jnp.float32 if path[-1].key in ("scale", "encoder_bias", "decoder_bias") else dtype
        assert leaf.dtype == kind, path
        np.testing.assert_array_equal(leaf, jnp.asarray(like, kind), err_msg=str(path))


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_transformers_files_come_back_exactly(tmp_path, name, dtype):
    extra = {
        "decoder.embed_tokens.weight": t5_cases.make_params(name)["embed"]["embedding"],
        "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight": np.zeros((8, 4), np.float32),
    }
    loaded = checkpoints.load(write_huggingface(tmp_path / "hf", name, extra=extra), dtype=dtype)
    assert loaded.config == config_of(name, context_length=2048)
    assert_same(loaded.params, name, dtype)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("form", [{}, {"inline": (), "relative": False}])
def test_t5x_files_come_back_exactly(tmp_path, name, form):
    loaded = checkpoints.load(write_t5x(tmp_path / "checkpoint_7", name, **form))
    assert loaded.config == config_of(name, context_length=2048, max_distance=128)
    assert_same(loaded.params, name)


def test_t5x_files_in_half_precision_and_in_one_more_directory(tmp_path):
    (tmp_path / "model").mkdir()
    write_t5x(tmp_path / "model" / "checkpoint_7", "v1_1", dtype=ml_dtypes.bfloat16)
    loaded = checkpoints.load(tmp_path / "model", dtype=jnp.bfloat16)
    expected = jnp.asarray(t5_cases.make_params("v1_1")["decoder"]["2"]["cross"]["q"]["kernel"], jnp.bfloat16)
    np.testing.assert_array_equal(loaded.params["decoder"]["2"]["cross"]["q"]["kernel"], expected)


def test_our_own_form_round_trips(tmp_path):
    checkpoints.convert(write_t5x(tmp_path / "t5x", "v1_0"), tmp_path / "ours", dtype="float32", progress=False)
    loaded = checkpoints.load(tmp_path / "ours")
    assert loaded.config == checkpoints.load(tmp_path / "t5x").config
    assert_same(loaded.params, "v1_0")


def test_int8_and_a_place_for_every_tensor(tmp_path):
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    directory = write_t5x(tmp_path / "t5x", "v1_1")
    places = lambda like: jax.tree.map(lambda _: place, like)  # noqa: E731
    params = checkpoints.load(directory, weights="int8", shardings=places).params
    matrix = params["decoder"]["0"]["cross"]["o"]["kernel"]
    assert matrix.values.dtype == jnp.int8 and matrix.scale.shape == (24,)


@pytest.mark.parametrize(("raw", "name"), [(SMALL, "t5_small"), (FLAN_XL, "t5_v1_1_xl")])
def test_published_configs_are_those_of_the_presets(raw, name):
    assert t5.from_huggingface(raw, "config.json") == preset(name)


def test_the_form_of_transformers_5(tmp_path):
    """It calls every head tied, and says in a field of its own which T5 it was; of mT5 it says nothing."""
    for changes in ({"scale_decoder_outputs": False}, {"model_type": "mt5", "architectures": None}):
        directory = write_huggingface(tmp_path / str(len(changes)), "v1_1", tie_word_embeddings=True, **changes)
        loaded = checkpoints.load(directory)
        assert loaded.config == config_of("v1_1", context_length=2048)
        assert_same(loaded.params, "v1_1")
    raw = SMALL | {"tie_word_embeddings": True, "scale_decoder_outputs": True}
    assert t5.from_huggingface(raw, "config.json") == preset("t5_small")


def test_what_an_mt5_leaves_out():
    raw = {key: value for key, value in FLAN_XL.items() if key not in ("feed_forward_proj", "tie_word_embeddings")}
    assert t5.from_huggingface(raw | {"model_type": "mt5"}, "config.json") == preset("t5_v1_1_xl")


@pytest.mark.parametrize("kept", ["encoder.embed_tokens.weight", "decoder.embed_tokens.weight"])
def test_the_embedding_under_another_of_its_names(tmp_path, kept):
    directory = write_huggingface(tmp_path / "hf", "v1_0")
    tensors = load_file(directory / "model.safetensors")
    tensors[kept] = tensors.pop("shared.weight")
    save_file(tensors, directory / "model.safetensors")
    assert_same(checkpoints.load(directory).params, "v1_0")


@pytest.mark.parametrize("copy", ["encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"])
def test_a_copy_of_the_embedding_that_differs(tmp_path, copy):
    extra = {copy: np.zeros((61, 24), np.float32)}
    with pytest.raises(UserError, match=f"hold shared.weight and {copy} as one matrix, .* but they differ"):
        checkpoints.load(write_huggingface(tmp_path / "hf", "v1_0", extra=extra))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"dense_act_fn": "gelu_new"}, "dense_act_fn as relu"),
        ({"is_gated_act": True}, "is_gated_act as False"),
        ({"feed_forward_proj": "gelu"}, "the MLP 'gelu'"),
        ({"feed_forward_proj": 3}, "feed_forward_proj as a text"),
        ({"model_type": "mt5", "feed_forward_proj": "gated-gelu", "dense_act_fn": "silu"}, "dense_act_fn as gelu_new"),
        ({"tie_encoder_decoder": True}, "asks for tie_encoder_decoder"),
        ({"scale_decoder_outputs": True, "tie_word_embeddings": False}, "scale_decoder_outputs as false"),
        ({"relative_attention_num_buckets": 0}, "relative_attention_num_buckets as a whole number"),
        ({"relative_attention_max_distance": 16}, "relative_attention_max_distance as a whole number"),
        ({"layer_norm_epsilon": "1e-6"}, "layer_norm_epsilon as a number"),
        ({"decoder_start_token_id": 40_000}, "decoder_start_token_id as a whole number from 0 to 32127"),
        ({"num_decoder_layers": 2.0}, "num_decoder_layers as a whole number"),
        ({"d_kv": True}, "d_kv as a whole number"),
        ({"architectures": ["T5EncoderModel"]}, "T5EncoderModel"),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, "by bitsandbytes"),
        ({"odd": 1}, "gives odd, which no t5 here knows"),
    ],
)
def test_fields_that_are_refused(changes, named):
    with pytest.raises(UserError, match=named):
        huggingface_configs.from_huggingface(SMALL | changes, "config.json")


def test_a_config_that_cannot_be_read():
    with pytest.raises(UserError, match="the MLP 'gated-silu', but only relu and gated-gelu"):
        t5.from_huggingface(SMALL | {"feed_forward_proj": "gated-silu"}, "config.json")
    with pytest.raises(UserError, match="config.json should say num_heads, d_kv, but does not"):
        t5.from_huggingface({key: SMALL[key] for key in SMALL if key not in ("d_kv", "num_heads")}, "config.json")


def test_a_missing_tensor_is_named(tmp_path):
    directory = write_huggingface(tmp_path / "hf", "v1_1", num_decoder_layers=4)
    with pytest.raises(UserError, match=r"missing: decoder\.block\.3\.layer\.0\.layer_norm\.weight"):
        checkpoints.load(directory)


def test_damaged_t5x_files(tmp_path):
    directory = write_t5x(tmp_path / "t5x", "v1_0")
    array = directory / "target.encoder.layers_1.mlp.wo.kernel" / ".zarray"
    content = array.read_bytes()
    array.unlink()
    with pytest.raises(UserError, match="one is missing or damaged"):
        checkpoints.load(directory)
    array.write_bytes(content)
    (directory / "checkpoint").write_text("model_checkpoint_path: model.ckpt-1000")  # TensorFlow's
    with pytest.raises(UserError, match="should be the index of a T5X checkpoint"):
        checkpoints.load(directory)
    spec = {"driver": "zarr", "kvstore": {"driver": "file", "path": "../t5x/target.encoder.layers_1.mlp.wo.kernel"}}
    elsewhere = {"optimizer": {"target": {"token_embedder": {"embedding": spec}}}}
    (directory / "checkpoint").write_bytes(serialization.msgpack_serialize(elsewhere))
    with pytest.raises(UserError, match="should name arrays beside it, but names '../t5x"):
        checkpoints.load(directory)
    other = {"optimizer": {"target": {"token_embedder": {"embedding": np.zeros((4, 2), np.float32)}}}}
    (directory / "checkpoint").write_bytes(serialization.msgpack_serialize(other))
    with pytest.raises(UserError, match="should be a T5 that T5X wrote, but lacks .* decoder/relpos_bias"):
        checkpoints.load(directory)


@pytest.mark.parametrize("shape", [(), (4,), (2, 4, 32), (0, 32)])
def test_t5x_tensors_of_other_axes_are_no_t5(shape):
    shapes = {
        "token_embedder/embedding": (61, 24),
        "decoder/relpos_bias/rel_embedding": shape,
        "decoder/layers_0/mlp/wo/kernel": (32, 24),
    }
    with pytest.raises(UserError, match="but lacks matrices decoder/relpos_bias/rel_embedding: give one"):
        t5.from_t5x(shapes, "t5x")


def test_a_missing_chunk_is_no_zeros(tmp_path):
    """A copy that was cut off lacks chunks, and zarr would read them as the fill value."""
    directory = write_t5x(tmp_path / "t5x", "v1_0")
    (directory / "target.encoder.layers_1.mlp.wo.kernel" / "1.0").unlink()
    with pytest.raises(UserError, match="damaged at encoder/layers_1/mlp/wo/kernel .*missing.*fetch it again"):
        checkpoints.load(directory)


def test_a_preset_of_a_t5_is_none_of_a_decoder(tmp_path):
    from cascades.models import decoder_preset

    with pytest.raises(UserError, match="t5_small is an encoder–decoder, but a decoder was expected"):
        decoder_preset("t5_small")
    assert dataclasses.replace(decoder_preset("gemma_2b"), vocab_size=8).vocab_size == 8
