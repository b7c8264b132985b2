import jax.numpy as jnp
import numpy as np

from cascades import cache as caches

BATCH, HEADS, SLOTS, SIZE = 4, 2, 6, 3


def numbers(tokens, start):
    """`[BATCH, HEADS, tokens, SIZE]`, every entry different."""
    count = BATCH * HEADS * tokens * SIZE
    return jnp.arange(start, start + count, dtype=jnp.float32).reshape(BATCH, HEADS, tokens, SIZE)


def test_append_writes_at_each_rows_own_offset():
    buffer, new = -numbers(SLOTS, 1), numbers(2, 1000)
    offsets = [0, 3, 1, 4]
    expected = np.array(buffer)
    for row, offset in enumerate(offsets):
        expected[row, :, offset : offset + 2] = new[row]
    np.testing.assert_array_equal(caches.append(buffer, new, jnp.asarray(offsets, jnp.int32)), expected)


def test_append_drops_what_falls_behind_the_end():
    # A dynamic_update_slice would move the write back to the last slots that fit and destroy valid entries.
    buffer, new = -numbers(SLOTS, 1), numbers(3, 1000)
    offsets = [4, 5, 6, 60]
    expected = np.array(buffer)
    expected[0, :, 4:] = new[0, :, :2]
    expected[1, :, 5:] = new[1, :, :1]
    np.testing.assert_array_equal(caches.append(buffer, new, jnp.asarray(offsets, jnp.int32)), expected)


def test_append_keeps_the_buffers_dtype():
    buffer = numbers(SLOTS, 0).astype(jnp.bfloat16)
    assert caches.append(buffer, numbers(1, 0), jnp.zeros((BATCH,), jnp.int32)).dtype == jnp.bfloat16
    assert caches.fill(buffer, numbers(1, 0)).dtype == jnp.bfloat16


def test_rewind_then_append_overwrites():
    cache = caches.init(BATCH, SLOTS, layers=1, heads=HEADS, head_dim=SIZE, dtype=jnp.float32)
    first, second = numbers(4, 1), numbers(2, 1000)
    cache = cache._replace(keys=(caches.fill(cache.keys[0], first),), length=cache.length + 4)
    kept = jnp.asarray([4, 3, 2, 0], jnp.int32)
    cache = caches.rewind(cache, kept)
    buffer = caches.append(cache.keys[0], second, cache.length)
    for row, length in enumerate([4, 3, 2, 0]):
        np.testing.assert_array_equal(buffer[row, :, :length], first[row, :, :length])
        np.testing.assert_array_equal(buffer[row, :, length : length + 2], second[row])


def test_an_int8_buffer_is_written_like_another_and_is_within_half_a_step():
    cache = caches.init(BATCH, SLOTS, layers=1, heads=HEADS, head_dim=SIZE, dtype=jnp.int8)
    first, second = numbers(4, 1), -numbers(3, 1000)
    buffer = caches.append(caches.fill(cache.keys[0], first), second, jnp.asarray([4, 5, 2, 60], jnp.int32))
    assert isinstance(buffer, caches.Int8Buffer) and buffer.values.dtype == jnp.int8
    expected = np.zeros((BATCH, HEADS, SLOTS, SIZE), np.float32)
    expected[:, :, :4] = first
    expected[0, :, 4:], expected[1, :, 5:], expected[2, :, 2:5] = second[0, :, :2], second[1, :, :1], second[2]
    back = buffer.values.astype(jnp.float32) * buffer.scale[..., None]
    assert (np.abs(back - expected) <= 0.5001 * buffer.scale[..., None]).all()
    assert float(jnp.max(jnp.abs(back - expected))) > 0


def test_int8_keeps_nan_and_infinity_apart_from_zeros():
    for value in (jnp.nan, jnp.inf, -jnp.inf):
        new = numbers(2, 1).at[0, 0, 1, 2].set(value).at[1, 1, 0].set(0.0)
        packed = caches.quantized(new)
        whole = packed.values.astype(jnp.float32) * packed.scale[..., None]
        assert not np.isfinite(whole[0, 0, 1]).any() and (np.asarray(whole[1, 1, 0]) == 0).all()
        assert np.isfinite(whole[1:]).all()
