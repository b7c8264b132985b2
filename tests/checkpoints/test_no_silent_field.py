"""No field is skipped in silence: another value changes the model, or is refused, or is known to mean nothing here.

The lists are these tests' own, after transformers' classes of configs and llama.cpp's keys, so that a table of the
package that calls a field harmless must agree with a second opinion.
"""

import dataclasses
import json
from typing import Any

import pytest
from fuzzing import bases

from cascades import checkpoints
from cascades.checkpoints import gguf
from cascades.errors import UserError
from cascades.models import Config

# Fields with a meaning: for each family, other values that a file may give.
_ROPE: tuple[Any, ...] = (
    {"rope_type": "yarn", "factor": 4.0},
    {"rope_type": "dynamic", "factor": 2.0},
    {"rope_type": "longrope", "short_factor": [1.0], "long_factor": [2.0]},
    {"rope_type": "linear", "factor": 3.0},
    {"type": "linear", "factor": 3.0},
    {"type": "su"},
    {"rope_type": "linear", "factor": 3.0, "attention_factor": 2.0},
    {"rope_type": "linear", "factor": 3.0, "new_factor": 2.0},
    {"rope_type": "mrope", "mrope_section": [4, 2, 2]},
)
_ALL: dict[str, tuple[Any, ...]] = {
    "model_type": ("mistral", "qwen3", "llama4", "gemma4"),
    "hidden_size": (64,),
    "intermediate_size": (64,),
    "num_hidden_layers": (3,),
    "num_attention_heads": (4,),
    "num_key_value_heads": (2,),
    "head_dim": (32,),
    "vocab_size": (400,),
    "max_position_embeddings": (512,),
    "rms_norm_eps": (0.01,),
    "rope_theta": (12345.0,),
    "rope_scaling": _ROPE,
    "partial_rotary_factor": (0.5,),
    "hidden_act": ("relu", "gelu", "gelu_new", "quick_gelu", "swish2", "relu2"),
    "attention_bias": (True,),
    "mlp_bias": (True,),
    "num_local_experts": (8,),
    "num_experts": (8,),
    "quantization_config": ({"quant_method": "awq", "bits": 4}, {"quant_method": "bitsandbytes", "load_in_4bit": True}),
    "layer_types": (["full_attention", "chunked_attention"], ["linear_attention"] * 2, ["full_attention"] * 5),
    "embedding_multiplier": (12.0,),
    "residual_multiplier": (0.2,),
    "logits_scaling": (8.0,),
    "logit_scale": (0.5,),
    "attention_multiplier": (0.01,),
    "new_attention_scale": (0.5,),
    "rope_thetas": (5.0,),
    "use_qk_norm": (True,),
}
MEANING: dict[str, dict[str, tuple[Any, ...]]] = {
    "llama": _ALL | {"tie_word_embeddings": (True,), "use_bidirectional_attention": (True,)},
    "qwen2": _ALL
    | {
        "tie_word_embeddings": (False,),
        "use_sliding_window": (False,),
        "sliding_window": (16,),
        "max_window_layers": (0,),
        "use_mrope": (True,),
    },
    "gemma": _ALL | {"hidden_activation": ("relu", "silu"), "use_bidirectional_attention": (True,)},
    "gemma2": _ALL
    | {
        "hidden_activation": ("relu", "gelu"),
        "attn_logit_softcapping": (20.0, None),
        "final_logit_softcapping": (20.0, None),
        "query_pre_attn_scalar": (64,),
        "sliding_window": (16,),
        "layer_types": (["full_attention", "sliding_attention"], ["sliding_attention", "chunked_attention"]),
        "use_bidirectional_attention": (True,),
    },
    "gemma3_text": _ALL
    | {
        "hidden_activation": ("relu", "gelu"),
        "attn_logit_softcapping": (20.0,),
        "final_logit_softcapping": (20.0,),
        "query_pre_attn_scalar": (64,),
        "sliding_window": (16,),
        "sliding_window_pattern": (2,),
        "_sliding_window_pattern": (2,),
        "rope_local_base_freq": (555.0,),
        "layer_types": (["full_attention", "sliding_attention"], ["sliding_attention", "chunked_attention"]),
        "use_bidirectional_attention": (True,),
        "rope_parameters": ({"full_attention": {"rope_type": "yarn", "factor": 2.0, "rope_theta": 5.0}},),
    },
    "t5": {
        "model_type": ("bart", "umt5", "longt5"),
        "d_model": (64,),
        "d_ff": (64,),
        "d_kv": (8,),
        "num_heads": (4,),
        "num_layers": (3,),
        "num_decoder_layers": (3,),
        "vocab_size": (500,),
        "feed_forward_proj": ("relu", "gated-silu", "gelu", "gated-relu"),
        "relative_attention_num_buckets": (16,),
        "relative_attention_max_distance": (64,),
        "layer_norm_epsilon": (0.01,),
        "tie_word_embeddings": (True,),
        "decoder_start_token_id": (5,),
        "scale_decoder_outputs": (True,),
        "quantization_config": ({"quant_method": "awq"},),
        "encoder_attention_type": ("transient-global",),
        "new_attention_scale": (0.5,),
    },
}
MEANING["gemma3"] = MEANING["gemma3_text"]
del MEANING["qwen2"]["attention_bias"]  # a Qwen2 has biases whatever its config says
for _family in ("gemma", "gemma2", "gemma3_text", "gemma3"):  # which take `hidden_activation`, where it is there
    MEANING[_family] = {field: values for field, values in MEANING[_family].items() if field != "hidden_act"}
