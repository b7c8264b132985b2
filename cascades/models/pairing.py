"""How a drafter is written, and whether it can draft for a verifier."""

import re

import jax

from cascades.decoding.lookup import LONGEST
from cascades.errors import UserError
from cascades.typing import Model

_NGRAM = re.compile(r"ngram://([0-9]{1,4})(?:\+(.+))?")


def split_drafter(name: str | None) -> tuple[int | None, str | None]:
    """Splits a drafter's name into the order of its look-up and the URI of its model, either of which may be None.

    Args:
      name: a URI, `ngram://N`, `ngram://N+URI`, or None.

    Raises:
      UserError: an n-gram drafter that is written in another way, or looks up no token or too many.
    """
    if name is None or not name.startswith("ngram"):
        return None, name
    match = _NGRAM.fullmatch(name)
    if not match or not 1 <= int(match[1]) <= LONGEST:
        raise UserError(
            f"an n-gram drafter is written ngram://N with N at least 1 and at most {LONGEST}, as in ngram://3, or "
            f"ngram://N+URI to help another, not {name!r}"
        )
    return int(match[1]), match[2]


def check_verifier(verifier: Model, name: str) -> None:
    """Raises a UserError for a model that cannot decode alone."""
    if verifier.feature_width is not None:
        raise UserError(f"{name} is a drafter that reads another model's hidden states: it cannot be a VERIFIER")


def check_starts(verifier: Model, drafter: Model, names: tuple[str, str]) -> None:
    """Raises a UserError unless both begin their answers alike; names: of the verifier and of the drafter."""
    if drafter.start != verifier.start:
        raise UserError(
            f"{names[1]} cannot draft for {names[0]}: an encoder–decoder and a decoder, or two that begin their "
            "answers with other tokens, do not go together"
        )


def check_features(keeping: Model, drafter: Model, names: tuple[str, str]) -> None:
    """Raises a UserError unless the drafter reads as many numbers as the verifier's caches keep a token.

    Args:
      keeping: the verifier with caches that keep features.
      drafter: one that reads them.
      names: of the verifier and of the drafter.
    """
    width = jax.eval_shape(lambda: keeping.init_cache(1, 1)).features.shape[-1]
    if width != drafter.feature_width:
        raise UserError(
            f"{names[1]} was made for another verifier: it reads hidden states of {drafter.feature_width} numbers, "
            f"and those of {names[0]} have {width}"
        )
