"""Every key with which a GGUF file may describe a model: read, known to change nothing, or refused by name.

A key that stands in no table below may mean anything, so it is refused unless its value says nothing (0, false, empty).
Sources: llama.cpp (llama-arch.cpp, and what llama-model.cpp does where a key is missing), `gguf.constants.Keys`, and
the keys that Ollama's converter writes for Gemma 3.
"""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import gguf
import numpy as np

from cascades.errors import UserError
from cascades.models import presets


class Kind(NamedTuple):
    """What a value must be, in words and as a test."""

    words: str
    fits: Callable[[Any], bool]


def whole(low: int, high: int) -> Kind:
    """A whole number from `low` to `high`."""
    words = str(low) if low == high else f"a whole number from {low} to {high}"
    return Kind(words, lambda value: type(value) is int and low <= value <= high)


def number(low: float, high: float) -> Kind:
    """A number from `low` to `high`."""
    return Kind(
        f"a number from {low:g} to {high:g}",
        lambda value: type(value) in (int, float) and math.isfinite(value) and low <= value <= high,
    )


TEXT = Kind("text", lambda value: isinstance(value, str))
FLAG = Kind("true or false", lambda value: isinstance(value, bool))
SIZE = whole(1, 2**31 - 1)
_LAYERS = whole(1, 4096)  # llama.cpp takes 512; a false header could ask for the names of billions of tensors
_BASE = number(1.0, 1e15)
_FACTOR = number(0.0, 1e6)
_CAP = number(0.0, 1e6)
_PATTERN = Kind(
    "a period, or true or false for each layer",
    lambda value: (type(value) is int and 0 <= value < 2**31) or (isinstance(value, np.ndarray) and value.ndim == 1),
)

# Keys of the architecture that `gguf_configs` reads or compares.
READ: dict[str, Kind] = {
    "block_count": _LAYERS,
    "context_length": SIZE,
    "embedding_length": SIZE,
    "embedding_length_out": SIZE,
    "embedding_scale": number(0.0, 1e6),
    "feed_forward_length": SIZE,
    "vocab_size": SIZE,
    "attention.head_count": SIZE,
    "attention.head_count_kv": SIZE,
    "attention.key_length": SIZE,
    "attention.value_length": SIZE,
    "attention.key_length_swa": SIZE,
    "attention.value_length_swa": SIZE,
    "attention.layer_norm_rms_epsilon": number(1e-30, 1.0),
    "attention.layer_norm_epsilon": number(0.0, 1.0),
    "attention.scale": number(0.0, 1e6),
    "attention.sliding_window": whole(0, 2**31 - 1),
    "attention.sliding_window_pattern": _PATTERN,
    "attn_logit_softcapping": _CAP,
    "final_logit_softcapping": _CAP,
    "hidden_activation": TEXT,
    "tensor_data_layout": TEXT,
    "rope.dimension_count": SIZE,
    "rope.dimension_count_swa": SIZE,
    "rope.freq_base": _BASE,
    "rope.freq_base_swa": _BASE,
    "rope.global.freq_base": _BASE,
    "rope.local.freq_base": _BASE,
    "rope.scaling.type": TEXT,
    "rope.scaling.factor": _FACTOR,
    "rope.scale_linear": _FACTOR,
    "rope.scaling.original_context_length": SIZE,
}
# Keys of which some converters write one value a layer.
_PER_LAYER = ("feed_forward_length", "attention.head_count", "attention.head_count_kv")

# Keys that change the result with any value but these; a scale of 0 means none.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "attention.causal": (True,),
    "attention.output_scale": (0, 1),
    "attention.value_scale": (0, 1),
    "expert_weights_scale": (0, 1),
    "logit_scale": (0, 1),
    "residual_scale": (0, 1),
    "rope.freq_scale": (1,),
    "rope.freq_scale_swa": (1,),
    "rope.scaling.alpha": (0, 1),
    "rope.scaling.attn_factor": (1,),
    "rope.scaling.yarn_attn_factor": (1, -1),  # -1: the default of the type of scaling
    "rope.scaling.yarn_ext_factor": (0, -1),
}
# Keys that change nothing here: how a scaling came about, bounds that only YaRN reads, and other parts of a multimodal
# file, whose tensors are not read either.
_HARMLESS = re.compile(r"rope\.scaling\.(finetuned|yarn_beta_fast|yarn_beta_slow)|(vision|audio|mm)\..*")

