"""Chat templates."""

import datetime

import pytest

from cascades.errors import UserError
from cascades.tokenizers import chat

HELLO = [{"role": "user", "content": "hi"}]


def render(source, messages=HELLO, **special_tokens):
    return chat.render(source, messages, special_tokens)


def test_the_template_sees_messages_prompt_flag_and_special_tokens():
    source = "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}: {{ m.content }}]{% endfor %}"
    source += "{% if add_generation_prompt %}>{% endif %}{{ missing }}{% if tools %}no{% endif %}"
    assert render(source, bos_token="<s>") == "<s>[user: hi]>"


def test_blocks_leave_no_blank_lines():
    source = (
        "{% for m in messages %}\n    {%- if true %}\n  {% set x = 1 %}\n{{ m.content }}\n{% endif %}\n{% endfor %}"
    )
    assert render(source) == "hi\n"


def test_break_and_continue_work():
    body = "{% if i == 1 %}{% continue %}{% endif %}{% if i == 3 %}{% break %}{% endif %}{{ i }}"
    assert render("{% for i in range(9) %}" + body + "{% endfor %}") == "02"


def test_generation_blocks_render_as_their_body():
    assert render("a{% generation %}{{ messages[0].content }}{% endgeneration %}b") == "ahib"


def test_tojson_escapes_no_html_and_keeps_letters():
    assert render("{{ messages[0] | tojson }}", [{"role": "é", "content": "<&>"}]) == '{"role": "é", "content": "<&>"}'


def test_today_is_known():
    before = datetime.date.today().year
    assert before <= int(render("{{ strftime_now('%Y') }}")) <= datetime.date.today().year


def test_what_the_template_refuses_is_said():
    source = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(UserError, match=r"refused the conversation \(roles must alternate\).*roles here: user"):
        render(source)


@pytest.mark.parametrize("source", ["{{ messages[0].content + 1 }}", "{{ messages[0].nothing.more }}", "{{ 1 / 0 }}"])
def test_what_fails_inside_is_said(source):
    with pytest.raises(UserError, match="refused the conversation"):
        render(source)


@pytest.mark.parametrize("source", ["{{ messages.append(1) }}", "{{ ''.__class__.__mro__ }}"])
def test_the_sandbox_holds(source):
    with pytest.raises(UserError, match="refused the conversation"):
        render(source)


def test_a_template_that_does_not_parse_is_said():
    with pytest.raises(UserError, match="line 2 does not parse"):
        render("x\n{% if %}")


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "at least one message"),
        (["hi"], "message 0 should be a mapping"),
        ([*HELLO, {"role": "user"}], "message 1 should be a mapping with 'role' and 'content'"),
        ([{"role": "user", "content": 3}], "should hold text"),
        ([{"role": None, "content": "x"}], "should hold text"),
    ],
)
def test_malformed_messages_are_said(messages, message):
    with pytest.raises(UserError, match=message):
        render("{{ messages }}", messages)
