"""Where the arrays of a run live, and in which type they are computed."""

import os
import pathlib
import platform
import re
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from cascades import hosts
from cascades.errors import UserError
from cascades.sharding import STRATEGIES, mesh_of

_DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
# What Linux calls the instructions that multiply bfloat16, by their common names, the fastest first.
_INSTRUCTIONS = {"amx_bf16": "AMX", "avx512_bf16": "AVX-512", "bf16": "Arm's BF16"}


def check_dtype(name: Any) -> None:
    """Raises a UserError unless `default_dtype` takes it; asks no device."""
    if name is not None and (not isinstance(name, str) or name not in _DTYPES):
        raise UserError(f"DTYPE must be one of {', '.join(_DTYPES)}, not {name!r}")


def default_dtype(name: str | None):
    """Returns the dtype in which models decode: what was asked, or the fastest that the machine multiplies itself.

    That is bfloat16 on an accelerator and on a CPU that has instructions for it, else float32.
    """
    check_dtype(name)
    if name is None:
        return jnp.bfloat16 if jax.default_backend() != "cpu" or _instructions() else jnp.float32
    return _DTYPES[name]


def training_dtype(name: str | None):
    """Returns the dtype in which models train: what was asked, or bfloat16 on an accelerator and float32 on a CPU.

    So that a run says of itself where it rounds, and one that does not learns the same on every CPU.
    """
    check_dtype(name)
    if name is None:
        return jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
    return _DTYPES[name]


def dtype_taken() -> str:
    """Returns which dtype is taken where none is asked for, and why, in one line."""
    if default_dtype(None) == jnp.float32:
        return "computing in float32: this processor is not known to multiply bfloat16 itself"
    why = "as accelerators do"
    if jax.default_backend() == "cpu":
        why = f"which this processor multiplies itself ({_instructions()})"
    return (
        f"computing in bfloat16, {why}; --gin.DTYPE=\"'float32'\" is slower, and lossless greedy text is then the "
        "verifier's own to the last token"
    )


def bfloat16_instructions(cpuinfo: str) -> str | None:
    """Returns the name of the instructions by which every processor of a machine multiplies bfloat16, or None.

    Args:
      cpuinfo: the text of Linux's /proc/cpuinfo.
    """
    lines = (line.partition(":") for line in cpuinfo.splitlines())
    each = [set(value.split()) for name, _, value in lines if name.strip() in ("flags", "Features")]
    shared = set.intersection(*each) if each else set()
    return next((name for flag, name in _INSTRUCTIONS.items() if flag in shared), None)


def cpuinfo() -> str:
    """What Linux says of this machine's processors, nothing elsewhere.

    CASCADES_CPUINFO names another file, where a sandbox hides the first.
    """
    try:
        return pathlib.Path(os.environ.get("CASCADES_CPUINFO") or "/proc/cpuinfo").read_text(errors="replace")
    except OSError:  # not Linux
        return ""


def processor() -> str:
    """Returns the processor's name."""
    found = re.search(r"^(?:model name|Model)\s*:\s*(.+)$", cpuinfo(), re.MULTILINE)
    return found[1].strip() if found else platform.machine() or "unknown"


def _instructions() -> str | None:
    """`bfloat16_instructions` of this machine."""
    return bfloat16_instructions(cpuinfo())


def check_strategy(knob: str, name: Any) -> None:
    """Raises a UserError unless `sharding.STRATEGIES` has it."""
    if not isinstance(name, str) or name not in STRATEGIES:
        raise UserError(f"{knob} must be one of {', '.join(STRATEGIES)}, not {name!r}")


def mesh_sizes(mesh: Any, devices: int) -> tuple[int, int]:
    """Returns how many ways MESH splits a batch and the models over so many devices.

    Args:
      mesh: (data, model); with model None, as many ways as devices are left.

    Raises:
      UserError: it is no such pair.
    """
    sizes = list(mesh) if isinstance(mesh, list | tuple) else []
    if len(sizes) == 2 and sizes[1] is None and type(sizes[0]) is int and sizes[0] > 0:
        sizes[1] = max(devices // sizes[0], 1)
    if len(sizes) != 2 or not all(type(size) is int and size > 0 for size in sizes):
        raise UserError(
            f"MESH must be (data, model), two whole numbers from 1, as in (1, 4), not {mesh!r}; (1, None) splits the "
            "models over all devices"
        )
    return sizes[0], sizes[1]  # pyright: ignore[reportReturnType]


def mesh_for(mesh: Any, rows: int | None = None) -> Mesh | None:
    """Returns the devices that a run shares; None is one device.

    Args:
      mesh: see `mesh_sizes`, or None. rows: of a batch, which the mesh must divide.

    Raises:
      UserError: not a mesh, or one that does not fit the devices or divide the rows.
    """
    if mesh is None:
        if hosts.several():
            raise UserError(f"several processes share a pair: set MESH, as in --gin.MESH='(1, {jax.device_count()})'")
        return None
    data, model = mesh_sizes(mesh, jax.device_count())
    if rows is not None and rows % data:
        raise UserError(f"BATCH_SIZE must be a multiple of the {data} ways that MESH splits a batch, not {rows}")
    return mesh_of(jax.devices(), data, model)
