"""Attention of a few new tokens to a long cache that takes them in, as one Pallas kernel for TPUs.

XLA reads every slot of every buffer, whatever the rows' lengths and the windows are; and where a pass updates a buffer
by several tokens a row, it takes the buffer to on-chip memory and writes all of it back. The kernel goes through a
buffer in blocks by flash attention's running softmax (arXiv 2205.14135); blocks outside of what a row can see are
neither fetched nor computed, and what is written are the tiles of the new tokens.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import PartitionSpec

from cascades import cache as kv
from cascades.models.layers import MASKED
from cascades.sharding import Layout
from cascades.typing import Array, Float, Int

BLOCKS = (1024, 512, 256, 128, 64)  # slots that are read at once: the largest that divides the buffer
_LANES = 128

Updated = tuple[Float[Array, "b g r s h"], Float[Array, "b g t h"], Float[Array, "b g t h"]]


def takes(buffer: kv.Buffer) -> bool:
    """Returns whether the kernel is made for a buffer: floating point, divided by a block, heads that fill whole lanes.

    Half of each tile of narrower heads would be padding: twice the memory, and copies from the layout that XLA prefers.
    """
    floating = not isinstance(buffer, kv.Int8Buffer) and buffer.dtype != kv.BITS
    return floating and buffer.shape[3] % _LANES == 0 and bool(block_of(buffer.shape[2]))


def block_of(slots: int) -> int | None:
    """Returns how many slots are read at once; None where no block divides the buffer."""
    return next((block for block in BLOCKS if slots % block == 0), None)


@functools.partial(jax.jit, static_argnames=("window", "cap", "interpret"))  # so that layers alike are traced once
def attend(
    q: Float[Array, "b g r s h"],
    new_keys: Float[Array, "b g s h"],
    new_values: Float[Array, "b g s h"],
    keys: Float[Array, "b g t h"],
    values: Float[Array, "b g t h"],
    length: Int[Array, " b"],
    *,
    window: int | None = None,
    cap: float | None = None,
    interpret: Any = False,
) -> Updated:
    """Grouped-query attention of new tokens to themselves and to a cache, on one device.

    Args:
      q: scaled queries, r = heads that share a key head. new_keys, new_values: of the new tokens. keys, values: the
        cache, which is updated in place. length: tokens that it holds of each row, where the new ones go; what would
        fall behind the end is dropped.
      window: of a sliding layer. cap: see `layers.softcap`. interpret: run without a TPU, for tests.

    Returns:
      What was attended to, and the cache with the new tokens; what lies behind them is garbage, as always.
    """
    b, g, r, s, h = q.shape
    slots, dtype = keys.shape[2], keys.dtype
    block = block_of(slots)
    assert block is not None, f"no block divides {slots} slots"
    rows = r * s
    tile = 32 // dtype.itemsize  # rows that one tile of memory holds, the least that can be written
    tiles = -(-(s + tile - 1) // tile)
    fed = -(-s // tile) * tile  # new tokens with padding: products of one column are beyond Mosaic

    def flat(x):
        # One axis of rows and heads: where both are one, the compiler would lose sight of where a buffer lives.
        return x.reshape(b * g, -1, h)

    def padded(new):
        return jnp.pad(flat(new.astype(dtype)), ((0, 0), (0, fed - s), (0, 0)))

    def first(held):
        return jnp.int32(0) if window is None else jnp.maximum(held - window + 1, 0) // block

    def last(held):
        return jnp.clip(held - 1, 0, slots - 1) // block

    def cached(head, step, lengths):
        # Where the same block is asked for again nothing is fetched.
        held = lengths[head // g]
        return head, jnp.clip(step, first(held), last(held)), 0

    def whole(head, step, lengths):
        return head, 0, 0

    def kernel(lengths, q_ref, nk_ref, nv_ref, k_ref, v_ref, out_ref, k_out, v_out, most, total, acc, buffer, sent):
        head, step = pl.program_id(0), pl.program_id(1)
        held = lengths[head // g]
        base = held // tile * tile

        def writes(act):
            for number in range(tiles):
                start = base + number * tile

                @pl.when(start < slots)
                def _(number=number, start=start):
                    for which, target in enumerate((k_out, v_out)):
                        source = buffer.at[which, pl.ds(number * tile, tile)]
                        place = target.at[head, pl.ds(pl.multiple_of(start, tile), tile)]
                        act(pltpu.make_async_copy(source, place, sent.at[which, number]))

        def softmax_step(scores, seen, values, before, summed, weighed):
            scores = scores if cap is None else cap * jnp.tanh(scores / cap)
            scores = jnp.where(seen, scores, MASKED)
            now = jnp.maximum(before, jnp.max(scores, axis=1, keepdims=True))
            weights = jnp.where(seen, jnp.exp(scores - now), 0.0)
            kept = jnp.exp(before - now)
            part = lax.dot_general(
                weights.astype(values.dtype), values, (((1,), (0,)), ((), ())), preferred_element_type=jnp.float32
            )
            most[...] = jnp.broadcast_to(now, most.shape)
            total[...] = jnp.broadcast_to(kept * summed + jnp.sum(weights, axis=1, keepdims=True), total.shape)
            acc[...] = kept * weighed + part

        def products(keys):
            return lax.dot_general(q_ref[0], keys, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)

        def numbers(width, axis):
            return lax.broadcasted_iota(jnp.int32, (rows, width), axis)

        @pl.when(step == 0)
        def _():  # the new tokens, among themselves
            query, key = lax.rem(numbers(fed, 0), jnp.int32(s)), numbers(fed, 1)
            seen = key <= query
            seen = seen if window is None else seen & (query - key < window)
            empty = jnp.full((rows, 1), MASKED, jnp.float32), jnp.zeros((rows, 1), jnp.float32)
            softmax_step(products(nk_ref[0]), seen, nv_ref[0], *empty, jnp.zeros((rows, h), jnp.float32))

        @pl.when(step == last(held))
        def _():  # the tiles of the new tokens: the first one begins with the cache's last tokens
            inside = jnp.clip(base - step * block, 0, block - tile)
            slot = base + lax.broadcasted_iota(jnp.int32, (tiles * tile, fed), 0)
            chosen = slot - held == lax.broadcasted_iota(jnp.int32, (tiles * tile, fed), 1)
            old = lax.broadcasted_iota(jnp.int32, (tile, h), 0) < held - base
            for which, (new, have) in enumerate(((nk_ref, k_ref), (nv_ref, v_ref))):
                moved = lax.dot_general(
                    chosen.astype(dtype), new[0], (((1,), (0,)), ((), ())), preferred_element_type=jnp.float32
                ).astype(dtype)
                buffer[which] = moved
                begin = have[0, pl.ds(pl.multiple_of(inside, tile), tile)]
                buffer[which, pl.ds(0, tile)] = jnp.where(old, begin, moved[:tile])
            writes(lambda copy: copy.start())

        @pl.when((step >= first(held)) & (step <= last(held)) & (held > 0))
        def _():
            slot = step * block + numbers(block, 1)
            query = held + lax.rem(numbers(block, 0), jnp.int32(s))
            seen = slot < held
            seen = seen if window is None else seen & (query - slot < window)
            # What lies behind the row may be NaN, of a token that was taken back; a weight of 0 does not silence it.
            there = step * block + lax.broadcasted_iota(jnp.int32, (block, h), 0) < held
            values = jnp.where(there, v_ref[0], jnp.zeros_like(v_ref[0]))
            softmax_step(products(k_ref[0]), seen, values, most[:, :1], total[:, :1], acc[...])

        @pl.when(step == pl.num_programs(1) - 1)
        def _():
            out_ref[0] = (acc[...] / total[:, :1]).astype(out_ref.dtype)
            writes(lambda copy: copy.wait())

    def spec(size):
        return pl.BlockSpec((1, size, h), whole)

    grid = pltpu.PrefetchScalarGridSpec(
        num_scalar_prefetch=1,
        grid=(b * g, slots // block),
        in_specs=[spec(rows), spec(fed), spec(fed), *(pl.BlockSpec((1, block, h), cached) for _ in range(2))],
        out_specs=[spec(rows), *(pl.BlockSpec(memory_space=pltpu.HBM) for _ in range(2))],
        scratch_shapes=[
            pltpu.VMEM((rows, _LANES), jnp.float32),
            pltpu.VMEM((rows, _LANES), jnp.float32),
            pltpu.VMEM((rows, h), jnp.float32),
            pltpu.VMEM((2, tiles * tile, h), dtype),
            pltpu.SemaphoreType.DMA((2, tiles)),
        ],
    )
    out, keys, values = pl.pallas_call(
        kernel,
        grid_spec=grid,
        out_shape=[
            jax.ShapeDtypeStruct((b * g, rows, h), dtype),
            *(pltpu.HBM((b * g, slots, h), dtype) for _ in range(2)),
        ],
        input_output_aliases={4: 1, 5: 2},  # counted with the lengths
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
        interpret=interpret,
        name="decode_attention",
        cost_estimate=pl.CostEstimate(
            flops=4 * b * g * rows * slots * h,
            transcendentals=b * g * rows * slots,
            bytes_accessed=2 * (keys.size + q.size) * dtype.itemsize,
        ),
    )(length, flat(q).astype(dtype), padded(new_keys), padded(new_values), flat(keys), flat(values))
    return out.reshape(b, g, r, s, h), keys.reshape(b, g, slots, h), values.reshape(b, g, slots, h)


def placed(layout: Layout | None, *, interpret: Any = False) -> Callable[..., Any]:
    """Returns `attend` for queries `[b, s, q, h]`, each chip for its own rows and heads.

    Key heads are split as the cache is; where there are fewer of them than chips, the queries that share a head are
    split over the rest.
    """

    def run(q, new_keys, new_values, keys, values, length, *, window, cap):
        b, s, n, h = q.shape
        g = keys.shape[1]
        own = functools.partial(attend, window=window, cap=cap, interpret=interpret)
        q = q.reshape(b, s, g, n // g, h).transpose(0, 2, 3, 1, 4)
        if layout is not None:
            cache = layout.spec(("batch", "kv_heads", None, None), keys.shape)
            queries = PartitionSpec(cache[0], cache[1], _shared(layout, cache, n, n // g), None, None)
            specs = (queries, cache, cache, cache, cache, PartitionSpec(cache[0]))
            own = jax.shard_map(
                own, mesh=layout.mesh, in_specs=specs, out_specs=(queries, cache, cache), check_vma=False
            )
        out, keys, values = own(q, new_keys, new_values, keys, values, length)
        return out.transpose(0, 3, 1, 2, 4).reshape(b, s, n, h), keys, values

    return run


def _shared(layout: Layout, cache: PartitionSpec, heads: int, shared: int) -> tuple[str, ...] | None:
    """The mesh axes that split the queries of one key head: those of the heads that the key heads leave."""
    chosen: list[str] = []
    size = 1
    for axis in _axes(layout.spec(("heads",), (heads,))[0]):
        if axis in _axes(cache[1]):
            continue
        if shared % (size * layout.mesh.shape[axis]):
            break
        size *= layout.mesh.shape[axis]
        chosen.append(axis)
    return tuple(chosen) or None


def _axes(entry: Any) -> tuple[str, ...]:
    """The mesh axes of one dimension of a PartitionSpec, which keeps a single one as a string."""
    return () if entry is None else (entry,) if isinstance(entry, str) else tuple(entry)
