import json

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from checkpoint_files import huggingface_config
from safetensors.numpy import load_file, save_file

from cascades import checkpoints
from cascades.checkpoints import safetensors
from cascades.errors import UserError


def test_every_family_comes_back_exactly(model, write_huggingface, assert_params):
    loaded = checkpoints.load(write_huggingface(model))
    assert loaded.params["final_norm"]["scale"].dtype == jnp.float32
    assert_params(loaded.params, model.params)


@pytest.mark.parametrize("index", [True, False])
def test_shards_with_and_without_an_index(build, write_huggingface, assert_params, index):
    model = build("llama")
    assert_params(checkpoints.load(write_huggingface(model, shards=3, index=index)).params, model.params)


def test_a_device_gets_its_part_of_a_matrix_in_pieces(build, write_huggingface, assert_params, monkeypatch):
    monkeypatch.setattr(safetensors, "_PART", 1000)  # a few rows at once
    model = build("gemma2")
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    places = lambda like: jax.tree.map(lambda _: place, like)  # noqa: E731
    assert_params(checkpoints.load(write_huggingface(model), shardings=places).params, model.params)


@pytest.mark.parametrize("stored", [ml_dtypes.bfloat16, np.float16])
@pytest.mark.parametrize("asked", [jnp.float32, jnp.bfloat16])
def test_half_precision_files(build, write_huggingface, assert_params, stored, asked):
    model = build("gemma2")
    directory = write_huggingface(model, dtype=stored)
    assert_params(checkpoints.load(directory, dtype=asked).params, model.params, asked)


def test_the_text_of_a_multimodal_model(build, write_huggingface, assert_params):
    model = build("gemma3")
    config = {"model_type": "gemma3", "text_config": huggingface_config(model)}
    extra = {
        "vision_tower.encoder.weight": np.zeros(3, np.float32),
        "multi_modal_projector.mm_input_projection_weight": np.zeros(3, np.float32),
    }
    for i, prefix in enumerate(("language_model.model.", "model.language_model.")):
        vision = {f"model.{key}" if i else key: value for key, value in extra.items()}
        directory = write_huggingface(model, f"hf{i}", prefix=prefix, config=config, extra=vision)
        loaded = checkpoints.load(directory)
        assert loaded.config == model.config
        assert_params(loaded.params, model.params)


def test_a_repeated_embedding_is_not_a_head(build, write_huggingface, assert_params):
    model = build("qwen2")
    extra = {"lm_head.weight": np.asarray(model.params["embed"]["embedding"])}
    extra["model.rotary_emb.inv_freq"] = np.zeros(4, np.float32)
    assert_params(checkpoints.load(write_huggingface(model, extra=extra)).params, model.params)


def test_a_head_that_differs_from_the_embedding_of_a_tied_model(build, write_huggingface):
    """transformers 4 reads the embedding and 5 the head: neither is taken in silence."""
    head = np.array(build("qwen2").params["embed"]["embedding"])
    head[47, 63] += 1
    directory = write_huggingface(build("qwen2"), extra={"lm_head.weight": head})
    with pytest.raises(
        UserError, match="hold model.embed_tokens.weight and lm_head.weight as one matrix, .* they differ"
    ):
        checkpoints.load(directory)
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    with pytest.raises(UserError, match="as one matrix"):
        checkpoints.load(directory, shardings=lambda like: jax.tree.map(lambda _: place, like))
    other = write_huggingface(build("qwen2"), "other", extra={"lm_head.weight": head[:40]})
    with pytest.raises(UserError, match="as one matrix"):
        checkpoints.load(other)


def test_the_embedding_under_the_name_of_the_head(build, write_huggingface, assert_params):
    """`save_model` of the library keeps one of two names for one matrix."""
    model = build("gemma2")
    directory = write_huggingface(model)
    tensors = load_file(directory / "model.safetensors")
    tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")
    save_file(tensors, directory / "model.safetensors")
    assert_params(checkpoints.load(directory).params, model.params)


@pytest.mark.parametrize("prefix", ["", "model.", "_orig_mod.model.", "base_model.model.model."])
def test_what_stands_before_the_names(build, write_huggingface, assert_params, prefix):
    model = build("qwen2")
    assert_params(checkpoints.load(write_huggingface(model, prefix=prefix)).params, model.params)


