"""The checkpoints that Google releases for Gemma 1, 2 and 3 in Flax: orbax, `transformer/layer_0/attn/q_einsum` ….

Also the nested form that `gemma.gm.ckpts.save_params` writes (https://github.com/google-deepmind/gemma).
"""

import threading
from typing import Any

import numpy as np

from cascades.checkpoints import configs, names
from cascades.checkpoints.reader import Path, Reader, Stored, flatten, unflatten
from cascades.checkpoints.sources import AnyPath, first_line
from cascades.errors import UserError
from cascades.models import DecoderConfig


def is_checkpoint(directory: AnyPath) -> bool:
    """Whether orbax wrote a tree of arrays here."""
    return (directory / "_METADATA").exists()


def open_reader(directory: AnyPath, preset: str | None = None) -> Reader:
    """Opens a checkpoint; its sizes, or `preset`, say which Gemma it is.

    Raises:
      UserError: not a checkpoint, damaged, or of sizes that no preset has.
    """
    leaves = _leaves(directory)
    shapes = {name: tuple(leaf.shape) for name, (_, leaf) in leaves.items()}
    config = configs.from_gemma(shapes, str(directory), preset=preset)
    lock = threading.Lock()  # each restore runs an event loop

    def read(name: str, dtype) -> np.ndarray:
        with lock:
            return _restore(directory, leaves[name][0]).astype(dtype)

    return Reader(str(directory), config, names.gemma(config, shapes), shapes, read)


def read_config(directory: AnyPath, preset: str | None = None) -> DecoderConfig:
    """The architecture by the checkpoint's sizes, or that of `preset`."""
    shapes = {name: each.shape for name, each in stored(directory).items()}
    return configs.from_gemma(shapes, str(directory), preset=preset)


def stored(directory: AnyPath) -> dict[str, Stored]:
    """The shape and type of every tensor but the image encoder's, from the metadata alone."""
    return {name: Stored(tuple(leaf.shape), str(leaf.dtype)) for name, (_, leaf) in _leaves(directory).items()}


def _leaves(directory: AnyPath) -> dict[str, tuple[Path, Any]]:
    """For each tensor its path in the stored tree and its metadata; flat and nested trees give the same names."""
    import orbax.checkpoint as ocp  # here, as it takes as long as all other imports together

    try:
        with ocp.StandardCheckpointer() as checkpointer:
            tree = checkpointer.metadata(directory).item_metadata.tree
    except (ValueError, OSError, AttributeError, KeyError) as error:
        raise UserError(
            f"{directory} should be a whole orbax checkpoint, but is damaged ({first_line(error)}): fetch it again."
        ) from None
    leaves = {}
    for path, leaf in flatten(tree).items():
        name = "/".join(path).removeprefix("transformer/")
        if "/mlp/" in name:
            name = name.removesuffix("/w")
        if names.is_weight(name):
            leaves[name] = (path, leaf)
    return leaves


def _restore(directory: AnyPath, path: Path) -> np.ndarray:
    import orbax.checkpoint as ocp  # here, as it takes as long as all other imports together

    item: Any = unflatten({path: 0})
    arguments = unflatten({path: ocp.RestoreArgs(restore_type=np.ndarray)})
    try:
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            tree = checkpointer.restore(
                directory, args=ocp.args.PyTreeRestore(item=item, restore_args=arguments, partial_restore=True)
            )
    except (ValueError, OSError) as error:
        where = "/".join(path)
        raise UserError(f"{directory} is damaged at {where} ({first_line(error)}): fetch it again.") from None
    return np.asarray(flatten(tree)[path])
