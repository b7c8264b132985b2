"""Directories of Hugging Face models: `config.json` and one or several `*.safetensors`."""

import json
import os
import pathlib
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from cascades.checkpoints import huggingface_configs, names, quantized, shards, t5
from cascades.checkpoints.json_files import read_object
from cascades.checkpoints.reader import Path, Reader, Stored, Tensor, empty
from cascades.checkpoints.shards import INDEX
from cascades.errors import UserError
from cascades.models import Config, T5Config, presets

__all__ = ["INDEX", "open_reader", "read_config"]

_PART = 32 * 2**20  # bytes of a tensor that are read at once, where only a part is wanted
_FLOATS = ("F64", "F32", "F16", "BF16")
_E8M0 = {"F8_E8M0": ml_dtypes.float8_e8m0fnu}  # powers of two: scales alone
_ADAPTER = re.compile(r"(^|\.)(lora_[AB]|lora_embedding_[AB]|lora_magnitude_vector|base_layer|modules_to_save)\.")


class _Tensors(NamedTuple):
    """The tensors of a model's files.

    label: what messages call the directory. shapes, dtypes: of each tensor, as stored. scales: for each tensor in
    scaled FP8 the name of its scales. block: the rows and columns that share a scale. copies: for each repetition of
    the embedding the embedding's name.
    """

    label: str
    files: shards.Shards
    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, str]
    scales: Mapping[str, str]
    block: tuple[int, int] | None
    copies: Mapping[str, str]

    def raw(self, name: str) -> Any:
        """A tensor that can be sliced: the library's lazy slice, or an array of a dtype that the library lacks."""
        kinds = quantized.FLOAT8 | _E8M0
        if self.dtypes[name] in kinds:
            return _mapped(self.files.where[name], name).view(kinds[self.dtypes[name]]).reshape(self.shapes[name])
        return self.files.tensor(name)

    def read(self, name: str, dtype) -> np.ndarray:
        """A whole tensor; one in FP8 times its scales."""
        shape = self.shapes[name]
        out = empty(shape, dtype)
        if name in self.scales:
            out[...] = quantized.dequantise(self.raw(name)[...], self._scale(self.scales[name]), self.block)
        else:
            out[...] = self.raw(name)[...]
        self._check_copies(name, 0, shape[0] if shape else 0)
        return out

    def part(self, name: str, dtype, index: tuple[slice, ...]) -> np.ndarray:
        """`read(name, dtype)[index]` of a tensor without scales."""
        raw = self.raw(name)
        bounds = [each.indices(size)[:2] for each, size in zip(index, self.shapes[name], strict=True)]
        out = empty(tuple(stop - start for start, stop in bounds), dtype)
        start, stop = bounds[0]
        # In blocks of rows: the library copies twice what it is asked for.
        rows = max(1, _PART // max(out[:1].nbytes, 1))
        for row in range(start, stop, rows):
            end = min(row + rows, stop)
            out[row - start : end - start] = raw[(slice(row, end), *index[1:])]
        self._check_copies(name, start, stop)
        return out

    def _scale(self, name: str) -> np.ndarray:
        scale = np.asarray(self.raw(name)[...]).astype(np.float32)
        if not np.isfinite(scale).all():
            raise UserError(f"{self.label} holds scales in {name} that are not finite numbers: fetch it again.")
        return scale

    def _check_copies(self, name: str, start: int, stop: int) -> None:
        """Raises a UserError if rows from `start` to `stop` of a repetition of the embedding `name` differ from it.

        Of such a file transformers 4 takes the embedding for both, and transformers 5 takes each for itself.
        """
        for copy in (copy for copy, original in self.copies.items() if original == name):
            first, second = self.raw(name), self.raw(copy)
            rows = max(1, _PART // max(np.asarray(first[:1]).nbytes, 1))
            for row in range(start, stop, rows):
                end = min(row + rows, stop)
                if not np.array_equal(first[row:end], second[row:end]):
                    raise _differ(self.label, name, copy)


def open_reader(directory: pathlib.Path, preset: str | None = None) -> Reader:
    """Opens the model of a directory.

    Args:
      directory: holds `config.json`, and the shards that the index names or, without an index, those of one model.
      preset: the architecture where there is no `config.json`.

    Raises:
      UserError: no weights, a shard that is missing or cut off, an unknown architecture, or weights in a form that is
        not read.
    """
    label = str(directory)
    files = shards.Shards(directory)
    raw = _raw_config(directory)
    config = _config(directory, raw, preset)
    scheme = None if raw is None else quantized.scheme(raw, str(directory / "config.json"))
    stored_shapes = {name: tuple(files.tensor(name).get_shape()) for name in files.where if names.may_be_read(name)}
    dtypes = {name: files.tensor(name).get_dtype() for name in stored_shapes}
    scales = quantized.scales(dtypes, stored_shapes, scheme, label)
    unread = {*scales.values(), *_drafting(stored_shapes, raw)}
    unread |= {name for name in stored_shapes if scheme and quantized.is_of_activations(name)}
    shapes = {name: shape for name, shape in stored_shapes.items() if name not in unread}
    table, copies = _table(config, shapes)
    for copy, name in copies.items():
        if shapes.pop(copy) != shapes[name]:
            raise _differ(label, name, copy)
    if adapters := [name for name in shapes if _ADAPTER.search(name)]:
        raise UserError(
            f"{label} holds an adapter among its weights ({adapters[0]}): merge it into the model that it changes and "
            "give the result."
        )
    _check_dtypes(label, {tensor.name for tensor in table.values()}, dtypes)
    block = scheme.block if scheme else None
    tensors = _Tensors(label, files, stored_shapes, dtypes, scales, block, copies)
    return Reader(label, config, table, shapes, tensors.read, None if scales else tensors.part)


def directory_of(file: pathlib.Path) -> pathlib.Path:
    """The directory of the model that a file belongs to.

    Raises:
      UserError: its directory holds another model.
    """
    if file not in shards.files_of(file.parent):
        raise UserError(
            f"{file} is not the model of its directory, which is read from other files: move it to a "
            "directory of its own, with its config.json."
        )
    return file.parent


def read_config(directory: pathlib.Path, preset: str | None = None) -> Config:
    """The architecture that `config.json` describes, or that of a preset where there is none."""
    return _config(directory, _raw_config(directory), preset)


def _raw_config(directory: pathlib.Path) -> Mapping[str, Any] | None:
    path = directory / "config.json"
    return quantized.with_settings(read_object(path), directory) if path.exists() else None


def _config(directory: pathlib.Path, raw: Mapping[str, Any] | None, preset: str | None) -> Config:
    if raw is not None:
        return huggingface_configs.from_huggingface(raw, str(directory / "config.json"))
    if preset is None:
        raise UserError(f"{directory} should hold a config.json beside its weights: add it, or name its preset.")
    return presets.preset(preset)


def _table(config: Config, shapes: Mapping[str, tuple[int, ...]]) -> tuple[dict[Path, Tensor], dict[str, str]]:
    """The parameters' tensors, and for each repetition of the embedding the embedding's name."""
    if isinstance(config, T5Config):
        table = t5.huggingface(config, shapes)
        repeated = (*t5.HF_EMBEDDINGS, *((t5.HF_HEAD,) if config.tied_head else ()))
    else:
        table = names.huggingface(config, shapes)
        repeated = names.embeddings(shapes)[2] if config.tied_head else ()
    embedding = table["embed", "embedding"].name
    return table, {name: embedding for name in repeated if name in shapes and name != embedding}


def _drafting(shapes: Iterable[str], raw: Mapping[str, Any] | None) -> list[str]:
    """Tensors of layers behind the last: by the config they are a head that drafts several tokens at once."""
    count, extra = ((raw or {}).get(name) for name in ("num_hidden_layers", "num_nextn_predict_layers"))
    if type(count) is not int or type(extra) is not int:
        return []
    numbers = {name: re.match(r"model\.layers\.(\d{1,9})\.", name) for name in shapes}
    return [name for name, number in numbers.items() if number and count <= int(number[1]) < count + extra]


def _check_dtypes(label: str, used: set[str], dtypes: Mapping[str, str]) -> None:
    wrong = sorted(name for name in used if dtypes.get(name, "F32") not in (*_FLOATS, *quantized.FLOAT8))
    if wrong:
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise UserError(
            f"{label} should hold its weights as floats, but holds {wrong[0]} as {dtypes[wrong[0]]}{more}: give the "
            "model's weights in bfloat16, in FP8 with scales, or a GGUF file."
        )


def _differ(label: str, name: str, copy: str) -> UserError:
    return UserError(
        f"{label} should hold {name} and {copy} as one matrix, as its config says, but they differ: set "
        "tie_word_embeddings to false if the head is one of its own, or delete the copy."
    )


def _mapped(path: pathlib.Path, name: str) -> np.ndarray:
    """The bytes of a tensor, mapped from a file that the library has checked."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        start, stop = json.loads(file.read(length))[name]["data_offsets"]
    raw = np.memmap(path, np.uint8, "r", shape=os.path.getsize(path))
    return raw[8 + length + start : 8 + length + stop]


def stored(directory: pathlib.Path) -> dict[str, Stored]:
    """The shape and type of every tensor of the model's files, from their headers."""
    files = shards.Shards(directory)
    opened = {name: files.tensor(name) for name in files.where}
    return {name: Stored(tuple(each.get_shape()), str(each.get_dtype())) for name, each in opened.items()}
