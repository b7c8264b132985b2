"""Checkpoints whose weights are not plain floats: FP8 with scales is dequantised, every other kind is refused by name.

A weight is its FP8 number times a scale. There is one scale for the matrix, one for each row (output channel), or one
for each block (DeepSeek, arXiv 2412.19437, section 3.3). Scales of activations and of a cache are not used, since the
run computes in its own dtype.
"""

import pathlib
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from cascades.checkpoints.fields import Fields
from cascades.checkpoints.json_files import read_object
from cascades.errors import UserError

# Scales of activations, and of keys and values in a cache.
_ACTIVATION_SCALES = re.compile(r"\.(input_scale|input_scale_ub|activation_scale|output_scale|[qkv]_scale|kv_scale)$")
_SUFFIXES = ("weight_scale_inv", "weight_scale")  # weights are multiplied by either, whatever the first is called
_INSTEAD = "give its weights in bfloat16, in FP8 with scales, or a GGUF file"
# The settings that each method may have; which modules they concern is seen from the tensors.
_SETTINGS = {
    "fp8": "activation_scheme dequantize fmt ignored_layers kv_cache_scheme modules_to_convert modules_to_not_convert "
    "scale_fmt weight_block_size",
    "fbgemm_fp8": "activation_scale_ub modules_to_not_convert",
    "compressed-tensors": "config_groups dequantize format global_compression_ratio ignore kv_cache_scheme "
    "quantization_status run_compressed sparsity_config transform_config use_optimized_inference version",
    "modelopt": "config_groups exclude_modules ignore kv_cache_quant_algo kv_cache_scheme producer quant_algo "
    "quantization",
}
# Files of their own in which some tools write the settings, and the method where they do not name it.
_FILES = {"hf_quant_config.json": "modelopt", "quantize_config.json": "gptq", "quant_config.json": "awq"}


FLOAT8 = {"F8_E4M3": ml_dtypes.float8_e4m3fn, "F8_E5M2": ml_dtypes.float8_e5m2}


class Float8Scheme(NamedTuple):
    """How FP8 weights are scaled.

    method: the `quant_method`. block: the rows and columns that share a scale; None if a matrix or a row does.
    """

    method: str
    block: tuple[int, int] | None


def with_settings(raw: Mapping[str, Any], directory: pathlib.Path) -> Mapping[str, Any]:
    """A `config.json` with the quantisation that a file beside it describes, unless it has its own."""
    if raw.get("quantization_config") is not None:
        return raw
    for name, method in _FILES.items():
        if (directory / name).exists():
            settings = read_object(directory / name)
            inner = settings.get("quantization")
            if method == "modelopt" and isinstance(inner, dict) and inner.get("quant_algo") is None:
                continue  # nothing was quantised
            return {**raw, "quantization_config": {"quant_method": method, **settings}}
    return raw


def scheme(raw: Mapping[str, Any], label: str) -> Float8Scheme | None:
    """How the weights of a `config.json` are quantised; None if they are not.

    Raises:
      UserError: in a way that is not supported.
    """
    fields = Fields(raw, label)
    places = [fields, fields.inner("text_config")] if isinstance(raw.get("text_config"), dict) else [fields]
    schemes = {_scheme(settings) for place in places if place for settings in _settings(place)}
    if len(schemes) > 1:
        raise UserError(f"{label} says in two places how it is quantised, and not alike: {_INSTEAD}.")
    return schemes.pop() if schemes else None


def _settings(fields: Fields) -> Iterable[Fields]:
    for name in ("quantization_config", "quantization", "compression_config"):
        inner = None if fields.values.get(name) is False else fields.inner(name)
        if inner is not None:
            yield inner


def _scheme(settings: Fields) -> Float8Scheme:
    method = settings.text("quant_method") or _unnamed(settings.values)
    if method not in _SETTINGS:
        raise _refused(settings, method)
    known = {"quant_method", *_SETTINGS[method].split()}
    for name, value in settings.values.items():
        if name not in known and value is not None and value is not False and value not in ([], {}):
            raise UserError(
                f"{settings.label} describes weights quantised by {method} with {settings.at}{name}, which is not "
                f"known: {_INSTEAD}."
            )
    if method == "fp8":
        if "weight_block_size" not in settings.values:
            return Float8Scheme(method, (128, 128))
        return Float8Scheme(method, _block(settings, "weight_block_size"))
    if method == "compressed-tensors":
        return _compressed(settings)
    if method == "modelopt":
        algorithm = settings.text("quant_algo") or _nested(settings, "quantization").text("quant_algo")
        if algorithm != "FP8":
            raise _refused(settings, f"modelopt as {algorithm}")
    return Float8Scheme(method, None)


def _unnamed(values: Mapping[str, Any]) -> str:
    """The method of settings that do not name it."""
    if values.get("load_in_4bit") or values.get("load_in_8bit"):
        return "bitsandbytes"
    return "a method that is not named"


