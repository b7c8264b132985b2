"""The fields of a JSON object, each checked as it is looked up: messages name the file and the field."""

import math
from collections.abc import Mapping
from typing import Any

from cascades.errors import UserError

MAX_SIZE = 2**31 - 1  # on the device, sizes are int32


class Fields:
    """Checked lookups in a JSON object. A field that is null counts as absent.

    values: the object. label: what messages call its file. at: the path to the object in the file, `text_config.`.
    """

    def __init__(self, values: Mapping[str, Any], label: str, at: str = ""):
        self.values = values
        self.label = label
        self.at = at

    def has(self, name: str) -> bool:
        return self.values.get(name) is not None

    def size(self, name: str, default: int | None = None, *, least: int = 1, most: int = MAX_SIZE) -> int:
        """A whole number. Raises a UserError if it is absent and has no default, out of range or of another type."""
        value = self._get(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise self.wrong(name, f"a whole number from {least} to {most}")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """A positive number. Raises a UserError if it is absent and has no default, or is none."""
        number = self._number(name, self._get(name, default))
        if not number > 0:
            raise self.wrong(name, "a positive number")
        return number

    def optional_number(self, name: str) -> float | None:
        """A positive number, or None where the field is absent."""
        return self.number(name) if self.has(name) else None

    def flag(self, name: str, default: bool) -> bool:
        """True or false."""
        value = self.values.get(name)
        if value is not None and not isinstance(value, bool):
            raise self.wrong(name, "true or false")
        return default if value is None else value

    def text(self, name: str, default: str | None = None) -> str | None:
        """A text."""
        value = self.values.get(name)
        if value is not None and not isinstance(value, str):
            raise self.wrong(name, "a text")
        return default if value is None else value

    def texts(self, name: str) -> tuple[str, ...] | None:
        """A list of texts."""
        value = self.values.get(name)
        if value is None:
            return None
        if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
            raise self.wrong(name, "a list of texts")
        return tuple(value)

    def inner(self, name: str) -> "Fields | None":
        """The object that the field holds, None where it is absent or empty."""
        value = self.values.get(name)
        if value is None or value == {}:
            return None
        if not isinstance(value, dict):
            raise self.wrong(name, "an object")
        return Fields(value, self.label, f"{self.at}{name}.")

    def wrong(self, name: str, expected: str) -> UserError:
        """The error for a field that is not as expected."""
        value = repr(self.values.get(name))
        value = value if len(value) <= 60 else f"{value[:60]}…"
        return UserError(f"{self.label} should give {self.at}{name} as {expected}, not {value}: correct the file.")

    def _get(self, name: str, default: Any) -> Any:
        value = self.values.get(name)
        if value is not None:
            return value
        if default is None:
            raise UserError(f"{self.label} should say {self.at}{name}, but does not: give another file.")
        return default

    def _number(self, name: str, value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.wrong(name, "a number")
        try:
            number = float(value)
        except OverflowError:
            raise self.wrong(name, "a number") from None
        if not math.isfinite(number):
            raise self.wrong(name, "a finite number")
        return number
