"""The machine that figures hold for: what it is called, and how fast it reads its memory."""

import os
import pathlib
import re
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from cascades.generation.placement import processor
from cascades.runs.parts import Timer

_LEAST, _MOST = 1 << 28, 1 << 30  # bytes of the array that is read, of a cache of unknown size and at most
_PARTS, _COLUMNS = 64, 256  # of what is left of an array: enough for every core, and few enough to stay next to it


class Memory(NamedTuple):
    """Something that is done to an array. moved: bytes that are read or written each time."""

    name: str
    moved: int
    run: Timer


def described(dtype: Any) -> dict[str, Any]:
    """Returns what tells a machine from others: processor, device, versions, and the dtype of weights."""
    device = jax.devices()[0]
    return {
        "processor": processor(),
        "cores": cores(),
        "device": f"{jax.device_count()} x {device.platform} ({device.device_kind})",
        "jax": jax.__version__,
        "dtype": jnp.dtype(dtype).name,
    }


def cores() -> int:
    """Returns how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def beyond_caches() -> int:
    """Returns a number of bytes of which a processor's caches hold a small part: four times the largest, in bounds."""
    sizes = [0]
    for path in pathlib.Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        digits = re.fullmatch(r"(\d+)K", path.read_text().strip())
        sizes.append(int(digits[1]) << 10 if digits else 0)
    return min(max(4 * max(sizes), _LEAST), _MOST)


def memory(far: int, weights: int) -> list[Memory]:
    """Returns what is timed of the first device's memory.

    Args:
      far: bytes of an array that no cache holds. weights: of the verifier, which a cache may hold: then its passes are
        faster than the memory.
    """
    held = [_array(far)]
    largest = jax.jit(lambda x: jnp.max(x, axis=1))
    raised = jax.jit(lambda x: x + 1, donate_argnums=0)
    near = _array(weights)

    def read() -> float:
        return _seconds(lambda: largest(held[0]))

    def update() -> float:
        def run():
            held[0] = raised(held[0])
            return held[0]

        return _seconds(run)

    def read_again() -> float:
        return _seconds(lambda: largest(near))

    timed = [
        Memory("memory, read", held[0].nbytes, read),
        Memory("memory, updated", 2 * held[0].nbytes, update),
        Memory("verifier's size, read", near.nbytes, read_again),
    ]
    for each in timed:
        each.run()  # compiles
    return timed


def _array(size: int) -> jax.Array:
    """Returns about `size` bytes of float32, in parts: the largest of a column is found for many columns at once."""
    return jnp.ones((_PARTS, max(size // (4 * _PARTS * _COLUMNS), 1), _COLUMNS), jnp.float32)


def _seconds(run: Any) -> float:
    began = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - began
