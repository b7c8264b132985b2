"""What tells two configurations apart: hashes of settings, rules and draft-length controllers."""

import hashlib
import inspect
import json
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cascades.rules import Pair

_VOCABULARY, _ALPHAS = 16, (-0.3, 0.1, 0.3, 0.5, 0.9, 2.0, 8.0)


def digest(value: Any) -> str:
    """Returns 12 hex digits of a value that JSON can hold."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


def of_rule(rule: Callable) -> str:
    """Returns a digest of what a rule does to a few fixed distributions at a few thresholds.

    Its name does not tell all: a file may bind further arguments of it, and a rule of one's own may be edited.
    """
    generator = np.random.default_rng(0)
    count = 8 * len(_ALPHAS)
    q, p, q_raw, p_raw = (generator.dirichlet(np.full(_VOCABULARY, 0.3), count).astype(np.float32) for _ in range(4))
    alpha = np.tile(np.asarray(_ALPHAS, np.float32), 8)
    with jax.numpy_dtype_promotion("standard"):
        pair = Pair(*(jnp.asarray(each) for each in (q_raw, p_raw, q, p)))
        target = rule(pair, jnp.asarray(alpha))
    return digest([np.round(np.asarray(part, np.float64), 3).tolist() for part in target])


def of_code(value: Any) -> Any:
    """Returns functions as their names and the values that they close over, in a form that JSON can hold.

    Two controllers of the same factory and arguments look the same, in this process or another.
    """
    if isinstance(value, tuple | list):
        return [of_code(item) for item in value]
    if isinstance(value, dict):
        return {str(key): of_code(item) for key, item in value.items()}
    value = inspect.unwrap(value) if callable(value) else value
    if inspect.isfunction(value):
        held = [cell.cell_contents for cell in value.__closure__ or () if cell.cell_contents is not value]
        return [value.__module__, value.__qualname__, of_code(value.__defaults__ or ()), of_code(held)]
    if isinstance(value, jax.Array | np.ndarray | np.generic):
        return np.asarray(value).tolist()
    if isinstance(value, bool | int | float | str | None):
        return value
    return getattr(value, "__qualname__", None) or re.sub(r" at 0x\w+", "", repr(value))
