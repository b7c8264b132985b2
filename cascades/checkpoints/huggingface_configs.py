"""A model's architecture from a Hugging Face `config.json`."""

from collections.abc import Mapping
from typing import Any

from cascades.checkpoints import known_fields, quantized, rope, t5
from cascades.checkpoints.families import FAMILY, period
from cascades.checkpoints.fields import Fields
from cascades.errors import UserError
from cascades.models import Config, DecoderConfig

FAMILIES = {"llama": "llama", "qwen2": "qwen2", "gemma": "gemma", "gemma2": "gemma2", "gemma3_text": "gemma3"}
_MULTIMODAL = frozenset(
    "architectures boi_token_id boi_token_index eoi_token_id eoi_token_index image_token_id image_token_index "
    "mm_tokens_per_image model_type quantization_config text_config tie_word_embeddings vision_config".split()
)
_MOST_LAYERS = 2048
# transformers' names of our activations; `gelu` is the exact function, not its approximation by tanh.
_ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "gelu": "gelu",
    "gelu_python": "gelu",
    "relu": "relu",
}


def from_huggingface(raw: Mapping[str, Any], label: str) -> Config:
    """The architecture of a `config.json` of transformers 4 (`rope_theta`, `rope_scaling`) or 5 (`rope_parameters`); of
    a multimodal Gemma 3, that of its text model.

    Raises:
      UserError: an unknown `model_type`, activation, quantisation or rope scaling, or a field that is missing, unknown
        or not of its type.
    """
    kind = Fields(raw, label).text("model_type")
    quantized.scheme(raw, label)
    if kind in t5.HF_FAMILIES:
        return t5.from_huggingface(raw, label)
    if kind not in (*FAMILIES, "gemma3"):
        known = ", ".join((*FAMILIES, "gemma3", *t5.HF_FAMILIES))
        raise UserError(
            f"{label} describes a model of type {kind!r}, but only {known} can be read: give a model of one of these."
        )
    at = ""
    if kind == "gemma3":
        raw, at = _text_model(raw, label), "text_config."
    family = FAMILIES[raw["model_type"]]
    known_fields.check(raw, family, label, at)
    return _decoder(Fields({**_DEFAULTS[family], **raw}, label, at), family)


def _text_model(raw: Mapping[str, Any], label: str) -> dict[str, Any]:
    """The config of a multimodal model's text model, with the fields beside it that concern the text.

    Raises:
      UserError: it is missing or of another family, or a field beside it contradicts it.
    """
    inner = Fields(raw, label).inner("text_config")
    if inner is None:
        raise UserError(f"{label} should say text_config, but does not: give another file.")
    text = {"model_type": "gemma3_text", **inner.values}
    if text["model_type"] != "gemma3_text":
        raise inner.wrong("model_type", "gemma3_text")
    if text.get("final_logit_softcapping") is not None:
        raise inner.wrong("final_logit_softcapping", "null, since transformers' multimodal class does not apply it")
    for name in known_fields.READ["gemma3"] - _MULTIMODAL:
        if raw.get(name) is not None and raw[name] != text.get(name):
            raise Fields(raw, label).wrong(name, f"in text_config, {text.get(name)!r}")
    beside = {name: value for name, value in raw.items() if name not in _MULTIMODAL - {"architectures"}}
    known_fields.check(beside, "gemma3", label)
    tied = raw.get("tie_word_embeddings")
    if tied is not None and text.setdefault("tie_word_embeddings", tied) != tied:
        raise inner.wrong("tie_word_embeddings", f"{tied}, as beside text_config")
    return text


