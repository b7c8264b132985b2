"""Chat templates: where they lie, and which one is used."""

import pytest

from cascades import tokenizers
from cascades.errors import UserError
from cascades.tokenizers import templates

BODY = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
HELLO = [{"role": "user", "content": "fox"}]


def named(**found):
    return [{"name": name, "template": template} for name, template in found.items()]


@pytest.fixture
def load(hf_directory):
    """Returns a function that loads a folder whose tokenizer_config.json has this chat template."""

    def load(template, choice=None):
        return tokenizers.load(hf_directory(tokenizer_config={"chat_template": template}), template=choice)

    return load


@pytest.mark.parametrize("template", [BODY, {"default": BODY}, named(default=BODY), named(x="no", default=BODY)])
def test_the_default_is_used(load, template):
    tokenizer = load(template)
    assert tokenizer.chat_template == tokenizer.chat_templates["default"] == BODY and not tokenizer.remarks
    assert tokenizer.chat(HELLO) == tokenizer.encode("<|im_start|>user\nfox<|im_end|>\n")


@pytest.mark.parametrize("template", [named(tool_use=BODY), {"tool_use": BODY}, named(tool_use=BODY, rag="x")])
def test_several_without_a_default_are_named(load, template):
    tokenizer = load(template)
    assert tokenizer.has_chat_template and tokenizer.chat_template is None
    with pytest.raises(UserError, match=r"templates called (rag, )?tool_use, and none is its default: .*CHAT_TEMPLATE"):
        tokenizer.prompt("fox")
    assert tokenizer.prompt("fox", raw=True) == tokenizer.encode("fox")
    assert load(template, "tool_use").chat(HELLO) == tokenizer.encode("<|im_start|>user\nfox<|im_end|>\n")
    with pytest.raises(UserError, match="chat template 'none', but the model has those called"):
        load(template, "none")


def test_a_model_without_templates_has_none_to_choose(hf_directory):
    with pytest.raises(UserError, match="chat template 'default', but the model has none"):
        tokenizers.load(hf_directory(), template="default")
    assert not tokenizers.load(hf_directory()).has_chat_template


@pytest.mark.parametrize("template", ["", " \n", named(default=""), {"default": "\t"}, named(a="", default="")])
def test_an_empty_one_is_none_and_said(load, template):
    tokenizer = load(template)
    assert not tokenizer.has_chat_template and tokenizer.chat_template is None
    assert len(tokenizer.remarks) == 1 and "is empty and counts as none, so that prompts are" in tokenizer.remarks[0]
    assert tokenizer.prompt("fox") == tokenizer.encode("fox")


def test_an_empty_default_beside_others_asks_for_a_choice(load):
    tokenizer = load(named(default="", rag=BODY))
    assert tokenizer.has_chat_template and tokenizer.chat_template is None and "(default)" not in tokenizer.remarks[0]
    with pytest.raises(UserError, match="templates called rag, and none is its default"):
        tokenizer.chat(HELLO)


@pytest.mark.parametrize(
    "template",
    [3, True, 1.5, [3], ["text"], [None], [[]], [{"name": "a"}], [{"template": "a"}], [{"name": 1, "template": "a"}]]
    + [[{"name": "a", "template": None}], {"default": None}, {"default": ["a"]}],
)
def test_one_of_the_wrong_kind_is_refused(load, template):
    with pytest.raises(UserError, match="chat_template of .*tokenizer_config.json should be a text, or a list"):
        load(template)


def test_nothing_is_none(load):
    assert not any(load(template).has_chat_template for template in (None, [], {}))


def test_files_count_before_the_configuration(hf_directory):
    directory = hf_directory(tokenizer_config={"chat_template": named(default="a", rag="b")})
    extra = directory / "additional_chat_templates"
    extra.mkdir()
    (extra / "tools.jinja").write_text(BODY)
    tokenizer = tokenizers.load(directory)
    assert dict(tokenizer.chat_templates) == {"tools": BODY} and tokenizer.chat_template is None
    (directory / "chat_template.jinja").write_text("file")
    tokenizer = tokenizers.load(directory)
    assert dict(tokenizer.chat_templates) == {"default": "file", "tools": BODY} and tokenizer.chat_template == "file"
    (directory / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(UserError, match="chat_template.jinja should be a chat template in UTF-8"):
        tokenizers.load(directory)


@pytest.mark.parametrize("name", ["chat_template", "processor_config"])
def test_a_processors_template_is_found(hf_directory, name):
    assert tokenizers.load(hf_directory(**{name: {"chat_template": BODY}})).chat_template == BODY


def test_a_list_reads_as_pairs():
    assert templates.read(named(a="1", b="2"), "x") == templates.read({"a": "1", "b": "2"}, "x") == {"a": "1", "b": "2"}
