"""Append-only JSONL: what was written stays, whatever happens later."""

import contextlib
import gzip
import json
import math
import os
import pathlib
from typing import Any, TextIO

from cascades.errors import UserError


def check_writable(path: str) -> None:
    """Checks, without touching anything, that `open_append` would find a place to write.

    Raises:
      UserError: a folder, in a folder that does not exist, or without the right to write.
    """
    target = pathlib.Path(path).expanduser()
    if target.is_dir():
        raise UserError(f"results should go to a file, but {path} is a folder: name a file in it")
    if not target.parent.is_dir():
        raise UserError(f"results should go to a file that can be written, but there is no folder {target.parent}")
    if not os.access(target if target.exists() else target.parent, os.W_OK):
        raise UserError(f"results should go to a file that can be written, but {path} cannot: permission denied")


def open_append(path: str) -> TextIO:
    """Opens a JSONL file for appending; a torn last line, from a run that was killed, is ended first.

    Raises:
      UserError: it cannot be written.
    """
    target = pathlib.Path(path).expanduser()
    try:
        if target.is_file() and target.stat().st_size:
            with open(target, "rb+") as file:
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":
                    file.write(b"\n")
        return open(target, "a", encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"results should go to a file that can be written, but {path} cannot: {error.strerror}"
        ) from None


def append(file: TextIO, record: dict[str, Any]) -> None:
    """Writes one line and hands it to the operating system. A float that is NaN or infinite, which JSON does not know,
    becomes null.

    Raises:
      UserError: the disk is full, or whatever else the operating system says.
    """
    record = _finite(record)
    line = json.dumps(record, ensure_ascii=False, allow_nan=False)
    try:
        line.encode()
    except UnicodeEncodeError:  # a lone surrogate, from JSON's "\\ud800": only an escape can hold it
        line = json.dumps(record, allow_nan=False)
    try:
        file.write(line + "\n")
        file.flush()
    except OSError as error:
        with contextlib.suppress(OSError):  # which tries to write once more
            file.close()
        raise UserError(f"a result could not be written to {file.name}: {error.strerror}") from None


def load(path: str) -> list[dict[str, Any]]:
    """Returns the whole lines of a file that may not exist yet, or be compressed (.gz); torn ones are passed over."""
    target = pathlib.Path(path).expanduser()
    if not target.is_file():
        return []
    records = []
    # Not `splitlines`: a line may hold U+2028 and other characters that it takes for ends of lines. A torn line may end
    # within a character.
    data = gzip.decompress(target.read_bytes()) if target.suffix == ".gz" else target.read_bytes()
    for line in data.decode("utf-8", errors="replace").split("\n"):
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):  # not JSON, or what no result holds: a number of thousands of digits
            continue
        if isinstance(value, dict):
            records.append(value)
    return records


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    return [_finite(each) for each in value] if isinstance(value, list | tuple) else value