# Groups of keys that mark a file as something else than a plain decoder. Vendors' groups (`quantize.*`,
# `mradermacher.*`) describe how the file was made, and no reader uses them.
_OTHER_FILES = {
    "adapter": "an adapter, which has no model of its own",
    "diffusion": "a diffusion model",
    "xielu": "a model with another activation (xIELU)",
}


class Metadata:
    """Lookups among the keys of an architecture, then in the preset, if one is named.

    values: the checked keys, without the architecture's name before them. label: what messages call the file.
    """

    def __init__(self, values: Mapping[str, Any], label: str, preset: str | None):
        self.values = values
        self.label = label
        self.preset = None if preset is None else presets.decoder_preset(preset)

    def get(self, key: str, default: Any) -> Any:
        """The value of a key. Raises a UserError if it differs between layers."""
        value = self.values.get(key, default)
        # Some converters write one value a layer where all are alike.
        if isinstance(value, np.ndarray) and key != "attention.sliding_window_pattern":
            if len(set(value.tolist())) != 1:
                raise UserError(
                    f"{self.label} gives a {key} that differs between layers, which cannot be read: give another model."
                )
            return value[0].item()
        return value

    def default(self, field: str, default: Any) -> Any:
        """The preset's value of a field; `default` without a preset."""
        return default if self.preset is None else getattr(self.preset, field)

    def need(self, key: str, field: str | None = None) -> Any:
        """The value of a key, or of the preset's `field`. Raises a UserError if neither is there."""
        value = self.get(key, None if field is None else self.default(field, None))
        if value is None:
            raise UserError(f"{self.label} should say {key}, but does not: name its preset, or give another file.")
        return value


def check(metadata: Mapping[str, Any], label: str, family: str) -> None:
    """Checks that all keys of a file are understood.

    Raises:
      UserError: names a key that is of the wrong type, out of range or unknown, or that marks the file as something
        else.
    """
    kind = metadata.get("general.type", "model")
    if not isinstance(kind, str) or kind != "model":
        raise UserError(
            f"{label} should hold a model, but its general.type is {_shown(kind)}: give the model's own file."
        )
    architectures = set(gguf.MODEL_ARCH_NAMES.values()) - {"clip", family}
    for name, value in metadata.items():
        group, _, key = name.partition(".")
        if group == family and key:
            _check_key(key, value, metadata, label, family)
        elif group in _OTHER_FILES:
            raise UserError(f"{label} should hold a model, but {name} says that it is {_OTHER_FILES[group]}.")
        elif group in architectures and not _says_nothing(value):
            raise UserError(
                f"{label} should hold a {family} alone, but {name} describes a model of another architecture: convert "
                "it again."
            )


def expect(name: str, value: Any, kind: Kind, label: str) -> Any:
    """`value`, if it is of that kind.

    Raises:
      UserError: it is not; names the file and the key.
    """
    if not kind.fits(value):
        raise UserError(f"{label} should give {name} as {kind.words}, not {_shown(value)}: fetch or convert it again.")
    return value


def refuse(name: str, value: Any, label: str) -> UserError:
    """The error for a key that is unknown or not supported."""
    return UserError(
        f"{label} asks for {name} = {_shown(value)}, which would change the model's numbers and is not supported: give "
        "another model."
    )


def _check_key(key: str, value: Any, metadata: Mapping[str, Any], label: str, family: str) -> None:
    name = f"{family}.{key}"
    if value is None:
        return
    if key in _PER_LAYER and isinstance(value, np.ndarray):
        layers = expect(f"{family}.block_count", metadata.get(f"{family}.block_count"), _LAYERS, label)
        if value.shape != (layers,):
            raise UserError(f"{label} should give {name} once, or for each of {layers} layers, not {value.size} times.")
        for each in value.tolist():
            expect(name, each, READ[key], label)
    elif key in READ:
        expect(name, value, READ[key], label)
    elif key in _NEUTRAL:
        if not any(type(value) in (bool, int, float) and value == neutral for neutral in _NEUTRAL[key]):
            raise refuse(name, value, label)
    elif key == "expert_count" and not _says_nothing(value):
        raise UserError(f"{label} is a mixture of experts, but only dense models can be read: give a dense one.")
    elif not _HARMLESS.fullmatch(key) and not _says_nothing(value):
        raise refuse(name, value, label)


def _says_nothing(value: Any) -> bool:
    return not np.any(value) if isinstance(value, np.ndarray) else not value


def _shown(value: Any) -> str:
    if isinstance(value, list | np.ndarray):
        return f"an array of {len(value)}"
    return f"{value!r:.60}"
