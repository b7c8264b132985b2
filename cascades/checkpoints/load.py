"""Loads a checkpoint of any known format."""

import os
import pathlib
from collections.abc import Callable
from types import ModuleType
from typing import NamedTuple

import jax.numpy as jnp

from cascades import quantization
from cascades.checkpoints import gemma, gguf, orbax, safetensors, sources, t5x
from cascades.checkpoints.reader import Reader, flatten, read_params
from cascades.checkpoints.sources import AnyPath
from cascades.errors import UserError
from cascades.models import Config, abstract_params
from cascades.typing import Params


class Checkpoint(NamedTuple):
    """A model in memory.

    config: its architecture.
    params: a nested dict of arrays; norm scales are float32, the rest is of the dtype that `load` was asked for.
    path: where `tokenizers.load` finds its tokenizer.
    """

    config: Config
    params: Params
    path: pathlib.Path


def load(
    uri: str | os.PathLike,
    *,
    dtype=jnp.float32,
    preset: str | None = None,
    weights: str | None = None,
    shardings: Callable[[Params], Params] | None = None,
    progress: bool = True,
    verifier: Params | None = None,
) -> Checkpoint:
    """Loads a model, a few tensors at a time: the host never holds much more than the result.

    Args:
      uri: see `resolve`. A GGUF file; a directory with `config.json` and `*.safetensors`; a released Gemma checkpoint
        in Flax; a T5 that T5X wrote; or a directory that `save` wrote.
      dtype: of the kernels, float32 or bfloat16.
      preset: the architecture where the files do not say it.
      weights: one of `quantization.KINDS` quantises every matrix as it is read; None leaves them in `dtype`.
      shardings: from the tree of `jax.ShapeDtypeStruct`s to a tree of `jax.sharding.Sharding`s; each tensor goes
        straight to its devices. None = the default device.
      progress: show a bar if standard error is a terminal.
      verifier: the parameters of its verifier, for a drafter that shares some of them.

    Raises:
      UserError: not there, not a model, cut off, of an unknown architecture, or with tensors that are missing, unused
        or misshapen; the message names all of them.
    """
    path = descend(sources.resolve(uri))
    if format_of(path) is orbax:
        places = None if shardings is None else shardings(abstract_params(orbax.read_config(path), dtype))
        config, params = orbax.load(path, dtype, shardings=places)
        params = quantization.pack_all(params, weights) if weights else params
        params |= shared_part(path, config, verifier)
    else:
        reader = open_reader(path, preset)
        places = None if shardings is None else shardings(_abstract(reader, dtype, weights))
        pack = quantization.packer(weights) if weights else None
        config, params = reader.config, read_params(reader, dtype, shardings=places, pack=pack, progress=progress)
    return Checkpoint(config, params, sources.tokenizer_directory(path))


def _abstract(reader: Reader, dtype, weights: str | None) -> Params:
    like = abstract_params(reader.config, dtype)
    return quantization.pack_all(like, weights) if weights else like


def shared_part(path: AnyPath, config: Config, verifier: Params | None) -> Params:
    """The parameters that a drafter takes from its verifier.

    Raises:
      UserError: `verifier` is None or has other widths.
    """
    names = orbax.shared(path)
    if not names:
        return {}
    borrowed = {name: (verifier or {}).get(name) for name in names}
    if any(each is None for each in borrowed.values()):
        raise UserError(
            f"{path} is a drafter without the {' and '.join(names)} of its verifier: give it as DRAFTER, beside the "
            "VERIFIER that it was made for."
        )
    expected, got = (_widths({name: tree[name] for name in names}) for tree in (abstract_params(config), borrowed))
    if expected != got:
        raise UserError(
            f"{path} was made for another verifier: its {' and '.join(names)} should be {expected}, not {got}: give "
            "the VERIFIER that it was made for."
        )
    return borrowed


def _widths(tree: Params) -> list[tuple[int, ...]]:
    """The shapes of matrices, quantised or not."""
    return [leaf.shape for path, leaf in flatten(tree).items() if path[-1] in ("kernel", "embedding")]


def read_config(path: str | os.PathLike, preset: str | None = None) -> Config:
    """The architecture of a checkpoint, without its weights.

    Args:
      path: what `resolve` returned, or a URI.
      preset: as in `load`.

    Raises:
      UserError: as `load`.
    """
    path = descend(sources.resolve(path))
    form = format_of(path)
    if form is gguf:
        file = pathlib.Path(path)
        return gguf.read_config(file, gguf.read_header(file), preset)
    return form.read_config(path) if form in (orbax, t5x) else form.read_config(path, preset)


def format_of(path: AnyPath) -> ModuleType:
    """The module that reads the checkpoint at a path."""
    if (path / orbax.CONFIG).exists():
        return orbax
    if isinstance(path, pathlib.Path):  # only orbax and T5X are read in a bucket
        if path.is_file():
            return gguf
        if _has_safetensors(path):
            return safetensors
    return t5x if t5x.is_checkpoint(path) else gemma


def open_reader(path: AnyPath, preset: str | None) -> Reader:
    """Opens a checkpoint in a format of others; no weights are read."""
    form = format_of(path)
    return form.open_reader(path) if form is t5x else form.open_reader(path, preset)


def descend(path: AnyPath) -> AnyPath:
    """The file or directory with the weights; archives often wrap it in one more directory.

    Raises:
      UserError: no weights in a known format, or several models.
    """
    if path.is_file():
        if isinstance(path, pathlib.Path) and path.suffix == ".safetensors":
            return safetensors.directory_of(path)
        return path
    if _is_model(path):
        return path
    inner = [each for each in path.iterdir() if each.is_dir() and _is_model(each)]
    files = [each for each in path.iterdir() if each.suffix == ".gguf"]
    if len(inner) + len(files) == 1:
        return (inner + files)[0]
    names = ", ".join(sorted(each.name for each in path.iterdir())[:8]) or "nothing"
    raise UserError(
        f"{path} should be a GGUF file, a directory with config.json and *.safetensors, a released Gemma checkpoint, "
        f"one of T5X or one that launch/convert.py wrote, but it holds {names}: give one model."
    )


def _is_model(directory: AnyPath) -> bool:
    ours = (directory / orbax.CONFIG).exists()
    return ours or gemma.is_checkpoint(directory) or t5x.is_checkpoint(directory) or _has_safetensors(directory)


def _has_safetensors(directory: AnyPath) -> bool:
    return (directory / safetensors.INDEX).exists() or any(directory.glob("*.safetensors"))
