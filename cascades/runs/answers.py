"""What a run tells and writes of a request that has an answer, and of one that has none."""

from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from rich.console import Console

from cascades.errors import Unanswered
from cascades.generation import Result, records
from cascades.generation.prompts import Bad


def failure(prompt: str, error: str, err: Console) -> Result:
    """Tells of a request that cannot be decoded; returns what is reported of it."""
    tell(err, error)
    return Result(prompt, "", [], [], "error", {}, error)


def tell(err: Console, error: str) -> None:
    """Prints the sentence of a request that failed."""
    err.print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)


def record(result: Result, entry: dict[str, Any] | Bad | None) -> dict[str, Any]:
    """Returns a line of the output: the result, and what its line of the input holds beside the prompt."""
    line = result._asdict()
    if result.error is None:
        del line["error"]
    if isinstance(entry, Bad):
        line |= {} if entry.line is None else {"line": entry.line}
        return line if entry.fields is None else {**line, "input": entry.fields}
    extra = {name: value for name, value in (entry or {}).items() if name != "prompt"}
    return {**line, "input": extra} if extra else line


def write_failures(file: TextIO | None, entries: Sequence[dict[str, Any] | Bad], failed: Mapping[int, Result]) -> None:
    """Writes the lines of what was not decoded, by its place in `entries`."""
    for place, result in failed.items():
        if file:
            records.append(file, record(result, entries[place]))


def unanswered(results: Mapping[int, Result]) -> Unanswered:
    """Returns what a run ends with that has no answer, or no whole one, to some of its requests."""
    ordered = [results[place] for place in sorted(results)]
    errors = [result.error for result in ordered if result.error]
    return Unanswered(f"{len(errors)} of {len(ordered)} prompts have no whole answer; the first: {errors[0]}", ordered)
