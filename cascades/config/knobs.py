"""Whether every knob that is set is read, and every knob that is read is set."""

import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from cascades.config import statements
from cascades.config.functions import fields, is_spec, lookup, parameters, required
from cascades.config.reach import Bindings, Reached, short
from cascades.config.statements import Binding, Reference, Source, macros, near, of_file, parts
from cascades.errors import UserError


def joined(words: Sequence[str]) -> str:
    """Returns `a, b and c`."""
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last


def effective(bindings: Iterable[Binding]) -> Bindings:
    """Returns the bindings that count, by key: the last of each."""
    return {binding.key: binding for binding in bindings}


def mentioned(bindings: Sequence[Binding]) -> set[str]:
    """Returns the macros that stand in what is bound of a function, be it called or not, or in such a macro."""
    return _closed(macros(each for each in bindings if each.argument), bindings)


def _closed(names: set[str], bindings: Sequence[Binding]) -> set[str]:
    """Adds the macros that stand in those that were found."""
    while more := macros(each for each in bindings if each.key in names) - names:
        names = names | more
    return names


def check_names(bindings: Sequence[Binding]) -> None:
    """Looks up every function, imports those named by a path, and checks the names of bound arguments."""
    for binding in bindings:
        for item in parts(binding.value):
            if isinstance(item, Reference):
                lookup(item.name, binding.where)
    for binding in bindings:  # after the references: what they imported may be bound by its short name
        if binding.argument:
            _check_argument(binding)


def _check_argument(binding: Binding) -> None:
    where, selector, argument = binding.where, binding.selector, binding.argument
    known = parameters(lookup(selector, where))
    if list(known)[:2] == ["pair", "alpha"] and argument in ("pair", "alpha"):
        raise UserError(f"{where}: the decoding loop passes {argument} to a rule; set the run's ALPHA")
    open_ended = any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values())
    if not known or open_ended or argument in known:
        return
    elsewhere = {name: shown for name, shown in fields().items() if name not in known}
    hint = near(argument, [*known, *elsewhere], elsewhere)
    raise UserError(f"{where}: {selector} has no argument {argument}{hint}; it takes {', '.join(known)}")


def check_read(bindings: Sequence[Binding], reached: Reached, function: Callable[..., Any], file: str) -> None:
    """Raises a UserError for a knob that is set and not read.

    The command line may set what the run reads; a run file also what would be read with another choice, such as the
    arguments of another rule; a pair's file also what another launcher reads.

    Args:
      bindings: all of them. reached: by `function`. file: in which the function's knobs stand.
    """
    allowed = {Source.COMMAND: set(reached.knobs), Source.FILE: mentioned(bindings)}
    for binding in bindings:
        where, key, source = binding.where, binding.key, binding.source
        if binding.argument:
            # Of the arguments of other functions the same holds as of a run file's knobs.
            if source is Source.COMMAND and key not in reached.keys and is_spec(lookup(binding.selector, where)):
                raise UserError(f"{where}: nothing in {file} reads {key}")
            continue
        if source is Source.PAIR and source not in allowed:
            allowed[source] = allowed[Source.FILE] | _closed(_knobs_of_launchers(), bindings)
        if source is not Source.INCLUDED and key not in allowed[source]:
            renamed = getattr(sys.modules[function.__module__], "RENAMED", {}).get(key)
            hint = f" (did you mean {renamed}?)" if renamed else near(key, reached.knobs)
            knobs = ", ".join(sorted(reached.knobs)) or "none"
            raise UserError(f"{where}: nothing in {file} reads {key}{hint}; its knobs are {knobs}")


def _knobs_of_launchers() -> set[str]:
    """What the run files of the repository read."""
    files = sorted((statements.ROOT / "configs").glob("*.gin"))
    return set().union(*(macros(of_file(file, Source.INCLUDED)) for file in files))


def check_set(bindings: Bindings, reached: Reached, path: str) -> None:
    """Raises a UserError for a knob that is read and not set, or set to be REQUIRED."""
    read = [each for key, each in bindings.items() if key in reached.knobs or key in reached.keys]
    if unset := [each.key for each in read if each.required]:
        add = " ".join(f"--gin.{key}=VALUE" for key in unset)
        raise UserError(f"{path}: {joined(unset)} must be set: add {add} (a string is quoted twice: \"'text'\")")
    for name, where in reached.knobs.items():
        if name not in bindings:
            hint = near(name, [key for key, binding in bindings.items() if not binding.argument])
            raise UserError(f"{where}: {name} is read but never set: add --gin.{name}=VALUE{hint}")


def check_calls(reached: Reached) -> None:
    """Raises a UserError for a function that the configuration calls without all of its arguments."""
    for (scope, name, called), given, where in reached.calls:
        missing = [each for each in required(lookup(name, where)) if each not in given]
        if called and missing:
            selector = f"{scope}/{name}" if scope else name
            hint = f"write @{selector} to pass the function itself, or bind {selector}.{missing[0]}"
            raise UserError(f"{where}: @{selector}() needs {joined(missing)}: {hint}")


def binds(bindings: Sequence[Binding], function: Callable[..., Any]) -> bool:
    """Whether any binds an argument of a run function."""
    return any(each.argument and short(each.selector) == function.__name__ for each in bindings)


def check_other_run(bindings: Sequence[Binding], function: Callable[..., Any], path: str) -> None:
    """Raises a UserError for the run file of another launcher: `configs/NAME.gin` binds the function NAME."""
    for binding in bindings:
        name = binding.selector
        if binding.argument and name != function.__name__ and (statements.ROOT / "configs" / f"{name}.gin").is_file():
            raise UserError(
                f"{path} is a run file of {name} ({binding.where} binds {binding.key}), and {function.__name__} was "
                "asked for: give a file that sets knobs of a pair alone, as those of configs/pairs do"
            )
