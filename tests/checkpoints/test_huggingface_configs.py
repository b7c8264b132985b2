"""Switches of config.json against transformers' logits (tests/golden), and what is refused."""

import json
import pathlib

import config_cases
import jax.numpy as jnp
import numpy as np
import pytest

from cascades import checkpoints
from cascades.checkpoints import huggingface_configs
from cascades.errors import UserError
from cascades.models import RopeScaling, decoder

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "configs.npz"
LLAMA, GEMMA = config_cases.CASES["fp8_bare"], config_cases.CASES["old_gemma"]
QWEN2, GEMMA3 = config_cases.CASES["qwen2_slides"], config_cases.CASES["gemma3_of_4"]
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
DEFAULTS = GOLDEN.parent / "config_defaults.json"
LABEL = "folder/config.json"


def read(raw, **changes):
    return huggingface_configs.from_huggingface(raw | changes, LABEL)


def logits_of(directory, tokens):
    loaded = checkpoints.load(directory, progress=False)
    model = decoder(loaded.config)
    output, _ = model.extend(loaded.params, jnp.asarray(tokens), model.init_cache(1, config_cases.LENGTH))
    return np.asarray(output.logits)[:, -config_cases.KEPT :]


@pytest.mark.parametrize("name", config_cases.CASES)
def test_the_logits_are_those_of_transformers(tmp_path, name):
    logits = logits_of(config_cases.write(tmp_path / name, name), config_cases.make_tokens(name))
    with np.load(GOLDEN) as golden:
        np.testing.assert_allclose(logits, golden[name], rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("relu", {"hidden_act": "silu"}),
        ("gelu", {"hidden_act": "gelu_pytorch_tanh"}),
        ("llama3_without_original", {"rope_scaling": LLAMA3 | {"original_max_position_embeddings": 32}}),
        ("both_spellings", {"rope_parameters": None, "rope_scaling": None}),
        ("qwen2_slides", {"max_window_layers": 2}),
        ("gemma2_caps", {"attn_logit_softcapping": None}),
        ("gemma3_of_4", {"rope_local_base_freq": 51.0}),
    ],
)
def test_each_switch_changes_the_logits(tmp_path, name, other):
    """So that a golden that is met says something."""
    directory = config_cases.write(tmp_path / name, name)
    (directory / "config.json").write_text(json.dumps(config_cases.CASES[name] | other))
    with np.load(GOLDEN) as golden:
        assert np.abs(logits_of(directory, config_cases.make_tokens(name)) - golden[name]).max() > 3e-4


@pytest.mark.parametrize(
    ("raw", "changes", "activation"),
    [
        (LLAMA, {}, "silu"),
        (LLAMA, {"hidden_act": "swish"}, "silu"),
        (LLAMA, {"hidden_act": "gelu_new"}, "gelu_tanh"),
        (LLAMA, {"hidden_act": "relu", "hidden_activation": "relu"}, "relu"),
        (GEMMA, {"hidden_act": None, "hidden_activation": "gelu_pytorch_tanh"}, "gelu_tanh"),
        (GEMMA3, {"hidden_activation": "silu"}, "silu"),
        (GEMMA3, {"hidden_activation": "gelu"}, "gelu"),
    ],
)
def test_activations(raw, changes, activation):
    assert read(raw, **changes).activation == activation


