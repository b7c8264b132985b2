"""Functions by the names that gin files give them."""

import dataclasses
import importlib
import inspect
import os
import sys
from collections.abc import Callable
from typing import Any

import gin

from cascades.config.statements import near
from cascades.errors import UserError

# Functions and classes in their `__all__` go by their short names.
_NAMED_MODULES = ("cascades.rules", "cascades.lookahead", "cascades.generation.settings", "cascades.generation.specs")
_known: dict[str, dict[str, Callable[..., Any]]] = {}  # where it comes from -> short name -> function


def register(function: Callable[..., Any]) -> None:
    """Makes known to gin by short names: the run function, rules, controllers, specs, its module's NAMED_MODULES."""
    _known.clear()
    _known["run function"] = {function.__name__: function}
    for path in (*_NAMED_MODULES, *getattr(sys.modules[function.__module__], "NAMED_MODULES", ())):
        module = importlib.import_module(path)
        named = {name: getattr(module, name) for name in module.__all__}
        _known[path.rpartition(".")[2]] = {name: each for name, each in named.items() if callable(each)}
    for function in (function for functions in _known.values() for function in functions.values()):
        try:
            gin.get_configurable(function)
        except ValueError:
            gin.external_configurable(function)


def lookup(selector: str, where: str) -> Callable[..., Any]:
    """Returns gin's version of a function; one that is named by its path is imported and made known to gin.

    Raises:
      UserError: there is none of that name, its module cannot be imported, or its short name is taken.
    """
    try:
        return gin.get_configurable(selector)
    except KeyError as error:
        raise UserError(f"{where}: {error.args[0]} Write the whole path") from error
    except ValueError:
        pass
    module_name, _, name = selector.rpartition(".")
    module = _import(module_name, where) if module_name else None
    if module is None:
        hint = near(name, [word for words in _known.values() for word in words])
        lists = "; ".join(f"{room}: {', '.join(words)}" for room, words in _known.items())
        own = "one of your own goes by its module, as @my_rules.my_rule, installed or in the current folder"
        raise UserError(f"{where}: there is no function {selector}{hint}; {own}; known are {lists}")
    function = getattr(module, name, None)
    if not callable(function):
        raise UserError(f"{where}: {module_name} has no function {name}{near(name, vars(module))}")
    try:
        taken = inspect.unwrap(gin.get_configurable(name)).__module__
    except ValueError:
        return gin.external_configurable(function, name=name, module=module_name)
    raise UserError(f"{where}: the name is taken by {taken}.{name}: write @{name} for that one, or rename yours")


def fields() -> dict[str, str]:
    """Returns the fields of the known specs, each as `Spec.field`."""
    specs = {name: each for words in _known.values() for name, each in words.items() if is_spec(each)}
    return {field: f"{name}.{field}" for name, each in specs.items() for field in parameters(each)}


def is_spec(function: Callable[..., Any]) -> bool:
    """Whether it makes a value of what it is given and does nothing else."""
    return dataclasses.is_dataclass(_original(function))


def parameters(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Returns the parameters behind gin's wrapper, or nothing for a builtin without a signature."""
    try:
        return dict(inspect.signature(_original(function)).parameters)
    except (TypeError, ValueError):
        return {}


def required(function: Callable[..., Any]) -> list[str]:
    """Returns the names of the arguments without default."""
    optional = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [
        name
        for name, parameter in parameters(function).items()
        if parameter.default is parameter.empty and parameter.kind not in optional
    ]


def _original(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a class behind gin's wrapper, which is a subclass of a type of its own; a function as it is."""
    return function.__bases__[0] if isinstance(function, type) and type(function) is not type else function


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
