"""A model's architecture from a Hugging Face `config.json`."""

from collections.abc import Mapping
from typing import Any

from cascades.checkpoints import t5
from cascades.checkpoints.families import FAMILY, GEMMA3_LOCAL_THETA, Keys, linear, period, rounded
from cascades.errors import UserError
from cascades.models import Config, DecoderConfig, RopeScaling

FAMILIES = {"llama": "llama", "qwen2": "qwen2", "gemma": "gemma", "gemma2": "gemma2", "gemma3_text": "gemma3"}


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
    if config.get("model_type") not in FAMILIES:
        known = ", ".join((*FAMILIES, "gemma3", *t5.HF_FAMILIES))
        raise UserError(
            f"{label} describes a model of type {raw.get('model_type')!r}, but only {known} can be read: give a "
            "model of one of these."
        )
    family = FAMILIES[config["model_type"]]
    said = _DEFAULTS[family] | config
    keys = Keys({key: value for key, value in said.items() if value is not None}, label, None)
    unsupported = [key for key in ("attention_bias", "mlp_bias", "num_local_experts") if keys.get(key, False)]
    if unsupported:
        raise UserError(f"{label} asks for {' and '.join(unsupported)}, which no model here has: give another model.")
    d_model, num_heads, num_layers = (
        keys.need(key) for key in ("hidden_size", "num_attention_heads", "num_hidden_layers")
    )
    head_dim = keys.get("head_dim", d_model // num_heads)
    theta, local_theta, scaling = _rope(keys, label)
    fields = FAMILY[family] | {
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
        length = 2 if family == "gemma2" else keys.get("sliding_window_pattern", 6)
        fields["local_layers"] = _layer_types(keys, period(length, num_layers))
        fields["window"] = keys.need("sliding_window")
        fields["attn_softcap"] = keys.get("attn_logit_softcapping", None)
        fields["final_softcap"] = keys.get("final_logit_softcapping", None)
        scalar = keys.get("query_pre_attn_scalar", head_dim)
        fields["query_scale"] = None if scalar == head_dim else scalar**-0.5
    if family == "gemma3":
        fields["local_rope_theta"] = local_theta
    return DecoderConfig(**rounded(fields))


def _rope(keys: Keys, label: str) -> tuple[float, float, RopeScaling | None]:
    """(base, base of sliding layers, scaling)."""
    parameters = keys.get("rope_parameters", None) or {}
    local = parameters.get("sliding_attention") or {}
    scaling = parameters.get("full_attention") or parameters or keys.get("rope_scaling", None) or {}
    theta = scaling.get("rope_theta", keys.get("rope_theta", 10_000.0))
    local_theta = local.get("rope_theta", keys.get("rope_local_base_freq", GEMMA3_LOCAL_THETA))
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind == "default":
        return theta, local_theta, None
    if kind == "linear":
        return theta, local_theta, linear(scaling["factor"])
    if kind == "llama3":
        original = scaling.get("original_max_position_embeddings", 8192)
        names = {key: float(scaling[key]) for key in ("factor", "low_freq_factor", "high_freq_factor")}
        return theta, local_theta, RopeScaling(kind=kind, original_context_length=original, **names)
    raise UserError(f"{label} scales rotary positions by {kind!r}, but only linear and llama3 can be read.")


def _layer_types(keys: Keys, default: tuple[bool, ...]) -> tuple[bool, ...]:
    kinds = keys.get("layer_types", None)
    return default if kinds is None else tuple(kind == "sliding_attention" for kind in kinds)


# What transformers assumes where a config.json is silent; Gemma 3's published files name only what differs.
_DEFAULTS: dict[str, dict[str, Any]] = {
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
