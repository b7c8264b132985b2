"""Language models behind the `cascades.typing.Model` contract."""

from cascades.models.api import abstract_params, build, count_params, decoder, encoder_decoder, logical_axes
from cascades.models.config import Config, DecoderConfig, RopeScaling, T5Config
from cascades.models.presets import PRESETS, decoder_preset, preset

__all__ = [
    "PRESETS",
    "Config",
    "DecoderConfig",
    "RopeScaling",
    "T5Config",
    "abstract_params",
    "build",
    "count_params",
    "decoder",
    "decoder_preset",
    "encoder_decoder",
    "logical_axes",
    "preset",
]
