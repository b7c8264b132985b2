"""The gin launcher: reads a gin file and `--gin.NAME=VALUE`, checks every name in them, and calls one function.

A launcher is `config.run("cascades.runs.decode.decode", base="configs/decode.gin", flags=("prompt",))`; a user
types `python launch/decode.py --config=configs/decode.gin --gin.RULE=@token_v3 --gin.DRAFTER="'path/to/it'"`. In place
of the whole run file `--config` takes one that sets knobs of a pair alone, which is read over the launcher's own.

CAPITAL macros are the knobs of a file. `@name` is a function and `@name()` what it returns. The rules, the draft-length
factories, the specs and the run function go by their short names; any other function by its dotted path, as in
`RULE = @my_rules.my_rule`, where `my_rules` is installed or stands in the current folder. No import line is needed.

gin itself accepts a misspelt knob in silence, and evaluates a macro anew at every use: bind names and cheap values,
and load what is heavy in the run function.
"""

import importlib
import inspect
import os
import sys
import textwrap
from collections.abc import Callable, Sequence
from typing import Any

import gin
from absl import flags

from cascades import ending
from cascades.config import functions, knobs, reach, statements
from cascades.config.statements import Source
from cascades.errors import UserError

_CONFIG = flags.DEFINE_string(
    "config", None, "The gin file of the run, or one of a pair alone, relative to here or to the repository."
)


def run(
    function: str | Callable[..., Any],
    base: str | None = None,
    flags: Sequence[str] = (),
    argv: Sequence[str] | None = None,
) -> None:
    """Runs a launcher: parses the command line, configures `function`, calls it, and ends as `ending.told` says.

    Args:
      function: the run function, or its dotted path, which is imported only once the flags are parsed. Where it has
        an argument `config_text` it gets `operative`, to save the configuration beside its results.
      base: the run file of the launcher, over which a file that does not bind the run function is read.
      flags: names of absl flags that the launcher declares; those that are set are passed as keyword arguments, and
        those of `hosts.FLAGS` join this process to others, which must have the same configuration.
      argv: the command line, `sys.argv` by default.
    """
    with ending.told():
        _run(function, base, flags, sys.argv if argv is None else argv)


def configure(
    function: Callable[..., Any], path: str, overrides: Sequence[str] = (), base: str | None = None
) -> Callable[..., Any]:
    """Returns `function` with the arguments that a gin file binds.

    Args:
      function: the run function, known in the file by its `__name__`.
      path: the gin file, relative to the current folder or to the repository: a complete run file, which binds
        arguments of `function`, or one with knobs of a pair alone.
      overrides: `NAME=VALUE` each, applied after the file.
      base: the run file that is read before one of a pair.

    Raises:
      UserError: for a missing file, a syntax error, an unknown name, a knob that the run does not read, one that must
        be set and is not, and a required argument that nothing binds.
    """
    gin.clear_config()
    functions.register(function)
    file = statements.find(os.path.expanduser(path), f"--config={path}")
    stated, reader = list(statements.of_file(file, Source.FILE)), path
    if base is not None and not knobs.binds(stated, function):
        knobs.check_other_run(stated, function, path)
        below = statements.of_file(statements.find(base, path), Source.INCLUDED)
        stated, reader = [*below, *statements.of_file(file, Source.PAIR)], base
    stated += statements.of_overrides(overrides)
    kept = knobs.mentioned(stated)  # what the others hold need not even be known to this launcher
    known = [each for each in stated if each.argument or each.key in kept]
    knobs.check_names(known)
    bindings = knobs.effective(known)
    reached = reach.reach(bindings, function.__name__)
    knobs.check_read(stated, reached, function, reader)
    knobs.check_set(bindings, reached, path)
    knobs.check_calls(reached)
    try:
        gin.parse_config("\n".join(binding.text for binding in bindings.values()))
    except (ValueError, KeyError, SyntaxError) as error:
        raise UserError(f"{path}: {str(error).splitlines()[0]}") from error
    return gin.get_configurable(function)


def operative() -> str:
    """Returns the values that were used so far, defaults included, as the text of a gin file that repeats the run."""
    return gin.operative_config_str()


def in_effect() -> dict[str, str]:
    """Returns what every binding in effect says, by its name."""
    lines = (line.partition(" = ") for line in gin.config_str(max_line_length=1 << 20).splitlines())
    return {name: value for name, equals, value in lines if equals and not name.startswith("#")}


def _run(function: str | Callable[..., Any], base: str | None, names: Sequence[str], argv: Sequence[str]) -> None:
    if any(argument in ("-h", "--help", "-help", "--helpfull") for argument in argv):
        print(_help(names))
        if base is not None:
            print(_knobs(function if isinstance(function, str) else function.__name__, base))
        return
    overrides, rest = _split(argv)
    try:
        extra = flags.FLAGS(rest)[1:]
    except flags.Error as error:
        raise UserError(str(error).replace("\n", " ")) from error
    if extra:
        raise UserError(f"unexpected argument {extra[0]!r}: every argument is a flag; see --help")
    if not _CONFIG.value:
        raise UserError(f"--config is missing: name a gin file, as in --config={base or 'configs/decode.gin'}")
    if isinstance(function, str):
        module, _, name = function.rpartition(".")
        function = getattr(importlib.import_module(module), name)
    assert callable(function)
    arguments = {name: flags.FLAGS[name].value for name in names if flags.FLAGS[name].value is not None}
    hosts = importlib.import_module("cascades.hosts")  # which brings jax, and --help is quick
    hosts.join_by(arguments)
    configured = configure(function, _CONFIG.value, overrides, base)
    bound = gin.get_bindings(function, resolve_references=False) | arguments
    missing = [name for name in functions.required(function) if name not in bound]
    if missing:
        name = f"{function.__name__}.{missing[0]}"
        raise UserError(f"{function.__name__} needs {knobs.joined(missing)}: bind {name} in {_CONFIG.value}")
    hosts.compare(arguments, in_effect())
    if "config_text" in inspect.signature(function).parameters:
        arguments["config_text"] = operative
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
        lines += _wrapped(text)
    return "\n".join(lines)


def _knobs(function: str, base: str) -> str:
    """Returns what a launcher's run file leaves open, and how it is set there."""
    stated = list(statements.of_file(statements.find(base, base), Source.INCLUDED))
    bindings, words = knobs.effective(stated), {each.key: each.words for each in stated if each.words}
    lines = ["", f"Knobs, as {base} sets them:"]
    for name in sorted(reach.reach(bindings, function.rpartition(".")[2]).knobs):
        lines.append(f"  {bindings[name].text}")
        lines += _wrapped(words.get(name, ""))
    return "\n".join(lines)


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(" ".join(text.split()), 100, initial_indent=" " * 6, subsequent_indent=" " * 6)
