"""What the configs of all formats share: the constants of each family."""

from collections.abc import Mapping
from typing import Any

from cascades.models import RopeScaling

Shapes = Mapping[str, tuple[int, ...]]

# Fields of `DecoderConfig` that follow from the family.
FAMILY: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {"qkv_bias": True},
    "gemma": {"activation": "gelu_tanh", "embed_scale": True},
    "gemma2": {"activation": "gelu_tanh", "embed_scale": True, "post_norms": True},
    "gemma3": {"activation": "gelu_tanh", "embed_scale": True, "post_norms": True, "qk_norm": True},
}
GEMMA3_LOCAL_THETA = 10_000.0


def period(length: int, num_layers: int) -> tuple[bool, ...]:
    """For each layer whether it slides: all but the last of every `length`."""
    return tuple((i + 1) % length != 0 for i in range(num_layers))


def linear(factor: float) -> RopeScaling | None:
    """Linear scaling of rotary positions; None for a factor of 1, which changes nothing."""
    return None if factor == 1.0 else RopeScaling(kind="linear", factor=float(factor))
