"""A decoder's architecture from the metadata of a GGUF file.

What the file does not say comes from the preset, if one is named, else from the family's published defaults or those
of llama.cpp's loader.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from cascades.checkpoints import gguf_keys
from cascades.checkpoints.families import FAMILY, GEMMA3_LOCAL_THETA, Shapes, linear, period
from cascades.checkpoints.gguf_keys import Metadata
from cascades.errors import UserError
from cascades.models import DecoderConfig, RopeScaling
from cascades.models.layers import rope_frequencies

FAMILIES = ("llama", "qwen2", "gemma", "gemma2", "gemma3")
# What `hidden_activation` may call our activations; Gemma's files say `gelu` and mean the approximation by tanh.
_ACTIVATIONS = {"silu": ("silu", "swish"), "gelu_tanh": ("gelu_pytorch_tanh", "gelu_tanh", "gelu")}
_LONGROPE = ("rope_factors_long.weight", "rope_factors_short.weight")


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
      shapes: of its tensors; they tell the size of the vocabulary and whether the head is tied.
      label: what messages call the file.
      preset: name of a preset for what the metadata lacks.
      rope_factors: the tensor `rope_freqs.weight`, `[head_dim / 2]`: the divisors of Llama 3's frequencies.

    Raises:
      UserError: an unknown architecture, or a key that is missing from file and preset, of the wrong type, out of range
        or not supported.
    """
    family = metadata.get("general.architecture")
    if not isinstance(family, str) or family not in FAMILY:
        raise UserError(
            f"{label} holds a model of architecture {family!r:.60}, but only {', '.join(FAMILIES)} can be read: "
            "give a model of one of these."
        )
    gguf_keys.check(metadata, label, family)
    keys = Metadata(
        {key.removeprefix(f"{family}."): value for key, value in metadata.items() if key.startswith(f"{family}.")},
        label,
        preset,
    )
    fields = FAMILY[family] | _sizes(keys, shapes, metadata.get("tokenizer.ggml.tokens"))
    fields["rope_theta"] = keys.get(
        "rope.freq_base", keys.get("rope.global.freq_base", keys.default("rope_theta", 1e4))
    )
    fields["norm_eps"] = keys.need("attention.layer_norm_rms_epsilon", "norm_eps")
    fields["tied_head"] = "output.weight" not in shapes
    if family in ("gemma2", "gemma3"):
        fields |= _sliding(keys, fields, family)
    fields["rope_scaling"] = _rope_scaling(keys, fields, shapes, rope_factors, family)
    _check_repeats(keys, fields, label, family)
    try:
        return DecoderConfig(**_rounded(fields))
    except UserError as error:
        raise UserError(f"{label} describes an impossible model: {error}") from None


def _sizes(keys: Metadata, shapes: Shapes, tokens: Any) -> dict[str, Any]:
    num_heads = keys.need("attention.head_count", "num_heads")
    d_model = keys.need("embedding_length", "d_model")
    rows = _rows(shapes, "token_embd.weight") or (len(tokens) if isinstance(tokens, list) else 0)
    head_dim = keys.get("attention.key_length", keys.default("head_dim", None))
    if head_dim is None and d_model % num_heads:
        raise UserError(
            f"{keys.label} should give attention.key_length, as its width {d_model} is no multiple of its {num_heads} "
            "heads: convert it again."
        )
    return {
        "vocab_size": rows or keys.need("vocab_size", "vocab_size"),
        "num_layers": keys.need("block_count", "num_layers"),
        "d_model": d_model,
        "d_ff": keys.need("feed_forward_length", "d_ff"),
        "num_heads": num_heads,
        "num_kv_heads": keys.get("attention.head_count_kv", keys.default("num_kv_heads", num_heads)),
        "head_dim": head_dim or d_model // num_heads,
        "context_length": keys.need("context_length", "context_length"),
    }


