"""What stands in gin files and on the command line: bindings in the order in which gin applies them."""

import difflib
import enum
import math
import re
import tokenize
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from gin import config_parser

from cascades.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


class Reference(NamedTuple):
    """`@scope/name` or `@scope/name()` as it stands in a file."""

    scope: str
    name: str
    called: bool


class Macro(NamedTuple):
    """`%NAME` as it stands in a file."""

    name: str

    @property
    def required(self) -> bool:
        """Whether it stands for a value that must be set."""
        return self.name in ("gin.REQUIRED", "REQUIRED")


class Source(enum.Enum):
    """Who says it.

    COMMAND: the command line. FILE: a complete run file, by itself. PAIR: a file that is read over a launcher's own, or
    one that it includes. INCLUDED: any other file.
    """

    COMMAND = 0
    FILE = 1
    PAIR = 2
    INCLUDED = 3


class Binding(NamedTuple):
    """One `scope/selector.argument = value`, or `NAME = value` where `argument` is empty.

    where: the file and line, or the command-line argument, for messages. words: the comment behind it.
    """

    scope: str
    selector: str
    argument: str
    value: Any
    where: str
    source: Source
    words: str = ""

    @property
    def key(self) -> str:
        name = f"{self.scope}/{self.selector}" if self.scope else self.selector
        return f"{name}.{self.argument}" if self.argument else name

    @property
    def required(self) -> bool:
        """Whether it says that its value must be set elsewhere."""
        return isinstance(self.value, Macro) and self.value.required

    @property
    def text(self) -> str:
        """The line of a gin file."""
        return f"{self.key} = {_written(self.value)}"


class _Recorder(config_parser.ParserDelegate):
    """Keeps references and macros as they were written, where gin would look them up."""

    def configurable_reference(self, scoped_configurable_name: str, evaluate: bool) -> Reference:
        scope, _, name = scoped_configurable_name.rpartition("/")
        return Reference(scope, name, evaluate)

    def macro(self, scoped_configurable_name: str) -> Macro:
        return Macro(scoped_configurable_name)


def find(path: str, where: str) -> Path:
    """Returns a gin file, looked for in the current folder and then under the repository.

    Raises:
      UserError: there is none; near names are told.
    """
    for candidate in (Path(path), ROOT / path):
        if candidate.is_file():
            return candidate
    known = [str(file.relative_to(ROOT)) for file in sorted((ROOT / "configs").rglob("*.gin"))]
    raise UserError(f"{where}: there is no gin file {path} in the current folder or under {ROOT}{near(path, known)}")


def of_file(path: Path, source: Source, including: tuple[Path, ...] = ()) -> Iterator[Binding]:
    """Yields the bindings of a file and of what it includes.

    Args:
      path: the file. source: of its own statements; what it includes is of a PAIR as well, or else INCLUDED.
      including: the files that include it.

    Raises:
      UserError: a syntax error, a file that is not there or includes itself, an import.
    """
    if path.resolve() in including:
        raise UserError(f"{path}: the file includes itself")
    including = (*including, path.resolve())
    below = source if source is Source.PAIR else Source.INCLUDED
    text = path.read_text(encoding="utf-8")
    try:
        for statement in config_parser.ConfigParser(text, _Recorder()):
            line = statement.location.line_num
            where = f"{path}, line {line}"
            if isinstance(statement, config_parser.BindingStatement):
                yield Binding(*statement[:4], where, source, _words(text.splitlines()[line - 1 :]))
            elif isinstance(statement, config_parser.IncludeStatement):
                yield from of_file(find(statement.filename, where), below, including)
            elif isinstance(statement, config_parser.ImportStatement):
                raise UserError(f"{where}: name functions by their path, as @my_rules.mine, in place of an import")
    except UserError:
        raise
    except (SyntaxError, tokenize.TokenError, ValueError) as error:
        raise UserError(f"{path}, {_reason(error)}") from error


def of_overrides(overrides: Sequence[str]) -> Iterator[Binding]:
    """Yields the bindings of `NAME=VALUE` each.

    Raises:
      UserError: what is no value of gin.
    """
    for text in overrides:
        where = f"--gin.{text}"
        try:
            parsed = config_parser.ConfigParser(text, _Recorder())
            statements = [each for each in parsed if isinstance(each, config_parser.BindingStatement)]
        except (SyntaxError, tokenize.TokenError, ValueError) as error:
            name, _, value = text.partition("=")
            string = f"--gin.{name}=\"'{value.strip(chr(39) + chr(34))}'\""
            hint = f"a string is quoted twice, as {string}, and a function is @name"
            raise UserError(f"{where}: this is no gin value: {hint}") from error
        for statement in statements:
            yield Binding(*statement[:4], where, Source.COMMAND)


def parts(value: Any) -> Iterator[Reference | Macro]:
    """Yields the references and macros within a value."""
    if isinstance(value, Reference | Macro):
        yield value
    elif isinstance(value, dict):
        for pair in value.items():
            yield from parts(pair)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from parts(item)


def macros(bindings: Iterable[Binding]) -> set[str]:
    """Returns the names of the macros that stand in values."""
    items = (item for binding in bindings for item in parts(binding.value))
    return {item.name for item in items if isinstance(item, Macro) and not item.required}


def near(name: str, known: Iterable[str], shown: Mapping[str, str] | None = None) -> str:
    """Returns ` (did you mean …?)`, or nothing. shown: what is told for a known word, where it is not the word."""
    lowered = {word.lower(): (shown or {}).get(word, word) for word in known}
    near = difflib.get_close_matches(name.lower(), lowered, cutoff=0.65)
    return f" (did you mean {' or '.join(lowered[word] for word in near)}?)" if near else ""


def _reason(error: Exception) -> str:
    """Returns `line 3: what is wrong: the line` of an error of gin's parser or of Python's tokenizer."""
    if isinstance(error, SyntaxError):
        message = (error.msg or "syntax error").splitlines()[-1].strip().rstrip(".")
        return f"line {error.lineno}: {message}: {(error.text or '').strip()}"
    if isinstance(error, tokenize.TokenError):
        return f"line {error.args[1][0]}: {error.args[0]}"
    return str(error)


def _words(lines: Sequence[str]) -> str:
    """Returns the comment behind the first of some lines, and those that go on with it below."""
    _, *comments = re.split(r"\s+# ", lines[0], maxsplit=1)
    for line in lines[1:]:
        if not re.match(r"\s+# ", line):
            break
        comments.append(line.partition("# ")[2])
    return " ".join(comments)


def _written(value: Any) -> str:
    if isinstance(value, Reference):
        name = f"{value.scope}/{value.name}" if value.scope else value.name
        return f"@{name}()" if value.called else f"@{name}"
    if isinstance(value, Macro):
        return f"%{value.name}"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_written(key)}: {_written(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_written, value)) + "]"
    if isinstance(value, tuple):
        return "(" + "".join(f"{_written(item)}, " for item in value) + ")"
    if isinstance(value, float) and math.isinf(value):
        return "1e999" if value > 0 else "-1e999"  # Python has no literal for it
    return repr(value)