@pytest.mark.parametrize(
    ("raw", "changes", "named"),
    [
        (LLAMA, {"hidden_act": "mish"}, "hidden_act as one of silu"),
        (LLAMA, {"hidden_act": ["silu"]}, "hidden_act as a text"),
        (LLAMA, {"hidden_activation": "relu"}, "hidden_activation as what hidden_act is"),
        (QWEN2, {"hidden_act": "quick_gelu"}, "hidden_act as one of"),
        (GEMMA, {"hidden_act": "relu"}, "hidden_act as what hidden_activation is"),
        (GEMMA, {"hidden_activation": "relu"}, "hidden_act as what hidden_activation is"),
        (GEMMA3, {"hidden_activation": "gelu", "hidden_act": "silu"}, "hidden_act as what"),
        (LLAMA, {"use_bidirectional_attention": True}, "asks for use_bidirectional_attention"),
        (GEMMA3, {"use_bidirectional_attention": True}, "asks for use_bidirectional_attention"),
        (LLAMA, {"is_causal": False}, "asks for is_causal"),
        (LLAMA, {"partial_rotary_factor": 0.5}, "asks for partial_rotary_factor"),
        (LLAMA, {"rope_interleaved": True}, "asks for rope_interleaved"),
        (LLAMA, {"attention_bias": True, "mlp_bias": True}, "asks for attention_bias and mlp_bias"),
        (LLAMA, {"query_pre_attn_scalar": 64}, "query_pre_attn_scalar as the size of a head"),
        (LLAMA, {"final_logit_softcapping": 30.0}, "gives final_logit_softcapping, which no llama here knows"),
        (LLAMA, {"sliding_window": 5}, "sliding_window as null"),
        (LLAMA, {"use_sliding_window": True}, "use_sliding_window as false"),
        (LLAMA, {"layer_types": ["sliding_attention"] * 3}, "layer_types as full_attention alone"),
        (LLAMA, {"layer_types": ["linear_attention"] * 3}, "layer_types as 3 times"),
        (LLAMA, {"layer_types": ["full_attention"] * 2}, "layer_types as 3 times"),
        (LLAMA, {"layer_types": "full_attention"}, "layer_types as a list of texts"),
        (QWEN2, {"use_sliding_window": False, "layer_types": ["sliding_attention"] * 3}, "layer_types as full"),
        (GEMMA3, {"layer_types": ["chunked_attention"] * 3}, "layer_types as 3 times"),
        (GEMMA3, {"sliding_window": None}, "should say sliding_window"),
        (GEMMA3, {"sliding_window_pattern": None, "_sliding_window_pattern": 2}, "_sliding_window_pattern as 6"),
        (GEMMA3, {"attn_logit_softcapping": 0}, "attn_logit_softcapping as a positive number"),
        (LLAMA, {"logit_scale": 0.5}, "gives logit_scale"),
        (LLAMA, {"num_experts": 8}, "gives num_experts"),
        (LLAMA, {"hc_mult": 4, "kv_lora_rank": 512}, "gives hc_mult, kv_lora_rank"),
        (LLAMA, {"auto_map": {"AutoModelForCausalLM": "modeling.Llama"}}, "code of its own"),
        (LLAMA, {"architectures": ["LlamaForSequenceClassification"]}, "LlamaForSequenceClassification"),
        (LLAMA, {"architectures": ["Qwen2ForCausalLM"]}, "only a LlamaForCausalLM"),
        (LLAMA, {"architectures": "LlamaForCausalLM"}, "architectures as a list"),
        (LLAMA, {"model_type": ["llama"]}, "model_type as a text"),
        (LLAMA, {"model_type": None}, "of type None"),
    ],
)
def test_what_would_change_the_text_is_refused_by_name(raw, changes, named):
    with pytest.raises(UserError, match=named) as caught:
        read(raw, **changes)
    assert LABEL in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["hidden_size", "num_hidden_layers", "vocab_size", "head_dim", "num_key_value_heads"])
@pytest.mark.parametrize("value", ["64", True, -1, 0, 64.0, 10**30, [64], {"a": 1}])
def test_sizes_of_another_kind(name, value):
    with pytest.raises(UserError, match=f"{LABEL} should give {name} as a whole number"):
        read(LLAMA, **{name: value})


@pytest.mark.parametrize("name", ["rms_norm_eps", "rope_theta"])
@pytest.mark.parametrize("value", ["1e-6", True, -1.0, 0, float("nan"), float("inf"), 10**400, [1]])
def test_numbers_of_another_kind(name, value):
    with pytest.raises(UserError, match=f"{LABEL} should give {name} as a"):
        read(LLAMA, **{name: value})


@pytest.mark.parametrize("value", [1, "false", 0, []])
def test_flags_of_another_kind(value):
    with pytest.raises(UserError, match="tie_word_embeddings as true or false"):
        read(LLAMA, tie_word_embeddings=value)


def test_sizes_that_do_not_fit_together():
    with pytest.raises(UserError, match="config.json should give hidden_size as a multiple of num_attention_heads"):
        read(LLAMA, head_dim=None, num_attention_heads=3)
    with pytest.raises(UserError, match="config.json describes an impossible model: num_heads"):
        read(LLAMA, num_key_value_heads=3, num_attention_heads=4)
    with pytest.raises(UserError, match="config.json describes an impossible model: head_dim"):
        read(LLAMA, head_dim=15)


