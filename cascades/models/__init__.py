"""Language models behind the `cascades.typing.Model` contract."""

from cascades.models.api import abstract_params, count_params, decoder, logical_axes
from cascades.models.config import DecoderConfig, RopeScaling
from cascades.models.ngram import ngram
from cascades.models.presets import PRESETS, preset

__all__ = [
    "PRESETS",
    "DecoderConfig",
    "RopeScaling",
    "abstract_params",
    "count_params",
    "decoder",
    "logical_axes",
    "ngram",
    "preset",
]
