"""The gin launcher: reads a gin file and `--gin.NAME=VALUE`, checks every name in them, and calls one function.

A launcher is `config.run("cascades.experiments.decode.decode", flags=("prompt",))`; a user types
`python launch/decode.py --config=configs/decode.gin --gin.RULE=@token_v3 --gin.DRAFTER="'path/to/it'"`.

CAPITAL macros are the knobs of a file. `@name` is a function and `@name()` what it returns. The rules, the draft-length
factories and the run function go by their short names; any other function by its dotted path, as in
`RULE = @my_rules.my_rule`, where `my_rules` is installed or stands in the current folder. No import line is needed.

gin itself accepts a misspelt knob in silence, and evaluates a macro anew at every use: bind names and cheap values,
and load what is heavy in the run function.
"""

import difflib
import importlib
import inspect
import os
import sys
import textwrap
import tokenize
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import gin
from absl import flags
from gin import config_parser

from cascades.errors import Unanswered, UserError

_ROOT = Path(__file__).resolve().parents[1]
_NAMED_MODULES = ("cascades.rules", "cascades.lookahead")  # functions in their `__all__` go by their short names
_REQUIRED = ("gin.REQUIRED", "REQUIRED")
_known: dict[str, dict[str, Callable[..., Any]]] = {}  # where it comes from -> short name -> function

_CONFIG = flags.DEFINE_string("config", None, "The gin file of the run, relative to here or to the repository.")
gin.add_config_file_search_path(str(_ROOT))


class _Reference(NamedTuple):
    """`@scope/name` or `@scope/name()` as it stands in a file."""

    scope: str
    name: str
    called: bool


class _Macro(NamedTuple):
    """`%NAME` as it stands in a file."""

    name: str


class _Binding(NamedTuple):
    """One `scope/selector.argument = value`, or `NAME = value` where `argument` is empty.

    where: the file and line, or the command-line argument, for messages.
    chosen: whether it stands in the run's own file or on the command line, and not in an included file.
    """

    scope: str
    selector: str
    argument: str
    value: Any
    where: str
    chosen: bool

    @property
    def key(self) -> str:
        name = f"{self.scope}/{self.selector}" if self.scope else self.selector
        return f"{name}.{self.argument}" if self.argument else name


class _Recorder(config_parser.ParserDelegate):
    """Keeps references and macros as they were written, where gin would look them up."""

    def configurable_reference(self, scoped_configurable_name: str, evaluate: bool) -> _Reference:
        scope, _, name = scoped_configurable_name.rpartition("/")
        return _Reference(scope, name, evaluate)

    def macro(self, scoped_configurable_name: str) -> _Macro:
        return _Macro(scoped_configurable_name)


