"""Grouped-query attention to a cache, and how new keys and values get there.

On CPUs both cost what a text is long, and not what its buffer could hold.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from cascades import cache as kv
from cascades.models.layers import FEW_ROWS, MASKED, softcap
from cascades.sharding import Constrain
from cascades.typing import Array, Bool, Float, Int

CACHE = ("batch", "kv_heads", None, None)

LEAST_SPAN = 512
_SPANS = (LEAST_SPAN, 2048, 8192)  # slots that CPUs attend to at most, if the longest row allows
_SPANS_OF_A_CHUNK = (128, *_SPANS)  # of a prompt, where attention weighs more
_SELECTED_TOKENS = 16  # up to so many are written by selects, where a scatter would go through copies


def attended(length: int, slots: int) -> int:
    """Returns how many of `slots` CPUs attend to behind the prompt, where the longest row holds so many tokens."""
    return next((span for span in _SPANS if length <= span < slots), slots)


def visible(queries: Int[Array, "b s"], keys: Int[Array, " t"], window: int | None = None) -> Bool[Array, "b s t"]:
    """Which key positions each query position sees: itself and what is before it, inside the window if any."""
    distance = queries[:, :, None] - keys[None, None, :]
    mask = distance >= 0
    return mask if window is None else mask & (distance < window)


def attend(
    q: Float[Array, "b s q h"],
    keys: kv.Buffer,
    values: kv.Buffer,
    mask: Bool[Array, "#b #s t"],
    cap: float | None = None,
    bias: Float[Array, "#b q s t"] | None = None,
    end: Int[Array, ""] | None = None,
) -> Float[Array, "b s q h"]:
    """Grouped-query attention; `q` is scaled already, and `bias` is added to the scores.

    Args:
      end: no row sees a slot from there on, so that CPUs need not read them; None where nothing is known. Products of
        bfloat16 come out the same to the bit. Those of float32 do not, and there all slots are read, so that nothing
        of a row hangs on how long another is.
    """
    slots, few = keys.shape[2], q.shape[1] <= FEW_ROWS
    spans = [span for span in (_SPANS if few else _SPANS_OF_A_CHUNK) if span < slots]
    if end is None or bias is not None or not spans or q.dtype == jnp.float32:
        return _attend(q, keys, values, mask, cap, bias)

    def first(span: int) -> Callable[..., Array]:
        def attended(q, keys, values, mask) -> Array:
            keys, values = (jax.tree.map(lambda part: part[:, :, :span], each) for each in (keys, values))
            return _attend(q, keys, values, mask[:, :, :span], cap)

        return attended

    def narrowest(q, keys, values, mask, end) -> Array:
        at = sum((end > span).astype(jnp.int32) for span in spans)
        return lax.switch(at, [first(span) for span in (*spans, slots)], q, keys, values, mask)

    def whole(q, keys, values, mask, end) -> Array:
        del end
        return _attend(q, keys, values, mask, cap)

    return lax.platform_dependent(q, keys, values, mask, end, cpu=narrowest, default=whole)


def _attend(q: Array, keys: kv.Buffer, values: kv.Buffer, mask: Array, cap=None, bias=None) -> Array:
    """Attends to all slots.

    The r = q / g query heads that share a key head are laid beside the s positions, so that both products have the
    batch axes (b, g) in front and read the cache as it lies.
    """
    b, s, n, h = q.shape
    g, t = keys.shape[1], keys.shape[2]
    q = q.reshape(b, s, g, n // g, h).transpose(0, 2, 3, 1, 4).reshape(b, g, n // g * s, h)
    # int8 is exact in bfloat16, so the scales can wait until behind the first product, and go before the second.
    keys, key_scale = _parts(keys, q.dtype)
    values, value_scale = _parts(values, q.dtype)
    scores = lax.dot_general(
        q.astype(keys.dtype), keys, (((3,), (3,)), ((0, 1), (0, 1))), preferred_element_type=jnp.float32
    )
    scores = scores if key_scale is None else scores * key_scale
    scores = softcap(scores, cap).reshape(b, g, n // g, s, t)
    if bias is not None:
        scores = scores + bias.reshape(bias.shape[0], g, n // g, s, t)
    weights = jax.nn.softmax(jnp.where(mask[:, None, None], scores, MASKED), axis=-1)
    weights = weights.reshape(b, g, n // g * s, t)
    weights = (weights if value_scale is None else weights * value_scale).astype(values.dtype)
    out = lax.dot_general(weights, values, (((3,), (2,)), ((0, 1), (0, 1))), preferred_element_type=jnp.float32).astype(
        values.dtype
    )
    return out.reshape(b, g, n // g, s, h).transpose(0, 3, 1, 2, 4).reshape(b, s, n, h)


def _parts(buffer: kv.Buffer, dtype) -> tuple[Array, Array | None]:
    """A buffer as the operand of a product, and what is left of it: a scale for every column, `[b, g, 1, t]`."""
    if isinstance(buffer, kv.Int8Buffer):
        return buffer.values.astype(dtype), buffer.scale[:, :, None]
    return kv.loaded(buffer), None


def placed(buffer: kv.Buffer, constrain: Constrain) -> kv.Buffer:
    """Tells the compiler where a cache's buffer lives."""
    return jax.tree.map(lambda part: constrain(part, CACHE[: part.ndim]), buffer)


