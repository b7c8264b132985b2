"""Attention to a cache against plain numpy, and that it reads and writes the slots it should."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cascades import cache as kv
from cascades.models import attention


def random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("window", [None, 1, 3, 7])
@pytest.mark.parametrize("cap", [None, 2.0])
def test_attend_is_plain_attention(window, cap):
    q, k, v = random(2, 11, 4, 6), random(2, 2, 11, 6, seed=1), random(2, 2, 11, 6, seed=2)
    scores = np.einsum("bsgrh,bgth->bgrst", q.reshape(2, 11, 2, 2, 6), k)
    if cap is not None:
        scores = cap * np.tanh(scores / cap)
    distance = np.arange(11)[:, None] - np.arange(11)[None, :]
    seen = (distance >= 0) & (distance < (window or 99))
    weights = np.exp(scores) * seen
    weights /= weights.sum(-1, keepdims=True)
    expected = np.einsum("bgrst,bgth->bsgrh", weights, v).reshape(2, 11, 4, 6)
    places = jnp.arange(11, dtype=jnp.int32)
    mask = attention.visible(places[None], places, window)
    np.testing.assert_array_equal(mask[0], seen)
    out = jax.jit(attention.attend, static_argnames="cap")(q, k, v, mask, cap=cap)
    np.testing.assert_allclose(out, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("count", [1, 3, 9, 40])
@pytest.mark.parametrize("end", [100, 511, 512, 513])
def test_slots_from_the_end_on_are_neither_read_nor_missed_in_bfloat16(count, end):
    q, keys, values = (
        jnp.asarray(random(2, *shape, seed=seed), jnp.bfloat16)
        for seed, shape in enumerate(((count, 4, 64), (2, 600, 64), (2, 600, 64)))
    )
    places = jnp.asarray([end, 60], jnp.int32)[:, None] - count + jnp.arange(count, dtype=jnp.int32)[None]
    mask = attention.visible(places, jnp.arange(600, dtype=jnp.int32))
    plain = jax.jit(attention.attend)(q, keys, values, mask)
    for dtype in (jnp.bfloat16, kv.BITS):
        spoilt = [kv.stored(each.at[:, :, 512 if end <= 512 else 600 :].set(jnp.nan), dtype) for each in (keys, values)]
        out = jax.jit(attention.attend)(q, *spoilt, mask, end=jnp.int32(end))
        np.testing.assert_array_equal(out, plain)


def test_float32_reads_every_slot_whatever_the_end():
    q, keys, values = (jnp.asarray(random(1, *shape)) for shape in ((1, 2, 8), (1, 600, 8), (1, 600, 8)))
    mask = attention.visible(jnp.full((1, 1), 9, jnp.int32), jnp.arange(600, dtype=jnp.int32))
    spoilt = values.at[:, :, 599].set(jnp.nan)
    assert bool(jnp.isnan(attention.attend(q, keys, spoilt, mask, end=jnp.int32(10))).all())


def test_attention_of_a_row_that_sees_nothing_is_finite():
    mask = jnp.zeros((1, 1, 3), bool)
    out = attention.attend(*(jnp.asarray(random(1, n, m, 4)) for n, m in ((1, 2), (1, 3), (1, 3))), mask)
    assert bool(jnp.isfinite(out).all()) and isinstance(out, jax.Array)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.int8, kv.BITS])
@pytest.mark.parametrize(
    ("width", "lengths"),
    [
        (1, (0,)),
        (1, (7,)),
        (1, (8,)),
        (1, (3, 8)),
        (3, (5, 6)),
        (3, (0, 9)),
        (3, (2,)),
        (3, (5,)),
        (3, (7,)),
        (3, (8,)),
        (17, (1, 0)),
    ],
)
def test_write_drops_what_falls_behind_the_end(width, lengths, dtype):
    b = len(lengths)
    buffer, new = (jnp.asarray(50 * random(b, 2, size, 4, seed=size)) for size in (8, width))
    held, stored = kv.stored(buffer, dtype), kv.stored(new, dtype)
    out = attention.write(held, stored if dtype == jnp.int8 else new, jnp.asarray(lengths, jnp.int32))
    assert out.dtype == dtype
    for row, length in enumerate(lengths):
        end = min(length + width, 8)
        np.testing.assert_array_equal(out[row, :, :length], held[row, :, :length])
        np.testing.assert_array_equal(out[row, :, length:end], stored[row, :, : max(end - length, 0)])
