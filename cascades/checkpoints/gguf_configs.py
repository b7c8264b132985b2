"""A decoder's architecture from the metadata of a GGUF file.

What the file does not say comes from a preset, where one is named, or from the family's published default.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from cascades.checkpoints.families import FAMILY, GEMMA3_LOCAL_THETA, Keys, Shapes, linear, period, rounded
from cascades.errors import UserError
from cascades.models import DecoderConfig, RopeScaling
from cascades.models.layers import rope_frequencies

FAMILIES = ("llama", "qwen2", "gemma", "gemma2", "gemma3")


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
    if family not in FAMILY:
        raise UserError(
            f"{label} holds a model of architecture {family!r}, but only {', '.join(FAMILIES)} can be read: "
            "give a model of one of these."
        )
    keys = Keys(
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
    fields = FAMILY[family] | {
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
        fields["local_layers"] = keys.default("local_layers", period(2, num_layers))
        fields["attn_softcap"] = keys.get("attn_logit_softcapping", keys.default("attn_softcap", 50.0))
        fields["final_softcap"] = keys.get("final_logit_softcapping", keys.default("final_softcap", 30.0))
    if family == "gemma3":
        pattern = keys.get("attention.sliding_window_pattern", None)
        if pattern is None:
            fields["local_layers"] = keys.default("local_layers", period(6, num_layers))
        else:
            fields["local_layers"] = _pattern(pattern, num_layers)
        local_theta = keys.default("local_rope_theta", GEMMA3_LOCAL_THETA)
        fields["local_rope_theta"] = keys.get("rope.freq_base_swa", local_theta)
    return DecoderConfig(**rounded(fields))


def _rows(shapes: Shapes, name: str) -> int | None:
    return shapes[name][0] if name in shapes else None


def _pattern(pattern: Any, num_layers: int) -> tuple[bool, ...]:
    """A period, or one value a layer."""
    return tuple(map(bool, pattern)) if isinstance(pattern, np.ndarray) else period(pattern, num_layers)


def _large_gemma_scale(family: str, num_layers: int, d_model: int, num_heads: int) -> float | None:
    """The 27B of Gemma 2 and 3 scale queries by the width a head, the others by the head's size."""
    return (d_model / num_heads) ** -0.5 if (family, num_layers) in (("gemma2", 46), ("gemma3", 62)) else None


def _gguf_rope_scaling(keys: Keys, fields: Mapping[str, Any], factors: np.ndarray | None) -> RopeScaling | None:
    if factors is not None:
        return _from_factors(np.asarray(factors, np.float64), fields["head_dim"], fields["rope_theta"], keys.label)
    kind = keys.get("rope.scaling.type", None)
    if kind is None:
        return keys.default("rope_scaling", None)
    if kind == "none":
        return None
    if kind != "linear":
        raise UserError(f"{keys.label} scales rotary positions by {kind!r}, but only linear and llama3 can be read.")
    return linear(keys.need("rope.scaling.factor"))


def _from_factors(factors: np.ndarray, head_dim: int, theta: float, label: str) -> RopeScaling:
    """Converters write Llama 3's scaling as a divisor a frequency: the largest is its factor, the rest is published."""
    scaling = RopeScaling(kind="llama3", factor=float(f"{factors.max():.6g}"))
    expected = rope_frequencies(head_dim, theta) / rope_frequencies(head_dim, theta, scaling)
    if factors.shape != expected.shape or not np.allclose(factors, expected, rtol=1e-3):
        raise UserError(f"{label} holds a rope_freqs.weight that is not Llama 3's, which cannot be read: give another.")
    return scaling
