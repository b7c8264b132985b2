"""Every key of a GGUF file is read, known to change nothing, or refused by name."""

import gguf
import numpy as np
import pytest

from cascades.checkpoints import gguf_configs
from cascades.errors import UserError
from cascades.models import RopeScaling
from cascades.models.layers import rope_frequencies

HEAD = 32
_KEYS = {
    "block_count": 7,
    "context_length": 512,
    "embedding_length": 128,
    "feed_forward_length": 96,
    "attention.head_count": 4,
    "attention.head_count_kv": 2,
    "attention.layer_norm_rms_epsilon": float(np.float32(1e-5)),
    "rope.freq_base": 10_000.0,
}
_MORE = {
    "gemma": {"attention.key_length": HEAD},
    "gemma2": {"attention.key_length": HEAD, "attention.sliding_window": 64},
    "gemma3": {"attention.key_length": HEAD, "attention.sliding_window": 64, "rope.freq_base": 1e6},
}
SHAPES = {"token_embd.weight": (48, 128)}
FAMILIES = ("llama", "qwen2", "gemma", "gemma2", "gemma3")


def metadata(family="llama", **changes):
    """A small model's keys; `changes` by the key without its architecture, dots as two underscores, None leaves out."""
    keys = _KEYS | _MORE.get(family, {}) | {key.replace("__", "."): value for key, value in changes.items()}
    named = {f"{family}.{key}": value for key, value in keys.items() if value is not None}
    return {"general.architecture": family} | named


def read(family="llama", other=(), shapes=SHAPES, factors=None, **changes):
    return gguf_configs.from_gguf(metadata(family, **changes) | dict(other), shapes, "file", rope_factors=factors)


@pytest.mark.parametrize(
    "keys",
    [
        {"rope__scaling__factor": 4.0},
        {"rope__scale_linear": 4.0},
        {"rope__scaling__factor": 4.0, "rope__scale_linear": 9.0},  # the newer name is read first
        {"rope__scaling__type": "linear", "rope__scale_linear": 4.0},
        {"rope__scaling__type": "linear", "rope__scaling__factor": 4.0, "rope__scaling__finetuned": True},
        {"rope__scaling__factor": 4, "rope__scaling__original_context_length": 128, "rope__scaling__attn_factor": 1.0},
    ],
)
@pytest.mark.parametrize("family", FAMILIES)
def test_rope_scaling_without_a_type_is_linear_as_in_llama_cpp(family, keys):
    assert read(family, **keys).rope_scaling == RopeScaling(kind="linear", factor=4.0)


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"rope__scaling__factor": 0.0},
        {"rope__scale_linear": 0.0},
        {"rope__scale_linear": 1.0},
        {"rope__scaling__type": "linear"},
        {"rope__scaling__type": "none", "rope__scaling__factor": 8.0},
        {"rope__scaling__finetuned": False, "rope__scaling__original_context_length": 4096},
        {"rope__scaling__yarn_beta_fast": 32.0, "rope__scaling__yarn_ext_factor": 0.0},
    ],
)
def test_no_factor_is_no_scaling_as_in_llama_cpp(keys):
    assert read(**keys).rope_scaling is None


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ({"rope__scaling__type": "yarn", "rope__scaling__factor": 4.0}, "'yarn', but only linear and llama3"),
        ({"rope__scaling__type": "longrope"}, "'longrope'"),
        ({"rope__scaling__type": ""}, "''"),
        ({"rope__scaling__type": 2}, "llama.rope.scaling.type as text, not 2"),
        ({"rope__scaling__factor": -2.0}, "llama.rope.scaling.factor as a number from 0 to 1e.06, not -2.0"),
        ({"rope__scaling__factor": float("nan")}, "llama.rope.scaling.factor .* not nan"),
        ({"rope__scale_linear": "4"}, "llama.rope.scale_linear .* not '4'"),
        ({"rope__scaling__attn_factor": 1.2}, "llama.rope.scaling.attn_factor = 1.2"),
        ({"rope__scaling__attn_factor": 0.0}, "llama.rope.scaling.attn_factor = 0.0"),
        ({"rope__scaling__yarn_ext_factor": 1.0}, "yarn_ext_factor = 1.0"),
        ({"rope__scaling__yarn_log_multiplier": 0.1}, "yarn_log_multiplier = 0.1"),
        ({"rope__scaling__alpha": 1000.0}, "llama.rope.scaling.alpha = 1000.0"),
        ({"rope__freq_scale": 0.25}, "llama.rope.freq_scale = 0.25"),
        ({"rope__freq_base": 0.0}, "llama.rope.freq_base as a number from 1"),
        ({"rope__freq_base_swa": 500.0}, "llama.rope.freq_base_swa = 500.0"),
        ({"rope__dimension_count": 16}, "rotates 16 of 32"),
        ({"rope__dimension_sections": np.array([1, 2, 3, 0])}, "llama.rope.dimension_sections = an array of 4"),
    ],
)
def test_rotary_positions_that_no_model_here_has(keys, reason):
    with pytest.raises(UserError, match=reason):
        read(**keys)


