"""Chat templates: Jinja in a sandbox, with the environment that transformers gives them."""

import datetime
import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
import jinja2.ext
import jinja2.sandbox

from cascades.errors import UserError


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
def _compile(source: str) -> jinja2.Template:
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    try:
        return environment.from_string(source)
    except jinja2.TemplateSyntaxError as error:
        raise UserError(
            f"the model's chat template should be a Jinja template, but its line {error.lineno} does not parse "
            f"({error.message}): use another copy of the model or pass plain text."
        ) from None


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
    template = _compile(source)
    try:
        return template.render(
            messages=[dict(message) for message in messages],
            tools=None,
            documents=None,
            add_generation_prompt=True,
            **special_tokens,
        )
    except Exception as error:  # a template is a stranger's program: it may fail in any way
        raise UserError(
            f"the model's chat template refused the conversation ({error}): "
            f"change the messages (roles here: {', '.join(message['role'] for message in messages)})."
        ) from error
