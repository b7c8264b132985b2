"""Examples of a task: the data lines, checked, with the few-shot examples before every prompt."""

import gzip
import json
import pathlib
import zlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from cascades import checks
from cascades.errors import UserError
from cascades.evaluation.tasks import hub
from cascades.evaluation.tasks.contract import Example

TEXT = "a text"
TEXTS = "a list of texts"
SOME_TEXTS = "a list of texts, which may be empty"

_LONGEST = 1 << 20  # tokens of an answer, shots of a prompt


class Data(NamedTuple):
    """Where the lines of a task come from.

    factory: the name of the task's function, before the dot of its knobs. fields: what a line holds: names, two of
    them parted by "|" where either will do, to what it should be. asked, shown: what is read where no file is named, to
    be asked and to be shown; None where there is nothing on the hub. id: the field that names a line; where there is
    none, its place does.
    """

    factory: str
    fields: Mapping[str, str]
    asked: hub.Source | None
    shown: hub.Source | None = None
    id: str = "id"


class Layout(NamedTuple):
    """How a prompt is put together.

    question: a record's part, up to where its answer begins. answer: what follows in an example that is shown, with
    the blank before it. before: all of it. between: examples.
    """

    question: Callable[[dict[str, Any]], str]
    answer: Callable[[dict[str, Any]], str] | None = None
    before: str = ""
    between: str = "\n\n"


class Choice(NamedTuple):
    """What a user chose, each named as the knob is.

    path, shots_path: JSONL files, or None for the hub. limit: examples, from the first on, or None for all.
    shots: examples that are shown in every prompt. max_new_tokens: of an answer. chat: whether a chat template goes
    around the prompt.
    """

    path: str | None
    limit: int | None
    max_new_tokens: int
    chat: bool = False
    shots: int = 0
    shots_path: str | None = None

    def check(self, factory: str) -> None:
        """Raises a UserError unless every knob is what it should be."""
        for name in ("path", "shots_path"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, str) or not value):
                raise UserError(f"{factory}.{name} must be a JSONL file, in quotes, or None, not {value!r}")
        if self.limit is not None:
            checks.whole(f"{factory}.limit", self.limit, 1)
        checks.whole(f"{factory}.max_new_tokens", self.max_new_tokens, 1, _LONGEST)
        checks.switch(f"{factory}.chat", self.chat)
        checks.whole(f"{factory}.shots", self.shots, 0, _LONGEST)


def asked(
    data: Data, choice: Choice, layout: Layout, shown: Callable[[dict[str, Any]], bool] = lambda _: True
) -> dict[str, Any]:
    """Returns the fields of a `Task` that follow from what a user chose, which is checked; see `examples`."""
    choice.check(data.factory)
    return {
        "examples": lambda: examples(data, choice, layout, shown),
        "max_new_tokens": choice.max_new_tokens,
        "raw_prompt": not choice.chat,
    }


def examples(
    data: Data, choice: Choice, layout: Layout, shown: Callable[[dict[str, Any]], bool] = lambda _: True
) -> list[Example]:
    """Reads the data of a task. A line that is shown in every prompt is not asked.

    Args:
      shown: which lines may be shown, of which the first are.

    Raises:
      UserError: a file cannot be read, is empty, or a line is not JSON or not as it should be; the hub cannot be read;
        there are fewer lines to show than `shots`, or none to ask; two lines have one id.
    """
    records = _records(data, data.asked, "path", choice.path)
    shots = _shots(data, choice, shown)
    prefix = layout.before
    if layout.answer is not None:
        prefix += "".join(layout.question(shot) + layout.answer(shot) + layout.between for shot in shots)
    found: dict[str, Example] = {}
    for place, record in enumerate(records):
        name = record.get(data.id)
        id = str(place if name is None else name)
        if id in found:
            raise UserError(f"{choice.path or data.factory} holds {id!r} twice in {data.id!r}: name every line once")
        if record not in shots:
            found[id] = Example(id, prefix + layout.question(record), record)
    if not found:
        raise UserError(f"{choice.path or data.factory} holds nothing but what is shown: give {data.factory}.path more")
    return list(found.values())[: choice.limit]