# For these a published file gives a value under which the numbers are the same: it must load, and load the same.
HARMLESS: dict[str, tuple[Any, ...]] = {
    "_name_or_path": ("/home/somebody/model", ""),
    "_attn_implementation_autoset": (True, False),
    "architectures": (None,),
    "attention_dropout": (0.1,),
    "bos_token_id": (None, 128000),
    "eos_token_id": (None, [128001, 128008, 128009]),
    "pad_token_id": (None, 5),
    "dtype": ("float16",),
    "torch_dtype": ("float32", None),
    "transformers_version": ("5.0.0",),
    "use_cache": (False,),
    "initializer_range": (0.041666666666666664,),
    "output_attentions": (False,),
    "output_hidden_states": (False,),
    "return_dict": (True,),
    "id2label": ({"0": "LABEL_0", "1": "LABEL_1"},),
    "label2id": ({"LABEL_0": 0, "LABEL_1": 1},),
    "problem_type": (None,),
    "chunk_size_feed_forward": (0,),
    "is_encoder_decoder": (False,),
    "quantization_config": (None,),
    "rope_scaling": (None,),
}
HARMLESS_OF: dict[str, dict[str, tuple[Any, ...]]] = {
    "llama": {
        "pretraining_tp": (1,),
        "rope_interleaved": (False,),
        "is_llama_config": (True,),
        "hidden_act": ("silu", "swish"),
        "attention_bias": (None, False),
        "unsloth_version": ("2024.9",),
        "unsloth_fixed": (True,),
        "transformers.js_config": ({"kv_cache_dtype": {"q4f16": "float16"}},),
    },
    "qwen2": {"hidden_act": ("silu",), "use_mrope": (False,)},
    "gemma": {"hidden_act": ("gelu", "gelu_pytorch_tanh"), "hidden_activation": (None, "gelu_pytorch_tanh")},
    "gemma2": {"cache_implementation": ("hybrid", None), "hidden_act": ("gelu_pytorch_tanh",)},
    "gemma3_text": {"cache_implementation": ("hybrid", None), "use_bidirectional_attention": (False, None)},
    "gemma3": {},
    "t5": {
        "dropout_rate": (0.0,),
        "classifier_dropout": (0.0,),
        "initializer_factor": (0.05,),
        "n_positions": (1024,),
        "output_past": (False,),
        "is_gated_act": (True,),
        "dense_act_fn": ("gelu_new",),
        "is_encoder_decoder": (True,),
        "gradient_checkpointing": (False,),
        "task_specific_params": ({"summarization": {"num_beams": 4, "prefix": "summarize: "}},),
        "tokenizer_class": ("T5Tokenizer",),
    },
}
NOT_OF_T5 = ("is_encoder_decoder", "rope_scaling", "attention_dropout", "bos_token_id", "architectures", "pad_token_id")

