"""Checks of single knobs: what passes, and what is said of the rest."""

import math

import pytest

from cascades import checks
from cascades.errors import UserError


@pytest.mark.parametrize("value", [0, -1, 1.0, True, "1", None, math.nan])
def test_no_whole_number_from_1(value):
    with pytest.raises(UserError) as caught:
        checks.whole("N", value, 1)
    assert str(caught.value) == f"N must be a whole number from 1, not {value!r}"


def test_a_whole_number():
    checks.whole("N", 1, 1)
    checks.whole("N", 10**30, 1)
    checks.whole("N", 4, 1, 4)
    with pytest.raises(UserError, match="N must be a whole number from 1 to 4, not 5"):
        checks.whole("N", 5, 1, 4)


@pytest.mark.parametrize("value", [-0.5, 1.5, math.nan, math.inf, True, "0", None])
def test_no_share(value):
    with pytest.raises(UserError) as caught:
        checks.number("SHARE", value, 0.0, 1.0)
    assert str(caught.value) == f"SHARE must be a number from 0 to 1, not {value!r}"


def test_a_number():
    for value in (0, 0.5, 1):
        checks.number("X", value, 0.0, 1.0)
    checks.number("X", 1e300, 0.0)
    checks.number("X", math.inf, 0.0, infinite=True)
    with pytest.raises(UserError, match="X must be a number from 0, not inf"):
        checks.number("X", math.inf, 0.0)


@pytest.mark.parametrize("value", [0, 0.0, -1, math.inf, math.nan, True, "1"])
def test_no_positive_number(value):
    checks.positive("RATE", 1e-9)
    with pytest.raises(UserError) as caught:
        checks.positive("RATE", value)
    assert str(caught.value) == f"RATE must be a number above 0, not {value!r}"


@pytest.mark.parametrize("value", [1, 0, "True", None, [], ["a"]])
def test_no_switch(value):
    checks.switch("ON", True)
    checks.switch("ON", False)
    with pytest.raises(UserError) as caught:
        checks.switch("ON", value)
    assert str(caught.value) == f"ON must be True or False, not {value!r}"
