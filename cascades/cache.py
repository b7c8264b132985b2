"""The KV cache: append at per-row offsets, rewind by shortening the length.

Buffers are as long as the longest row may become, sliding-window layers included: a window is a mask, so an entry
that a rejected draft wrote over is always one behind a row's length.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from cascades.typing import Array, Float, Int, UInt


class Int8Buffer(NamedTuple):
    """Keys or values in int8: `values * scale`. values: int8 `[b, g, t, h]`. scale: float32 `[b, g, t]`."""

    values: Int[Array, "b g t h"]
    scale: Float[Array, "b g t"]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape


Buffer = Float[Array, "b g t h"] | UInt[Array, "b g t h"] | Int8Buffer
"""Keys or values of one layer; uint16 are the bits of bfloat16, see `BITS`."""

BITS = jnp.uint16
"""The dtype of a bfloat16 cache that XLA on CPUs updates in place: bfloat16 it widens first, all slots of it."""


class KVCache(NamedTuple):
    """Keys and values of a batch.

    keys, values: one `[b, g, t, h]` buffer a layer.
    length: int32 `[b]`, tokens that are valid in each row; slots behind it hold garbage and are never read.
    features: the last layer's output for every token, for a drafter that reads it; a buffer of one head as wide as the
      model, or None.
    """

    keys: tuple[Buffer, ...]
    values: tuple[Buffer, ...]
    length: Int[Array, " b"]
    features: Float[Array, "b 1 t d"] | UInt[Array, "b 1 t d"] | None = None


def init(batch: int, slots: int, layers: int, heads: int, head_dim: int, dtype) -> KVCache:
    """Returns an empty cache with `slots` slots a row; with dtype int8, of `Int8Buffer`s. dtype may be `BITS`."""
    shape = (batch, heads, slots, head_dim)

    def buffer() -> Buffer:
        zeros = jnp.zeros(shape, dtype)
        return Int8Buffer(zeros, jnp.zeros(shape[:-1], jnp.float32)) if zeros.dtype == jnp.int8 else zeros

    return KVCache(
        keys=tuple(buffer() for _ in range(layers)),
        values=tuple(buffer() for _ in range(layers)),
        length=jnp.zeros((batch,), jnp.int32),
    )


def quantized(new: Float[Array, "b g s h"]) -> Int8Buffer:
    """Returns keys or values in int8, with a scale for each token and head: its largest absolute value over 127."""
    wide = new.astype(jnp.float32)
    scale = jnp.max(jnp.abs(wide), axis=-1) / 127
    scale = jnp.where(scale == 0, 1.0, scale)  # NaN stays NaN: int8 cannot hold it
    return Int8Buffer(jnp.round(wide / scale[..., None]).astype(jnp.int8), scale)


def stored(new: Array, dtype) -> Array:
    """Returns keys or values as a buffer of `dtype` holds them."""
    return lax.bitcast_convert_type(new.astype(jnp.bfloat16), BITS) if dtype == BITS else new.astype(dtype)


def loaded(buffer: Array) -> Array:
    """Returns the numbers that an array of a cache holds: what `stored` has turned into bits, as bfloat16."""
    return lax.bitcast_convert_type(buffer, jnp.bfloat16) if buffer.dtype == BITS else buffer


def append(buffer: Buffer, new: Float[Array, "b g s h"], length: Int[Array, " b"]) -> Buffer:
    """Writes `new` at slots `length[b] …` of each row; what would fall behind the end is dropped.

    `dynamic_update_slice` would CLAMP the offset at the end of the buffer and overwrite valid slots, hence a scatter.
    """
    if isinstance(buffer, Int8Buffer):
        return jax.tree.map(lambda old, part: write(old, part, length), buffer, quantized(new))
    return write(buffer, new, length)


def write(buffer: Array, new: Array, length: Int[Array, " b"]) -> Array:
    """`append` of an array `[b, g, s, …]` to one `[b, g, t, …]`."""
    batch, _, slots = buffer.shape[:3]
    rows = jnp.arange(batch, dtype=jnp.int32)[:, None]
    positions = length[:, None] + jnp.arange(new.shape[2], dtype=jnp.int32)[None, :]
    positions = jnp.where(positions < slots, positions, slots)
    updates = stored(jnp.swapaxes(new, 1, 2), buffer.dtype)  # [b, s, g, h], as the indexed axes lead
    return buffer.at[rows, :, positions].set(updates, mode="drop", unique_indices=False)


def fill(buffer: Buffer, new: Float[Array, "b g s h"], start: Int[Array, ""] | int = 0) -> Buffer:
    """Writes `new` from slot `start` of every row on, for a prefill; it lies inside the buffer."""
    if isinstance(buffer, Int8Buffer):
        return jax.tree.map(lambda old, part: put(old, part, start), buffer, quantized(new))
    return put(buffer, new, start)


def put(buffer: Array, new: Array, start: Int[Array, ""] | int) -> Array:
    """`fill` of an array `[b, g, s, …]` into one `[b, g, t, …]`."""
    return lax.dynamic_update_slice_in_dim(buffer, stored(new, buffer.dtype), start, axis=2)


def rewind(cache, length: Int[Array, " b"]):
    """Returns the cache cut to `length` tokens a row: nothing moves, entries behind are overwritten later."""
    return cache._replace(length=length)