def _refused(settings: Fields, how: str) -> UserError:
    bits = next(
        (settings.values[name] for name in ("bits", "w_bit") if isinstance(settings.values.get(name), int)), None
    )
    how = f"{how} to {bits} bits" if bits else how
    return UserError(
        f"{settings.label} describes weights that are quantised by {how[:100]}, which is not read: {_INSTEAD}."
    )


def _nested(settings: Fields, name: str) -> Fields:
    return settings.inner(name) or Fields({}, settings.label, f"{settings.at}{name}.")


def _compressed(settings: Fields) -> Float8Scheme:
    """The scheme of compressed-tensors, if the weights of all groups are 8-bit floats."""
    form = settings.text("format")
    groups = _nested(settings, "config_groups")
    plain = _nested(settings, "sparsity_config").text("format", "dense") == "dense"
    if form not in ("float-quantized", "naive-quantized") or not groups.values or not plain:
        raise _refused(settings, f"compressed-tensors as {form}" if plain else "compressed-tensors with sparsity")
    if settings.inner("transform_config") is not None:
        raise _refused(settings, "compressed-tensors with transforms of the activations")
    blocks = set()
    for name in groups.values:
        weights = _nested(_nested(groups, name), "weights")
        strategy = weights.text("strategy")
        eight = weights.size("num_bits", 0, least=0) == 8 and weights.text("type") == "float"
        if not eight or strategy not in ("tensor", "channel", "block") or not weights.flag("symmetric", True):
            raise _refused(
                settings,
                f"compressed-tensors with weights of {weights.values.get('num_bits')} bits "
                f"({weights.values.get('type')}, {strategy})",
            )
        blocks.add(_block(weights, "block_structure") if strategy == "block" else None)
    if len(blocks) > 1:
        raise _refused(settings, "compressed-tensors in several layouts at once")
    return Float8Scheme("compressed-tensors", blocks.pop())


def _block(settings: Fields, name: str) -> tuple[int, int] | None:
    value = settings.values.get(name)
    if value is None:
        return None
    if not isinstance(value, list) or len(value) != 2 or not all(type(n) is int and n > 0 for n in value):
        raise settings.wrong(name, "two whole numbers, the rows and columns of a block")
    return value[0], value[1]


def scales(
    dtypes: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]], scheme: Float8Scheme | None, label: str
) -> dict[str, str]:
    """For each FP8 weight of a quantised checkpoint the name of its scales.

    Args:
      dtypes, shapes: of all tensors, by name.
      scheme: None if the checkpoint is not quantised; then its FP8 numbers are the weights, and there are no scales.

    Raises:
      UserError: a weight with no scales, with two, or with scales that do not fit its shape.
    """
    weights: dict[str, str] = {}
    if scheme is None:
        return weights
    for name in (name for name, dtype in dtypes.items() if dtype in FLOAT8):
        module = name.removesuffix("weight")
        candidates = [scale for suffix in _SUFFIXES if (scale := f"{module}{suffix}") in dtypes]
        if len(candidates) != 1:
            raise UserError(
                f"{label} says that it is quantised by {scheme.method}, so {name} should have scales, weight_scale or "
                f"weight_scale_inv, but has {'both' if candidates else 'none'}: fetch it again."
            )
        scale = candidates[0]
        if not _fits(shapes[name], shapes[scale], scheme.block):
            layout = f", in blocks of {list(scheme.block)}" if scheme.block else ""
            raise UserError(
                f"{label} holds {scale} of shape {list(shapes[scale])}, which does not fit {name} of "
                f"{list(shapes[name])}{layout}: give that model's files."
            )
        weights[name] = scale
    return weights


def is_of_activations(name: str) -> bool:
    """Whether a tensor of an FP8 checkpoint scales activations or a cache."""
    return bool(_ACTIVATION_SCALES.search(name))


def _fits(shape: tuple[int, ...], scale: tuple[int, ...], block: tuple[int, int] | None) -> bool:
    if len(shape) != 2:
        return False
    rows, columns = shape
    if scale in ((), (1,), (1, 1)):
        return block is None or len(scale) < 2 or (rows <= block[0] and columns <= block[1])
    if block is None:
        return scale in ((rows,), (rows, 1))
    return scale == (-(-rows // block[0]), -(-columns // block[1]))


def dequantise(weights: np.ndarray, scale: np.ndarray, block: tuple[int, int] | None) -> np.ndarray:
    """The weights times their scales, float32 `[o, i]`.

    Args:
      weights: FP8 `[o, i]`.
      scale: of any float dtype: one number, `[o]`, `[o, 1]`, or, with `block`, one for each block; the last block of a
        row or column may be smaller.
    """
    wide, scale = weights.astype(np.float32), scale.astype(np.float32)
    if scale.size == 1:
        return wide * scale.reshape(())
    if block is None:
        return wide * scale.reshape(-1, 1)
    rows, columns = weights.shape
    for i, row in enumerate(np.repeat(scale, block[1], axis=1)[:, :columns]):
        wide[i * block[0] : (i + 1) * block[0]] *= row
    return wide
