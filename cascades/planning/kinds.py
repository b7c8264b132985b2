"""The shape of the drafter that `launch/distill.py` would make of a verifier, told by its kinds before any training."""

import inspect
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cascades.checkpoints import Checkpoint
from cascades.errors import UserError
from cascades.models import Config, DecoderConfig, abstract_params
from cascades.training import drafters
from cascades.training.drafters import Kind


def check_kind(kind: Any) -> None:
    """Raises a UserError unless `config_of` takes it."""
    if not callable(kind) or getattr(kind, "__name__", "") in drafters.__all__:
        raise UserError(f"KIND must be kinds of drafter with their brackets, as in [@own(), @eagle()], not {kind!r}")
    if _uri(kind) is not None:
        raise UserError(
            f"a plan reads no weights: leave {name_of(kind)}.uri None, or give what there is already as DRAFTER"
        )


def name_of(kind: Callable) -> str:
    """Returns a kind's name in gin files."""
    return getattr(kind, "__qualname__", type(kind).__name__).partition(".")[0]


def config_of(kind: Kind, verifier: DecoderConfig) -> Config:
    """Returns the shape of a kind's drafter for a verifier: the kind runs, on shapes alone.

    Raises:
      UserError: the kind makes none of this verifier.
    """
    made: list[Config] = []
    counts = np.zeros(verifier.vocab_size, np.int64)  # which tokens its head scores says nothing about its shape

    def begin(params, key):
        drafter = kind(Checkpoint(verifier, params, pathlib.Path()), counts, key)
        made.append(drafter.config)
        return drafter.params

    jax.eval_shape(begin, abstract_params(verifier, jnp.bfloat16), jax.random.key(0))
    return made[0]


def described(name: str, config: DecoderConfig) -> str:
    """Returns a kind and what of its shape a table tells, as in `eagle 1x3584, 8192 tokens`."""
    head = f", {config.head_tokens} tokens" if config.head_tokens else ""
    return f"{name} {config.num_layers}x{config.d_model}{head}"


def _uri(kind: Any) -> Any:
    """The checkpoint that a kind goes on from, which its factory keeps to itself."""
    plain = inspect.unwrap(kind)
    return inspect.getclosurevars(plain).nonlocals.get("uri") if inspect.isfunction(plain) else None
