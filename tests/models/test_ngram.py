"""Prompt lookup against a plain Python search."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cascades import cache as kv
from cascades.errors import UserError
from cascades.models import ngram
from cascades.models.ngram import assisted
from cascades.testing import table_model

VOCAB, V = 7, 12


def reference(tokens: list[int], order: int) -> tuple[int | None, int]:
    """What followed the most recent earlier occurrence of the longest ending, and how long that ending is."""
    for length in range(min(order, len(tokens) - 1), 0, -1):
        for end in range(len(tokens) - 1, length - 1, -1):  # exclusive end of the earlier occurrence
            if tokens[end - length : end] == tokens[-length:]:
                return tokens[end], length
    return None, 0


@functools.cache
def build(order):
    model = ngram(VOCAB, 64, order=order)
    return model._replace(extend=jax.jit(model.extend))


def run(order, tokens):
    """Logits `[s, v]` of one row fed in one pass, padded to one shape for every test."""
    padded = np.zeros((1, 64), np.int32)
    padded[0, : len(tokens)] = tokens
    model = build(order)
    output, _ = model.extend({}, jnp.asarray(padded), model.init_cache(1, 64))
    return np.asarray(output.logits[0, : len(tokens)])


@pytest.mark.parametrize(
    ("tokens", "following", "probability"),
    [
        ([1, 2, 3, 1, 2], 3, 0.9),
        ([1, 2, 3, 4, 1, 2, 3], 4, 0.95),
        ([5, 2, 3, 4, 2], 3, 0.3),
        ([2, 2], 2, 0.3),  # overlaps itself: the last token repeats the one before
        ([2, 2, 2], 2, 0.9),
        ([1, 2, 3, 1, 2, 4, 1, 2], 4, 0.9),  # the most recent occurrence wins
        ([1, 2, 3, 4, 2, 5, 1, 2], 3, 0.9),  # but a longer match wins over a more recent one
    ],
)
def test_predicts_what_followed(tokens, following, probability):
    logits = run(3, tokens)[-1]
    probabilities = np.asarray(jax.nn.softmax(logits))
    assert probabilities.argmax() == following
    np.testing.assert_allclose(probabilities[following], probability, rtol=1e-5)
    np.testing.assert_allclose(np.delete(probabilities, following), (1 - probability) / (VOCAB - 1), rtol=1e-4)


@pytest.mark.parametrize("tokens", [[3], [1, 2, 3], [0], [0, 1]])
def test_uniform_without_a_match(tokens):
    np.testing.assert_array_equal(run(3, tokens)[-1], np.zeros(VOCAB, np.float32))


@pytest.mark.parametrize("order", [1, 2, 4])
def test_matches_reference_at_every_position(order):
    tokens = np.random.default_rng(order).integers(0, 4, 60).tolist()
    logits = run(order, tokens)
    lengths = set()
    for position in range(len(tokens)):
        following, length = reference(tokens[: position + 1], order)
        lengths.add(length)
        if following is None:
            assert not logits[position].any()
        else:
            assert logits[position].argmax() == following
            assert np.count_nonzero(logits[position]) == 1
    assert lengths == set(range(order + 1))


def test_longer_matches_are_more_confident():
    logits = run(5, [1, 2, 3, 4, 5, 6, 1, 2, 3, 4, 5])[6:]
    peaks = logits.max(axis=-1)
    assert (np.diff(peaks) > 0).all()


def test_ragged_rows_prefill_and_chunks_agree_with_one_pass():
    model = build(3)
    tokens = np.random.default_rng(0).integers(0, 3, (3, 40)).astype(np.int32)
    whole, _ = model.extend({}, jnp.asarray(tokens), model.init_cache(3, 48))
    lengths = np.array([0, 7, 13], np.int32)
    cache = model.prefill({}, jnp.asarray(tokens[:, :20]), jnp.asarray(lengths), model.init_cache(3, 48))
    np.testing.assert_array_equal(cache.length, lengths)
    for width in (1, 3, 5, 1, 8):
        chunk = np.stack([row[start : start + width] for row, start in zip(tokens, lengths, strict=True)])
        output, cache = model.extend({}, jnp.asarray(chunk), cache)
        for row, start in enumerate(lengths):
            np.testing.assert_array_equal(output.logits[row], whole.logits[row, start : start + width])
        lengths = lengths + width
        np.testing.assert_array_equal(cache.length, lengths)


def test_rewind_forgets_rejected_tokens():
    model = build(2)
    cache = model.init_cache(1, 32)
    _, cache = model.extend({}, jnp.asarray([[1, 2, 3]], jnp.int32), cache)
    _, wrong = model.extend({}, jnp.asarray([[1, 2, 5, 1, 2, 6]], jnp.int32), cache)
    output, _ = model.extend({}, jnp.asarray([[1, 2]], jnp.int32), kv.rewind(wrong, cache.length))
    np.testing.assert_array_equal(np.argmax(output.logits[0], -1), [2, 3])


def test_select_picks_one_position_a_row():
    model = build(3)
    tokens = jnp.asarray(np.random.default_rng(1).integers(0, 3, (2, 9)), jnp.int32)
    whole, _ = model.extend({}, tokens, model.init_cache(2, 16))
    picked, cache = model.extend({}, tokens, model.init_cache(2, 16), select=jnp.asarray([4, 8], jnp.int32))
    assert picked.logits.shape == (2, 1, VOCAB)
    np.testing.assert_array_equal(picked.logits[:, 0], np.stack([whole.logits[0, 4], whole.logits[1, 8]]))
    np.testing.assert_array_equal(cache.length, [9, 9])


def test_writes_behind_the_end_are_dropped():
    model = build(3)
    cache = model.init_cache(1, 4)
    _, cache = model.extend({}, jnp.asarray([[1, 2, 3]], jnp.int32), cache)
    _, cache = model.extend({}, jnp.asarray([[4, 5, 6]], jnp.int32), cache)
    np.testing.assert_array_equal(cache.tokens, [[1, 2, 3, 4]])


def test_bad_arguments_are_named():
    with pytest.raises(UserError, match="order"):
        ngram(VOCAB, 64, order=0)
    with pytest.raises(UserError, match="slots"):
        ngram(VOCAB, 64).init_cache(1, 65)
    with pytest.raises(UserError, match="does not fit"):
        model = ngram(VOCAB, 64)
        model.prefill({}, jnp.zeros((1, 9), jnp.int32), jnp.asarray([3], jnp.int32), model.init_cache(1, 8))


def test_an_assisted_model_mixes_in_what_it_finds_by_how_much_matched():
    inner = table_model(V)
    params = inner.init(jax.random.key(0))
    model = assisted(inner, order=3)
    tokens = jnp.asarray([[1, 2, 3, 4, 1, 2], [5, 6, 5, 7, 8, 9]], jnp.int32)
    output, _ = model.extend(params, tokens, model.init_cache(2, 8))
    alone, _ = inner.extend(params, tokens, inner.init_cache(2, 8))
    found, q = jax.nn.softmax(output.logits), jax.nn.softmax(alone.logits)
    expected = 0.55 * q[0, 5] + 0.45 * jax.nn.one_hot(3, V)  # 1 2 -> 3: two tokens matched
    np.testing.assert_allclose(found[0, 5], expected, atol=1e-6)
    np.testing.assert_allclose(found[1], q[1], atol=1e-6)  # nothing matched, or one token, which says too little


def test_an_assisted_model_is_rewound_with_its_own_tokens():
    inner = table_model(V)
    params = inner.init(jax.random.key(0))
    model = assisted(inner, order=3)
    tokens = jnp.asarray([[1, 2, 3, 4, 1, 2, 3, 1]], jnp.int32)
    whole, _ = model.extend(params, tokens, model.init_cache(1, 16))
    cache = model.prefill(params, tokens[:, :4], jnp.asarray([3], jnp.int32), model.init_cache(1, 16))
    wrong, cache = model.extend(params, jnp.asarray([[4, 9, 9]], jnp.int32), cache, select=jnp.asarray([0], jnp.int32))
    np.testing.assert_allclose(wrong.logits[0, 0], whole.logits[0, 3], atol=1e-5)
    found, cache = model.extend(params, tokens[:, 4:], kv.rewind(cache, jnp.asarray([4], jnp.int32)))
    np.testing.assert_allclose(found.logits[0], whole.logits[0, 4:], atol=1e-5)
    assert int(cache.length[0]) == 8
