"""Data sets of the Hugging Face hub, by the package `datasets` (pip install -e '.[hub]'), as the lines of our files."""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

from cascades.errors import UserError

SPLITS = ("test", "validation", "train")
"""Of a data set that has all three, of which a task may ask either."""


class Source(NamedTuple):
    """A split of a data set.

    repository: its name on the hub. config: its configuration, or None for the only one. split: as `datasets` names it.
    convert: from a row to the documented fields of the task.
    """

    repository: str
    config: str | None
    split: str
    convert: Callable[[dict[str, Any]], dict[str, Any]]


def kept(*fields: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Returns a conversion of rows that have the documented fields already."""
    return lambda row: {field: row[field] for field in fields if field in row}


def squad(row: dict[str, Any]) -> dict[str, Any]:
    """A row of SQuAD: its answers stand in a list beside where they begin."""
    return kept("id", "title", "context", "question")(row) | {"answers": list(row["answers"]["text"])}


def trivia(row: dict[str, Any]) -> dict[str, Any]:
    """A row of TriviaQA: all aliases of its answer count."""
    return {"id": row["question_id"], "question": row["question"], "answers": list(row["answer"]["aliases"])}


def translation(source: str, target: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """A row of WMT: an object from language codes to sentences. Returns its conversion to fields of those names."""
    return lambda row: {code: row["translation"][code] for code in (source, target)}


def read(source: Source, knob: str, fields: str, first: int | None = None) -> list[dict[str, Any]]:
    """Returns the rows of a split, or its first ones, with the documented fields.

    Args:
      knob: that names a file instead, such as "gsm8k.path". fields: which such a file has, in words.

    Raises:
      UserError: `datasets` is not installed, the data set cannot be loaded, or a row is not as expected.
    """
    instead = f"set {knob} to a JSONL file with {fields}"
    try:
        import datasets  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise UserError(
            f"{knob} is not set, and the package datasets, which would load {source.repository}, is not installed: "
            f"{instead}, or pip install -e '.[hub]'"
        ) from None
    try:
        rows = datasets.load_dataset(source.repository, source.config, split=source.split)
        return [source.convert(dict(row)) for row in itertools.islice(rows, first)]
    except Exception as error:  # of whatever libraries lie below: no network, no such data set, no leave to read it
        why = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(
            f"{knob} is not set, and {source.repository} could not be loaded from the Hugging Face hub ({why}): "
            f"{instead}"
        ) from None
