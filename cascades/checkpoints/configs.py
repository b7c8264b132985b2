"""A model's architecture from what a checkpoint says of itself: GGUF metadata, a Hugging Face `config.json`, our own.

What the checkpoint does not say comes from a preset, where one is named, or from the family's published default.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from cascades.checkpoints import t5
from cascades.checkpoints.sources import first_line
from cascades.errors import UserError
from cascades.models import PRESETS, Config, DecoderConfig, RopeScaling, T5Config, presets
from cascades.models.layers import rope_frequencies

Shapes = Mapping[str, tuple[int, ...]]

GGUF_FAMILIES = ("llama", "qwen2", "gemma", "gemma2", "gemma3")
HF_FAMILIES = {"llama": "llama", "qwen2": "qwen2", "gemma": "gemma", "gemma2": "gemma2", "gemma3_text": "gemma3"}

_FAMILY: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {"qkv_bias": True},
    "gemma": {"activation": "gelu_tanh", "embed_scale": True},
    "gemma2": {"activation": "gelu_tanh", "embed_scale": True, "post_norms": True},
    "gemma3": {"activation": "gelu_tanh", "embed_scale": True, "post_norms": True, "qk_norm": True},
}
_GEMMA3_LOCAL_THETA = 10_000.0


def from_gguf(
    metadata: Mapping[str, Any],
    shapes: Shapes,
    label: str,
    *,
    preset: str | None = None,
    rope_factors: np.ndarray | None = None,
) -> DecoderConfig:
    """The architecture of a GGUF file.

    Args:
      metadata: the file's keys.
      shapes: of its tensors; the vocabulary's size and whether the head is tied are read from them.
      label: what messages call the file.
      preset: name of a preset for what the metadata lacks.
      rope_factors: the tensor `rope_freqs.weight`, by which Llama 3's frequencies are divided.

    Raises:
      UserError: an architecture that is not known, or a key that is missing without a preset.
    """
    family = metadata.get("general.architecture")
    if family not in _FAMILY:
        raise UserError(
            f"{label} holds a model of architecture {family!r}, but only {', '.join(GGUF_FAMILIES)} can be read: "
            "give a model of one of these."
        )
    keys = _Keys(
        {key.removeprefix(f"{family}."): value for key, value in metadata.items() if key.startswith(f"{family}.")},
        label,
        preset,
    )
    if keys.get("expert_count", 0):
        raise UserError(f"{label} is a mixture of experts, but only dense models can be read: give a dense one.")
    num_heads = keys.need("attention.head_count", "num_heads")
    d_model = keys.need("embedding_length", "d_model")
    num_layers = keys.need("block_count", "num_layers")
    rows = _rows(shapes, "token_embd.weight") or len(metadata.get("tokenizer.ggml.tokens", ()))
    fields = _FAMILY[family] | {
        "vocab_size": rows or keys.need("vocab_size", "vocab_size"),
        "num_layers": num_layers,
        "d_model": d_model,
        "d_ff": keys.need("feed_forward_length", "d_ff"),
        "num_heads": num_heads,
        "num_kv_heads": keys.get("attention.head_count_kv", keys.default("num_kv_heads", num_heads)),
        "head_dim": keys.get("attention.key_length", keys.default("head_dim", d_model // num_heads)),
        "context_length": keys.need("context_length", "context_length"),
        "rope_theta": keys.get("rope.freq_base", keys.default("rope_theta", 10_000.0)),
        "norm_eps": keys.get("attention.layer_norm_rms_epsilon", keys.default("norm_eps", 1e-6)),
        "tied_head": "output.weight" not in shapes,
    }
    fields["rope_scaling"] = _gguf_rope_scaling(keys, fields, rope_factors)
    rotary = keys.get("rope.dimension_count", fields["head_dim"])
    if rotary != fields["head_dim"]:
        raise UserError(
            f"{label} rotates {rotary} of {fields['head_dim']} channels a head, but only whole heads can be rotated."
        )
    if family in ("gemma2", "gemma3"):
        fields["window"] = keys.need("attention.sliding_window", "window")
        fields["query_scale"] = keys.default("query_scale", _large_gemma_scale(family, num_layers, d_model, num_heads))
    if family == "gemma2":
        fields["local_layers"] = keys.default("local_layers", _period(2, num_layers))
        fields["attn_softcap"] = keys.get("attn_logit_softcapping", keys.default("attn_softcap", 50.0))
        fields["final_softcap"] = keys.get("final_logit_softcapping", keys.default("final_softcap", 30.0))
    if family == "gemma3":
        pattern = keys.get("attention.sliding_window_pattern", None)
        if pattern is None:
            fields["local_layers"] = keys.default("local_layers", _period(6, num_layers))
        else:
            fields["local_layers"] = _pattern(pattern, num_layers)
        local_theta = keys.default("local_rope_theta", _GEMMA3_LOCAL_THETA)
        fields["local_rope_theta"] = keys.get("rope.freq_base_swa", local_theta)
    return DecoderConfig(**_rounded(fields))


def from_huggingface(raw: Mapping[str, Any], label: str) -> Config:
    """The architecture of a `config.json`, in the form of transformers 4 (`rope_theta`, `rope_scaling`) or 5
    (`rope_parameters`); of a multimodal Gemma 3 the text model's.

    Raises:
      UserError: a `model_type` or a kind of rope scaling that is not known, or a field that is missing.
    """
    if raw.get("model_type") in t5.HF_FAMILIES:
        return t5.from_huggingface(raw, label)
    config = dict(raw.get("text_config", {})) if raw.get("model_type") == "gemma3" else dict(raw)
    if raw.get("model_type") == "gemma3":
        config = {"model_type": "gemma3_text"} | config
    if config.get("model_type") not in HF_FAMILIES:
        known = ", ".join((*HF_FAMILIES, "gemma3", *t5.HF_FAMILIES))
        raise UserError(
            f"{label} describes a model of type {raw.get('model_type')!r}, but only {known} can be read: give a "
            "model of one of these."
        )
    family = HF_FAMILIES[config["model_type"]]
    said = _HF_DEFAULTS[family] | config
    keys = _Keys({key: value for key, value in said.items() if value is not None}, label, None)
    unsupported = [key for key in ("attention_bias", "mlp_bias", "num_local_experts") if keys.get(key, False)]
    if unsupported:
        raise UserError(f"{label} asks for {' and '.join(unsupported)}, which no model here has: give another model.")
    d_model, num_heads, num_layers = (
        keys.need(key) for key in ("hidden_size", "num_attention_heads", "num_hidden_layers")
    )
    head_dim = keys.get("head_dim", d_model // num_heads)
    theta, local_theta, scaling = _hf_rope(keys, label)
    fields = _FAMILY[family] | {
        "vocab_size": keys.need("vocab_size"),
        "num_layers": num_layers,
        "d_model": d_model,
        "d_ff": keys.need("intermediate_size"),
        "num_heads": num_heads,
        "num_kv_heads": keys.get("num_key_value_heads", num_heads),
        "head_dim": head_dim,
        "context_length": keys.need("max_position_embeddings"),
        "rope_theta": theta,
        "rope_scaling": scaling,
        "norm_eps": keys.need("rms_norm_eps"),
        "tied_head": bool(keys.get("tie_word_embeddings", family.startswith("gemma"))),
    }
    if family == "qwen2" and keys.get("use_sliding_window", False):
        first = keys.get("max_window_layers", num_layers)
        default = tuple(i >= first for i in range(num_layers))
        fields["local_layers"] = _layer_types(keys, default)
        fields["window"] = keys.get("sliding_window", None)
    if family in ("gemma2", "gemma3"):
        period = 2 if family == "gemma2" else keys.get("sliding_window_pattern", 6)
        fields["local_layers"] = _layer_types(keys, _period(period, num_layers))
        fields["window"] = keys.need("sliding_window")
        fields["attn_softcap"] = keys.get("attn_logit_softcapping", None)
        fields["final_softcap"] = keys.get("final_logit_softcapping", None)
        scalar = keys.get("query_pre_attn_scalar", head_dim)
        fields["query_scale"] = None if scalar == head_dim else scalar**-0.5
    if family == "gemma3":
        fields["local_rope_theta"] = local_theta
    return DecoderConfig(**_rounded(fields))


def from_gemma(shapes: Shapes, label: str, *, preset: str | None = None) -> DecoderConfig:
    """The architecture of a released Gemma checkpoint, which names none: the preset that has its sizes.

    Args:
      shapes: of its tensors, without the leading `transformer/`.
      label: what messages call the checkpoint.
      preset: its name, instead of a search.
    """
    if "embedder/input_embedding" not in shapes or "layer_0/attn/attn_vec_einsum/w" not in shapes:
        raise UserError(
            f"{label} should be a released Gemma checkpoint, but lacks embedder/input_embedding or layer_0: give one."
        )
    vocab, d_model = shapes["embedder/input_embedding"]
    if preset is not None:
        return dataclasses.replace(presets.decoder_preset(preset), vocab_size=vocab)
    num_heads, head_dim, _ = shapes["layer_0/attn/attn_vec_einsum/w"]
    num_layers = sum(key.endswith("attn/attn_vec_einsum/w") for key in shapes)
    found = (num_layers, d_model, num_heads, head_dim)
    for config in (each for each in PRESETS.values() if isinstance(each, DecoderConfig)):
        sizes = (config.num_layers, config.d_model, config.num_heads, config.head_dim)
        if sizes == found and config.embed_scale and config.qk_norm == ("layer_0/attn/_query_norm/scale" in shapes):
            return dataclasses.replace(config, vocab_size=vocab)
    raise UserError(
        f"{label} has {num_layers} layers of width {d_model} with {num_heads} heads of {head_dim}, as no Gemma known "
        "here: name its preset."
    )


def to_json(config: Config) -> dict[str, Any]:
    """Our own form, for `json.dumps`."""
    return dataclasses.asdict(config)


def from_json(raw: Mapping[str, Any], label: str) -> Config:
    """The inverse of `to_json`.

    Raises:
      UserError: a field that is not known or is missing.
    """
    kind = T5Config if "num_decoder_layers" in raw else DecoderConfig
    known = {field.name for field in dataclasses.fields(kind)}
    unknown = sorted(set(raw) - known)
    if unknown:
        raise UserError(f"{label} gives {', '.join(unknown)}, which this version does not know: upgrade cascades.")
    fields: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in raw.items()}
    try:
        if fields.get("rope_scaling") is not None:
            fields["rope_scaling"] = RopeScaling(**fields["rope_scaling"])
        return kind(**fields)
    except TypeError as error:
        raise UserError(f"{label} does not describe a model ({first_line(error)}): convert it again.") from None


class _Keys:
    """Lookups with the file, then the preset, as their source."""

    def __init__(self, values: Mapping[str, Any], label: str, name: str | None):
        self.values = values
        self.label = label
        self.preset = None if name is None else presets.decoder_preset(name)

    def get(self, key: str, default: Any) -> Any:
        value = self.values.get(key, default)
        # Some converters write one value a layer where all are alike.
        if isinstance(value, np.ndarray) and key != "attention.sliding_window_pattern":
            if len(set(value.tolist())) != 1:
                raise UserError(f"{self.label} gives a {key} that differs between layers, which cannot be read.")
            return value[0].item()
        return value

    def default(self, field: str, default: Any) -> Any:
        return default if self.preset is None else getattr(self.preset, field)

    def need(self, key: str, field: str | None = None) -> Any:
        value = self.get(key, None if field is None else self.default(field, None))
        if value is None:
            raise UserError(f"{self.label} should say {key}, but does not: name its preset, or give another file.")
        return value


def _rows(shapes: Shapes, name: str) -> int | None:
    return shapes[name][0] if name in shapes else None


def _rounded(fields: dict[str, Any]) -> dict[str, Any]:
    """GGUF keeps float32: 9.999999974752427e-07 was meant to be 1e-06."""
    given = [name for name in ("norm_eps", "rope_theta", "local_rope_theta") if fields.get(name)]
    return fields | {name: float(f"{fields[name]:.7g}") for name in given}


def _period(length: int, num_layers: int) -> tuple[bool, ...]:
    """Sliding layers, but for the last of every `length`."""
    return tuple((i + 1) % length != 0 for i in range(num_layers))


def _pattern(pattern: Any, num_layers: int) -> tuple[bool, ...]:
    """A period, or one value a layer."""
    return tuple(map(bool, pattern)) if isinstance(pattern, np.ndarray) else _period(pattern, num_layers)


def _large_gemma_scale(family: str, num_layers: int, d_model: int, num_heads: int) -> float | None:
    """The 27B of Gemma 2 and 3 scale queries by the width a head, the others by the head's size."""
    return (d_model / num_heads) ** -0.5 if (family, num_layers) in (("gemma2", 46), ("gemma3", 62)) else None


