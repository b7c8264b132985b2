"""What the configs of all formats have in common: the families' constants, lookups, the spelling of fields."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from cascades.errors import UserError
from cascades.models import RopeScaling, presets

Shapes = Mapping[str, tuple[int, ...]]

FAMILY: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {"qkv_bias": True},
    "gemma": {"activation": "gelu_tanh", "embed_scale": True},
    "gemma2": {"activation": "gelu_tanh", "embed_scale": True, "post_norms": True},
    "gemma3": {"activation": "gelu_tanh", "embed_scale": True, "post_norms": True, "qk_norm": True},
}
GEMMA3_LOCAL_THETA = 10_000.0


class Keys:
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


def rounded(fields: dict[str, Any]) -> dict[str, Any]:
    """GGUF keeps float32: 9.999999974752427e-07 was meant to be 1e-06."""
    given = [name for name in ("norm_eps", "rope_theta", "local_rope_theta") if fields.get(name)]
    return fields | {name: float(f"{fields[name]:.7g}") for name in given}


def period(length: int, num_layers: int) -> tuple[bool, ...]:
    """Sliding layers, but for the last of every `length`."""
    return tuple((i + 1) % length != 0 for i in range(num_layers))


def linear(factor: float) -> RopeScaling | None:
    return None if factor == 1.0 else RopeScaling(kind="linear", factor=float(factor))
