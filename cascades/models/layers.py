"""The parts of a decoder: projections, RMSNorm, rotary positions; attention is beside it.

Kernels are stored with the contracted axis last: XLA on CPUs is fastest there, and the TPU has no preference.
Norms, softmax, rotations and logits are float32 whatever the dtype of weights and activations is.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from cascades.models.config import RopeScaling
from cascades.typing import Array, Float, Int

# Finite, so that a row that sees nothing (padding) gives a uniform softmax and not NaN.
MASKED = -1e30


def parameter(
    shape: tuple[int, ...], dtype, rngs: nnx.Rngs | None, *, scale: float = 0.0, mean: float = 0.0
) -> nnx.Param[Any]:
    """A parameter with normal entries, or only its shape where `rngs` is None."""
    if rngs is None:
        return nnx.Param(jax.ShapeDtypeStruct(shape, dtype))
    if scale == 0.0:
        return nnx.Param(jnp.full(shape, mean, dtype))
    return nnx.Param(mean + scale * jax.random.normal(rngs.params(), shape, dtype))


class Linear(nnx.Module):
    """`x · kernelᵀ (+ bias)`: contracts the last `contracted` axes of input and kernel. scale: of random weights."""

    def __init__(
        self, out: tuple[int, ...], inner: tuple[int, ...], *, bias: bool = False, scale: float = 1.0, dtype, rngs
    ):
        self.kernel = parameter((*out, *inner), dtype, rngs, scale=scale * math.prod(inner) ** -0.5)
        if bias:
            self.bias = parameter(out, dtype, rngs)
        self.contracted = len(inner)
        self.has_bias = bias

    def __call__(self, x: Array) -> Array:
        y = contract(x, self.kernel.get_value(), self.contracted)
        if self.has_bias:
            bias = self.bias.get_value()
            y = y + bias.reshape((1,) * (y.ndim - bias.ndim) + bias.shape)
        return y


class RMSNorm(nnx.Module):
    """`x / rms(x) * scale`; the scale is the effective multiplier (Gemma's `1 + w` is folded in on loading)."""

    def __init__(self, width: int, *, eps: float, rngs):
        self.scale = parameter((width,), jnp.float32, rngs, mean=1.0)
        self.eps = eps

    def __call__(self, x: Array) -> Array:
        wide = x.astype(jnp.float32)
        wide = wide * lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + self.eps)
        scale = self.scale.get_value()
        return (wide * scale.reshape((1,) * (x.ndim - 1) + scale.shape)).astype(x.dtype)


def contract(x: Array, kernel, axes: int = 1, out_dtype=None) -> Array:
    """Contracts the last `axes` axes of `x` with the last `axes` axes of `kernel`.

    A kernel that is no array (a quantised one) brings its own `contract(x, axes, out_dtype)`.
    """
    if hasattr(kernel, "contract"):
        return kernel.contract(x, axes, out_dtype)
    outer, out = x.shape[: x.ndim - axes], kernel.shape[: kernel.ndim - axes]
    inner = math.prod(x.shape[x.ndim - axes :])
    # As one plain matrix product: given more axes, XLA on CPUs transposes a copy of the kernel at every call.
    x, kernel = x.reshape(-1, inner), kernel.reshape(-1, inner)
    return product(x, kernel, out_dtype or x.dtype).reshape(*outer, *out)


def product(x: Array, kernel: Array, dtype) -> Array:
    """Returns `x · kernelᵀ`, `[m, i]` times `[o, i]`, in `dtype`: the one product of all kernels, on any machine."""
    plain = functools.partial(_product, dtype=dtype)
    if x.dtype == jnp.float32:
        return plain(x, kernel)
    return lax.platform_dependent(x, kernel, cpu=functools.partial(_narrow_product_on_cpu, dtype=dtype), default=plain)


FEW_ROWS = 16  # up to so many fill one tile of what multiplies them
_VECTOR = 8  # numbers that what follows a product takes at once


def _product(x: Array, kernel: Array, dtype) -> Array:
    return lax.dot_general(x, kernel, (((1,), (1,)), ((), ())), preferred_element_type=dtype)


def _narrow_product_on_cpu(x: Array, kernel: Array, dtype) -> Array:
    """XLA on CPUs multiplies bfloat16 and int8 as they are only for two rows or more and a float32 or int32 result.

    Otherwise it first copies the kernel to float32, or multiplies int8 number by number, several times as slowly. What
    stands second in a product is transposed into tiles at every call: of a few rows and a kernel, that should be the
    rows. The barrier keeps XLA from turning the two around again. Where it leaves the rows last, what follows runs
    along them, number by number if there are too many to unroll and they fill no vectors.
    """
    rows, wide = x.shape[0], jnp.dtype(jnp.float32 if dtype == jnp.bfloat16 else dtype)
    if rows > FEW_ROWS:
        return _product(x, kernel, wide).astype(dtype)
    x = jnp.concatenate([x, x]) if rows == 1 else x
    turned = lax.optimization_barrier(_product(kernel, x, wide))
    y = turned.T[:rows].astype(dtype)
    if rows < _VECTOR or rows % _VECTOR == 0:
        return y
    return lax.optimization_barrier(y.reshape(-1)).reshape(rows, -1)  # in the order of its axes


def lookup(table, tokens: Int[Array, "b s"]) -> Float[Array, "b s d"]:
    """Rows of an embedding table; one that is no array brings its own `lookup(tokens)`."""
    if hasattr(table, "lookup"):
        return table.lookup(tokens)
    # XLA on CPUs reads bfloat16 rows through float32, and would move that copy of the whole table out of a decoding
    # loop; the barrier keeps it inside, where it is fused with the gather and touches these rows only.
    table, tokens = lax.optimization_barrier((table, tokens))
    return table.at[tokens].get(mode="clip")


def activate(x: Array, kind: str) -> Array:
    """The function of `ACTIVATIONS` that is named."""
    if kind == "silu":
        return jax.nn.silu(x)
    return jax.nn.relu(x) if kind == "relu" else jax.nn.gelu(x, approximate=kind == "gelu_tanh")


def softcap(x: Array, cap: float | None) -> Array:
    """`cap * tanh(x / cap)`, or `x` where `cap` is None (Gemma 2, arXiv 2408.00118)."""
    return x if cap is None else cap * jnp.tanh(x / cap)


def rope_frequencies(head_dim: int, theta: float, scaling: RopeScaling | None = None) -> np.ndarray:
    """Radians a position for each pair of channels, float64 `[h / 2]`."""
    frequencies = theta ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    if scaling is None:
        return frequencies
    if scaling.kind == "linear":
        return frequencies / scaling.factor
    turns = scaling.original_context_length * frequencies / (2 * np.pi)  # of each pair over the original context
    kept = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    kept = np.clip(kept, 0.0, 1.0)
    return frequencies * (kept + (1 - kept) / scaling.factor)


def rotation(
    positions: Int[Array, "b s"], frequencies: np.ndarray
) -> tuple[Float[Array, "b s 1 half"], Float[Array, "b s 1 half"]]:
    """Cosine and sine of every position's angles, float32, with an axis for the heads."""
    angles = positions.astype(jnp.float32)[..., None, None] * jnp.asarray(frequencies, jnp.float32)[None, None, None]
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x: Float[Array, "b s n h"], cos_sin: tuple[Array, Array]) -> Float[Array, "b s n h"]:
    """Applies rotary positions; channel i is paired with i + h/2 (arXiv 2104.09864, the "rotate half" layout)."""
    cos, sin = cos_sin
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)