def _rounded(fields: dict[str, Any]) -> dict[str, Any]:
    """Undoes the rounding of GGUF's float32: 9.999999974752427e-07 was 1e-06."""
    names = [name for name in ("norm_eps", "rope_theta", "local_rope_theta") if fields.get(name)]
    return fields | {name: float(f"{fields[name]:.7g}") for name in names}


def _rows(shapes: Shapes, name: str) -> int | None:
    return shapes[name][0] if name in shapes else None


def _sliding(keys: Metadata, fields: Mapping[str, Any], family: str) -> dict[str, Any]:
    """The fields that only Gemma 2 and 3 have: sliding layers, soft caps, and another scale of queries."""
    num_layers, length = fields["num_layers"], 2 if family == "gemma2" else 6
    window = keys.need("attention.sliding_window", "window")
    if window == 0:
        raise gguf_keys.refuse(f"{family}.attention.sliding_window", window, keys.label)
    caps = (50.0, 30.0) if family == "gemma2" else (None, None)
    scale = _large_gemma_scale(family, num_layers, fields["d_model"], fields["num_heads"])
    sliding: dict[str, Any] = {
        "window": window,
        "query_scale": keys.default("query_scale", scale),
        "local_layers": keys.default("local_layers", period(length, num_layers)),
        "attn_softcap": _cap(keys.get("attn_logit_softcapping", keys.default("attn_softcap", caps[0]))),
        "final_softcap": _cap(keys.get("final_logit_softcapping", keys.default("final_softcap", caps[1]))),
    }
    pattern = keys.get("attention.sliding_window_pattern", None)
    if pattern is not None:
        sliding["local_layers"] = _pattern(
            pattern, num_layers, f"{family}.attention.sliding_window_pattern", keys.label
        )
    theta = None if family == "gemma2" else keys.default("local_rope_theta", GEMMA3_LOCAL_THETA)
    sliding["local_rope_theta"] = keys.get("rope.freq_base_swa", keys.get("rope.local.freq_base", theta))
    return sliding


def _cap(value: float | int | None) -> float | None:
    return float(value) if value else None  # 0 means none


def _pattern(pattern: Any, num_layers: int, name: str, label: str) -> tuple[bool, ...]:
    """For each layer whether it slides. pattern: a period, 0 if all layers slide, or one value a layer."""
    if not isinstance(pattern, np.ndarray):
        return period(pattern, num_layers) if pattern else (True,) * num_layers
    if pattern.shape != (num_layers,) or not set(pattern.tolist()) <= {0, 1}:
        raise UserError(
            f"{label} should give {name} as true or false for each of {num_layers} layers: convert it again."
        )
    return tuple(map(bool, pattern))


def _large_gemma_scale(family: str, num_layers: int, d_model: int, num_heads: int) -> float | None:
    """Gemma 2 and 3 of 27B scale queries by (d_model / num_heads) ** -0.5, the others by head_dim ** -0.5 (None)."""
    return (d_model / num_heads) ** -0.5 if (family, num_layers) in (("gemma2", 46), ("gemma3", 62)) else None


def _rope_scaling(
    keys: Metadata, fields: Mapping[str, Any], shapes: Shapes, factors: np.ndarray | None, family: str
) -> RopeScaling | None:
    """As llama.cpp: the default type is linear, the factor has an older name too, and no factor or 0 is no scaling."""
    longrope = next((name for name in _LONGROPE if name in shapes), None)
    kind = "longrope" if longrope else keys.get("rope.scaling.type", "linear")
    if kind not in ("none", "linear"):
        raise UserError(
            f"{keys.label} scales rotary positions by {kind!r:.60}, but only linear and llama3 can be read: give "
            "another model."
        )
    factor = keys.get("rope.scaling.factor", keys.get("rope.scale_linear", None))
    scaling = None if kind == "none" or not factor else linear(float(factor))
    if factors is None:
        silent = factor is None and keys.get("rope.scaling.type", None) is None
        return keys.default("rope_scaling", None) if silent else scaling
    original = keys.get("rope.scaling.original_context_length", 8192)
    by_factors = _from_factors(np.asarray(factors, np.float64), fields, original, keys.label)
    if by_factors is not None and (scaling is not None or family != "llama"):
        raise UserError(
            f"{keys.label} scales rotary positions by rope_freqs.weight, which only a llama without another scaling "
            "may: give another model."
        )
    return by_factors or scaling


