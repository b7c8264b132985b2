"""Finds a model's chat templates, and chooses one."""

import pathlib
from collections.abc import Mapping
from typing import Any

from cascades.errors import UserError

DEFAULT = "default"


def find(directory: pathlib.Path, configs: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Every chat template of a directory by name; one without a name is called `default`.

    As in transformers, `chat_template.jinja` and `additional_chat_templates/NAME.jinja` count before JSON files.

    Args:
      configs: the contents of the JSON files by name; the first that has templates counts.

    Raises:
      UserError: a template that is not a text; names its file.
    """
    files = {DEFAULT: directory / "chat_template.jinja"}
    files |= {path.stem: path for path in sorted((directory / "additional_chat_templates").glob("*.jinja"))}
    templates = {name: _text(path) for name, path in files.items() if path.is_file()}
    if templates:
        return templates
    for file, config in configs.items():
        if config.get("chat_template") is not None:
            return read(config["chat_template"], str(directory / file))
    return {}


def read(value: Any, source: str) -> dict[str, str]:
    """The templates in a value of a JSON file: one text, a list of `{"name": …, "template": …}`, or texts by name.

    Raises:
      UserError: anything else.
    """
    pairs: list[tuple[Any, Any]] = [(DEFAULT, value)]
    if isinstance(value, Mapping):
        pairs = list(value.items())
    elif isinstance(value, list):
        entries = [entry if isinstance(entry, Mapping) else {} for entry in value]
        pairs = [(entry.get("name"), entry.get("template")) for entry in entries]
    for name, template in pairs:
        if not isinstance(name, str) or not isinstance(template, str):
            raise UserError(
                f"the chat_template of {source} should be a text, or a list of texts with names, but holds "
                f"{template!r:.40} with the name {name!r:.40}: use another copy of the model."
            )
    return dict(pairs)


def without_empty(templates: Mapping[str, str], source: str) -> tuple[dict[str, str], tuple[str, ...]]:
    """The templates that are not empty, and a sentence for a person about those that are."""
    full = {name: template for name, template in templates.items() if template.strip()}
    empty = sorted(templates.keys() - full.keys())
    if not empty:
        return full, ()
    names = "" if empty == [DEFAULT] else f" ({', '.join(empty)})"
    rest = "" if full else ", so that prompts are read as plain text"
    return full, (f"a chat template{names} of {source} is empty and counts as none{rest}",)


def choose(templates: Mapping[str, str], name: str | None) -> str | None:
    """The template of that name; without a name the default one, or None if there is none.

    Raises:
      UserError: there is no template of that name.
    """
    if name is None:
        return templates.get(DEFAULT)
    if not isinstance(name, str) or name not in templates:
        known = f"those called {', '.join(sorted(templates))}" if templates else "none at all"
        raise UserError(
            f"CHAT_TEMPLATE asks for the chat template {name!r:.80}, but the model has {known}: name another."
        )
    return templates[name]


def _text(path: pathlib.Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path} should be a chat template in UTF-8, but cannot be read ({error}): fetch it again."
        ) from None