def test_long_and_short_factors_are_longrope():
    with pytest.raises(UserError, match="'longrope'"):
        read(shapes=SHAPES | {"rope_factors_long.weight": (16,)})


def llama3_factors(**settings):
    scaling = RopeScaling(kind="llama3", **settings)
    return scaling, rope_frequencies(HEAD, 1e4) / rope_frequencies(HEAD, 1e4, scaling)


def test_llama3s_factors_beside_keys_of_a_scaling():
    scaling, factors = llama3_factors(factor=8.0)
    assert read(factors=factors).rope_scaling == scaling
    assert read(factors=factors, rope__scaling__type="none").rope_scaling == scaling
    assert read(factors=np.ones(16)).rope_scaling is None
    assert read(factors=np.ones(16), rope__scaling__factor=2.0).rope_scaling == RopeScaling(kind="linear", factor=2.0)
    shorter, factors = llama3_factors(factor=8.0, original_context_length=1024)
    assert read(factors=factors, rope__scaling__original_context_length=1024).rope_scaling == shorter


@pytest.mark.parametrize(
    "broken", [np.full(16, np.nan), np.zeros(16), -np.ones(16), np.ones(8), np.ones((2, 16)), np.full(16, 1.5)]
)
def test_factors_that_are_not_llama3s(broken):
    with pytest.raises(UserError, match="rope_freqs"):
        read(factors=broken)


def test_two_scalings_at_once():
    _, factors = llama3_factors(factor=8.0)
    with pytest.raises(UserError, match="without another scaling"):
        read(factors=factors, rope__scaling__factor=2.0)
    with pytest.raises(UserError, match="only a llama"):
        read("qwen2", factors=factors)


# Per key: values that change no number, and one that does. What is not in gguf's own list is llama.cpp's or a vendor's.
_SIZE = (0, 12)
KEYS = {
    "attention.causal": (True, False),
    "attention.clamp_kqv": (0.0, 8.0),
    "attention.max_alibi_bias": (0.0, 8.0),
    "attention.scale": (HEAD**-0.5, 0.3),
    "attention.output_scale": (1.0, 0.5),
    "attention.value_scale": (1.0, 0.5),
    "attention.value_length": (HEAD, 16),
    "attention.key_length_swa": (HEAD, 16),
    "attention.value_length_swa": (HEAD, 16),
    "attention.layer_norm_epsilon": (1e-5, 1e-3),
    "attention.shared_kv_layers": (0, 3),
    "attention.sliding_window": (512, 64),
    "attention.sliding_window_pattern": (1, 2),
    "attention.temperature_scale": (0.0, 0.1),
    "attention.temperature_length": _SIZE,
    "attention.group_norm_epsilon": (0.0, 1e-6),
    "attention.recurrent_layers": (np.zeros(7, bool), np.ones(7, bool)),
    "attn_logit_softcapping": (0.0, 50.0),
    "final_logit_softcapping": (0.0, 30.0),
    "router_logit_softcapping": (0.0, 30.0),
    "embedding_scale": (1.0, 12.0),
    "residual_scale": (1.0, 0.2),
    "logit_scale": (1.0, 0.06),
    "expert_weights_scale": (1.0, 2.5),
    "expert_weights_norm": (False, True),
    "use_parallel_residual": (False, True),
    "hidden_activation": ("silu", "relu"),
    "tensor_data_layout": ("Meta AI original pth", "packed"),
    "embedding_length_out": (128, 64),
    "rope.dimension_count_swa": (HEAD, 16),
    "rope.local.freq_base": (10_000.0, 500.0),
    "rope.global.freq_base": (10_000.0, 500.0),
    "rope.freq_scale_swa": (1.0, 0.5),
    "classifier.output_labels": ([], ["yes", "no"]),
    "target_layers": (np.zeros(0, np.int32), np.array([1, 2])),
    "a_key_of_tomorrow": (0, 0.5),
} | dict.fromkeys(
    (
        *(
            "expert_count",
            "expert_used_count",
            "expert_shared_count",
            "expert_group_count",
            "expert_feed_forward_length",
        ),
        *("leading_dense_block_count", "nextn_predict_layers", "interleave_moe_layer_step", "moe_every_n_layers"),
        *("n_deepstack_layers", "decoder_block_count", "features_length", "ssm.state_size", "wkv.head_size"),
        *("attention.q_lora_rank", "attention.kv_lora_rank", "attention.relative_buckets_count", "kda.head_dim"),
        *("pooling_type", "embedding_length_per_layer_input", "full_attention_interval", "altup.num_inputs"),
    ),
    _SIZE,
)


