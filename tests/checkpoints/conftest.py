"""Writers of tiny checkpoints in every format: what a reader must give back."""

import json

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from checkpoint_files import (
    CONFIGS,
    Model,
    gemma_tree,
    gguf_tensors,
    huggingface_config,
    huggingface_tensors,
    make_model,
)
from safetensors.numpy import save_file


@pytest.fixture(params=sorted(CONFIGS))
def model(request) -> Model:
    return make_model(request.param)


@pytest.fixture
def build():
    """Returns `make_model`, for one family."""
    return make_model


@pytest.fixture
def write_gguf(tmp_path):
    """Returns a function that writes a model as llama.cpp's converter would, and gives the path."""

    def write(model: Model, name="model.gguf", *, quantise=None, metadata=(), without=(), tensors=(), keys=()):
        path = tmp_path / name
        family, config = model.family, model.config
        writer = gguf.GGUFWriter(path, family)
        writer.add_block_count(config.num_layers)
        writer.add_context_length(config.context_length)
        writer.add_embedding_length(config.d_model)
        writer.add_feed_forward_length(config.d_ff)
        writer.add_head_count(config.num_heads)
        writer.add_head_count_kv(config.num_kv_heads)
        writer.add_key_length(config.head_dim)
        writer.add_layer_norm_rms_eps(config.norm_eps)
        if "rope.freq_base" not in without:
            writer.add_rope_freq_base(config.rope_theta)
        if config.window is not None:
            writer.add_sliding_window(config.window)
        if config.attn_softcap is not None:
            writer.add_attn_logit_softcapping(config.attn_softcap)
            writer.add_final_logit_softcapping(config.final_softcap)
        if config.rope_scaling is not None:
            writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
            writer.add_rope_scaling_factor(config.rope_scaling.factor)
        for key, value in metadata:
            writer.add_uint32(key, value) if isinstance(value, int) else writer.add_string(key, value)
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("default")
        writer.add_token_list([*(chr(ord("!") + i) for i in range(config.vocab_size - 1)), "+,"])
        writer.add_token_types([1] * config.vocab_size)
        writer.add_token_merges(["+ ,"])
        for key, value in {**gguf_tensors(model), **dict(tensors)}.items():
            if key in without:
                continue
            if quantise is not None and value.ndim == 2:
                writer.add_tensor(key, gguf.quantize(value, quantise), raw_dtype=quantise)
            else:
                writer.add_tensor(key, value)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    return write


@pytest.fixture
def write_huggingface(tmp_path):
    """Returns a function that writes a model as transformers would, and gives the directory."""

    def write(
        model: Model, name="hf", *, shards=1, index=True, dtype=np.float32, prefix="model.", config=None, extra=()
    ):
        directory = tmp_path / name
        directory.mkdir()
        if config is None:
            config = huggingface_config(model)
        (directory / "config.json").write_text(json.dumps(config))
        tensors = {key: value.astype(dtype) for key, value in huggingface_tensors(model, prefix).items()} | dict(extra)
        names = sorted(tensors)
        files = [f"model-{i + 1:05}-of-{shards:05}.safetensors" for i in range(shards)]
        files = files if shards > 1 else ["model.safetensors"]
        placed = {key: files[i % shards] for i, key in enumerate(names)}
        for file in files:
            save_file({key: tensors[key] for key in names if placed[key] == file}, directory / file)
        if shards > 1 and index:
            (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": placed}))
        return directory

    return write


@pytest.fixture
def write_gemma(tmp_path):
    """Returns a function that writes a Gemma as Google released it (or nested), and gives the directory."""

    def write(model: Model, name="flax", *, nested=False, transposed=False, extra=()):
        directory = tmp_path / name
        tree = gemma_tree(model, nested=nested, transposed=transposed) | dict(extra)
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(directory, jax.tree.map(jnp.asarray, tree))
        return directory

    return write


@pytest.fixture
def assert_params():
    """Returns a function that compares two trees exactly: structure, dtypes and values."""

    def compare(actual, expected, dtype=jnp.float32):
        assert jax.tree.structure(actual) == jax.tree.structure(expected)
        for path, leaf in jax.tree_util.tree_leaves_with_path(actual):
            name = jax.tree_util.keystr(path)
            wanted = expected
            for key in path:
                wanted = wanted[key.key]
            assert leaf.dtype == (jnp.float32 if "norm" in name else dtype), name
            np.testing.assert_array_equal(np.asarray(leaf), np.asarray(wanted.astype(leaf.dtype)), err_msg=name)

    return compare
