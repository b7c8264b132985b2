"""A model's architecture as JSON of our own, or inferred from the tensors of a released Gemma checkpoint."""

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from typing import Any

from cascades.checkpoints.families import Shapes
from cascades.checkpoints.fields import MAX_SIZE
from cascades.checkpoints.sources import first_line
from cascades.errors import UserError
from cascades.models import PRESETS, Config, DecoderConfig, RopeScaling, T5Config, presets


def from_gemma(shapes: Shapes, label: str, *, preset: str | None = None) -> DecoderConfig:
    """The architecture of a released Gemma checkpoint, which has no config: the preset of its sizes.

    Args:
      shapes: of its tensors by name, without the leading `transformer/`.
      label: what messages call the checkpoint.
      preset: the name of the preset to take, whatever the sizes.

    Raises:
      UserError: not a Gemma, or of sizes that no preset has.
    """
    embedding, output = shapes.get("embedder/input_embedding", ()), shapes.get("layer_0/attn/attn_vec_einsum/w", ())
    if len(embedding) != 2 or len(output) != 3:
        raise UserError(
            f"{label} should be a released Gemma checkpoint, but lacks an embedder/input_embedding of two axes or a "
            "layer_0/attn/attn_vec_einsum/w of three: give one."
        )
    vocab, d_model = embedding
    if preset is not None:
        return dataclasses.replace(presets.decoder_preset(preset), vocab_size=vocab)
    num_heads, head_dim, _ = output
    num_layers = sum(key.endswith("attn/attn_vec_einsum/w") for key in shapes)
    sizes = (num_layers, d_model, num_heads, head_dim)
    for config in PRESETS.values():
        if not isinstance(config, DecoderConfig):
            continue
        same_sizes = (config.num_layers, config.d_model, config.num_heads, config.head_dim) == sizes
        if same_sizes and config.embed_scale and config.qk_norm == ("layer_0/attn/_query_norm/scale" in shapes):
            return dataclasses.replace(config, vocab_size=vocab)
    raise UserError(
        f"{label} has {num_layers} layers of width {d_model} with {num_heads} heads of {head_dim}, and no Gemma "
        "known here has: name its preset."
    )


def to_json(config: Config) -> dict[str, Any]:
    """The architecture in our own form, for `json.dumps`."""
    return dataclasses.asdict(config)


def from_json(raw: Mapping[str, Any], label: str) -> Config:
    """The inverse of `to_json`.

    Raises:
      UserError: a field that is unknown, missing or not of its type.
    """
    kind = T5Config if "num_decoder_layers" in raw else DecoderConfig
    known = {field.name for field in dataclasses.fields(kind)}
    unknown = sorted(set(raw) - known)
    if unknown:
        raise UserError(f"{label} gives {', '.join(unknown)}, which this version does not know: upgrade cascades.")
    try:
        return _build(kind, raw)
    except (TypeError, UserError) as error:
        raise UserError(f"{label} does not describe a model ({first_line(error)}): convert it again.") from None


def _build(kind: type, raw: Mapping[str, Any]) -> Any:
    """An instance of the dataclass `kind`.

    Raises:
      TypeError: a field that is missing, unknown or not of its declared type.
    """
    hints = typing.get_type_hints(kind)
    return kind(**{name: _checked(name, value, hints.get(name, object)) for name, value in raw.items()})


def _checked(name: str, value: Any, hint: Any) -> Any:
    """The value of a field, if it fits the declared type."""
    allowed = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if RopeScaling in allowed and isinstance(value, dict):
        return _build(RopeScaling, value)
    if typing.get_origin(hint) is tuple and isinstance(value, list) and all(type(each) is bool for each in value):
        return tuple(value)
    if isinstance(value, bool) or value is None or isinstance(value, str):
        fine = type(value) in allowed
    else:
        # Numbers are sizes, factors and bases, which are positive; `start` is the id of a token and may be 0.
        whole = isinstance(value, int) and int in allowed and (name == "start" or value >= 1) and 0 <= value <= MAX_SIZE
        fine = whole or (isinstance(value, int | float) and float in allowed and 0 < value < math.inf)
    if not fine:
        raise TypeError(f"{name} is {str(value)[:60]}")
    return value
