"""Chat templates: Jinja in a sandbox, in the environment of transformers, and which characters of the text that a
template writes came from a message."""

import datetime
import functools
import itertools
import json
import re
import string
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.sandbox

from cascades.errors import UserError
from cascades.tokenizers.finder import finder

# Roles that templates know, and may make part of a control token ('<|' + role + '|>'). Others are not trusted.
_ROLES = frozenset(("assistant", "developer", "function", "ipython", "model", "system", "tool", "user"))
# Characters that no template writes: letters of rare scripts for letters and digits, private ones for all others.
_LETTERS = (range(0x30000, 0x3134B), range(0x31350, 0x323B0))
_PRIVATE = (range(0xF0000, 0xFFFFE), range(0x100000, 0x10FFFE))
_LOWER = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)


class _Generation(jinja2.ext.Extension):
    """`{% generation %}…{% endgeneration %}` marks the assistant's words for training; here it renders as its body."""

    tags = {"generation"}

    def parse(self, parser):
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise_exception(message: str):
    raise jinja2.TemplateError(message)


def _tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False) -> str:
    # Jinja's own filter escapes HTML.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _strftime_now(form: str) -> str:
    return datetime.datetime.now().strftime(form)


@functools.lru_cache(maxsize=16)
def _compile(source: str) -> tuple[jinja2.Template, frozenset[str]]:
    """The template, and its string constants: the texts that it writes or compares with."""
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    try:
        constants = {node.value for node in environment.parse(source).find_all(jinja2.nodes.Const)}
        return environment.from_string(source), frozenset(each for each in constants if isinstance(each, str))
    except jinja2.TemplateSyntaxError as error:
        raise UserError(
            f"the model's chat template should be a Jinja template, but its line {error.lineno} does not parse "
            f"({error.message}): use another copy of the model or pass plain text."
        ) from None
    except RecursionError:
        raise UserError(
            "the model's chat template should be a Jinja template, but is nested too deeply: use another copy of the "
            "model or pass plain text."
        ) from None


def check(source: str) -> None:
    """Raises a UserError unless a template parses."""
    _compile(source)


def render(source: str, messages: Sequence[Any], special_tokens: Mapping[str, str]) -> str:
    """The conversation as one text, ending where the assistant's answer begins.

    Args:
      source: the template.
      messages: `{"role": …, "content": …}` each; content is a string, or a list of parts where the template takes one.
      special_tokens: `bos_token`, `eos_token`, … as the template sees them.

    Raises:
      UserError: a malformed message, a template that does not parse, or one that refuses the conversation.
    """
    if not messages:
        raise UserError("a chat needs at least one message, but the list is empty: add a message with role 'user'.")
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
            raise UserError(
                f"chat message {index} should be a mapping with 'role' and 'content', but is {message!r:.80}."
            )
        if not isinstance(message["role"], str) or not isinstance(message["content"], str | list):
            raise UserError(
                f"chat message {index} should hold text, but its role is {message['role']!r:.40} "
                f"and its content {message['content']!r:.40}."
            )
    template, _ = _compile(source)
    try:
        return template.render(
            messages=[dict(message) for message in messages],
            tools=None,
            documents=None,
            add_generation_prompt=True,
            **special_tokens,
        )
    except Exception as error:  # a template is a program of others: it may fail in any way
        raise UserError(
            f"the model's chat template refused the conversation ({error}): "
            f"change the messages (roles here: {', '.join(message['role'] for message in messages)})."
        ) from error


def guarded(
    source: str, messages: Sequence[Any], special_tokens: Mapping[str, str], names: Iterable[str]
) -> tuple[str, dict[str, str]]:
    """The conversation as one text, with characters of the messages disguised so that they make no control token.

    In the messages, the characters of control tokens are replaced by stand-ins that occur nowhere else, and the
    template is rendered with them. A template may treat messages by their characters, so the text with the stand-ins
    undone must equal the one without any; if not, fewer characters are replaced: first all; then none of the
    template's own constants, such as "</think>"; then no letters either, which a template may turn into capitals. The
    whole name of a control token in a message is always replaced, in upper or lower case.

    Args:
      source, messages, special_tokens: see `render`.
      names: the control tokens.

    Returns:
      The text, and the character for each stand-in.

    Raises:
      UserError: as `render`.
    """
    names = [name for name in names if name and not name.isspace()]
    wanted = sorted({character for name in names for character in name if not character.isspace()})
    texts = [source, *special_tokens.values(), *_texts(messages)]
    table = _stand_ins(wanted, set().union(*texts))
    signs = {character: stand_in for character, stand_in in table.items() if not character.isalnum()}
    hidden = {stand_in: character for character, stand_in in table.items()}
    back, plain, text = str.maketrans(hidden), render(source, messages, special_tokens), ""
    find = finder({name.translate(_LOWER): len(name) for name in names})
    _, constants = _compile(source)
    known = sorted((each for each in constants if len(each) > 1 and not each.isspace()), key=len, reverse=True)
    harmless = [each for each in known if all(isinstance(part, str) for part in find(each.translate(_LOWER)))]
    for used, left in ((table, []), (table, harmless), (signs, harmless)):
        try:
            text = render(source, _changed(messages, _disguise(find, str.maketrans(used), left)), special_tokens)
        except UserError:
            if used is signs:
                raise
            continue
        if text.translate(back) == plain:
            break
    return text, hidden


def _disguise(
    find: Callable[[str], list[str | int]], table: Mapping[int, str], left: Sequence[str]
) -> Callable[[str], str]:
    """Makes a function that replaces characters by `table`, but not in texts of `left` outside names of `find`."""
    apart = re.compile("(" + "|".join(map(re.escape, left)) + ")") if left else None

    def between(text: str) -> str:
        if apart is None:
            return text.translate(table)
        parts = enumerate(apart.split(text))  # texts of `left` are at odd places
        return "".join(part if at % 2 else part.translate(table) for at, part in parts)

    def change(text: str) -> str:
        at, pieces = 0, []
        for part in find(text.translate(_LOWER)):
            end = at + (part if isinstance(part, int) else len(part))
            pieces.append(text[at:end].translate(table) if isinstance(part, int) else between(text[at:end]))
            at = end
        return "".join(pieces)

    return change


def _changed(messages: Sequence[Any], change: Callable[[str], str]) -> list[Any]:
    """The messages with `change` applied to every text, except names of fields and roles that templates know."""

    def walk(value: Any) -> Any:
        if isinstance(value, str):
            return change(value)
        if isinstance(value, Mapping):
            return {key: walk(each) for key, each in value.items()}
        return [walk(each) for each in value] if isinstance(value, list | tuple) else value

    return [
        {key: each if key == "role" and each in _ROLES else walk(each) for key, each in message.items()}
        for message in messages
    ]


def _texts(value: Any) -> Iterator[str]:
    """Yields every text in a value of JSON, with the names of fields."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from _texts([*value.keys(), *value.values()])
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _texts(each)


def _stand_ins(characters: Sequence[str], taken: set[str]) -> dict[str, str]:
    """A character for each of `characters` that is not in `taken`."""
    letters, others = (
        (chr(code) for code in itertools.chain(*ranges) if chr(code) not in taken) for ranges in (_LETTERS, _PRIVATE)
    )
    stand_ins = {each: next(letters if each.isalnum() else others, "") for each in characters}
    if "" in stand_ins.values():
        raise UserError("the messages use up the private characters of Unicode: take some of them out.")
    return stand_ins
