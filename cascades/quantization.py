"""int8 weights, and activations: every matrix as int8 with one float32 scale per output channel.

A quantised matrix stands in the parameter tree where the matrix stood, and brings its own product and lookup; models
and loop do not know of it. (Libraries that intercept a module's operations, such as qwix, need the module; here a model
is a function of its parameters, and this is all that such a matrix takes.)
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from cascades.models import layers
from cascades.typing import Array, Float, Int, Params

KINDS = ("int8", "w8a8")
"""int8: the weights. w8a8: also, in every product, what they are multiplied with."""
_LARGEST = 127  # symmetric: -128 is not used
_INNER = {"o": 2}  # axes that a product contracts, by the kernel's owner; one for all others


@struct.dataclass
class Int8:
    """A matrix `values * scale`.

    values: int8, `[*out, *inner]`. scale: float32, `[*out]`, the largest absolute value of each channel over 127.
    dtype: of what `lookup` returns. activations: whether what it is multiplied with is quantised too, a scale for each
    row, so that the product is one of int8.
    """

    values: Any
    scale: Any
    dtype: Any = struct.field(pytree_node=False)
    activations: bool = struct.field(pytree_node=False, default=False)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    def contract(self, x: Array, axes: int = 1, out_dtype=None) -> Array:
        """Contracts the last `axes` axes of `x` with the last `axes` of the matrix; int8 is exact in bfloat16."""
        outer, out = x.shape[: x.ndim - axes], self.values.shape[: self.values.ndim - axes]
        inner = math.prod(x.shape[x.ndim - axes :])
        rows, kernel = x.reshape(-1, inner), jnp.asarray(self.values).reshape(-1, inner)
        if self.activations:
            wide = rows.astype(jnp.float32)
            step = jnp.max(jnp.abs(wide), axis=1, keepdims=True) / _LARGEST
            step = jnp.where(step == 0, 1.0, step)  # NaN stays NaN: int8 cannot hold it
            rows = jnp.round(wide / step).astype(jnp.int8)
            y = step * layers.product(rows, kernel, jnp.int32).astype(jnp.float32)
        else:
            y = layers.product(rows, kernel.astype(x.dtype), jnp.float32)
        return (y * self.scale.reshape(1, -1)).astype(out_dtype or x.dtype).reshape(*outer, *out)

    def lookup(self, tokens: Int[Array, "b s"]) -> Float[Array, "b s d"]:
        """Returns the rows of an embedding."""
        rows = self.values.at[tokens].get(mode="clip").astype(jnp.float32)
        return (rows * self.scale.at[tokens].get(mode="clip")[..., None]).astype(self.dtype)


def packer(kind: str) -> Callable[[tuple[str, ...], Any], Any]:
    """Returns `pack` for one of `KINDS`."""
    return functools.partial(pack, activations=kind == "w8a8")


def pack(path: tuple[str, ...], leaf: Any, *, activations: bool = False) -> Any:
    """Returns a parameter as `Int8` if it is a matrix, and else as it is.

    Args:
      path: of the parameter in the nested tree. leaf: a NumPy or JAX array, or a `jax.ShapeDtypeStruct`.
      activations: see `Int8`.
    """
    inner = inner_axes(path, leaf)
    if not inner:
        return leaf
    axes = tuple(range(leaf.ndim - inner, leaf.ndim))
    if isinstance(leaf, jax.ShapeDtypeStruct):
        scale = jax.ShapeDtypeStruct(leaf.shape[: leaf.ndim - inner], jnp.float32)
        return Int8(jax.ShapeDtypeStruct(leaf.shape, jnp.int8), scale, jnp.dtype(leaf.dtype), activations)
    xp = np if isinstance(leaf, np.ndarray) else jnp
    wide = leaf.astype(np.float32)
    scale = xp.max(xp.abs(wide), axis=axes) / np.float32(_LARGEST)
    scale = xp.where(scale == 0, np.float32(1.0), scale).astype(np.float32)
    with np.errstate(invalid="ignore"):  # a channel that holds NaN or infinity: its scale says so
        values = xp.round(wide / scale.reshape(*scale.shape, *(1,) * inner)).astype(np.int8)
    return Int8(values, scale, jnp.dtype(leaf.dtype), activations)


def inner_axes(path: tuple[str, ...], leaf: Any) -> int:
    """Returns how many axes of a parameter a product contracts; 0 for norms and biases."""
    if path[-1] not in ("kernel", "embedding"):
        return 0
    return _INNER.get(path[-2], 1)


def pack_all(params: Params, kind: str = "int8") -> Params:
    """Returns a nested dict with every matrix packed, as one of `KINDS`."""
    pack = packer(kind)

    def walk(tree: Any, path: tuple[str, ...]) -> Any:
        if isinstance(tree, dict):
            return {name: walk(value, (*path, name)) for name, value in tree.items()}
        return pack(path, tree)

    return walk(params, ())
