"""Checks of single knobs: what one must be, what came, in one sentence."""

import math
import pathlib
from typing import Any

from cascades.errors import UserError


def whole(knob: str, value: Any, low: int, high: int | None = None) -> None:
    """Raises a UserError unless `value` is a whole number from `low`, to `high` where there is one."""
    if type(value) is not int or value < low or (high is not None and value > high):
        to = "" if high is None else f" to {high}"
        raise UserError(f"{knob} must be a whole number from {low}{to}, not {value!r}")


def number(knob: str, value: Any, low: float, high: float | None = None, *, infinite: bool = False) -> None:
    """Raises a UserError unless `value` is a number from `low`, to `high` where there is one."""
    top = math.inf if high is None else high
    if not _real(value) or not low <= value <= top or (math.isinf(value) and not infinite):
        to = "" if high is None else f" to {high:g}"
        raise UserError(f"{knob} must be a number from {low:g}{to}, not {value!r}")


def positive(knob: str, value: Any) -> None:
    """Raises a UserError unless `value` is a finite number above 0."""
    if not _real(value) or math.isinf(value) or value <= 0:
        raise UserError(f"{knob} must be a number above 0, not {value!r}")


def one_of(knob: str, value: Any, choices: tuple) -> None:
    """Raises a UserError unless `value` is one of `choices`, all of one type."""
    if type(value) is not type(choices[0]) or value not in choices:  # 1 is not True
        raise UserError(f"{knob} must be {' or '.join(map(str, choices))}, not {value!r}")


def switch(knob: str, value: Any) -> None:
    """Raises a UserError unless `value` is True or False."""
    one_of(knob, value, (True, False))


def folder(knob: str, value: Any) -> pathlib.Path:
    """Returns the folder that `value` names, made where there is none.

    Raises:
      UserError: it is no name, or no folder can be there.
    """
    if not isinstance(value, str) or not value:
        raise UserError(f"{knob} must be a folder, in quotes, as in --gin.{knob}=\"'results/run'\", not {value!r}")
    path = pathlib.Path(value).expanduser()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{knob} must be a folder to write to, but {value} cannot be one: {error.strerror}") from None
    return path


def _real(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value)