@pytest.mark.parametrize("key", sorted(KEYS))
def test_a_key_is_harmless_with_one_value_and_refused_by_name_with_another(key):
    harmless, harmful = KEYS[key]
    name = key.replace(".", "__")
    assert read(**{name: harmless}) == read()
    with pytest.raises(UserError, match="mixture of experts" if key == "expert_count" else rf"^file .*llama\.{key}"):
        read(**{name: harmful})


def package_keys(group=gguf.Keys):
    """Every key of an architecture that the package names."""
    for value in vars(group).values():
        if isinstance(value, type):
            yield from package_keys(value)
        elif str(value).startswith("{arch}."):
            yield value.format(arch="llama", dense="dense_2")


@pytest.mark.parametrize("key", sorted(package_keys()))
def test_no_key_of_the_package_is_passed_over(key):
    """A strange value of any key that the package knows is refused by that key's name."""
    if key.endswith(("scaling.finetuned", "yarn_beta_fast", "yarn_beta_slow")):
        assert gguf_configs.from_gguf(metadata() | {key: -3.25}, SHAPES, "file") == read()
        return
    with pytest.raises(UserError, match=rf"{key}|mixture of experts"):
        gguf_configs.from_gguf(metadata() | {key: -3.25}, SHAPES, "file")


@pytest.mark.parametrize("value", ["12", 1.5, True, -1, 0, 2**40, float("nan"), [], ["x"], np.array([4.0])])
@pytest.mark.parametrize("key", ["block_count", "context_length", "attention.head_count", "feed_forward_length"])
def test_a_size_that_cannot_be_names_its_key(key, value):
    with pytest.raises(UserError, match=rf"^file should give qwen2\.{key} "):
        read("qwen2", **{key.replace(".", "__"): value})


@pytest.mark.parametrize("length", [0, 6, 8])
def test_one_value_a_layer_is_one_for_every_layer(length):
    assert read(feed_forward_length=np.full(7, 96)) == read()
    with pytest.raises(UserError, match=f"llama.feed_forward_length once, or for each of 7 layers, not {length} times"):
        read(feed_forward_length=np.full(length, 96))


def test_sizes_that_do_not_go_together():
    with pytest.raises(UserError, match="file describes an impossible model: num_heads .4. must be a multiple"):
        read(attention__head_count_kv=3)
    with pytest.raises(UserError, match="attention.key_length, as its width 128 is no multiple of its 3 heads"):
        read(attention__head_count=3, attention__head_count_kv=3)
    assert read(attention__head_count=3, attention__head_count_kv=3, attention__key_length=16).head_dim == 16
    with pytest.raises(UserError, match="should say attention.layer_norm_rms_epsilon"):
        read(attention__layer_norm_rms_epsilon=None, attention__layer_norm_epsilon=1e-5)


