"""What a run reads: followed from what is bound of its function, by names alone, so that nothing need be imported."""

from collections.abc import Iterator
from typing import NamedTuple

from cascades.config.statements import Binding, Macro, Reference, parts
from cascades.errors import UserError

Bindings = dict[str, Binding]
"""By key; the last of each, which is the one that counts."""


class Thing(NamedTuple):
    """A function in the scope in which it is called, or a macro, which gin evaluates in a scope of its own name.

    name: of a function the short one, which no two may share.
    """

    name: str
    scope: str
    macro: bool


class Call(NamedTuple):
    """A reference where it is read. given: the arguments that are bound of it there."""

    reference: Reference
    given: set[str]
    where: str


class Reached(NamedTuple):
    """What a run reads. knobs: macros, and where each is read. keys: bindings of arguments. calls: of functions."""

    knobs: dict[str, str]
    keys: set[str]
    calls: list[Call]


def reach(bindings: Bindings, function: str) -> Reached:
    """Follows a run function's own bindings through `%NAME`, `@scope/name` and what is bound of it in that scope.

    Args:
      bindings: those that count. function: its short name.

    Raises:
      UserError: a value that is made of itself.
    """
    root = Thing(function, "", macro=False)
    _check_cycles(root, bindings)
    reached = Reached({}, set(), [])
    seen, pending = set(), [root]
    while pending:
        thing = pending.pop()
        if thing in seen:
            continue
        seen.add(thing)
        for binding in _stated(thing, bindings):
            if binding.argument:
                reached.keys.add(binding.key)
            for item, part in _parts(binding, thing):
                pending.append(part)
                if isinstance(item, Macro):
                    reached.knobs.setdefault(item.name, binding.where)
                else:
                    given = {each.argument for each in _stated(part, bindings)}
                    reached.calls.append(Call(item, given, binding.where))
    return reached


def short(selector: str) -> str:
    """Returns a function's name without its modules."""
    return selector.rpartition(".")[2]


def _stated(thing: Thing, bindings: Bindings) -> list[Binding]:
    """Returns what is said of a thing: a macro's value, or what holds of a function in its scope."""
    if thing.macro:
        return [bindings[thing.name]] if thing.name in bindings else []
    bound = (each for each in bindings.values() if each.argument and short(each.selector) == thing.name)
    return [each for each in bound if not each.scope or f"{thing.scope}/".startswith(f"{each.scope}/")]


def _parts(binding: Binding, thing: Thing) -> Iterator[tuple[Reference | Macro, Thing]]:
    """Yields what stands in a value of a thing, and what it is there."""
    for item in parts(binding.value):
        if isinstance(item, Reference):
            yield item, Thing(short(item.name), item.scope or thing.scope, macro=False)
        elif not item.required:
            yield item, Thing(item.name, item.name, macro=True)


def _check_cycles(thing: Thing, bindings: Bindings, around: tuple[Thing, ...] = ()) -> None:
    """Raises a UserError for a value that is made of itself."""
    for binding in _stated(thing, bindings):
        for _, part in _parts(binding, thing):
            if part in (*around, thing):
                raise UserError(f"{binding.where}: a value cannot be made of itself")
            _check_cycles(part, bindings, (*around, thing))
