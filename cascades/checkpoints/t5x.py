"""Checkpoints that T5X writes: a msgpack file `checkpoint`, and beside it a zarr array for every large tensor.

The format: https://github.com/google-research/t5x, t5x/checkpoints.py.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorstore as ts
from flax import serialization

from cascades.checkpoints import t5
from cascades.checkpoints.reader import Reader, Stored, empty, flatten
from cascades.checkpoints.sources import AnyPath, first_line
from cascades.errors import UserError
from cascades.models import T5Config

INDEX = "checkpoint"


def is_checkpoint(directory: AnyPath) -> bool:
    """Whether T5X wrote a checkpoint here."""
    return (directory / INDEX).exists()


def open_reader(directory: AnyPath) -> Reader:
    """Opens a checkpoint; its shapes tell which T5 it is. The optimiser's state is not read.

    Raises:
      UserError: not a checkpoint, damaged, or not a T5.
    """
    tensors = _tensors(directory)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    config = t5.from_t5x(shapes, str(directory))

    def read(name: str, dtype) -> np.ndarray:
        tensor = tensors[name]
        out = empty(shapes[name], dtype)
        try:
            out[...] = tensor if isinstance(tensor, np.ndarray) else tensor.read().result()
        except (ValueError, OSError) as error:
            raise UserError(f"{directory} is damaged at {name} ({first_line(error)}): fetch it again.") from None
        return out

    return Reader(str(directory), config, t5.t5x(config), shapes, read)


def read_config(directory: AnyPath) -> T5Config:
    """The architecture, inferred from the shapes of the tensors."""
    shapes = {name: each.shape for name, each in stored(directory).items()}
    return t5.from_t5x(shapes, str(directory))


def stored(directory: AnyPath) -> dict[str, Stored]:
    """The shape and type of every parameter; arrays outside the index are opened, not read."""
    return {name: Stored(tuple(each.shape), each.dtype.name) for name, each in _tensors(directory).items()}


def _tensors(directory: AnyPath) -> dict[str, Any]:
    """Every parameter by its path: a NumPy array from the index, or an opened TensorStore."""
    path = directory / INDEX
    try:
        tree: Any = serialization.msgpack_restore(path.read_bytes())["optimizer"]["target"]
        leaves = flatten(_with_names(tree))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{path} should be the index of a T5X checkpoint, but cannot be read: give one.") from None
    tensors: dict[str, Any] = {}
    if outside := [leaf for leaf in leaves.values() if isinstance(leaf, str) and ".." in leaf.split("/")]:
        raise UserError(
            f"{path} should name arrays beside it, but names {outside[0][:100]!r}: give another checkpoint."
        )
    for names, leaf in leaves.items():
        tensors["/".join(names)] = ts.open(_spec(directory, leaf), read=True) if isinstance(leaf, str) else leaf
    try:
        return {name: leaf.result() if isinstance(leaf, ts.Future) else leaf for name, leaf in tensors.items()}
    except (ValueError, OSError) as error:
        raise UserError(
            f"{directory} should hold the {len(tensors)} tensors that its index names, but one is missing or damaged "
            f"({first_line(error)}): fetch it again."
        ) from None


def _with_names(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The tree with NumPy arrays, and with the directory's name in place of each TensorStore specification."""
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        if not isinstance(value, Mapping):
            leaves[key] = np.asarray(value)
        elif isinstance(value.get("driver"), str):
            leaves[key] = (value.get("path") or value["kvstore"]["path"]).strip("/")
        else:
            leaves[key] = _with_names(value)
    return leaves


def _spec(directory: AnyPath, name: str) -> dict[str, Any]:
    """Where an array lies now. The index says where it lay when it was written, and checkpoints are moved and copied.

    A chunk that is missing is an error: by default zarr reads zeros in its place. T5X stores every chunk, since it
    gives its arrays no fill value.
    """
    uri = f"{directory}/{name}/"
    place = {"driver": "file", "path": uri}
    if uri.startswith("gs://"):
        bucket, _, path = uri.removeprefix("gs://").partition("/")
        place = {"driver": "gcs", "bucket": bucket, "path": path}
    return {"driver": "zarr", "kvstore": place, "fill_missing_data_reads": False}