def test_gemma_3_is_read_whole():
    config = read("gemma3", final_logit_softcapping=30.0, attn_logit_softcapping=0.0, rope__freq_base_swa=500.0)
    assert (config.final_softcap, config.attn_softcap, config.local_rope_theta) == (30.0, None, 500.0)
    assert read("gemma3", attention__scale=HEAD**-0.5) == read("gemma3")
    assert read("gemma3", embedding_scale=float(np.float32(128**0.5))) == read("gemma3")
    for key, value in {"attention__scale": 0.1, "embedding_scale": 1.0, "hidden_activation": "silu"}.items():
        with pytest.raises(UserError, match=f"gemma3.{key.replace('__', '.')} = "):
            read("gemma3", **{key: value})


def test_gemma_3_as_ollama_writes_it():
    """Both rotary bases by other names, and the image encoder's keys in the same file."""
    keys = {"rope__freq_base": None, "rope__global__freq_base": 1e6, "rope__local__freq_base": 1e4}
    vision = {"vision__block_count": 27, "vision__attention__layer_norm_epsilon": 1e-6, "mm__tokens_per_image": 256}
    assert read("gemma3", **keys, **vision) == read("gemma3")
    assert read("gemma3", **(keys | {"rope__local__freq_base": 77.0})).local_rope_theta == 77.0
    with pytest.raises(UserError, match="gemma3.rope.global.freq_base = 5000000.0"):
        read("gemma3", rope__global__freq_base=5e6)


@pytest.mark.parametrize("family", ["gemma2", "gemma3"])
def test_which_layers_slide(family):
    given = np.array([False, True, True, False, True, False, True])
    assert read(family, attention__sliding_window_pattern=given).local_layers == tuple(given)
    assert read(family, attention__sliding_window_pattern=3).local_layers == (True, True, False) * 2 + (True,)
    assert read(family, attention__sliding_window_pattern=0).local_layers == (True,) * 7  # llama.cpp's reading
    for broken in (given[:6], np.full(7, 2), np.full(7, np.nan), "all", -1, 2.5):
        with pytest.raises(UserError, match=f"{family}.attention.sliding_window_pattern"):
            read(family, attention__sliding_window_pattern=broken)
    with pytest.raises(UserError, match=f"{family}.attention.sliding_window = 0"):
        read(family, attention__sliding_window=0)


def test_gemma_2s_caps_are_its_own_where_the_file_is_silent():
    config = read("gemma2")
    assert (config.attn_softcap, config.final_softcap) == (50.0, 30.0)
    assert read("gemma2", attn_logit_softcapping=7.0).attn_softcap == 7.0


HARMLESS = {
    "general.type": "model",
    "general.name": "x",
    "general.base_model.0.repo_url": "https://example.org",
    "general.tags": ["a"],
    "general.sampling.temp": 0.6,
    "general.something_new": 7,
    "general.quantization_version": 2,
    "quantize.imatrix.entries_count": 224,
    "imatrix.chunk_count": 3,
    "mradermacher.quantize_version": 2,
    "clip.vision.image_size": 896,
    "split.count": 0,
    "tokenizer.ggml.model": "none",
    "qwen2.expert_count": 0,
    "nodot": 3,
}


def test_keys_that_describe_how_a_file_was_made_change_nothing():
    assert read(other=HARMLESS) == read()


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        ({"general.type": "adapter"}, "its general.type is 'adapter'"),
        ({"general.type": "mmproj"}, "'mmproj'"),
        ({"general.type": "imatrix"}, "'imatrix'"),
        ({"general.type": "vocab"}, "'vocab'"),
        ({"general.type": 3}, "its general.type is 3"),
        ({"general.type": np.array([1, 2])}, "its general.type is an array of 2"),
        ({"adapter.lora.alpha": 16.0}, "adapter.lora.alpha says that it is an adapter"),
        ({"diffusion.shift_logits": True}, "a diffusion model"),
        ({"xielu.beta": 0.5}, "xielu.beta says"),
        ({"mamba.ssm.conv_kernel": 4}, "mamba.ssm.conv_kernel describes a model of another architecture"),
        ({"general.architecture": ["llama"]}, "architecture \\['llama'\\]"),
        ({"general.architecture": "clip"}, "architecture 'clip'"),
        ({"general.architecture": "gemma3n"}, "architecture 'gemma3n'"),
    ],
)
def test_a_file_that_is_something_else_is_told(other, reason):
    with pytest.raises(UserError, match=reason):
        read(other=other)