def run(function: str | Callable[..., Any], flags: Sequence[str] = (), argv: Sequence[str] | None = None) -> None:
    """Runs a launcher: parses the command line, configures `function` and calls it.

    A bad input ends with one sentence on stderr and exit code 2 (of `Unanswered` the run has told), Ctrl-C with 130.

    Args:
      function: the run function, or its dotted path, which is imported only once the flags are parsed. Where it has
        an argument `config_text` it gets `operative`, to save the configuration beside its results.
      flags: names of absl flags that the launcher declares; those that are set are passed as keyword arguments.
      argv: the command line, `sys.argv` by default.
    """
    try:
        _run(function, flags, sys.argv if argv is None else argv)
    except UserError as error:
        sentence = str(error).split("\n  In call to configurable ")[0]  # gin adds such lines on the way up
        if not isinstance(error, Unanswered):
            print(f"error: {sentence}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(130) from None


def configure(function: Callable[..., Any], path: str, overrides: Sequence[str] = ()) -> Callable[..., Any]:
    """Returns `function` with the arguments that a gin file binds.

    Args:
      function: the run function, known in the file by its `__name__`.
      path: the gin file, relative to the current folder or to the repository.
      overrides: `NAME=VALUE` each, applied after the file.

    Raises:
      UserError: for a missing file, a syntax error, an unknown name, a knob that nothing reads, one that must be set
        and is not, and a required argument that nothing binds.
    """
    gin.clear_config()
    _register(function)
    file = _find(os.path.expanduser(path), f"--config={path}")
    bindings = [*_file_bindings(file, True, ()), *_override_bindings(overrides)]
    _check_names(bindings)
    _check_knobs(bindings, path)
    try:
        gin.parse_config_files_and_bindings([str(file)], list(overrides))
    except (ValueError, KeyError, SyntaxError, OSError) as error:
        raise UserError(f"{path}: {str(error).splitlines()[0]}") from error
    _check_calls(bindings)
    return gin.get_configurable(function)


def operative() -> str:
    """Returns the values that were used so far, defaults included, as the text of a gin file that repeats the run."""
    return gin.operative_config_str()


def _run(function: str | Callable[..., Any], names: Sequence[str], argv: Sequence[str]) -> None:
    if any(argument in ("-h", "--help", "-help", "--helpfull") for argument in argv):
        print(_help(names))
        return
    overrides, rest = _split(argv)
    try:
        extra = flags.FLAGS(rest)[1:]
    except flags.Error as error:
        raise UserError(str(error).replace("\n", " ")) from error
    if extra:
        raise UserError(f"unexpected argument {extra[0]!r}: every argument is a flag; see --help")
    if not _CONFIG.value:
        raise UserError("--config is missing: name a gin file, as in --config=configs/decode.gin")
    if isinstance(function, str):
        module, _, name = function.rpartition(".")
        function = getattr(importlib.import_module(module), name)
    assert callable(function)
    arguments = {name: flags.FLAGS[name].value for name in names if flags.FLAGS[name].value is not None}
    if "config_text" in inspect.signature(function).parameters:
        arguments["config_text"] = operative
    configured = configure(function, _CONFIG.value, overrides)
    missing = [name for name in _unbound(function) if name not in arguments]
    if missing:
        name = f"{function.__name__}.{missing[0]}"
        raise UserError(f"{function.__name__} needs {_and(missing)}: bind {name} in {_CONFIG.value}")
    configured(**arguments)


def _split(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Takes `--gin.NAME=VALUE` out of a command line, as `NAME=VALUE`."""
    overrides, rest = [], []
    for argument in argv:
        if not argument.startswith("--gin."):
            rest.append(argument)
            continue
        name, equals, value = argument.removeprefix("--gin.").partition("=")
        if not (name and equals and value):
            raise UserError(f"{argument}: a knob is set as --gin.NAME=VALUE, without spaces around the =")
        overrides.append(f"{name}={value}")
    return overrides, rest


def _help(names: Sequence[str]) -> str:
    lines = [(sys.modules["__main__"].__doc__ or "").strip(), "", "Flags:"]
    described = [(f"--{name}", flags.FLAGS[name].help or "") for name in ("config", *names)]
    described.insert(1, ("--gin.NAME=VALUE", "Sets a knob of the gin file; a string is quoted twice: \"'text'\"."))
    for name, text in described:
        lines.append(f"  {name}")
        lines.extend(textwrap.wrap(" ".join(text.split()), 100, initial_indent=" " * 6, subsequent_indent=" " * 6))
    return "\n".join(lines)


def _and(words: Sequence[str]) -> str:
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last


def _near(name: str, known: Iterable[str]) -> str:
    """Returns ` (did you mean …?)`, or nothing."""
    lowered = {word.lower(): word for word in known}
    near = difflib.get_close_matches(name.lower(), lowered, cutoff=0.65)
    return f" (did you mean {' or '.join(lowered[word] for word in near)}?)" if near else ""


# Reading: the statements of a run in the order in which gin applies them.


def _find(path: str, where: str) -> Path:
    """Looks where gin looks for an included file: in the current folder, then under the repository."""
    for candidate in (Path(path), _ROOT / path):
        if candidate.is_file():
            return candidate
    known = [str(file.relative_to(_ROOT)) for file in sorted((_ROOT / "configs").rglob("*.gin"))]
    raise UserError(f"{where}: there is no gin file {path} in the current folder or under {_ROOT}{_near(path, known)}")


def _file_bindings(path: Path, chosen: bool, including: tuple[Path, ...]) -> Iterator[_Binding]:
    if path.resolve() in including:
        raise UserError(f"{path}: the file includes itself")
    including = (*including, path.resolve())
    with path.open(encoding="utf-8") as file:
        try:
            for statement in config_parser.ConfigParser(file, _Recorder()):
                where = f"{path}, line {statement.location.line_num}"
                if isinstance(statement, config_parser.BindingStatement):
                    yield _Binding(*statement[:4], where, chosen)
                elif isinstance(statement, config_parser.IncludeStatement):
                    yield from _file_bindings(_find(statement.filename, where), False, including)
                elif isinstance(statement, config_parser.ImportStatement):
                    raise UserError(f"{where}: name functions by their path, as @my_rules.mine, in place of an import")
        except UserError:
            raise
        except (SyntaxError, tokenize.TokenError, ValueError) as error:
            raise UserError(f"{path}, {_reason(error)}") from error


def _override_bindings(overrides: Sequence[str]) -> Iterator[_Binding]:
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
            yield _Binding(*statement[:4], where, True)


def _reason(error: Exception) -> str:
    """Returns `line 3: what is wrong: the line` of an error of gin's parser or of Python's tokenizer."""
    if isinstance(error, SyntaxError):
        message = (error.msg or "syntax error").splitlines()[-1].strip().rstrip(".")
        return f"line {error.lineno}: {message}: {(error.text or '').strip()}"
    if isinstance(error, tokenize.TokenError):
        return f"line {error.args[1][0]}: {error.args[0]}"
    return str(error)


# Checking.


def _flatten(value: Any) -> Iterator[_Reference | _Macro]:
    """Yields the references and macros within a value."""
    if isinstance(value, _Reference | _Macro):
        yield value
    elif isinstance(value, dict):
        for pair in value.items():
            yield from _flatten(pair)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _flatten(item)


def _check_names(bindings: Sequence[_Binding]) -> None:
    """Looks up every function, imports those named by a path, and checks the names of bound arguments."""
    for binding in bindings:
        for item in _flatten(binding.value):
            if isinstance(item, _Reference):
                _function(item.name, binding.where)
    for binding in bindings:  # after the references: what they imported may be bound by its short name
        where, selector, argument = binding.where, binding.selector, binding.argument
        parameters = _parameters(_function(selector, where)) if argument else {}
        if list(parameters)[:2] == ["pair", "alpha"] and argument in ("pair", "alpha"):
            raise UserError(f"{where}: the decoding loop passes {argument} to a rule; set the run's ALPHA")
        open_ended = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
        if parameters and not open_ended and argument not in parameters:
            near, known = _near(argument, parameters), ", ".join(parameters)
            raise UserError(f"{where}: {selector} has no argument {argument}{near}; it takes {known}")


def _check_knobs(bindings: Sequence[_Binding], path: str) -> None:
    """Checks that every knob that the user sets is read, that what is read is set, and that REQUIRED ones are set."""
    effective = {binding.key: binding for binding in bindings}
    read: dict[str, str] = {}
    for binding in effective.values():
        macros = (item.name for item in _flatten(binding.value) if isinstance(item, _Macro))
        read |= {name: binding.where for name in macros if name not in _REQUIRED}
    for binding in bindings:
        if binding.chosen and not binding.argument and binding.key not in read:
            near, knobs = _near(binding.key, read), ", ".join(sorted(read)) or "none"
            raise UserError(f"{binding.where}: nothing in {path} reads {binding.key}{near}; its knobs are {knobs}")
    required = [key for key, b in effective.items() if isinstance(b.value, _Macro) and b.value.name in _REQUIRED]
    if required:
        add = " ".join(f"--gin.{key}=VALUE" for key in required)
        raise UserError(f"{path}: {_and(required)} must be set: add {add} (a string is quoted twice: \"'text'\")")
    for name, where in read.items():
        if name not in effective:
            near = _near(name, [key for key, binding in effective.items() if not binding.argument])
            raise UserError(f"{where}: {name} is read but never set: add --gin.{name}=VALUE{near}")


def _check_calls(bindings: Sequence[_Binding]) -> None:
    """Checks that a function that the configuration calls has all its arguments bound."""
    for binding in {binding.key: binding for binding in bindings}.values():
        for item in _flatten(binding.value):
            if isinstance(item, _Reference) and item.called:
                selector = f"{item.scope}/{item.name}" if item.scope else item.name
                around = binding.scope if binding.argument else binding.key  # gin evaluates a macro in its own scope
                missing = _unbound(_function(item.name, binding.where), item.scope or around)
                if missing:
                    hint = f"write @{selector} to pass the function itself, or bind {selector}.{missing[0]}"
                    raise UserError(f"{binding.where}: @{selector}() needs {_and(missing)}: {hint}")


# Functions by name.


def _register(function: Callable[..., Any]) -> None:
    """Makes known to gin by short names: the run function, rules, controllers, and its module's own NAMED_MODULES."""
    _known.clear()
    _known["run function"] = {function.__name__: function}
    for path in (*_NAMED_MODULES, *getattr(sys.modules[function.__module__], "NAMED_MODULES", ())):
        module = importlib.import_module(path)
        _known[path.rpartition(".")[2]] = {name: getattr(module, name) for name in module.__all__}
    for function in (function for functions in _known.values() for function in functions.values()):
        try:
            gin.get_configurable(function)
        except ValueError:
            gin.external_configurable(function)


def _function(selector: str, where: str) -> Callable[..., Any]:
    """Returns gin's version of a function; one that is named by its path is imported and made known to gin."""
    try:
        return gin.get_configurable(selector)
    except KeyError as error:
        raise UserError(f"{where}: {error.args[0]} Write the whole path") from error
    except ValueError:
        pass
    module_name, _, name = selector.rpartition(".")
    module = _import(module_name, where) if module_name else None
    if module is None:
        near = _near(name, [word for words in _known.values() for word in words])
        lists = "; ".join(f"{room}: {', '.join(words)}" for room, words in _known.items())
        own = "one of your own goes by its module, as @my_rules.my_rule, installed or in the current folder"
        raise UserError(f"{where}: there is no function {selector}{near}; {own}; known are {lists}")
    function = getattr(module, name, None)
    if not callable(function):
        raise UserError(f"{where}: {module_name} has no function {name}{_near(name, vars(module))}")
    try:
        taken = inspect.unwrap(gin.get_configurable(name)).__module__
    except ValueError:
        return gin.external_configurable(function, name=name, module=module_name)
    raise UserError(f"{where}: the name is taken by {taken}.{name}: write @{name} for that one, or rename yours")


def _import(module: str, where: str) -> Any | None:
    """Imports a module that is installed or stands in the current folder; None where there is none."""
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name and f"{module}.".startswith(f"{error.name}."):
            return None
        raise UserError(f"{where}: importing {module} failed: {error}") from error
    except Exception as error:  # whatever a user's module does when it is imported
        raise UserError(f"{where}: importing {module} failed: {type(error).__name__}: {error}") from error


def _parameters(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Returns the parameters behind gin's wrapper, or nothing for a builtin without a signature."""
    original = function.__bases__[0] if inspect.isclass(function) else function  # gin wraps a class in a subclass
    try:
        return dict(inspect.signature(original).parameters)
    except (TypeError, ValueError):
        return {}


def _unbound(function: Callable[..., Any], scope: str = "") -> list[str]:
    """Returns the arguments without default that gin does not bind in `scope`."""
    with gin.config_scope(scope or None):
        bound = gin.get_bindings(function, resolve_references=False)
    optional = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [
        name
        for name, parameter in _parameters(function).items()
        if parameter.default is parameter.empty and parameter.kind not in optional and name not in bound
    ]
