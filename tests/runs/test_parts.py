"""What a pass has to read, counted by hand, and parts that are timed alone."""

import jax.numpy as jnp
import pytest
import tiny

from cascades.generation import Shapes, load_pair
from cascades.runs import parts

FLOAT = 4
D, FF, HEADS, HEAD = 32, 48, 2, 16  # of `tiny.shape`
LAYER = (2 * HEADS * HEAD * D + 2 * HEAD * D + 3 * D * FF + 2 * D) * FLOAT  # q and o; k and v; the MLP; two norms


@pytest.fixture(scope="module")
def verifier(tiny_files):
    return load_pair(tiny.specs(verifier=tiny_files.verifier)["pair"]).verifier


def test_the_least_that_a_pass_reads_is_what_it_multiplies_by_and_what_is_cached(verifier):
    weights = 2 * LAYER + (300 * D + D) * FLOAT  # the head and its norm; the table is looked up
    cache = 2 * 2 * HEAD * FLOAT  # a token's keys and values in both layers
    for rows, width in ((1, 1), (2, 3)):
        expected = weights + rows * (width * D * FLOAT + (10 + width) * cache)
        assert parts.least_bytes(verifier, Shapes(rows, 64), 10, width) == expected


def test_a_table_that_scores_too_is_read_whole(verifier):
    tied = {name: part for name, part in verifier.params.items() if name != "head"}
    assert [path for path, _ in parts.read_whole(tied) if path[0] == "embed"] == [("embed", "embedding")]
    assert not [path for path, _ in parts.read_whole(verifier.params) if path[0] == "embed"]


def test_what_prefill_alone_reads_is_no_part_of_a_pass():
    one = jnp.ones((2, 2), jnp.float32)
    layer = {"attn": {"k": {"kernel": one}}, "cross": {name: {"kernel": one} for name in "qkvo"}}
    params = {"embed": {"embedding": one}, "encoder": {"0": layer}, "encoder_norm": {"scale": one}}
    read = [path for path, _ in parts.read_whole(params | {"decoder": {"0": layer}})]
    assert read[0] == ("embed", "embedding") and not [path for path in read if path[0].startswith("encoder")]
    assert [path[-2] for path in read if "cross" in path] == ["q", "o"]


@pytest.mark.parametrize("weights", [None, "w8a8"])
def test_products_alone_are_those_of_the_model_however_its_weights_are_kept(tiny_files, weights):
    language = load_pair(tiny.specs(verifier=tiny_files.verifier, weights=weights)["pair"]).verifier
    assert parts.timed_products(language, 1, 3)() > 0
    assert parts.timed_pass(language, Shapes(1, 64), 10, 3)() > 0
    whole = parts.least_bytes(language, Shapes(1, 64), 10, 1)
    assert (whole < 2 * LAYER) == (weights is not None)
