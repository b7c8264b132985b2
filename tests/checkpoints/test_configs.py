import dataclasses
import json

import numpy as np
import pytest

from cascades.checkpoints import configs, gguf_configs, huggingface_configs
from cascades.errors import UserError
from cascades.models import PRESETS, DecoderConfig, RopeScaling, preset


def gguf_metadata(name: str, family: str) -> dict:
    """What llama.cpp's converter writes of a published model, float32 as it is in the file."""
    config = preset(name)
    keys = {
        "block_count": config.num_layers,
        "context_length": config.context_length,
        "embedding_length": config.d_model,
        "feed_forward_length": config.d_ff,
        "attention.head_count": config.num_heads,
        "attention.head_count_kv": config.num_kv_heads,
        "attention.layer_norm_rms_epsilon": float(np.float32(config.norm_eps)),
        "rope.freq_base": float(np.float32(config.rope_theta)),
    }
    if config.head_dim * config.num_heads != config.d_model or family.startswith("gemma"):
        keys["attention.key_length"] = config.head_dim
    if config.window is not None:
        keys["attention.sliding_window"] = config.window
    if config.attn_softcap is not None:
        keys |= {"attn_logit_softcapping": config.attn_softcap, "final_logit_softcapping": config.final_softcap}
    if config.rope_scaling is not None and config.rope_scaling.kind == "linear":
        keys |= {"rope.scaling.type": "linear", "rope.scaling.factor": config.rope_scaling.factor}
    return {"general.architecture": family} | {f"{family}.{key}": value for key, value in keys.items()}


@pytest.mark.parametrize("name", sorted(name for name in PRESETS if isinstance(PRESETS[name], DecoderConfig)))
def test_every_published_model_is_recognised_from_its_gguf_metadata(name):
    """Also what the metadata does not hold: which layers slide, the local base, the query scale of the 27Bs."""
    families = {"gemma_": "gemma", "gemma2_": "gemma2", "gemma3_": "gemma3", "qwen25_": "qwen2"}
    family = next((family for start, family in families.items() if name.startswith(start)), "llama")
    config = preset(name)
    shapes = {"token_embd.weight": (config.vocab_size, config.d_model)}
    if not config.tied_head:
        shapes["output.weight"] = shapes["token_embd.weight"]
    expected = config
    if config.rope_scaling is not None and config.rope_scaling.kind == "llama3":
        expected = dataclasses.replace(config, rope_scaling=None)  # it stands in a tensor
    assert gguf_configs.from_gguf(gguf_metadata(name, family), shapes, "file") == expected


def test_metadata_of_later_converters():
    metadata = gguf_metadata("gemma3_1b", "gemma3")
    pattern = np.array([i % 2 == 0 for i in range(26)])
    metadata |= {"gemma3.attention.sliding_window_pattern": pattern, "gemma3.rope.freq_base_swa": 20_000.0}
    config = gguf_configs.from_gguf(metadata, {}, "file", preset="gemma3_1b")
    assert config.local_layers == tuple(pattern) and config.local_rope_theta == 20_000.0
    metadata["gemma3.attention.sliding_window_pattern"] = 3
    assert gguf_configs.from_gguf(metadata, {"token_embd.weight": (9, 8)}, "file").local_layers[:4] == (
        True,
        True,
        False,
        True,
    )


def test_one_value_a_layer():
    metadata = gguf_metadata("smollm2_135m", "llama")
    shapes = {"token_embd.weight": (49_152, 576)}
    metadata["llama.attention.head_count_kv"] = np.full(30, 3, np.int32)
    assert gguf_configs.from_gguf(metadata, shapes, "file") == preset("smollm2_135m")
    metadata["llama.attention.head_count_kv"] = np.array([3, 9] * 15, np.int32)
    with pytest.raises(UserError, match="differs between layers"):
        gguf_configs.from_gguf(metadata, shapes, "file")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"llama.rope.scaling.type": "yarn"}, "'yarn', but only linear and llama3"),
        ({"llama.expert_count": 8}, "mixture of experts"),
        ({"llama.rope.dimension_count": 32}, "rotates 32 of 64 channels"),
        ({"llama.block_count": None}, "should say block_count"),
    ],
)
def test_gguf_models_that_cannot_be_read(change, reason):
    metadata = gguf_metadata("smollm2_135m", "llama") | change
    with pytest.raises(UserError, match=reason):
        gguf_configs.from_gguf(metadata, {"token_embd.weight": (49_152, 576)}, "file")


