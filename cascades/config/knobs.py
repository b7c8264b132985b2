"""Whether every knob that is set is read, and every knob that is read is set."""

import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from cascades.config import statements
from cascades.config.functions import fields, is_spec, lookup, parameters, required
from cascades.config.statements import (
    Binding,
    Reference,
    Source,
    macros,
    near,
    of_file,
    parts,
)
from cascades.errors import UserError

Bindings = dict[str, Binding]  # the last of each key, which is the one that counts


class Reached(NamedTuple):
    """What a run reads.

    knobs: macros, and where each is read. keys: bindings of arguments. incomplete: what is wrong with calls that lack
    arguments.
    """

    knobs: dict[str, str]
    keys: set[str]
    incomplete: list[str]


def and_(words: Sequence[str]) -> str:
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last


def effective(bindings: Iterable[Binding]) -> Bindings:
    return {binding.key: binding for binding in bindings}


def without_unread(bindings: Sequence[Binding]) -> list[Binding]:
    """Leaves out macros that stand in no value: what they hold need not even be known to this launcher."""
    mentioned = macros(bindings)
    return [binding for binding in bindings if binding.argument or binding.key in mentioned]


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


def reach(bindings: Bindings, function: Callable[..., Any]) -> Reached:
    """Follows a run function's own bindings through `%NAME`, `@scope/name` and what is bound of it in that scope."""
    bound: dict[Callable[..., Any], list[Binding]] = {}
    for binding in bindings.values():
        if binding.argument:
            bound.setdefault(lookup(binding.selector, binding.where), []).append(binding)
    found = Reached({}, set(), [])
    given: dict[tuple[Callable[..., Any], str], set[str]] = {}  # arguments that are bound of a function in a scope

    def visit(function: Callable[..., Any], scope: str) -> set[str]:
        if (function, scope) not in given:
            applied = [each for each in bound.get(function, ()) if _applies(each.scope, scope)]
            given[function, scope] = {binding.argument for binding in applied}
            found.keys.update(binding.key for binding in applied)
            for binding in applied:
                read(binding, scope)
        return given[function, scope]

    def read(binding: Binding, scope: str) -> None:
        for item in parts(binding.value):
            if isinstance(item, Reference):
                function = lookup(item.name, binding.where)
                arguments = visit(function, item.scope or scope)
                missing = [name for name in required(function) if name not in arguments]
                if item.called and missing:
                    found.incomplete.append(_incomplete(item, missing, binding.where))
            elif not item.required and item.name not in found.knobs:
                found.knobs[item.name] = binding.where
                if item.name in bindings:
                    read(bindings[item.name], item.name)  # gin evaluates a macro in a scope of its own

    visit(lookup(function.__name__, ""), "")
    return found


def _applies(bound: str, scope: str) -> bool:
    """Whether what is bound in a scope holds in another: in itself and in those within."""
    return not bound or f"{scope}/".startswith(f"{bound}/")


def _incomplete(item: Reference, missing: Sequence[str], where: str) -> str:
    selector = f"{item.scope}/{item.name}" if item.scope else item.name
    hint = f"write @{selector} to pass the function itself, or bind {selector}.{missing[0]}"
    return f"{where}: @{selector}() needs {and_(missing)}: {hint}"


def check_read(bindings: Sequence[Binding], reached: Reached, function: Callable[..., Any], file: str) -> None:
    """Raises a UserError for a knob that is set and not read.

    The command line and a run file may set what the run reads; a pair's file also what another launcher does.

    Args:
      bindings: all of them. reached: by `function`. file: in which the function's knobs stand.
    """
    renamed = getattr(sys.modules[function.__module__], "RENAMED", {})
    passed: set[str] | None = None
    for binding in bindings:
        if binding.source is Source.INCLUDED or binding.key in (reached.keys if binding.argument else reached.knobs):
            continue
        if binding.argument:
            # Arguments of a function may be set before it is chosen; those of a spec are knobs.
            if binding.source is Source.COMMAND and is_spec(lookup(binding.selector, binding.where)):
                raise UserError(f"{binding.where}: nothing in {file} reads {binding.key}")
            continue
        if binding.source is Source.PAIR:
            passed = _passed_over(bindings) if passed is None else passed
            if binding.key in passed:
                continue
        knobs = ", ".join(sorted(reached.knobs)) or "none"
        hint = renamed.get(binding.key)
        hint = f" (did you mean {hint}?)" if hint else near(binding.key, reached.knobs)
        raise UserError(f"{binding.where}: nothing in {file} reads {binding.key}{hint}; its knobs are {knobs}")


def _passed_over(bindings: Sequence[Binding]) -> set[str]:
    """The knobs of any launcher of the repository, and what a pair's file makes them of."""
    known = set()
    for file in sorted((statements.ROOT / "configs").glob("*.gin")):
        known |= macros(of_file(file, Source.INCLUDED))
    while more := macros(each for each in bindings if each.source is Source.PAIR and each.key in known) - known:
        known |= more
    return known


def check_set(bindings: Bindings, reached: Reached, path: str) -> None:
    """Raises a UserError for a knob that is read and not set, or set to be REQUIRED, and for a call without all of its
    arguments."""
    read = [each for key, each in bindings.items() if key in reached.knobs or key in reached.keys]
    if required := [each.key for each in read if each.required]:
        add = " ".join(f"--gin.{key}=VALUE" for key in required)
        raise UserError(f"{path}: {and_(required)} must be set: add {add} (a string is quoted twice: \"'text'\")")
    for name, where in reached.knobs.items():
        if name not in bindings:
            hint = near(name, [key for key, binding in bindings.items() if not binding.argument])
            raise UserError(f"{where}: {name} is read but never set: add --gin.{name}=VALUE{hint}")
    if reached.incomplete:
        raise UserError(reached.incomplete[0])


def binds(bindings: Sequence[Binding], function: Callable[..., Any]) -> bool:
    """Whether any binds an argument of a run function."""
    return any(each.argument and each.selector.split(".")[-1] == function.__name__ for each in bindings)


def check_other_run(bindings: Sequence[Binding], function: Callable[..., Any], path: str) -> None:
    """Raises a UserError for the run file of another launcher: `configs/NAME.gin` binds the function NAME."""
    for binding in bindings:
        name = binding.selector
        if binding.argument and name != function.__name__ and (statements.ROOT / "configs" / f"{name}.gin").is_file():
            raise UserError(
                f"{path} is a run file of {name} ({binding.where} binds {binding.key}), and {function.__name__} was "
                "asked for: give a file that sets knobs of a pair alone, as those of configs/pairs do"
            )