def _gguf_rope_scaling(keys: _Keys, fields: Mapping[str, Any], factors: np.ndarray | None) -> RopeScaling | None:
    if factors is not None:
        return _from_factors(np.asarray(factors, np.float64), fields["head_dim"], fields["rope_theta"], keys.label)
    kind = keys.get("rope.scaling.type", None)
    if kind is None:
        return keys.default("rope_scaling", None)
    if kind == "none":
        return None
    if kind != "linear":
        raise UserError(f"{keys.label} scales rotary positions by {kind!r}, but only linear and llama3 can be read.")
    return _linear(keys.need("rope.scaling.factor"))


def _linear(factor: float) -> RopeScaling | None:
    return None if factor == 1.0 else RopeScaling(kind="linear", factor=float(factor))


def _from_factors(factors: np.ndarray, head_dim: int, theta: float, label: str) -> RopeScaling:
    """Converters write Llama 3's scaling as a divisor a frequency: the largest is its factor, the rest is published."""
    scaling = RopeScaling(kind="llama3", factor=float(f"{factors.max():.6g}"))
    expected = rope_frequencies(head_dim, theta) / rope_frequencies(head_dim, theta, scaling)
    if factors.shape != expected.shape or not np.allclose(factors, expected, rtol=1e-3):
        raise UserError(f"{label} holds a rope_freqs.weight that is not Llama 3's, which cannot be read: give another.")
    return scaling