def append(buffer: kv.Buffer, new: Float[Array, "b g s h"], length: Int[Array, " b"]) -> kv.Buffer:
    """`cache.append`, written so that XLA on CPUs makes no copy of the buffer."""
    if isinstance(buffer, kv.Int8Buffer):
        return jax.tree.map(lambda old, part: write(old, part, length), buffer, kv.quantized(new))
    return write(buffer, new, length)


def write(buffer: Array, new: Array, length: Int[Array, " b"]) -> Array:
    """`cache.write` as in `append`.

    A scatter of one token becomes an update that is repeated inside the products that read the buffer, each time on
    a copy of all of it. So a single token is written twice: the second one lands behind the row's new length, or is
    dropped. A scatter into bfloat16 goes through float32 copies of every buffer; one pass of selects does not. Integers
    alone, and so bits, are updated in place.
    """
    count, slots = new.shape[2], buffer.shape[2]
    if jnp.issubdtype(buffer.dtype, jnp.integer) and count <= slots:
        return lax.platform_dependent(buffer, new, length, cpu=_write_rows, default=kv.write)
    if buffer.dtype == jnp.bfloat16 and count <= _SELECTED_TOKENS:
        return lax.platform_dependent(buffer, new, length, cpu=_write_by_selects, default=kv.write)
    if buffer.shape[0] * count == 1:
        new = jnp.concatenate([new, new], axis=2)
    return kv.write(buffer, new, length)


def _write_rows(buffer: Array, new: Array, length: Int[Array, " b"]) -> Array:
    """One row after the other, in place.

    `dynamic_update_slice` alone would move what falls behind the end to the slots before it.
    """
    rows, count, slots = buffer.shape[0], new.shape[2], buffer.shape[2]
    new = kv.stored(new, buffer.dtype)
    twice = jnp.concatenate([new, new], axis=2)
    column = jnp.arange(count, dtype=jnp.int32).reshape(count, *(1,) * (buffer.ndim - 3))
    window = (1, buffer.shape[1], count, *buffer.shape[3:])

    def written(row: Array | int, buffer: Array) -> Array:
        def begin(slot: Array) -> tuple[Array | int, ...]:
            return (row, 0, slot, *(0,) * (buffer.ndim - 3))

        start = jnp.minimum(length[row], slots - count)
        late = jnp.minimum(length[row] - start, count)  # so many slots of the window lie before the row's end
        old = lax.dynamic_slice(buffer, begin(start), window)
        moved = lax.dynamic_slice(twice, begin(count - late), window)
        return lax.dynamic_update_slice(buffer, jnp.where(column < late, old, moved), begin(start))

    return written(0, buffer) if rows == 1 else lax.fori_loop(0, rows, written, buffer)


def _write_by_selects(buffer: Array, new: Array, length: Int[Array, " b"]) -> Array:
    """Chooses in every slot between what it holds and each new token: as often as there are tokens."""
    behind = jnp.arange(buffer.shape[2], dtype=jnp.int32)[None, :] - length[:, None]
    behind = jnp.expand_dims(behind, (1, *range(3, buffer.ndim)))
    new = new.astype(buffer.dtype)
    for token in range(new.shape[2]):
        buffer = jnp.where(behind == token, new[:, :, token : token + 1], buffer)
    # XLA of jax 0.12 would select once more inside what reads the buffer, and for that keep a copy of the old one.
    return lax.optimization_barrier(buffer)