GEMMA3_4B = {  # as published, in the form of transformers 4
    "model_type": "gemma3",
    "text_config": {
        "hidden_size": 2560,
        "intermediate_size": 10_240,
        "model_type": "gemma3_text",
        "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    },
}
GEMMA2_27B = {
    "model_type": "gemma2",
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
    "head_dim": 128,
    "hidden_size": 4608,
    "intermediate_size": 36_864,
    "max_position_embeddings": 8192,
    "num_attention_heads": 32,
    "num_hidden_layers": 46,
    "num_key_value_heads": 16,
    "query_pre_attn_scalar": 144,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10_000.0,
    "sliding_window": 4096,
    "vocab_size": 256_000,
}
LLAMA32_1B = {
    "model_type": "llama",
    "attention_bias": False,
    "head_dim": 64,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "max_position_embeddings": 131_072,
    "mlp_bias": False,
    "num_attention_heads": 32,
    "num_hidden_layers": 16,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-5,
    "rope_scaling": {
        "factor": 32.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500_000.0,
    "tie_word_embeddings": True,
    "vocab_size": 128_256,
}
QWEN25_7B = {
    "model_type": "qwen2",
    "hidden_size": 3584,
    "intermediate_size": 18_944,
    "max_position_embeddings": 32_768,
    "max_window_layers": 28,
    "num_attention_heads": 28,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1_000_000.0,
    "sliding_window": 131_072,
    "tie_word_embeddings": False,
    "use_sliding_window": False,
    "vocab_size": 152_064,
}


@pytest.mark.parametrize(
    ("raw", "name"),
    [(GEMMA2_27B, "gemma2_27b"), (LLAMA32_1B, "llama32_1b"), (QWEN25_7B, "qwen25_7b")],
)
def test_published_config_files(raw, name):
    assert huggingface_configs.from_huggingface(raw, "config.json") == preset(name)


def test_a_multimodal_gemma_names_only_what_differs():
    config = huggingface_configs.from_huggingface(GEMMA3_4B, "config.json")
    assert config == dataclasses.replace(preset("gemma3_4b"), vocab_size=262_208)


def test_rope_parameters_of_transformers_5():
    raw = {key: value for key, value in LLAMA32_1B.items() if key not in ("rope_scaling", "rope_theta")}
    raw["rope_parameters"] = LLAMA32_1B["rope_scaling"] | {"rope_theta": 500_000.0}
    assert huggingface_configs.from_huggingface(raw, "config.json") == preset("llama32_1b")
    text = {key: value for key, value in GEMMA3_4B["text_config"].items() if key != "rope_scaling"}
    text["rope_parameters"] = {
        "sliding_attention": {"rope_type": "default", "rope_theta": 7.0},
        "full_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 9.0},
    }
    config = huggingface_configs.from_huggingface(text, "config.json")
    assert (config.rope_theta, config.local_rope_theta) == (9.0, 7.0)
    assert config.rope_scaling == RopeScaling(kind="linear", factor=2.0)


def test_layers_that_slide():
    kinds = ["full_attention", "sliding_attention"] * 17
    raw = GEMMA3_4B["text_config"] | {"layer_types": kinds}
    assert huggingface_configs.from_huggingface(raw, "config.json").local_layers == (False, True) * 17
    raw = GEMMA3_4B["text_config"] | {"sliding_window_pattern": 2}
    assert huggingface_configs.from_huggingface(raw, "config.json").local_layers == (True, False) * 17
    raw = QWEN25_7B | {"use_sliding_window": True, "max_window_layers": 27}
    config = huggingface_configs.from_huggingface(raw, "config.json")
    assert config.window == 131_072 and config.local_layers == (False,) * 27 + (True,)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"attention_bias": True}, "asks for attention_bias"),
        ({"mlp_bias": True}, "asks for mlp_bias"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "'dynamic', but only linear and llama3"),
        ({"hidden_size": None}, "should say hidden_size"),
        ({"model_type": "phi3"}, "'phi3'"),
    ],
)
def test_config_files_that_cannot_be_read(change, reason):
    with pytest.raises(UserError, match=reason):
        huggingface_configs.from_huggingface(LLAMA32_1B | change, "config.json")


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_our_own_form_round_trips(name):
    assert configs.from_json(json.loads(json.dumps(configs.to_json(preset(name)))), "cascades.json") == preset(name)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("gemma3_1b", {"num_layers": "26"}),
        ("gemma3_1b", {"vocab_size": 2.5}),
        ("gemma3_1b", {"d_model": True}),
        ("gemma3_1b", {"rope_theta": None}),
        ("gemma3_1b", {"norm_eps": -1.0}),
        ("gemma3_1b", {"tied_head": 1}),
        ("gemma3_1b", {"local_layers": [1] * 26}),
        ("gemma3_1b", {"local_layers": [True]}),
        ("gemma3_1b", {"activation": "mish"}),
        ("gemma3_1b", {"activation": ["silu"]}),
        ("gemma3_1b", {"d_ff": 10**30}),
        ("llama32_1b", {"rope_scaling": {"kind": "yarn", "factor": 2.0}}),
        ("llama32_1b", {"rope_scaling": {"kind": "linear"}}),
        ("llama32_1b", {"rope_scaling": "linear"}),
        ("llama32_1b", {"rope_scaling": {"kind": "linear", "factor": "2"}}),
        ("t5_small", {"num_heads": 0}),
        ("t5_small", {"start": -1}),
        ("t5_small", {"gated": "no"}),
    ],
)
def test_our_own_form_with_a_field_of_another_kind(name, change):
    with pytest.raises(UserError, match=r"cascades.json does not describe a model \("):
        configs.from_json(json.loads(json.dumps(configs.to_json(preset(name)))) | change, "cascades.json")


@pytest.mark.parametrize("name", sorted(each for each in PRESETS if each.startswith("gemma")))
def test_every_gemma_is_told_by_its_sizes(name):
    config = preset(name)
    shapes = {"embedder/input_embedding": (config.vocab_size + 128, config.d_model)}
    for i in range(config.num_layers):
        shapes[f"layer_{i}/attn/attn_vec_einsum/w"] = (config.num_heads, config.head_dim, config.d_model)
        if config.qk_norm:
            shapes[f"layer_{i}/attn/_query_norm/scale"] = (config.head_dim,)
    expected = dataclasses.replace(config, vocab_size=config.vocab_size + 128)
    assert configs.from_gemma(shapes, "checkpoint") == expected
