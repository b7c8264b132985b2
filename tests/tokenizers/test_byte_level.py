"""How texts are cut into words, against the same cuts written in other ways."""

import pytest
from tokenizers import pre_tokenizers

from cascades.errors import UserError
from cascades.tokenizers import byte_level

TEXT = "I'm HE'LL  say:  12345 ½٣ x2\n\n\t(ok) …naïve 你好 😀\r\n  end  "


def words(name, text=TEXT):
    """Words, not yet merged, as bytes."""
    table = pre_tokenizers.ByteLevel.alphabet()
    tokenizer = byte_level.build(sorted(table), [], byte_level.pre_tokenizer(name), [], [])
    return [byte_level.contents(word).decode() for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text)]


def test_the_alphabet_is_gpt2s():
    assert set(byte_level.alphabet()) == set(pre_tokenizers.ByteLevel.alphabet())
    ((word, _),) = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str("é\n 你")
    assert byte_level.contents(word) == "é\n 你".encode()
    assert byte_level.contents("not in the alphabet: 你") == "not in the alphabet: 你".encode()


@pytest.mark.parametrize("name", sorted(byte_level.PRE_TOKENIZERS))
def test_no_scheme_loses_text(name):
    assert "".join(words(name)) == TEXT


def test_gpt2_and_smollm_cut_as_the_library_does():
    def library(*parts):
        cut = pre_tokenizers.Sequence([*parts, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)])
        return [byte_level.contents(word).decode() for word, _ in cut.pre_tokenize_str(TEXT)]

    assert words("gpt-2") == library()
    assert words("smollm") == library(pre_tokenizers.Digits(individual_digits=True))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("gpt-2", ["a", " 12345", " B", "'", "LL", "\n", "\n", "x", "!?"]),
        ("smollm", ["a", " ", "1", "2", "3", "4", "5", " B", "'", "LL", "\n", "\n", "x", "!?"]),
        ("qwen2", ["a", " ", "1", "2", "3", "4", "5", " B", "'LL", "\n\n", "x", "!?"]),
        ("llama-bpe", ["a", " ", "123", "45", " B", "'LL", "\n\n", "x", "!?"]),
        ("default", ["a", " ", "123", "45", " B", "'", "LL", "\n", "\n", "x", "!?"]),
    ],
)
def test_how_each_family_cuts(name, expected):
    assert words(name, "a 12345 B'LL\n\nx!?") == expected


def test_llama3_takes_a_word_that_is_a_piece_whole():
    pieces = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "abc"]
    whole = byte_level.build(pieces, [], byte_level.pre_tokenizer("llama-bpe"), [], [])
    merged = byte_level.build(pieces, [], byte_level.pre_tokenizer("gpt-2"), [], [])
    assert whole.encode("abc").ids == [256] and len(merged.encode("abc").ids) == 3


def test_qwen_composes_characters_first():
    pieces = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = byte_level.build(pieces, [], byte_level.pre_tokenizer("qwen2"), [], [])
    assert tokenizer.encode("e\u0301").ids == tokenizer.encode("\u00e9").ids


def test_an_unknown_scheme_names_the_known_ones():
    with pytest.raises(UserError, match="default, gpt-2, llama-bpe, .*qwen2, smollm.*'tekken'"):
        byte_level.pre_tokenizer("tekken")