# Published files, whole: what stands in them beside the sizes.
PUBLISHED = {
    "SmolLM2": LLAMA
    | {
        "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 1, "eos_token_id": 2,
        "initializer_range": 0.041666666666666664, "is_llama_config": True, "mlp_bias": False, "pad_token_id": 2,
        "pretraining_tp": 1, "rope_interleaved": False, "rope_scaling": None, "torch_dtype": "bfloat16",
        "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16"}}, "transformers_version": "4.42.3",
        "use_cache": True,
    },
    "Llama 2": LLAMA
    | {
        "_name_or_path": "meta-llama/Llama-2-7b-hf", "max_length": 4096, "pretraining_tp": 2,
        "max_sequence_length": 2048, "unsloth_fixed": True, "unsloth_version": "2025.1", "neftune_noise_alpha": 5,
        "head_dim": None, "pruned_heads": {}, "is_decoder": True, "return_dict": True, "id2label": {"0": "LABEL_0"},
    },
    "Qwen2.5": QWEN2
    | {"max_window_layers": 28, "use_mrope": False, "use_sliding_window": False, "rope_scaling": None,
       "layer_types": ["full_attention"] * 3, "dtype": "bfloat16", "eos_token_id": [1, 2]},
    "a Qwen as a Llama": LLAMA | {"use_sliding_window": False, "sliding_window": 5, "max_window_layers": 28},
    "Gemma 2": config_cases.CASES["gemma2_caps"]
    | {"cache_implementation": "hybrid", "hidden_activation": "gelu_pytorch_tanh", "sliding_window_size": 5,
       "hidden_act": "gelu_pytorch_tanh", "_attn_implementation_autoset": True},
    "Gemma 3 270M": {key: value for key, value in GEMMA3.items() if key != "sliding_window_pattern"}
    | {"_sliding_window_pattern": 6, "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
       "use_bidirectional_attention": False, "attn_logit_softcapping": None},
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_fields_of_published_files_are_known(name):
    read(PUBLISHED[name])


@pytest.mark.parametrize("name", json.loads(DEFAULTS.read_text()))
def test_every_field_that_transformers_writes_is_known(name):
    read(json.loads(DEFAULTS.read_text())[name])


def test_an_unknown_field_that_says_nothing_passes():
    read(LLAMA, some_new_switch=None, another=False, third=[], fourth={})


MULTIMODAL = {
    "model_type": "gemma3", "architectures": ["Gemma3ForConditionalGeneration"], "text_config": GEMMA3
    | {"final_logit_softcapping": None}, "vision_config": {"hidden_size": 1152}, "mm_tokens_per_image": 256,
    "boi_token_index": 255_999, "eoi_token_index": 256_000, "image_token_index": 262_144, "initializer_range": 0.02,
    "eos_token_id": [1, 106], "torch_dtype": "bfloat16",
}  # fmt: skip


def test_a_multimodal_gemma():
    assert read(MULTIMODAL) == read(GEMMA3, final_logit_softcapping=None)
    assert read(MULTIMODAL, vocab_size=61, hidden_size=32) == read(MULTIMODAL)
    assert not read(MULTIMODAL, tie_word_embeddings=False).tied_head


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"text_config": None}, "should say text_config"),
        ({"text_config": []}, "text_config as an object"),
        ({"text_config": "gemma3_text"}, "text_config as an object"),
        ({"text_config": {"model_type": "llama"}}, "text_config.model_type as gemma3_text"),
        ({"text_config": GEMMA3}, "text_config.final_logit_softcapping as null"),
        ({"text_config": MULTIMODAL["text_config"] | {"odd": 1}}, "text_config.odd"),
        ({"hidden_size": 33}, "hidden_size as in text_config, 32"),
        ({"odd": 1}, "gives odd"),
        ({"architectures": ["Gemma3ForSequenceClassification"]}, "Gemma3ForSequenceClassification"),
        ({"text_config": MULTIMODAL["text_config"] | {"tie_word_embeddings": True}, "tie_word_embeddings": False},
         "tie_word_embeddings as False"),
        ({"text_config": MULTIMODAL["text_config"] | {"quantization_config": {"quant_method": "awq"}}}, "by awq"),
    ],
)  # fmt: skip
def test_a_multimodal_gemma_that_is_refused(changes, named):
    with pytest.raises(UserError, match=named):
        read(MULTIMODAL, **changes)


def test_llama3_without_the_original_length_takes_the_context():
    assert read(LLAMA, rope_scaling=LLAMA3).rope_scaling == RopeScaling(
        kind="llama3", factor=8.0, original_context_length=64
    )


