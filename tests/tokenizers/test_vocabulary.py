"""Whether two models share a vocabulary."""

import pytest

from cascades.errors import UserError
from cascades.tokenizers import Tokenizer, check_same_vocabulary


def table(*pieces, **settings):
    contents = [piece.replace("Ġ", " ").replace("▁", " ").encode() for piece in pieces]
    return Tokenizer(split=lambda text, special: [], pieces=pieces, contents=contents, control=frozenset(), **settings)


def test_the_same_table_has_its_size_in_common():
    one, other = table("a", "Ġb", "c"), table("a", "▁b", "c")  # one file spells spaces as Ġ, the other as ▁
    assert check_same_vocabulary(one, other) == 3
    assert one.fingerprint == other.fingerprint


def test_a_longer_table_is_cut_to_the_common_range():
    short, long = table("a", "b"), table("a", "b", "c")
    assert check_same_vocabulary(short, long) == check_same_vocabulary(long, short) == 2
    assert short.fingerprint != long.fingerprint


def test_the_first_difference_is_named():
    with pytest.raises(UserError, match="token 1 is 'b' for the drafter and 'x' for the verifier.*sizes 3 and 2"):
        check_same_vocabulary(table("a", "b", "c"), table("a", "x"))


def test_a_different_cut_of_the_same_letters_is_a_difference():
    assert table("ab", "c").fingerprint != table("a", "bc").fingerprint
    with pytest.raises(UserError, match="token 0"):
        check_same_vocabulary(table("ab", "c"), table("a", "bc"))


def test_the_verifier_must_be_able_to_end_its_text():
    drafter, verifier = table("a", "b"), table("a", "b", "<eos>", eos_ids=(2,))
    with pytest.raises(UserError, match="end-of-text token 2"):
        check_same_vocabulary(drafter, verifier)
    assert check_same_vocabulary(drafter, table("a", "b", "<eos>", eos_ids=(1, 2))) == 2