def _hf_rope(keys: _Keys, label: str) -> tuple[float, float, RopeScaling | None]:
    """(base, base of sliding layers, scaling)."""
    parameters = keys.get("rope_parameters", None) or {}
    local = parameters.get("sliding_attention") or {}
    scaling = parameters.get("full_attention") or parameters or keys.get("rope_scaling", None) or {}
    theta = scaling.get("rope_theta", keys.get("rope_theta", 10_000.0))
    local_theta = local.get("rope_theta", keys.get("rope_local_base_freq", _GEMMA3_LOCAL_THETA))
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind == "default":
        return theta, local_theta, None
    if kind == "linear":
        return theta, local_theta, _linear(scaling["factor"])
    if kind == "llama3":
        original = scaling.get("original_max_position_embeddings", 8192)
        names = {key: float(scaling[key]) for key in ("factor", "low_freq_factor", "high_freq_factor")}
        return theta, local_theta, RopeScaling(kind=kind, original_context_length=original, **names)
    raise UserError(f"{label} scales rotary positions by {kind!r}, but only linear and llama3 can be read.")


def _layer_types(keys: _Keys, default: tuple[bool, ...]) -> tuple[bool, ...]:
    kinds = keys.get("layer_types", None)
    return default if kinds is None else tuple(kind == "sliding_attention" for kind in kinds)


# What transformers assumes where a config.json is silent; Gemma 3's published files name only what differs.
_HF_DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": {"rms_norm_eps": 1e-6, "max_position_embeddings": 2048},
    "qwen2": {"rms_norm_eps": 1e-6, "max_position_embeddings": 32_768, "sliding_window": 4096, "max_window_layers": 28},
    "gemma": {"rms_norm_eps": 1e-6, "max_position_embeddings": 8192, "head_dim": 256},
    "gemma2": {
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 8192,
        "head_dim": 256,
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
    },
    "gemma3": {
        "vocab_size": 262_208,
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 131_072,
        "head_dim": 256,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        "rope_theta": 1_000_000.0,
    },
}
