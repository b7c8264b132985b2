"""The exceptions that a user is meant to read."""

from collections.abc import Sequence
from typing import Any


class UserError(ValueError):
    """Bad input, in one sentence: what was expected, what came, what to do. Launchers print it and exit with 2."""


class Unanswered(UserError):
    """Some requests of a run have no answer, and the others have theirs.

    results: of all of them, in order; those without an answer have `error` set. Each was told when it failed, so that
    launchers print nothing more, and exit with 2.
    """

    def __init__(self, message: str, results: Sequence[Any]):
        super().__init__(message)
        self.results = list(results)
