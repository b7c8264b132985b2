"""The decoder's parts against plain numpy."""

import jax.numpy as jnp
import numpy as np
import pytest

from cascades.models import RopeScaling, layers


def random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_rotations_compose_and_keep_relative_positions():
    frequencies = layers.rope_frequencies(8, 10_000.0)
    q, k = random(1, 1, 1, 8), random(1, 1, 1, 8, seed=1)

    def score(i, j):
        rotated = [
            layers.rotate(jnp.asarray(x), layers.rotation(jnp.full((1, 1), p, jnp.int32), frequencies))
            for x, p in ((q, i), (k, j))
        ]
        return float(jnp.sum(rotated[0] * rotated[1]))

    assert score(5, 2) == pytest.approx(score(103, 100), abs=1e-4)
    assert score(5, 2) != pytest.approx(score(2, 5), abs=1e-2)
    assert score(0, 0) == pytest.approx(float(np.sum(q * k)), abs=1e-5)


def test_llama3_scaling_has_three_bands():
    plain = layers.rope_frequencies(128, 500_000.0)
    scaled = layers.rope_frequencies(128, 500_000.0, RopeScaling(kind="llama3", factor=8.0))
    wavelength = 2 * np.pi / plain
    np.testing.assert_allclose(scaled[wavelength < 2048], plain[wavelength < 2048])
    np.testing.assert_allclose(scaled[wavelength > 8192], plain[wavelength > 8192] / 8)
    between = (wavelength >= 2048) & (wavelength <= 8192)
    assert between.any()
    assert ((scaled < plain) & (scaled > plain / 8))[between].all()


def test_rms_norm_is_float32_inside():
    norm = layers.RMSNorm(4, eps=0.0, rngs=layers.nnx.Rngs(params=0))
    x = jnp.full((1, 1, 4), 300.0, jnp.float16)  # its square overflows float16
    np.testing.assert_array_equal(norm(x), np.ones((1, 1, 4), np.float16))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("rows", [1, 3])
def test_contract_over_two_axes(dtype, rows):
    x, kernel = jnp.asarray(random(1, rows, 2, 3), dtype), jnp.asarray(random(5, 2, 3, seed=1), dtype)
    out = layers.contract(x, kernel, 2)
    assert out.dtype == dtype
    expected = np.einsum("bsnh,dnh->bsd", np.asarray(x, np.float32), np.asarray(kernel, np.float32))
    np.testing.assert_allclose(np.asarray(out, np.float32), expected, rtol=0.02, atol=0.02)
    assert layers.contract(x, kernel, 2, out_dtype=jnp.float32).dtype == jnp.float32


def test_contract_and_lookup_defer_to_kernels_that_are_no_arrays():
    class Doubled:
        def __init__(self, array):
            self.array = array

        def contract(self, x, axes, out_dtype):
            return layers.contract(x, 2 * self.array, axes, out_dtype)

        def lookup(self, tokens):
            return layers.lookup(2 * self.array, tokens)

    kernel, x = jnp.asarray(random(5, 3)), jnp.asarray(random(1, 2, 3, seed=1))
    np.testing.assert_allclose(layers.contract(x, Doubled(kernel)), 2 * layers.contract(x, kernel), rtol=1e-6)
    tokens = jnp.asarray([[4, 0]], jnp.int32)
    np.testing.assert_array_equal(layers.lookup(Doubled(kernel), tokens), 2 * kernel[tokens])
