"""Logical axis names -> shardings over a mesh: one frozen table of rules per strategy.

A mesh has an axis `data` and the prime factors of its model parallelism as axes `model`, `model_1`, …: a dimension is
split over as many leading factors as divide it. So a model with fewer key/value heads than chips shares each head
among neighbours, and a drafter with fewer heads than the verifier lives on the same mesh.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
from jax.experimental import mesh_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from cascades.errors import UserError

Logical = tuple[str | None, ...]
"""Names of an array's axes: batch, vocab, heads, kv_heads, mlp, width; None is never split."""

_SPLIT = {"vocab": "model", "heads": "model", "kv_heads": "model", "mlp": "model"}
STRATEGIES: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "replicated": MappingProxyType({"batch": "data"}),
        "vocab": MappingProxyType({"batch": "data", "vocab": "model"}),
        "tensor": MappingProxyType({"batch": "data", **_SPLIT}),
        "fsdp": MappingProxyType({"batch": "data", "width": "data", **_SPLIT}),
    }
)
"""Where each logical axis goes.

tensor: the model over `model`, the batch over `data` (a mesh with `data` = 1 is tensor parallel for latency). fsdp: the
weights over `data` too. vocab: a small drafter, whole on every chip but for its embedding and head. replicated: all of
it on every chip.
"""


class Layout(NamedTuple):
    """Where the arrays of one model live. mesh: shared by both models. rules: a table of `STRATEGIES`."""

    mesh: Mesh
    rules: Mapping[str, str]

    def spec(self, logical: Logical, shape: Sequence[int]) -> PartitionSpec:
        """Returns how an array is split: each axis over the leading factors of its mesh axes that divide its size."""
        used: set[str] = set()
        parts: list[tuple[str, ...] | None] = []
        for name, size in zip(logical, shape, strict=True):
            wanted = self.rules.get(name or "")
            chosen: list[str] = []
            for axis in self.mesh.axis_names if wanted else ():
                if axis.partition("_")[0] != wanted or axis in used:
                    continue
                if size % math.prod(self.mesh.shape[each] for each in (*chosen, axis)):
                    break
                chosen.append(axis)
            used |= set(chosen)
            parts.append(tuple(chosen) or None)
        return PartitionSpec(*parts)

    def sharding(self, logical: Logical, shape: Sequence[int]) -> NamedSharding:
        return NamedSharding(self.mesh, self.spec(logical, shape))

    def shardings(self, logical: Any, like: Any) -> Any:
        """Returns the sharding of every leaf of `like`, given the names of their axes as a tree of the same form."""
        leaves, form = jax.tree.flatten(like)
        names = form.flatten_up_to(logical)
        return form.unflatten([self.sharding(name, leaf.shape) for name, leaf in zip(names, leaves, strict=True)])

    def constrain(self, x: jax.Array, logical: Logical) -> jax.Array:
        """Tells the compiler where an activation lives."""
        return jax.lax.with_sharding_constraint(x, self.sharding(logical, x.shape))


Constrain = Callable[[jax.Array, Logical], jax.Array]


def anywhere(x: jax.Array, logical: Logical) -> jax.Array:
    """The `Constrain` of a model on one device."""
    del logical
    return x


def mesh_of(devices: Sequence[Any], data: int, model: int) -> Mesh:
    """Returns a mesh of `data` x `model` devices, the model axis in its prime factors.

    Raises:
      UserError: there are not so many devices.
    """
    if data < 1 or model < 1 or data * model != len(devices):
        raise UserError(
            f"a mesh of {data} x {model} needs {data * model} devices, and there are {len(devices)}: "
            f"{len(devices)} = DATA x MODEL, as in 1 x {len(devices)}"
        )
    factors = _prime_factors(model) or [1]
    names = ["model", *(f"model_{number}" for number in range(1, len(factors)))]
    grid = mesh_utils.create_device_mesh((data, model), list(devices))  # neighbours on the torus are neighbours here
    return Mesh(grid.reshape(data, *factors), ("data", *names))


def layout(mesh: Mesh, strategy: str) -> Layout:
    """Returns the layout of a strategy.

    Raises:
      UserError: it is none of `STRATEGIES`.
    """
    if strategy not in STRATEGIES:
        raise UserError(f"a strategy must be one of {', '.join(STRATEGIES)}, not {strategy!r}")
    return Layout(mesh, STRATEGIES[strategy])


def _prime_factors(number: int) -> list[int]:
    factors, divisor = [], 2
    while number > 1:
        while number % divisor == 0:
            factors.append(divisor)
            number //= divisor
        divisor += 1
    return factors
