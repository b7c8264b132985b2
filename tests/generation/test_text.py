"""The text of an answer as its tokens come: whole characters, nothing of a stop string, every piece with its origin."""

import numpy as np
import pytest
import tiny

from cascades import tokenizers
from cascades.generation.text import Text


@pytest.fixture(scope="module")
def tokenizer(tiny_files):
    return tokenizers.load(tiny_files.verifier)


def single_bytes(tokenizer, text):
    """Spells a text in tokens of one byte each."""
    table = {content: index for index, content in enumerate(tokenizer.contents) if index not in tokenizer.control}
    return [table[bytes([byte])] for byte in text.encode()]


def feed(text, ids):
    """Pushes tokens, each with its place as origin, until it stops; returns the pieces."""
    pieces = []
    for place, token in enumerate(ids):
        pieces += text.push(token, place)
        if text.stopped:
            return pieces
    return pieces + text.flush(len(ids) - 1)


def test_pieces_join_to_the_decoded_text(tokenizer):
    rng = np.random.default_rng(0)
    for _ in range(50):
        ids = rng.integers(0, 300, 30).tolist()
        text = Text(tokenizer)
        pieces = feed(text, ids)
        assert "".join(piece for piece, _ in pieces) == text.released == tokenizer.decode(ids)
        assert [origin for _, origin in pieces] == sorted(origin for _, origin in pieces)


def test_a_character_belongs_to_its_last_byte(tokenizer):
    text = Text(tokenizer)
    assert feed(text, single_bytes(tokenizer, "a你b")) == [("a", 0), ("你", 3), ("b", 4)]
    text = Text(tokenizer)
    assert feed(text, single_bytes(tokenizer, "a你")[:3]) == [("a", 0), ("\N{REPLACEMENT CHARACTER}", 2)]


@pytest.mark.parametrize(
    ("said", "stop", "left"),
    [
        ("one two", ("two",), "one "),
        ("one two", (" t",), "one"),
        ("one two", ("three", "ne"), "o"),
        ("one two", ("o",), ""),
        ("aab", ("ab",), "a"),  # the beginning of a stop string that was none
        ("abababc", ("ababc",), "ab"),
        ("a你b", ("你",), "a"),
        ("xyz", ("yz", "xy"), ""),  # the first to be complete, from its beginning
    ],
)
def test_a_stop_string_ends_the_text_before_it(tokenizer, said, stop, left):
    text = Text(tokenizer, stop)
    pieces = feed(text, single_bytes(tokenizer, said))
    assert text.stopped and text.released == left == "".join(piece for piece, _ in pieces)


def test_what_might_become_a_stop_string_is_held_back_and_then_shown(tokenizer):
    text = Text(tokenizer, ("abc",))
    shown = ["".join(piece for piece, _ in text.push(token, 0)) for token in single_bytes(tokenizer, "xabxab")]
    assert shown == ["x", "", "", "abx", "", ""]
    assert text.flush(0) == [("a", 0), ("b", 0)] and not text.stopped and text.released == "xabxab"


def test_pieces_never_show_a_part_of_a_stop_string(tokenizer):
    rng = np.random.default_rng(1)
    for _ in range(200):
        said = "".join(rng.choice(list("ab"), 12))
        stop = "".join(rng.choice(list("ab"), rng.integers(1, 5)))
        text = Text(tokenizer, (stop,))
        feed(text, single_bytes(tokenizer, said))
        assert text.released == said.partition(stop)[0] and text.stopped == (stop in said)


def test_control_tokens_print_nothing(tokenizer):
    text = Text(tokenizer)
    assert feed(text, [0, 1, 2]) == [] and text.released == ""
    assert [tokenizer.pieces[i] for i in range(3)] == list(tiny.SPECIALS)