def _shots(data: Data, choice: Choice, shown: Callable[[dict[str, Any]], bool]) -> list[dict[str, Any]]:
    if not choice.shots:
        return []
    first = choice.shots + 16  # more than any task passes over
    lines = _records(data, data.shown, "shots_path", choice.shots_path, first)
    lines = [line for line in lines if shown(line)][: choice.shots]
    if len(lines) < choice.shots:
        where = choice.shots_path or "the hub's split"
        raise UserError(
            f"{data.factory}.shots asks for {choice.shots} examples in every prompt, but {where} holds {len(lines)}: "
            f"ask for fewer, or give {data.factory}.shots_path a longer file"
        )
    return lines


def _records(
    data: Data, source: hub.Source | None, knob: str, path: str | None, first: int | None = None
) -> list[dict[str, Any]]:
    if path is not None:
        return lines(path, data.fields)
    *most, last = (name.replace("|", " or ") for name in data.fields)
    wanted = f"the fields {', '.join(most)} and {last}"
    knob = f"{data.factory}.{knob}"
    if source is None:
        raise UserError(
            f"{knob} is not set, and there is no data set to load instead: set it to a JSONL file with {wanted}"
        )
    records = hub.read(source, knob, wanted, first)
    for number, record in enumerate(records, 1):
        _check(record, f"row {number} of {source.repository}", data.fields)
    return records


def lines(path: str, fields: Mapping[str, str]) -> list[dict[str, Any]]:
    """Reads a JSONL file of objects, compressed where its name ends in .gz.

    Args:
      fields: what every line should hold; what else it holds is kept.

    Raises:
      UserError: the file cannot be read, is no text or holds no line; a line is no JSON object or lacks a field.
    """
    try:
        data = pathlib.Path(path).expanduser().read_bytes()
        data = gzip.decompress(data) if path.endswith(".gz") else data
    except (OSError, EOFError, zlib.error) as error:
        why = getattr(error, "strerror", None) or error
        raise UserError(f"a JSONL file that can be read was expected, but {path} cannot be: {why}") from None
    records = []
    for number, line in enumerate(data.split(b"\n"), 1):  # JSON may hold U+2028, which ends a line elsewhere
        where = f"line {number} of {path}"
        try:
            text = line.decode("utf-8-sig").strip()
            record = json.loads(text, parse_constant=_constant) if text else None
        except (ValueError, RecursionError) as error:
            raise UserError(f"{where} should be a JSON object, but is no JSON ({error}): mend or delete it") from None
        if not text:
            continue
        if not isinstance(record, dict):
            raise UserError(f"{where} should be a JSON object, but is {text[:40]}: mend or delete it")
        _check(record, where, fields)
        records.append(record)
    if not records:
        raise UserError(f"{path} holds no line: a JSON object a line was expected, with {', '.join(fields)}")
    return records


def _check(record: dict[str, Any], where: str, fields: Mapping[str, str]) -> None:
    for names, kind in fields.items():
        choices = names.split("|")
        name = next((each for each in choices if each in record), None)
        if name is None:
            wanted = " or ".join(map(repr, choices))
            raise UserError(
                f"{where} has no field {wanted}, which should be {kind}; it has {', '.join(record) or 'none'}"
            )
        value = record[name]
        texts = value if isinstance(value, list) else [value]
        listed = isinstance(value, list) == (kind != TEXT) and (bool(texts) or kind == SOME_TEXTS)
        if not listed or not all(isinstance(text, str) and text.strip() for text in texts):
            raise UserError(f"{where} should hold {kind} in {name!r}, but holds {json.dumps(value, default=str)[:60]}")


def _constant(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")
