"""A model's architecture in our own form, and that of a released Gemma checkpoint, which says none."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from cascades.checkpoints.families import Shapes
from cascades.checkpoints.sources import first_line
from cascades.errors import UserError
from cascades.models import PRESETS, Config, DecoderConfig, RopeScaling, T5Config, presets


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
