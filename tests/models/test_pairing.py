"""How a drafter is written, and which models go together."""

import dataclasses

import pytest

from cascades.errors import UserError
from cascades.models import DecoderConfig, T5Config, build, pairing

SIZES = {"vocab_size": 20, "num_layers": 1, "d_model": 16, "d_ff": 8, "num_heads": 2, "head_dim": 8}
DECODER = DecoderConfig(**SIZES, num_kv_heads=1, context_length=32)
T5 = T5Config(**SIZES, num_decoder_layers=1)
EAGLE = dataclasses.replace(DECODER, reads_features=True)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (None, (None, None)),
        ("a/path", (None, "a/path")),
        ("shipped://x", (None, "shipped://x")),
        ("ngram://3", (3, None)),
        ("ngram://32", (32, None)),
        ("ngram://12+shipped://x", (12, "shipped://x")),
        ("ngram://2+a+b", (2, "a+b")),
    ],
)
def test_a_drafter_is_split(name, expected):
    assert pairing.split_drafter(name) == expected


@pytest.mark.parametrize(
    "name",
    [
        "ngram",
        "ngram://",
        "ngram://x",
        "ngram://-1",
        "ngram://3+",
        "ngram:/3",
        "ngram://0",
        "ngram://33",
        "ngram://3.5",
        "ngram://100000",
        pytest.param(f"ngram://{'9' * 5000}", id="many digits"),
        "ngram://0+shipped://x",
        "ngram://²",
    ],
)
def test_a_misspelt_look_up_is_refused(name):
    with pytest.raises(UserError, match=r"written ngram://N .*not 'ngram"):
        pairing.split_drafter(name)


def test_a_drafter_that_reads_features_verifies_nothing():
    pairing.check_verifier(build(DECODER), "v")
    with pytest.raises(UserError, match="v is a drafter that reads .* cannot be a VERIFIER"):
        pairing.check_verifier(build(EAGLE), "v")


def test_both_begin_their_answers_alike():
    later = dataclasses.replace(T5, start=5)
    pairing.check_starts(build(DECODER), build(DECODER), ("v", "d"))
    pairing.check_starts(build(T5), build(T5), ("v", "d"))
    for verifier, drafter in ((DECODER, T5), (T5, DECODER), (T5, later)):
        with pytest.raises(UserError, match="d cannot draft for v"):
            pairing.check_starts(build(verifier), build(drafter), ("v", "d"))


def test_a_drafter_reads_the_verifier_that_it_was_made_for():
    pairing.check_features(build(DECODER, features=True), build(EAGLE), ("v", "d"))
    wider = build(dataclasses.replace(DECODER, d_model=24), features=True)
    with pytest.raises(UserError, match="d was made for another verifier: it reads .* of 16 numbers, and .* v have 24"):
        pairing.check_features(wider, build(EAGLE), ("v", "d"))
