"""Prompts from the command line and from JSONL files."""

import json
import math
import pathlib
import zlib
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from cascades.errors import UserError

_FIELDS = ("prompt", "question", "text")
_DEEPEST = 100  # lists and objects in each other: of what is read, every line can be written again
_DIGITS = 4300  # of a whole number: the most that Python reads and writes


class Bad(NamedTuple):
    """A prompt that cannot be decoded.

    prompt: its text, or "" where none could be read. error: why, in one sentence. line: of its file, from 1, or None
    if it is of the command line. fields: what else the line holds, as it came, or None where it could not be read.
    """

    prompt: str
    error: str
    line: int | None = None
    fields: Any = None


def share(shard: str | None, count: int) -> range:
    """Returns the places, of `count` prompts, that are this process's: with "I/N" every N-th from I on, else all.

    Raises:
      UserError: it is no such thing.
    """
    if shard is None:
        return range(count)
    index, slash, parts = shard.partition("/")
    if not (slash and index.isdecimal() and parts.isdecimal() and int(index) < int(parts)):
        raise UserError(f"--shard must be I/N with I from 0 to N - 1, as in 0/4, 1/4, 2/4 and 3/4, not {shard!r}")
    return range(int(index), count, int(parts))


def copies(entries: Sequence[dict[str, Any] | Bad]) -> list[int]:
    """Returns how many equal prompts stand before each."""
    seen: Counter[str] = Counter()
    counts = []
    for entry in entries:
        text = entry.prompt if isinstance(entry, Bad) else entry["prompt"]
        counts.append(seen[text])
        seen[text] += 1
    return counts


def read(path: str) -> list[dict[str, Any]]:
    """Reads a JSONL file: a line is a string, or an object with `prompt`, `question`, `text` or the first of `turns`.

    Returns:
      One dict a line, with `prompt` set.

    Raises:
      UserError: the file cannot be read, is empty, or a line is not JSON or holds no prompt.
    """
    entries = scan(path)
    for entry in entries:
        if isinstance(entry, Bad):
            raise UserError(entry.error)
    return [entry for entry in entries if isinstance(entry, dict)]


def scan(path: str) -> list[dict[str, Any] | Bad]:
    """Reads a JSONL file as `read` does, and tells of every line that cannot be used.

    Raises:
      UserError: the file cannot be read, is no text or holds no line.
    """
    try:
        data = pathlib.Path(path).expanduser().read_bytes()
    except OSError as error:
        raise UserError(
            f"the prompts should be in a file that can be read, but {path!r} cannot: {error.strerror}"
        ) from None
    # Not `splitlines`: JSON strings may hold U+2028 and other characters that it takes for ends of lines.
    lines = [(number, line) for number, line in enumerate(data.split(b"\n"), 1) if line.strip()]
    entries, problem = [], None
    for number, line in lines:
        try:
            text = line.decode("utf-8-sig").strip()  # such a mark begins a file, or one that was appended to another
        except UnicodeDecodeError as error:
            problem = error
            entries.append(Bad("", f"line {number} of {path} should be UTF-8 text, but is not: {error}", number))
            continue
        if text:
            entries.append(_entry(path, number, text))
    if problem is not None and not any(isinstance(entry, dict) for entry in entries):
        raise UserError(f"the prompts should be in a file of UTF-8 text, but {path} is not: {problem}")
    if not entries:
        raise UserError(f"{path} holds no prompt: a JSON object a line with a field 'prompt' was expected")
    return entries


def collect(prompts: Sequence[str] | None, path: str | None) -> list[dict[str, Any] | Bad]:
    """Returns the prompts of the command line, then those of the file, each as it is or with what is wrong with it.

    Raises:
      UserError: as `scan`.
    """
    given: list[dict[str, Any] | Bad] = []
    for prompt in prompts or ():
        text = _printable(prompt)
        given.append({"prompt": text} if text.strip() else Bad(text, _empty("--prompt")))
    return given + (scan(path) if path is not None else [])


def summary(entries: Sequence[dict[str, Any] | Bad]) -> str:
    """Returns how many prompts there are and a checksum of their texts, by which hosts compare them."""
    texts = repr([entry.prompt if isinstance(entry, Bad) else entry["prompt"] for entry in entries])
    return f"{len(entries)} of checksum {zlib.crc32(texts.encode()):08x}"


def _entry(path: str, number: int, line: str) -> dict[str, Any] | Bad:
    where = f"line {number} of {path}"
    try:
        value, problem = _parse(line)
        if _deep(value, _DEEPEST):
            raise RecursionError(f"more than {_DEEPEST} lists and objects in each other")
    except (json.JSONDecodeError, RecursionError) as error:
        return Bad("", f"{where} should be JSON, but is not ({error}): mend or delete it", number)
    prompt, extra = (value, {}) if isinstance(value, str) else (_prompt(value), value)
    text = _printable(prompt) if isinstance(prompt, str) else ""
    if problem is not None:
        return Bad(text, f"{where} holds {problem}: mend or delete it", number, extra)
    if not isinstance(prompt, str):
        but = "" if prompt is None else f", not {_kind(prompt)}"
        return Bad("", f"{where} holds no prompt: a text in 'prompt' was expected{but}", number, extra)
    if not text.strip():
        return Bad(text, _empty(where), number, extra or None)
    return {**extra, "prompt": text}


def _parse(line: str) -> tuple[Any, str | None]:
    """Returns what a line of JSON holds, and what of it cannot be kept, in the place of which is None.

    Raises:
      json.JSONDecodeError, RecursionError: it is no JSON.
    """
    problems: list[str] = []

    def constant(name: str) -> None:
        problems.append(f"{name}, which is no JSON")

    def real(text: str) -> float | None:
        value = float(text)
        if math.isfinite(value):
            return value
        return problems.append("a number that is too large to keep")

    def whole(text: str) -> int | None:
        if len(text.lstrip("-")) <= _DIGITS:
            return int(text)
        return problems.append(f"a number of {len(text)} digits, of which at most {_DIGITS} can be kept")

    def fields(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        for name in sorted({name for name in names if names.count(name) > 1} if len(set(names)) < len(names) else ()):
            problems.append(f"the field {name!r:.40} more than once, and which one counts is not said")
        return dict(pairs)

    value = json.loads(line, parse_constant=constant, parse_float=real, parse_int=whole, object_pairs_hook=fields)
    return value, problems[0] if problems else None


def _prompt(value: Any) -> Any:
    """What stands where a line's prompt is looked for: the first of its fields that is there; None if none is."""
    if not isinstance(value, dict):
        return None
    turns = value.get("turns")
    first = turns[0] if isinstance(turns, list) and turns else turns
    return next((value[field] for field in _FIELDS if value.get(field) is not None), first)


def _empty(where: str) -> str:
    return f"{where} holds an empty prompt: give it some text"


def _printable(prompt: str) -> str:
    """Returns a prompt without lone surrogates, which stand for bytes that are not UTF-8 and cannot be printed."""
    return prompt.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _deep(value: Any, levels: int) -> bool:
    """Whether lists and objects lie in each other in more than so many levels."""
    if not isinstance(value, dict | list):
        return False
    inner = value.values() if isinstance(value, dict) else value
    return levels == 0 or any(_deep(each, levels - 1) for each in inner)


def _kind(value: Any) -> str:
    names = {bool: "true or false", int: "a number", float: "a number", list: "a list", dict: "an object"}
    return names[type(value)]
