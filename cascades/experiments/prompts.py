"""Prompts from the command line and from JSONL files."""

import json
import pathlib
from collections.abc import Sequence
from typing import Any

from cascades.errors import UserError

_FIELDS = ("prompt", "question", "text")


def read(path: str) -> list[dict[str, Any]]:
    """Reads a JSONL file: a line is a string, or an object with `prompt`, `question`, `text` or the first of `turns`.

    Returns:
      One dict a line, with `prompt` set.

    Raises:
      UserError: the file cannot be read, is empty, or a line is not JSON or holds no prompt.
    """
    try:
        text = pathlib.Path(path).expanduser().read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"the prompts should be in a file of UTF-8 text, but {path} is not: {error}") from None
    except OSError as error:
        raise UserError(
            f"the prompts should be in a file that can be read, but {path!r} cannot: {error.strerror}"
        ) from None
    # Not `splitlines`: JSON strings may hold U+2028 and other characters that it takes for ends of lines.
    records = [_record(path, number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not records:
        raise UserError(f"{path} holds no prompt: a JSON object a line with a field 'prompt' was expected")
    return records


def collect(prompts: Sequence[str] | None, path: str | None) -> list[dict[str, Any]]:
    """Returns the prompts of the command line, then those of the file.

    Raises:
      UserError: one is empty; and as `read`.
    """
    given = [{"prompt": _text(prompt, "--prompt")} for prompt in prompts or ()]
    return given + (read(path) if path is not None else [])


def _record(path: str, number: int, line: str) -> dict[str, Any]:
    where = f"line {number} of {path}"
    try:
        value = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        raise UserError(f"{where} should be JSON, but is not ({error}): mend or delete it") from None
    if isinstance(value, str):
        return {"prompt": _text(value, where)}
    if isinstance(value, dict):
        turns = value.get("turns")
        first = turns[0] if isinstance(turns, list) and turns else None
        prompt = next((value[field] for field in _FIELDS if isinstance(value.get(field), str)), first)
        if isinstance(prompt, str):
            return {**value, "prompt": _text(prompt, where)}
    raise UserError(f"{where} holds no prompt: a text in 'prompt' was expected")


def _text(prompt: str, where: str) -> str:
    """Returns a prompt without lone surrogates, which stand for bytes that are not UTF-8 and cannot be printed."""
    if not prompt.strip():
        raise UserError(f"{where} holds an empty prompt: give it some text")
    return prompt.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