def _decoder(fields: Fields, family: str) -> DecoderConfig:
    d_model, num_heads = fields.size("hidden_size"), fields.size("num_attention_heads")
    num_layers = fields.size("num_hidden_layers", most=_MOST_LAYERS)
    context_length = fields.size("max_position_embeddings")
    if not fields.has("head_dim") and d_model % num_heads:
        raise fields.wrong("hidden_size", f"a multiple of num_attention_heads ({num_heads}), or a head_dim beside it")
    head_dim = fields.size("head_dim", d_model // num_heads or 1)
    positions = rope.rope(fields, family, context_length)
    values = FAMILY[family] | {
        "vocab_size": fields.size("vocab_size"),
        "num_layers": num_layers,
        "d_model": d_model,
        "d_ff": fields.size("intermediate_size"),
        "num_heads": num_heads,
        "num_kv_heads": fields.size("num_key_value_heads", num_heads),
        "head_dim": head_dim,
        "context_length": context_length,
        "rope_theta": positions.theta,
        "rope_scaling": positions.scaling,
        "norm_eps": fields.number("rms_norm_eps"),
        "tied_head": fields.flag("tie_word_embeddings", family.startswith("gemma")),
        "activation": _activation(fields, family),
    }
    scalar = fields.number("query_pre_attn_scalar", float(head_dim))
    window, local_layers = _sliding(fields, family, num_layers, context_length)
    if any(local_layers) or family in ("gemma2", "gemma3"):
        values |= {"window": window, "local_layers": local_layers}
    if family in ("gemma2", "gemma3"):
        values["attn_softcap"] = fields.optional_number("attn_logit_softcapping")
        values["final_softcap"] = fields.optional_number("final_logit_softcapping")
        values["query_scale"] = None if scalar == head_dim else scalar**-0.5
    elif scalar != head_dim:
        raise fields.wrong("query_pre_attn_scalar", f"the size of a head ({head_dim}), as every {family} scales")
    if family == "gemma3":
        values["local_rope_theta"] = positions.local_theta
    try:
        return DecoderConfig(**values)
    except UserError as error:
        raise UserError(f"{fields.label} describes an impossible model: {error}") from None


def _activation(fields: Fields, family: str) -> str:
    """The activation of the MLP, from the two fields that may name it.

    Llama and Qwen2 read `hidden_act`, Gemma 2 and 3 `hidden_activation`. Gemma 1 first wrote `hidden_act: gelu` for the
    approximation; transformers 4 then read `hidden_activation` alone, and 5 reads `hidden_act` again.
    """
    gemma = family.startswith("gemma")
    read, other = ("hidden_activation", "hidden_act") if gemma else ("hidden_act", "hidden_activation")
    default = "gelu_pytorch_tanh" if gemma else "silu"
    activations = {}
    for name in (read, other):
        word = fields.text(name, default) or ""
        if gemma and name == "hidden_act" and word == "gelu":
            word = default
        if word not in _ACTIVATIONS:
            raise fields.wrong(name, f"one of {', '.join(_ACTIVATIONS)}")
        activations[name] = _ACTIVATIONS[word]
    if (fields.has(other) or family == "gemma") and activations[other] != activations[read]:
        raise fields.wrong(other, f"what {read} is, {fields.text(read, default)}, or not at all")
    return activations[read]


def _sliding(fields: Fields, family: str, num_layers: int, context_length: int) -> tuple[int | None, tuple[bool, ...]]:
    """The size of the window, and for each layer whether it slides; None and no layers if none does."""
    kinds = fields.texts("layer_types")
    if kinds is not None and (set(kinds) - set(rope.LAYERS) or len(kinds) != num_layers):
        raise fields.wrong("layer_types", f"{num_layers} times {' or '.join(rope.LAYERS)}")
    listed = None if kinds is None else tuple(kind == "sliding_attention" for kind in kinds)
    window = fields.size("sliding_window") if fields.has("sliding_window") else None
    if family in ("gemma2", "gemma3"):
        layers = listed or period(_pattern(fields, family, listed), num_layers)
        if fields.has("sliding_window_size") and fields.size("sliding_window_size") != window:
            raise fields.wrong("sliding_window_size", f"sliding_window, {window}")
        if fields.flag("use_sliding_window", True) is False and any(layers):
            raise fields.wrong("use_sliding_window", f"true, since {family} slides")
        return fields.size("sliding_window") if any(layers) else window, layers
    slides = fields.flag("use_sliding_window", False)
    first = fields.size("max_window_layers", num_layers, least=0)
    if family == "qwen2" and slides and window is not None:
        return window, listed or tuple(i >= first for i in range(num_layers))
    if listed is not None and any(listed):
        raise fields.wrong("layer_types", "full_attention alone, since no window is in use")
    if family != "qwen2" and slides:
        raise fields.wrong("use_sliding_window", f"false, since no {family} slides")
    unused = fields.has("use_sliding_window") or listed is not None or family == "qwen2"
    if window is not None and window < context_length and not unused:
        raise fields.wrong("sliding_window", f"null, since no {family} slides")
    return None, ()


def _pattern(fields: Fields, family: str, listed: tuple[bool, ...] | None) -> int:
    """The period at which a layer does not slide, where `layer_types` (`listed`) does not say which do."""
    if family == "gemma2":
        return 2
    length = fields.size("sliding_window_pattern", 6)
    if fields.size("_sliding_window_pattern", length) != length and listed is None:
        raise fields.wrong("_sliding_window_pattern", f"{length}, as transformers reads it, or layer_types beside it")
    return length


# transformers' defaults; Gemma 3's published files give only what differs from them.
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
    },
}