@pytest.mark.parametrize(
    ("changes", "theta", "scaling"),
    [
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 7.0}}, 7.0, None),
        ({"rope_parameters": {"rope_theta": 7.0}, "rope_theta": 7}, 7.0, None),
        ({"rope_scaling": {"type": "linear", "factor": 2}}, 10_000.0, RopeScaling(kind="linear", factor=2.0)),
        ({"rope_scaling": {"type": "linear", "rope_type": "linear", "factor": 1.0}}, 10_000.0, None),
        ({"rope_scaling": {}, "rope_parameters": None}, 10_000.0, None),
    ],
)  # fmt: skip
def test_rotary_positions_in_either_spelling(changes, theta, scaling):
    config = read(LLAMA, **changes)
    assert (config.rope_theta, config.rope_scaling) == (theta, scaling)


def test_numbers_are_taken_as_they_stand():
    config = read(LLAMA, rope_theta=123_456_789, rms_norm_eps=1.23456789e-06)
    assert (config.rope_theta, config.norm_eps) == (123_456_789.0, 1.23456789e-06)


YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
LINEAR = {"rope_type": "linear", "factor": 2.0}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"rope_parameters": {"rope_type": "default"}, "rope_scaling": YARN}, "'yarn', but only linear and llama3"),
        ({"rope_parameters": LINEAR, "rope_scaling": {"type": "linear", "factor": 4.0}}, "in two ways"),
        ({"rope_parameters": {"rope_type": "default"}, "rope_scaling": LINEAR}, "in two ways"),
        ({"rope_parameters": {"rope_theta": 7.0}, "rope_theta": 8}, "rope_parameters.rope_theta as 7, but"),
        ({"rope_scaling": LINEAR | {"type": "default"}}, "rope_scaling.type as linear"),
        ({"rope_scaling": {"type": "linear"}}, "should say rope_scaling.factor"),
        ({"rope_scaling": {"type": "linear", "factor": None}}, "should say rope_scaling.factor"),
        ({"rope_scaling": {"type": "linear", "factor": "2"}}, "rope_scaling.factor as a number"),
        ({"rope_scaling": {"type": "linear", "factor": True}}, "rope_scaling.factor as a number"),
        ({"rope_scaling": {"type": "linear", "factor": 0}}, "rope_scaling.factor as a positive"),
        ({"rope_scaling": {"type": "linear", "factor": [2.0]}}, "rope_scaling.factor as a number"),
        ({"rope_scaling": {"factor": 2.0}}, "rope_scaling.factor as nothing, since default"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "should say rope_scaling.low_freq_factor"),
        ({"rope_scaling": LLAMA3 | {"low_freq_factor": 4.0}}, "low_freq_factor as less than"),
        ({"rope_scaling": LLAMA3 | {"original_max_position_embeddings": 8192.0}}, "original_max_position_embeddings"),
        ({"rope_scaling": LINEAR | {"mrope_section": [1]}}, "rope_scaling.mrope_section as nothing"),
        ({"rope_scaling": {"type": 3}}, "rope_scaling.type as a text"),
        ({"rope_scaling": "linear"}, "rope_scaling as an object"),
        ({"rope_scaling": 2.0}, "rope_scaling as an object"),
        ({"rope_scaling": [2.0]}, "rope_scaling as an object"),
        ({"rope_parameters": "default"}, "rope_parameters as an object"),
        ({"rope_parameters": {"full_attention": LINEAR}}, "rope_parameters as one object for all layers"),
        ({"rope_parameters": LINEAR | {"partial_rotary_factor": 0.5}}, "partial_rotary_factor as 1.0"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "'dynamic'"),
        ({"rope_scaling": {"rope_type": "longrope", "short_factor": [1.0]}}, "'longrope'"),
    ],
)  # fmt: skip
def test_rotary_positions_that_are_refused(changes, named):
    with pytest.raises(UserError, match=named) as caught:
        read(LLAMA, **changes)
    assert LABEL in str(caught.value)


@pytest.mark.parametrize(
    ("parameters", "named"),
    [
        (LINEAR, "rope_parameters as objects full_attention and sliding_attention"),
        ({"full_attention": LINEAR, "sliding_attention": LINEAR}, "sliding_attention.rope_type as default"),
        ({"full_attention": 3}, "rope_parameters.full_attention as an object"),
        ({"full_attention": LINEAR, "rope_theta": 3.0}, "rope_parameters.rope_theta as nothing beside"),
        ({"full_attention": LINEAR | {"rope_theta": 3.0}}, "rope_theta as 3, but rope_theta as 900"),
        ({"sliding_attention": {"rope_theta": 3.0}}, "rope_theta as 3, but rope_local_base_freq as 50"),
    ],
)
def test_rotary_positions_of_gemma3_that_are_refused(parameters, named):
    with pytest.raises(UserError, match=named):
        read(GEMMA3, rope_scaling=None, rope_parameters=parameters)