# What llama.cpp reads of an architecture, with another value; `{}` stands for the architecture.
GGUF_MEANING: dict[str, tuple[Any, ...]] = {
    "general.architecture": ("qwen3", "mamba"),
    "{}.context_length": (512,),
    "{}.embedding_length": (64,),
    "{}.block_count": (3,),
    "{}.feed_forward_length": (64,),
    "{}.attention.head_count": (4,),
    "{}.attention.head_count_kv": (2,),
    "{}.attention.key_length": (32,),
    "{}.attention.value_length": (32,),
    "{}.attention.layer_norm_rms_epsilon": (0.01,),
    "{}.attention.sliding_window": (16,),
    "{}.attention.causal": (False,),
    "{}.attention.scale": (0.5,),
    "{}.attention.max_alibi_bias": (8.0,),
    "{}.attention.clamp_kqv": (8.0,),
    "{}.attn_logit_softcapping": (20.0,),
    "{}.final_logit_softcapping": (20.0,),
    "{}.rope.freq_base": (12345.0,),
    "{}.rope.dimension_count": (8,),
    "{}.rope.scaling.type": ("yarn", "longrope"),
    "{}.rope.scaling.factor": (3.0,),
    "{}.rope.scale_linear": (3.0,),
    "{}.logit_scale": (0.5,),
    "{}.residual_scale": (0.5,),
    "{}.embedding_scale": (0.5,),
    "{}.use_parallel_residual": (True,),
    "{}.expert_count": (8,),
    "{}.new_attention_scale": (0.5,),
    "split.count": (2,),
}
GGUF_HARMLESS: dict[str, tuple[Any, ...]] = {
    "general.name": ("another",),
    "general.file_type": (7,),
    "general.license": ("mit",),
    "general.quantization_version": (2,),
    "general.size_label": ("1B",),
    "general.base_model.0.name": ("x",),
    "general.tags": (["text-generation"],),
    "quantize.imatrix.file": ("a.dat",),
    "quantize.imatrix.entries_count": (12,),
    "{}.vocab_size": (bases.PIECES,),
    "{}.expert_count": (0,),
    "{}.rope.scaling.finetuned": (False,),
    "{}.attention.causal": (True,),
    "split.count": (0, 1),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bases")
    bases.write(folder)
    return folder


@pytest.fixture
def read(folder, tmp_path):
    """Returns a function that reads a family's config with one field changed; a sentence where it is refused."""

    def read(family: str, **changes: Any) -> Config | str:
        raw = json.loads(json.dumps(bases.CONFIGS[family]))
        inner = raw["text_config"] if family == "gemma3" and not set(changes) <= set(raw) else raw
        inner.update(changes)
        (tmp_path / "config.json").write_text(json.dumps(raw))
        (tmp_path / "model.safetensors").write_bytes((folder / family / "model.safetensors").read_bytes())
        return _read(tmp_path)

    (folder / "llama" / "model.safetensors").write_bytes(
        (folder / "llama" / "model-00001-of-00002.safetensors").read_bytes()
    )
    return read


def _read(path) -> Config | str:
    try:
        return checkpoints.read_config(path)
    except UserError as error:
        return str(error)


@pytest.mark.parametrize(
    ("family", "field"), [(family, field) for family, fields in MEANING.items() for field in fields]
)
def test_another_value_of_a_field_with_a_meaning_changes_the_model_or_is_refused(read, family, field):
    before = read(family)
    assert not isinstance(before, str), before
    for value in MEANING[family][field]:
        after = read(family, **{field: value})
        assert after != before, f"{field}={value!r} is skipped in silence"
        if isinstance(after, str):
            # The value may be named instead of the field, or the other side of a contradiction.
            assert after.count("\n") == 0 and len(after) < 1000, after


@pytest.mark.parametrize(
    ("family", "field"),
    [
        (family, field)
        for family, own in HARMLESS_OF.items()
        for field in (HARMLESS | own)
        if family != "t5" or field in own or field not in NOT_OF_T5
    ],
)
def test_a_field_that_means_nothing_here_is_read_over(read, family, field):
    before = read(family, rope_scaling=None) if field == "rope_scaling" else read(family)
    for value in (HARMLESS | HARMLESS_OF[family])[field]:
        after = read(family, **{field: value})
        assert after == before, f"{field}={value!r}: {after}"


# What llama.cpp does not read there: the old spelling beside the new one.
GGUF_OPEN = (("gemma3", "{}.rope.scale_linear"),)


@pytest.fixture(params=["llama", "gemma3"])
def changed(request, folder):
    """Returns a function that reads a GGUF file's config with one key changed, and the architecture."""
    path = folder / f"{request.param}.gguf"
    header = gguf.read_header(path)

    def read(key: str, value: Any) -> Config | str:
        metadata = header.metadata | ({key.format(request.param): value} if key else {})
        try:
            return gguf.read_config(path, header._replace(metadata=metadata))
        except UserError as error:
            return str(error)

    return read


@pytest.mark.parametrize("key", GGUF_MEANING)
def test_another_value_of_a_key_with_a_meaning_changes_the_model_or_is_refused(request, changed, key):
    before = changed("", None)
    assert dataclasses.is_dataclass(before), before
    unread = (request.node.callspec.params["changed"], key) in GGUF_OPEN
    for value in GGUF_MEANING[key]:
        after = changed(key, value)
        assert (after == before) is unread, f"{key}={value!r} is skipped in silence"


@pytest.mark.parametrize("key", GGUF_HARMLESS)
def test_a_key_that_means_nothing_here_is_read_over(changed, key):
    before = changed("", None)
    for value in GGUF_HARMLESS[key]:
        assert changed(key, value) == before, f"{key}={value!r}"
