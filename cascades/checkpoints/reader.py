"""What all formats of others share: names and shapes are checked at once, then tensors are read one by one."""

import concurrent.futures
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from cascades.errors import UserError
from cascades.models import Config, abstract_params
from cascades.typing import Params

Path = tuple[str, ...]  # the keys of a parameter in the nested tree: ("layers", "0", "q", "kernel")

# NumPy frees the interpreter's lock while it dequantises; each worker holds one tensor.
_WORKERS = min(8, os.cpu_count() or 1)
_SHOWN = 6  # names in a message
_ALIGNMENT = 64  # bytes


class Tensor(NamedTuple):
    """Where one parameter comes from.

    name: its tensor in the checkpoint; several parameters may share one (Gemma's `kv_einsum`).
    shape: the shape it must have there.
    convert: from the checkpoint's layout to ours, on NumPy arrays of the parameter's dtype.
    """

    name: str
    shape: tuple[int, ...]
    convert: Callable[[np.ndarray], np.ndarray]


Table = Mapping[Path, Tensor]


class Stored(NamedTuple):
    """A tensor as a header describes it. kind: its type, as the format spells it."""

    shape: tuple[int, ...]
    kind: str


class Reader(NamedTuple):
    """An opened checkpoint.

    label: what messages call it.
    config: the architecture.
    table: for every parameter of the model, its tensor.
    shapes: every tensor that the checkpoint holds, but for those that are known to belong to no language model.
    read: `(name, dtype) -> array` of `shapes[name]`; called from several threads.
    part: `(name, dtype, index) -> array[index]`, if the format can read a part alone.
    """

    label: str
    config: Config
    table: Table
    shapes: Mapping[str, tuple[int, ...]]
    read: Callable[[str, Any], np.ndarray]
    part: Callable[[str, Any, tuple[slice, ...]], np.ndarray] | None = None


def as_it_is(w: np.ndarray) -> np.ndarray:
    """The `convert` of a tensor whose layout is ours."""
    return w


def read_params(
    reader: Reader,
    dtype,
    *,
    shardings: Params | None = None,
    pack: Callable[[Path, np.ndarray], Any] | None = None,
    progress: bool = True,
) -> Params:
    """Reads all parameters; each reaches its dtype, layout and device before many others are read.

    Args:
      reader: the checkpoint.
      dtype: of the kernels; norm scales stay float32.
      shardings: a tree like the parameters', of `jax.sharding.Sharding`s; None = the default device.
      pack: applied to each parameter on the host, such as `quantization.pack`; may return a tree of arrays.
      progress: show a bar if standard error is a terminal.

    Raises:
      UserError: before anything is read, with the names of all missing, unused and misshapen tensors.
    """
    check_tensors(reader)
    abstract = flatten(abstract_params(reader.config, dtype))
    places = {} if shardings is None else flatten(shardings)
    paths_of: dict[str, list[Path]] = {}
    for path, tensor in reader.table.items():
        paths_of.setdefault(tensor.name, []).append(path)

    flat: dict[Path, Any] = {}
    largest_first = sorted(paths_of, key=lambda name: -math.prod(reader.shapes[name]))
    total = sum(leaf.size * leaf.dtype.itemsize for leaf in abstract.values())
    with (
        concurrent.futures.ThreadPoolExecutor(_WORKERS) as pool,
        tqdm(total=total, desc="loading", unit="B", unit_scale=True, disable=None if progress else True) as bar,
    ):
        jobs = [
            pool.submit(_read_tensor, reader, name, paths_of[name], abstract, places, pack) for name in largest_first
        ]
        try:
            for job in concurrent.futures.as_completed(jobs):
                params = job.result()
                flat |= params
                bar.update(sum(abstract[path].size * abstract[path].dtype.itemsize for path in params))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return unflatten(flat)