def test_an_untied_model_without_a_head(build, write_huggingface):
    directory = write_huggingface(
        build("qwen2"), config=huggingface_config(build("qwen2")) | {"tie_word_embeddings": False}
    )
    with pytest.raises(UserError, match="missing: lm_head.weight"):
        checkpoints.load(directory)


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.1.self_attn.rotary_emb.inv_freq",
        "model.layers.1.self_attn.masked_bias",
        "vision_tower.vision_model.encoder.weight",
        "model.multi_modal_projector.linear.weight",
        "mtp.layers.0.input_layernorm.weight",
        "model.mtp_layers.0.mlp.up_proj.weight",
    ],
)
def test_tensors_of_other_parts_are_left_alone(build, write_huggingface, assert_params, name):
    model = build("llama")
    assert_params(checkpoints.load(write_huggingface(model, extra={name: np.zeros(3, np.int32)})).params, model.params)


def test_layers_that_draft(build, write_huggingface, assert_params):
    model, name = build("llama"), "model.layers.2.mlp.up_proj.weight"
    extra = {name: np.zeros((96, 64), np.float32), "model.layers.2.eh_proj.weight": np.zeros(3, np.float32)}
    config = huggingface_config(model) | {"num_nextn_predict_layers": 1}
    assert_params(checkpoints.load(write_huggingface(model, extra=extra, config=config)).params, model.params)
    with pytest.raises(UserError, match="not used: model.layers.2.* and model.layers|not used: model.layers.2"):
        checkpoints.load(write_huggingface(model, "unsaid", extra=extra))


@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("model.layers.0.self_attn.q_proj.lora_A.weight", "an adapter among its weights"),
        ("model.layers.0.self_attn.q_proj.base_layer.weight", "an adapter among its weights"),
        ("base_model.model.model.layers.0.mlp.up_proj.lora_B.default.weight", "an adapter among its weights"),
        ("score.weight", "not used: score.weight"),
        ("v_head.summary.weight", "not used: v_head.summary.weight"),
        ("model.layers.0.self_attn.o_proj.bias", "not used: model.layers.0.self_attn.o_proj.bias"),
        ("model.layers.0.self_attn.q_norm.weight", "not used: model.layers.0.self_attn.q_norm.weight"),
    ],
)
def test_tensors_that_would_change_the_text_are_named(build, write_huggingface, name, named):
    directory = write_huggingface(build("llama"), extra={name: np.zeros(3, np.float32)})
    with pytest.raises(UserError, match=named):
        checkpoints.load(directory)


def test_a_missing_shard_is_named(build, write_huggingface):
    directory = write_huggingface(build("llama"), shards=3)
    (directory / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(UserError, match="model-00002-of-00003.safetensors is missing"):
        checkpoints.load(directory)


def test_a_truncated_shard(build, write_huggingface):
    file = write_huggingface(build("llama")) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match="model.safetensors should be a whole"):
        checkpoints.load(file.parent)


def test_a_missing_tensor_is_named(build, write_huggingface):
    model = build("llama")
    directory = write_huggingface(model, shards=2, index=False)
    (directory / "model-00001-of-00002.safetensors").unlink()
    with pytest.raises(UserError, match="missing: "):
        checkpoints.load(directory)


def test_an_unknown_architecture_is_named(build, write_huggingface):
    directory = write_huggingface(build("llama"), config={"model_type": "mamba"})
    with pytest.raises(UserError, match="'mamba'.*llama, qwen2, gemma, gemma2, gemma3_text, gemma3"):
        checkpoints.load(directory)


def test_without_a_config_a_preset_is_needed(build, write_huggingface):
    directory = write_huggingface(build("llama"))
    (directory / "config.json").unlink()
    with pytest.raises(UserError, match="config.json"):
        checkpoints.load(directory)
    with pytest.raises(UserError, match=r"embed_tokens.weight is \[48, 64\], expected \[128256, 2048\]"):
        checkpoints.load(directory, preset="llama32_1b")


@pytest.mark.parametrize("content", ["{", "[]"])
def test_a_damaged_config(build, write_huggingface, content):
    directory = write_huggingface(build("llama"))
    (directory / "config.json").write_text(content)
    with pytest.raises(UserError, match="config.json should"):
        checkpoints.load(directory)


def test_one_file_stands_for_its_directory(build, write_huggingface, assert_params):
    model = build("gemma")
    assert_params(checkpoints.load(write_huggingface(model) / "model.safetensors").params, model.params)


def test_the_index_of_a_file_that_is_not_an_object(build, write_huggingface):
    directory = write_huggingface(build("llama"), shards=2)
    (directory / "model.safetensors.index.json").write_text(json.dumps("nothing"))
    with pytest.raises(UserError, match="index.json should hold a JSON object"):
        checkpoints.load(directory)
