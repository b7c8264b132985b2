"""Chips and slices by name, and how their chips are split."""

import importlib.util
import math

import pytest

from cascades.errors import UserError
from cascades.planning.chips import CHIPS, SLICES, layout_on, slice_devices, slices

LIBTPU = importlib.util.find_spec("libtpu") is not None


@pytest.mark.parametrize("topology", ["v5e", "v9:2x4", "v5e:2", "v5e:two", ""])
def test_what_is_no_slice_is_told(topology):
    with pytest.raises(UserError, match="a topology is a generation"):
        slice_devices(topology)


def test_slices_by_name():
    assert slices("v5e:2x4, v6e:2x4") == ["v5e:2x4", "v6e:2x4"]
    assert len(slices("all")) == sum(len(shapes) for shapes in SLICES.values())
    assert set(SLICES) == set(CHIPS)


@pytest.mark.slow
@pytest.mark.skipif(not LIBTPU, reason="needs libtpu: pip install -e '.[tpu]'")
def test_a_batch_that_the_chips_cannot_be_split_for_is_told():
    with pytest.raises(UserError, match="the 8 chips of v5e:2x4 cannot be split 3 ways"):
        layout_on("v5e:2x4", 3, "tensor")


@pytest.mark.slow
@pytest.mark.skipif(not LIBTPU, reason="needs libtpu: pip install -e '.[tpu]'")
@pytest.mark.parametrize("kind", SLICES)
def test_a_slice_has_a_device_for_each_chip(kind):
    for shape in SLICES[kind]:
        chip, devices = slice_devices(f"{kind}:{shape}")
        assert chip == CHIPS[kind] and len(devices) == math.prod(map(int, shape.split("x")))
        layout_on(f"{kind}:{shape}", 1, "tensor")