def _read_tensor(
    reader: Reader,
    name: str,
    paths: list[Path],
    abstract: Mapping[Path, Any],
    places: Mapping[Path, Any],
    pack: Callable[[Path, np.ndarray], Any] | None,
) -> dict[Path, Any]:
    """The parameters that come from one tensor, on their devices.

    Args:
      paths: of these parameters. abstract: the shape and dtype of every parameter. places: its sharding, or a tree of
        them where `pack` makes a tree of it; empty = the default device.
    """
    first = paths[0]
    dtype = abstract[first].dtype
    unchanged = pack is None and len(paths) == 1 and reader.table[first].convert is as_it_is
    if reader.part and places and unchanged:
        part: Any = partial(reader.part, name, dtype)  # a host reads no more than its own shards
        return {first: jax.make_array_from_callback(abstract[first].shape, places[first], part)}
    value = reader.read(name, dtype)
    params = {}
    for path in paths:
        array, leaf = reader.table[path].convert(value), abstract[path]
        if array.shape != leaf.shape or array.dtype != leaf.dtype:
            raise AssertionError(f"{name} gave {array.dtype}{array.shape}, the model has {leaf.dtype}{leaf.shape}")
        packed = pack(path, array) if pack else array
        params[path] = jax.tree.map(put, packed, places.get(path, jax.tree.map(lambda _: None, packed)))
    return params


def put(value: np.ndarray, sharding: jax.sharding.Sharding | None) -> jax.Array:
    """Puts an array on its devices. On a CPU an aligned array is not copied.

    With a sharding, each process fills its own devices: `device_put` would compare the values of all processes.
    """
    if not value.flags.c_contiguous or value.ctypes.data % _ALIGNMENT:
        aligned = empty(value.shape, value.dtype)
        aligned[...] = value
        value = aligned
    if sharding is None:
        return jax.device_put(value)
    return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])


def empty(shape: tuple[int, ...], dtype) -> np.ndarray:
    """An uninitialised array, aligned so that XLA's CPU client does not copy it."""
    count = math.prod(shape) * np.dtype(dtype).itemsize
    raw = np.empty(count + _ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % _ALIGNMENT
    return raw[start : start + count].view(dtype).reshape(shape)


def check_tensors(reader: Reader) -> None:
    """Raises a UserError, as `check` does, unless the checkpoint holds the tensors that its table names."""
    check(reader.label, {tensor.name: tensor.shape for tensor in reader.table.values()}, reader.shapes)


def check(label: str, expected: Mapping[str, tuple[int, ...]], stored: Mapping[str, tuple[int, ...]]) -> None:
    """Compares names and shapes.

    Raises:
      UserError: names every missing, unused and misshapen tensor; names that differ only in the layer are grouped.
    """
    wrong = [name for name in expected if name in stored and tuple(stored[name]) != tuple(expected[name])]
    problems = [
        _listing("missing", [name for name in expected if name not in stored]),
        _listing("not used", [name for name in stored if name not in expected]),
        _listing("misshapen", wrong, lambda name: f" is {list(stored[name])}, expected {list(expected[name])}"),
    ]
    if any(problems):
        raise UserError(
            f"{label} should hold the {len(expected)} tensors of its architecture, but has "
            f"{'; '.join(filter(None, problems))}: give that model's files, or another preset."
        )


def _listing(kind: str, names: Iterable[str], detail: Callable[[str], str] = lambda name: "") -> str:
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(re.sub(r"(?<=[._/])\d+(?=[./])", "*", name, count=1) + detail(name), []).append(name)
    if not groups:
        return ""
    shown = [
        f"{members[0]}{detail(members[0])}" if len(members) == 1 else f"{pattern} ({len(members)} layers)"
        for pattern, members in groups.items()
    ]
    rest = sum(len(members) for members in list(groups.values())[_SHOWN:])
    return f"{kind}: {', '.join(shown[:_SHOWN])}" + (f" and {rest} more" if rest else "")


def flatten(tree: Params, prefix: Path = ()) -> dict[Path, Any]:
    """A nested dict as a flat one, whose keys are paths."""
    flat: dict[Path, Any] = {}
    for key, value in tree.items():
        path = (*prefix, str(key))
        flat |= flatten(value, path) if isinstance(value, Mapping) else {path: value}
    return flat


def unflatten(flat: Mapping[Path, Any]) -> dict[str, Any]:
    """The inverse of `flatten`."""
    tree: dict[str, Any] = {}
    for (*parents, last), value in flat.items():
        node = tree
        for key in parents:
            node = node.setdefault(key, {})
        node[last] = value
    return tree
