"""Rewrites any checkpoint as one of ours, which loads fast and onto any mesh."""

import os

import jax.numpy as jnp

from cascades.checkpoints.load import Checkpoint, load
from cascades.checkpoints.orbax import save, writable
from cascades.errors import UserError

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def convert(
    source: str | os.PathLike,
    target: str | os.PathLike,
    *,
    dtype: str = "bfloat16",
    preset: str | None = None,
    progress: bool = True,
) -> Checkpoint:
    """Loads `source`, writes it to `target` with its tokenizer, and returns it.

    Args:
      source: a URI, see `resolve`.
      target: a new directory; it appears whole or not at all.
      dtype: float32 or bfloat16.
      preset: the architecture where the source does not say it.
      progress: show a bar if standard error is a terminal.

    Raises:
      UserError: as `load` and `save`.
    """
    if dtype not in DTYPES:
        raise UserError(f"dtype should be {' or '.join(DTYPES)}, not {dtype!r}.")
    writable(target)
    checkpoint = load(source, dtype=DTYPES[dtype], preset=preset, progress=progress)
    save(target, checkpoint.config, checkpoint.params, tokenizer_source=checkpoint.path)
    return checkpoint
