"""A result as HTML."""

import html.parser

import pytest
import tiny

from cascades import tokenizers
from cascades.decoding import Origin
from cascades.generation import Result
from cascades.runs.display import to_html
from cascades.runs.terminal import MEANINGS


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("display")
    tiny.write_gguf(folder / "tiny.gguf", tiny.weights(), tiny.train(tiny.CORPUS))
    return tokenizers.load(folder / "tiny.gguf")


def answer(tokenizer, text, origins, shown=None):
    ids = tokenizer.encode(text)
    names = (origins * len(ids))[: len(ids)]
    return Result("", text if shown is None else shown, ids, names, "eos", {})


class Parts(html.parser.HTMLParser):
    """Collects (tag, title, text) of the answer, and the text of the legend."""

    def __init__(self, page):
        super().__init__()
        self.parts, self.legend, self._tags = [], "", []
        self.feed(page)
        assert self._tags == []

    def handle_starttag(self, tag, attrs):
        self._tags.append((tag, dict(attrs).get("title")))

    def handle_endtag(self, tag):
        assert self._tags.pop()[0] == tag

    def handle_data(self, data):
        if self._tags[0][0] == "div":
            self.parts.append((*self._tags[-1], data))
        else:
            self.legend += data


def test_tokens_of_one_origin_are_one_span(tokenizer):
    result = answer(tokenizer, "the quick brown fox", ["draft", "draft", "correction", "bonus", "rule"])
    parts = Parts(to_html(result, tokenizer))
    assert "".join(text for _, _, text in parts.parts) == result.text
    tags = [tag for tag, *_ in parts.parts]
    assert tags[:4] == ["span", "b", "i", "u"] and all(a != b for a, b in zip(tags, tags[1:], strict=False))
    share = result.origins.count("draft") / len(result.origins)
    assert f"{MEANINGS[Origin.DRAFT]} {share:.0%}" in parts.legend
    assert MEANINGS[Origin.CORRECTION] in parts.legend and MEANINGS[Origin.DRAFTER] + " " not in parts.legend


def test_text_is_escaped(tokenizer):
    result = answer(tokenizer, "<b>&\"'</b>\n  x", ["verifier"])
    page = to_html(result, tokenizer)
    assert "<b>" not in page and "pre-wrap" in page
    assert "".join(text for *_, text in Parts(page).parts) == result.text


def test_a_character_belongs_to_the_token_that_completes_it(tokenizer):
    result = answer(tokenizer, "é", ["draft", "bonus"])
    assert len(result.token_ids) == 2
    [part] = Parts(to_html(result, tokenizer)).parts
    assert part[0] == "i" and part[2] == "é"


def test_what_a_stop_string_cut_is_not_shown(tokenizer):
    result = answer(tokenizer, "the lazy dog", ["draft", "rule"], shown="the la")
    assert "".join(text for *_, text in Parts(to_html(result, tokenizer)).parts) == "the la"


def test_an_unfinished_character_is_shown_as_such(tokenizer):
    result = answer(tokenizer, "é", ["draft"])._replace(text="\ufffd")
    result = result._replace(token_ids=result.token_ids[:1], origins=["draft"])
    assert [text for *_, text in Parts(to_html(result, tokenizer)).parts] == ["\ufffd"]


def test_an_empty_answer_is_empty(tokenizer):
    assert Parts(to_html(Result("", "", [], [], "length", {}), tokenizer)).parts == []
