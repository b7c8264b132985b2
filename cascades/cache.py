"""The KV cache: append at per-row offsets, rewind by shortening the length.

Buffers are as long as the longest row may become, sliding-window layers included: a window is a mask, so an entry
that a rejected draft wrote over is always one behind a row's length.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax

from cascades.typing import Array, Float, Int


class KVCache(NamedTuple):
    """Keys and values of a batch.

    keys, values: one `[b, g, t, h]` buffer a layer.
    length: int32 `[b]`, tokens that are valid in each row; slots behind it hold garbage and are never read.
    """

    keys: tuple[Float[Array, "b g t h"], ...]
    values: tuple[Float[Array, "b g t h"], ...]
    length: Int[Array, " b"]


def init(batch: int, slots: int, layers: int, heads: int, head_dim: int, dtype) -> KVCache:
    """Returns an empty cache with `slots` slots a row."""
    shape = (batch, heads, slots, head_dim)
    return KVCache(
        keys=tuple(jnp.zeros(shape, dtype) for _ in range(layers)),
        values=tuple(jnp.zeros(shape, dtype) for _ in range(layers)),
        length=jnp.zeros((batch,), jnp.int32),
    )


def append(
    buffer: Float[Array, "b g t h"], new: Float[Array, "b g s h"], length: Int[Array, " b"]
) -> Float[Array, "b g t h"]:
    """Writes `new` at slots `length[b] …` of each row; what would fall behind the end is dropped.

    `dynamic_update_slice` would CLAMP the offset at the end of the buffer and overwrite valid slots, hence a scatter.
    """
    batch, _, slots, _ = buffer.shape
    rows = jnp.arange(batch, dtype=jnp.int32)[:, None]
    positions = length[:, None] + jnp.arange(new.shape[2], dtype=jnp.int32)[None, :]
    positions = jnp.where(positions < slots, positions, slots)
    updates = jnp.swapaxes(new, 1, 2).astype(buffer.dtype)  # [b, s, g, h], as the indexed axes lead
    return buffer.at[rows, :, positions, :].set(updates, mode="drop", unique_indices=False)


def fill(buffer: Float[Array, "b g t h"], new: Float[Array, "b g s h"]) -> Float[Array, "b g t h"]:
    """Writes `new` at slot 0 of every row, for a prefill."""
    return lax.dynamic_update_slice(buffer, new.astype(buffer.dtype), (0, 0, 0, 0))


def rewind(cache, length: Int[Array, " b"]):
    """Returns the cache cut to `length` tokens a row: nothing moves, entries behind are overwritten later."""
    return cache._replace(length=length)


def insert(cache: KVCache, row: KVCache, slot: Int[Array, ""]) -> KVCache:
    """Puts a cache of one row (`b` = 1, the same `t`) into row `slot`."""

    def put(buffer, new):
        return lax.dynamic_update_slice(buffer, new, (slot, *(0,) * (buffer.ndim - 1)))

    return KVCache(
        keys=tuple(put(a, b) for a, b in zip(cache.keys, row.keys, strict=True)),
        values=tuple(put(a, b) for a, b in zip(cache.values, row.values, strict=True)),
        length=put(cache.length, row.length),
    )


def clear(cache: KVCache, slot: Int[Array, ""]) -> KVCache:
    """Empties row `slot`."""
    return cache._replace(length=cache.length.at[slot].set(0))
