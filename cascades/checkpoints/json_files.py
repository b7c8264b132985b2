"""JSON files of a model, read strictly, since they say what its weights mean."""

import json
import math
import pathlib
from typing import Any

from cascades.checkpoints.sources import AnyPath
from cascades.errors import UserError

_LARGEST = 256 * 2**20  # bytes; the index of the largest published models has a hundredth of it


def read_object(path: AnyPath) -> dict[str, Any]:
    """The object that a JSON file holds.

    Raises:
      UserError: no file, too large, not JSON (NaN and Infinity are not), nested too deeply, a name twice in one object,
        or not an object.
    """
    try:
        if not path.is_file():
            raise UserError(f"{path} should be a JSON file, but there is no such file: fetch it again.")
        if isinstance(path, pathlib.Path) and path.stat().st_size > _LARGEST:
            raise UserError(f"{path} should be a small JSON file, but has {path.stat().st_size} bytes: give another.")
        value = json.loads(
            path.read_text(encoding="utf-8"),
            object_pairs_hook=_object,
            parse_constant=_constant,
            parse_float=_finite,
        )
    except RecursionError:
        raise UserError(f"{path} should be JSON, but is nested too deeply to be read: fetch it again.") from None
    except (ValueError, OSError) as error:
        raise UserError(f"{path} should be JSON, but is not ({str(error)[:200]}): fetch it again.") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} should hold a JSON object, but holds a {type(value).__name__}: fetch it again.")
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuses a name with two values: programs disagree about which one counts."""
    members: dict[str, Any] = {}
    for name, value in pairs:
        if name in members:
            raise ValueError(f"{name[:100]!r} stands twice in one object")
        members[name] = value
    return members


def _constant(word: str) -> float:
    raise ValueError(f"{word} is no JSON")


def _finite(digits: str) -> float:
    if not math.isfinite(float(digits)):
        raise ValueError(f"{digits[:40]} is too large a number")
    return float(digits)
