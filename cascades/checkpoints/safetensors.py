"""Directories of Hugging Face models: `config.json` and one or several `*.safetensors`."""

import json
import pathlib
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from cascades.checkpoints import huggingface_configs, names, t5
from cascades.checkpoints.reader import Reader, empty
from cascades.checkpoints.sources import first_line
from cascades.errors import UserError
from cascades.models import Config, T5Config, presets

INDEX = "model.safetensors.index.json"
_PART = 32 * 2**20  # bytes that are read of a tensor at once, where only a part is wanted


def open_reader(directory: pathlib.Path, preset: str | None = None) -> Reader:
    """Opens the model of a directory.

    Args:
      directory: holds `config.json`, and the shards that the index names or, without an index, all `*.safetensors`.
      preset: the architecture where there is no `config.json`.

    Raises:
      UserError: no weights, a shard that is missing or cut off, or an architecture that is not known.
    """
    files = {path: _open(path) for path in _shards(directory)}
    where = {name: path for path, file in files.items() for name in file.keys()}  # noqa: SIM118 - not a dict
    config = read_config(directory, preset)
    shapes = {
        name: tuple(files[path].get_slice(name).get_shape()) for name, path in where.items() if names.is_weight(name)
    }
    if config.tied_head:  # some files repeat the embedding
        shapes = {name: shape for name, shape in shapes.items() if not name.endswith("lm_head.weight")}

    def read(name: str, dtype) -> np.ndarray:
        out = empty(shapes[name], dtype)
        out[...] = files[where[name]].get_tensor(name)
        return out

    def part(name: str, dtype, index: tuple[slice, ...]) -> np.ndarray:
        source = files[where[name]].get_slice(name)
        starts, stops, _ = zip(
            *(each.indices(size) for each, size in zip(index, shapes[name], strict=True)), strict=True
        )
        out = empty(tuple(stop - start for start, stop in zip(starts, stops, strict=True)), dtype)
        # In parts: the library copies twice what it is asked for.
        rows = max(1, _PART // max(out[:1].nbytes, 1))
        for row in range(starts[0], stops[0], rows):
            end = min(row + rows, stops[0])
            out[row - starts[0] : end - starts[0]] = source[(slice(row, end), *index[1:])]
        return out

    table = t5.huggingface(config) if isinstance(config, T5Config) else names.huggingface(config, shapes)
    return Reader(str(directory), config, table, shapes, read, part)


def read_config(directory: pathlib.Path, preset: str | None = None) -> Config:
    """The architecture: of `config.json`, or of a preset where there is none."""
    path = directory / "config.json"
    if path.exists():
        return huggingface_configs.from_huggingface(_json(path), str(path))
    if preset is None:
        raise UserError(f"{directory} should hold a config.json beside its weights: add it, or name its preset.")
    return presets.preset(preset)


def _shards(directory: pathlib.Path) -> list[pathlib.Path]:
    index = directory / INDEX
    if not index.exists():
        return sorted(directory.glob("*.safetensors"))
    shards = [directory / name for name in sorted(set(_json(index).get("weight_map", {}).values()))]
    missing = [path.name for path in shards if not path.exists()]
    if missing:
        raise UserError(
            f"{directory} should hold the {len(shards)} files that {INDEX} names, but {', '.join(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} missing: fetch the model again."
        )
    return shards


def _open(path: pathlib.Path) -> Any:
    try:
        return safe_open(path, framework="np")
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path} should be a whole safetensors file, but is cut off ({first_line(error)}): fetch it again."
        ) from None


def _json(path: pathlib.Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} should be JSON, but is not ({error}): fetch it again.") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} should hold a JSON object, but holds a {type(value).__name__}: fetch it again.")
    return value