def _from_factors(factors: np.ndarray, fields: Mapping[str, Any], original: int, label: str) -> RopeScaling | None:
    """Llama 3's scaling by its divisors, one a frequency: the largest is the factor, and its bounds are published."""
    head_dim, theta = fields["head_dim"], fields["rope_theta"]
    if factors.shape == (head_dim // 2,) and np.all(np.isfinite(factors)) and np.all(factors > 0):
        if np.allclose(factors, 1.0):
            return None
        for length in dict.fromkeys((original, 8192)):
            scaling = RopeScaling(kind="llama3", factor=float(f"{factors.max():.6g}"), original_context_length=length)
            if np.allclose(
                factors, rope_frequencies(head_dim, theta) / rope_frequencies(head_dim, theta, scaling), 1e-3
            ):
                return scaling
    raise UserError(
        f"{label} holds a rope_freqs.weight that is not Llama 3's, which cannot be read: give another model."
    )


def _check_repeats(keys: Metadata, fields: Mapping[str, Any], label: str, family: str) -> None:
    """Raises a UserError for a key that contradicts what this model computes."""
    head_dim, theta = fields["head_dim"], fields["rope_theta"]
    rotary = keys.get("rope.dimension_count", head_dim)
    if rotary != head_dim:
        raise UserError(
            f"{label} rotates {rotary} of {head_dim} channels a head, but only whole heads can be rotated: give "
            "another model."
        )
    allowed: dict[str, tuple[Any, ...]] = {
        "attention.value_length": (head_dim,),
        "attention.key_length_swa": (head_dim,),
        "attention.value_length_swa": (head_dim,),
        "rope.dimension_count_swa": (head_dim,),
        "embedding_length_out": (fields["d_model"],),
        "attention.layer_norm_epsilon": (0, fields["norm_eps"]),
        "attention.scale": (0, fields.get("query_scale") or head_dim**-0.5),
        "embedding_scale": (0, math.sqrt(fields["d_model"]) if fields.get("embed_scale") else 1),
        "rope.global.freq_base": (theta,),
        # The order of rows that llama.cpp's converter writes has two names.
        "tensor_data_layout": ("reference", "Meta AI original pth") if family == "llama" else ("reference",),
        "hidden_activation": _ACTIVATIONS[fields.get("activation", "silu")],
    }
    if fields.get("local_layers"):
        allowed["rope.local.freq_base"] = (fields["local_rope_theta"] or theta,)
    else:
        context = fields["context_length"]
        # A window as long as the context cuts nothing off.
        allowed["attention.sliding_window"] = (0, max(context, keys.get("attention.sliding_window", 0)))
        allowed["attention.sliding_window_pattern"] = (0, 1)  # a period of 1: none slides
        allowed |= dict.fromkeys(("rope.freq_base_swa", "rope.local.freq_base"), (theta,))
        allowed |= dict.fromkeys(("attn_logit_softcapping", "final_logit_softcapping"), (0,))
    for key, values in allowed.items():
        value = keys.get(key, None)
        if value is not None and not any(_same(value, each) for each in values):
            raise gguf_keys.refuse(f"{family}.{key}", value, label)


def _same(value: Any, other: Any) -> bool:
    """Equal within float32's precision; of one value a layer, all are equal."""
    if isinstance(value, np.ndarray):
        return all(each == other for each in value.tolist())
    if isinstance(value, str) or isinstance(other, str):
        return value == other
    return math.isclose(value, other, rel_tol=1e-5)
