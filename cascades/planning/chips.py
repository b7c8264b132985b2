"""The chips of Cloud TPU and the slices that one can have of them."""

import importlib.util
import math
import re
from typing import Any, NamedTuple

from jax.experimental import topologies

from cascades.errors import UserError
from cascades.sharding import Layout, layout, mesh_of


class Chip(NamedTuple):
    """Published data of a chip, from its page under cloud.google.com/tpu/docs.

    memory: bytes of HBM. bandwidth: its bytes per second. compute: bfloat16 operations per second. link: bytes per
    second of all its interchip links together.
    """

    memory: float
    bandwidth: float
    compute: float
    link: float


CHIPS = {
    "v4": Chip(32 * 2**30, 1.2e12, 275e12, 300e9),
    "v5e": Chip(16e9, 819e9, 197e12, 200e9),
    "v5p": Chip(95e9, 2765e9, 459e12, 600e9),
    "v6e": Chip(32e9, 1600e9, 918e12, 400e9),
}
SLICES = {
    "v4": ("1x1x1", "2x2x1", "2x2x2", "2x2x4"),
    "v5e": ("1x1", "2x2", "2x4", "4x4"),
    "v5p": ("2x2x1", "2x2x2", "2x2x4"),
    "v6e": ("1x1", "2x2", "2x4", "4x4"),
}
"""Shapes of each generation, from small to large, as far as a pair of today's sizes needs them."""


def slices(topology: str) -> list[str]:
    """Returns the slices of a comma-separated list; `all` is every one of `SLICES`."""
    if topology.strip() == "all":
        return [f"{kind}:{shape}" for kind, shapes in SLICES.items() for shape in shapes]
    return [name.strip() for name in topology.split(",")]


def slice_devices(topology: str) -> tuple[Chip, list[Any]]:
    """Returns the chips of a slice such as `v5e:2x4`, for compiling only.

    Raises:
      UserError: an unknown generation or shape, or libtpu is not installed.
    """
    kind, _, shape = topology.partition(":")
    if kind not in CHIPS or not re.fullmatch(r"\d+(x\d+){1,2}", shape):
        raise UserError(
            f"a topology is a generation ({', '.join(CHIPS)}) and a shape, as in v5e:2x4 or v5p:2x2x1, not {topology!r}"
        )
    if importlib.util.find_spec("libtpu") is None:
        raise UserError("planning needs the TPU compiler, libtpu, which is not installed: pip install -e '.[tpu]'")
    try:
        options: dict = {"chips_per_host_bounds": [1, 1, 1]} if math.prod(map(int, shape.split("x"))) == 1 else {}
        if kind == "v4":  # its two cores as one device, as they are used; libtpu would tell of both
            options["chip_config_name"] = "megacore"
        description = topologies.get_topology_desc(platform="tpu", topology_name=topology, **options)
    except Exception as error:  # whatever libtpu says, or that there is none
        reason = str(error).strip().split("\n")[0]
        known = ", ".join(f"{kind}:{each}" for each in SLICES[kind])
        raise UserError(f"the TPU compiler does not know the slice {topology}: {reason}; try {known}") from None
    return CHIPS[kind], list(description.devices)


def layout_on(topology: str, data: int, strategy: str, model: int | None = None) -> tuple[Chip, Layout]:
    """Returns a slice's chip and a layout over all of its chips, `data` ways along the batch.

    Args:
      model: the ways along the models, which all chips must make; None is as many as are left.

    Raises:
      UserError: see `slice_devices`, or the chips cannot be split so.
    """
    chip, devices = slice_devices(topology)
    if len(devices) % data:
        raise UserError(f"the {len(devices)} chips of {topology} cannot be split {data} ways along the batch")
    if model is not None and data * model != len(devices):
        raise UserError(
            f"MESH=({data}, {model}) is for {data * model} chips, but {topology} has {len(devices)}: give "
            f"({data}, None), which takes all of a slice"
        )
    return chip, layout(mesh_of(devices, data, len(devices) // data), strategy)
