"""Impossible shapes are refused with a sentence that names the field."""

import dataclasses

import pytest

from cascades import models
from cascades.errors import UserError

GOOD = models.preset("smollm2_135m")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"num_kv_heads": 2}, "num_kv_heads"),
        ({"head_dim": 7}, "head_dim"),
        ({"num_layers": 0}, "num_layers"),
        ({"activation": "mish"}, "activation"),
        ({"local_layers": (True, False), "window": 4}, "local_layers"),
        ({"local_layers": (True,) * 30}, "window"),
    ],
)
def test_bad_fields(change, named):
    with pytest.raises(UserError, match=named):
        dataclasses.replace(GOOD, **change)


@pytest.mark.parametrize(
    "fields",
    [
        {"kind": "yarn", "factor": 4.0},
        {"kind": "linear", "factor": 0.0},
        {"kind": "llama3", "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 4.0},
    ],
)
def test_bad_rope_scaling(fields):
    with pytest.raises(UserError, match="rope scaling"):
        models.RopeScaling(**fields)


def test_configs_are_hashable_by_value():
    sliding = [dataclasses.replace(GOOD, local_layers=(True,) * 30, window=8) for _ in range(2)]
    assert hash(sliding[0]) == hash(sliding[1])
    assert sliding[0].is_local(3) and not GOOD.is_local(3)
