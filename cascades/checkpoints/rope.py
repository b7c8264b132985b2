"""Rotary positions of a Hugging Face `config.json`, in either spelling.

transformers 4 writes `rope_theta`, `rope_scaling` and, for Gemma 3's sliding layers, `rope_local_base_freq`;
transformers 5 writes all of them into `rope_parameters`, for Gemma 3 with one object for each kind of layer. If a file
has both, transformers' versions disagree about which counts, so they must agree.
"""

from collections.abc import Sequence
from typing import NamedTuple

from cascades.checkpoints.families import GEMMA3_LOCAL_THETA, linear
from cascades.checkpoints.fields import Fields
from cascades.errors import UserError
from cascades.models import RopeScaling

_GEMMA3_THETA = 1_000_000.0
LAYERS = ("full_attention", "sliding_attention")
_NAMES = ("rope_type", "type", "rope_theta", "partial_rotary_factor")
# The fields that each kind reads, and those that published files have though nothing reads them.
_KINDS = {
    "default": ("original_max_position_embeddings", "finetuned"),
    "linear": ("factor", "original_max_position_embeddings", "finetuned"),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}


class Rope(NamedTuple):
    """theta, local_theta: the bases of the frequencies of full and of sliding layers. scaling: of full layers."""

    theta: float
    local_theta: float
    scaling: RopeScaling | None


def rope(fields: Fields, family: str, context_length: int) -> Rope:
    """The rotary positions of a config.

    Args:
      fields: the config's.
      family: a key of `FAMILY`.
      context_length: the default for the context length of Llama 3's scaling.

    Raises:
      UserError: an unknown kind, a field that is missing or not a number, or two spellings that disagree.
    """
    parameters, scaling = fields.inner("rope_parameters"), fields.inner("rope_scaling")
    local = None
    if parameters is not None and any(name in parameters.values for name in LAYERS):
        if family != "gemma3":
            raise fields.wrong("rope_parameters", "one object for all layers")
        if others := sorted(set(parameters.values) - set(LAYERS)):
            raise parameters.wrong(others[0], "nothing beside full_attention and sliding_attention")
        parameters, local = (parameters.inner(name) for name in LAYERS)
    elif parameters is not None and family == "gemma3":
        raise fields.wrong("rope_parameters", "objects full_attention and sliding_attention")
    spellings = [each for each in (parameters, scaling) if each is not None]
    scalings = [_scaling(each, context_length) for each in spellings]
    if len(set(scalings)) > 1:
        raise UserError(
            f"{fields.label} scales rotary positions in two ways, rope_parameters and rope_scaling: delete the one "
            "that does not hold."
        )
    if local is not None and _scaling(local, context_length) is not None:
        raise local.wrong("rope_type", "default, since sliding layers cannot be scaled here")
    default = _GEMMA3_THETA if family == "gemma3" else 10_000.0
    theta = _theta([(each, "rope_theta") for each in (*spellings, fields)], default)
    places = [] if local is None else [(local, "rope_theta")]
    local_theta = _theta([*places, (fields, "rope_local_base_freq")], GEMMA3_LOCAL_THETA)
    return Rope(theta, local_theta, scalings[0] if scalings else None)


def _theta(places: Sequence[tuple[Fields, str]], default: float) -> float:
    """The base that `places` give: objects and names of fields. Raises a UserError if two differ."""
    bases = [(place, name, place.number(name)) for place, name in places if place.has(name)]
    for place, name, theta in bases[1:]:
        first, key, value = bases[0]
        if theta != value:
            raise UserError(
                f"{place.label} gives {first.at}{key} as {value:g}, but {place.at}{name} as {theta:g}: delete the one "
                "that does not hold."
            )
    return bases[0][2] if bases else default


def _scaling(fields: Fields, context_length: int) -> RopeScaling | None:
    kind = fields.text("rope_type", fields.text("type")) or "default"
    if fields.has("rope_type") and fields.has("type") and fields.values["type"] != kind:
        raise fields.wrong("type", f"{kind}, as rope_type")
    if kind not in _KINDS:
        raise UserError(
            f"{fields.label} scales rotary positions by {kind!r}, but only linear and llama3 can be read: give another "
            "model."
        )
    for name, value in fields.values.items():
        if name not in (*_NAMES, *_KINDS[kind]) and value is not None:
            raise fields.wrong(name, f"nothing, since {kind} rotary positions have none")
    if fields.number("partial_rotary_factor", 1.0) != 1.0:
        raise fields.wrong("partial_rotary_factor", "1.0, since only whole heads can be rotated")
    if kind == "default":
        return None
    factor = fields.number("factor")
    if kind == "linear":
        return linear(factor)
    low, high = fields.number("low_freq_factor"), fields.number("high_freq_factor")
    if low >= high:
        raise fields.wrong("low_freq_factor", "less than high_freq_factor")
    original = fields.size("original_max_position_embeddings", context_length)
    return RopeScaling(
        kind=kind, factor=factor, low_freq_factor=low, high_freq_factor=high, original_context_length=original
    )
