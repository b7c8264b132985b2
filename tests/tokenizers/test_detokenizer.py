"""Text that arrives token by token."""

import random

import pytest

from cascades.tokenizers import Detokenizer, Tokenizer, gguf

TEXT = "naïve 👩‍👩‍👧 🇩🇪 你好\n\n  fox 😀"


@pytest.fixture(params=["gpt2_keys", "llama_keys"])
def tokenizer(request, write_gguf):
    keys = request.getfixturevalue(request.param)
    return gguf.load(write_gguf(**(keys | {"add_space_prefix": True})))


def test_every_push_is_whole_characters_and_all_pushes_are_the_text(tokenizer):
    ids = tokenizer.encode(TEXT)
    detokenizer = Detokenizer(tokenizer)
    pushes = [detokenizer.push([index]) for index in ids]
    assert "\ufffd" not in "".join(pushes)
    assert "".join(pushes) == TEXT and detokenizer.flush() == ""
    assert "" in pushes  # some token was only a part of a character


def test_any_ids_in_any_chunks_join_to_what_decode_says(tokenizer):
    random_ids = random.Random(0)
    for _ in range(200):
        ids = [random_ids.randrange(tokenizer.vocab_size + 3) for _ in range(random_ids.randrange(1, 30))]
        detokenizer, parts = Detokenizer(tokenizer), []
        while len(ids) > sum(len(chunk) for chunk, _ in parts):
            start = sum(len(chunk) for chunk, _ in parts)
            chunk = ids[start : start + random_ids.randrange(1, 5)]
            parts.append((chunk, detokenizer.push(chunk)))
        assert "".join(text for _, text in parts) + detokenizer.flush() == tokenizer.decode(ids)


def table(*contents, control=(), **settings):
    pieces = [repr(content) for content in contents]
    return Tokenizer(
        split=lambda text, special: [], pieces=pieces, contents=contents, control=frozenset(control), **settings
    )


def test_half_a_character_at_the_end_is_flushed_as_a_replacement():
    detokenizer = Detokenizer(table(b"ok", b"\xf0\x9f", b"\x98"))
    assert [detokenizer.push([0]), detokenizer.push([1]), detokenizer.push([2])] == ["ok", "", ""]
    assert detokenizer.flush() == "\ufffd"
    assert detokenizer.push([0]) == "ok"  # a new text begins


def test_bytes_that_never_become_a_character_come_out_at_once():
    detokenizer = Detokenizer(table(b"\xe2", b"a"))
    assert detokenizer.push([0]) == "" and detokenizer.push([1]) == "\ufffda"


def test_control_tokens_and_padding_print_nothing():
    tokenizer = table(b"a", b"<end>", b"\xc3", b"\xa9", control=[1])
    assert tokenizer.decode([1, 0, 1, 99, 2, 1, 3]) == "aé"


def test_only_the_first_space_is_taken_off_even_behind_control_tokens():
    tokenizer = table(b"<s>", b" a", b" ", control=[0], strip_leading_space=True)
    assert tokenizer.decode([0, 1, 1]) == "a a" and tokenizer.decode([2, 1]) == " a"
    detokenizer = Detokenizer(tokenizer)
    assert [detokenizer.push([0]), detokenizer.push([1]), detokenizer.push([1])] == ["", "a", " a"]


def test_what_is_kept_does_not_grow_with_the_text():
    detokenizer = Detokenizer(table(b"word "))
    for _ in range(1000):
        detokenizer.push([0])
    assert detokenizer._decoder.getstate() == (b"", 0)
