"""Decoders against transformers' logits (tests/golden), and the Model contract: chunks, ragged rows, rewinds."""

import dataclasses
import functools
import pathlib

import decoder_cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cascades import cache as kv
from cascades import models
from cascades.errors import UserError
from cascades.models import api
from cascades.models.decoder import Decoder

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
TOLERANCE = 1e-4
SLOTS = 40
CASES = list(decoder_cases.CASES)
ragged = pytest.mark.parametrize("starts", [(0, 9), (13, 4)], ids=str)


@functools.cache
def setup(name):
    """The case's model with jitted passes, its parameters, tokens and transformers' logits."""
    case = dict(decoder_cases.CASES[name])
    if "rope_scaling" in case:
        case["rope_scaling"] = models.RopeScaling(**case["rope_scaling"])
    config = models.DecoderConfig(**case)
    model = models.decoder(config)
    model = model._replace(prefill=jax.jit(model.prefill), extend=jax.jit(model.extend))
    params = jax.tree.map(jnp.asarray, decoder_cases.make_params(name))
    with np.load(GOLDEN / f"decoder_{name}.npz") as golden:
        return config, model, params, golden["tokens"], golden["logits"]


def prefilled(model, params, tokens, starts):
    return model.prefill(params, jnp.asarray(tokens), jnp.asarray(starts, jnp.int32), model.init_cache(2, SLOTS))


def feed(model, params, tokens, cache, width):
    """Feeds each row's next `width` tokens; returns the logits and the cache."""
    chunk = np.stack([row[n : n + width] for row, n in zip(tokens, np.asarray(cache.length), strict=True)])
    output, cache = model.extend(params, jnp.asarray(chunk), cache)
    return np.asarray(output.logits), cache


def check(logits, expected, starts):
    for row, start in enumerate(starts):
        np.testing.assert_allclose(
            logits[row], expected[row, start : start + logits.shape[1]], rtol=0, atol=TOLERANCE, err_msg=f"row {row}"
        )


@pytest.mark.parametrize("name", CASES)
def test_one_pass_matches_transformers(name):
    _, model, params, tokens, expected = setup(name)
    output, cache = model.extend(params, jnp.asarray(tokens), model.init_cache(2, SLOTS))
    assert output.logits.dtype == jnp.float32
    np.testing.assert_allclose(output.logits, expected, rtol=0, atol=TOLERANCE)
    np.testing.assert_array_equal(cache.length, [tokens.shape[1]] * 2)


@pytest.mark.parametrize("name", CASES)
def test_prefill_then_one_token_at_a_time(name):
    _, model, params, tokens, expected = setup(name)
    starts = np.array([0, 9])
    cache = prefilled(model, params, tokens, starts)
    np.testing.assert_array_equal(cache.length, starts)
    for _ in range(tokens.shape[1] - max(starts)):
        logits, cache = feed(model, params, tokens, cache, 1)
        check(logits, expected, starts)
        starts = starts + 1


@pytest.mark.parametrize("name", CASES)
@ragged
def test_prefill_then_chunks(name, starts):
    _, model, params, tokens, expected = setup(name)
    starts = np.array(starts)
    cache = prefilled(model, params, tokens, starts)
    for width in (3, 5, 1, 5, 3):
        logits, cache = feed(model, params, tokens, cache, width)
        check(logits, expected, starts)
        starts = starts + width


@pytest.mark.parametrize("name", CASES)
@ragged
def test_rewind_gives_back_what_garbage_overwrote(name, starts):
    """Five wrong tokens a round, of which a row keeps its right prefix; windows are shorter than the sequence."""
    _, model, params, tokens, expected = setup(name)
    starts = np.array(starts)
    cache = prefilled(model, params, tokens, starts)
    garbage = (tokens + 7) % decoder_cases.BASE["vocab_size"]
    for keep in ((0, 2), (3, 0), (1, 5), (4, 1), (5, 4)):
        draft = np.array(garbage)
        for row, n in enumerate(keep):
            draft[row, : starts[row] + n] = tokens[row, : starts[row] + n]
        logits, wrong = feed(model, params, draft, cache, 5)
        for row, n in enumerate(keep):
            np.testing.assert_allclose(
                logits[row, :n], expected[row, starts[row] : starts[row] + n], rtol=0, atol=TOLERANCE
            )
        starts = starts + np.array(keep)
        cache = kv.rewind(wrong, jnp.asarray(starts, jnp.int32))
    logits, _ = feed(model, params, tokens, cache, 5)
    check(logits, expected, starts)


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_rows_do_not_depend_on_their_neighbours(name):
    _, model, params, tokens, _ = setup(name)
    cache = prefilled(model, params, tokens, (13, 4))
    together, _ = feed(model, params, tokens, cache, 5)
    for row, start in enumerate((13, 4)):
        alone = model.prefill(
            params, jnp.asarray(tokens[[row]]), jnp.asarray([start], jnp.int32), model.init_cache(1, SLOTS)
        )
        logits, _ = feed(model, params, tokens[[row]], alone, 5)
        np.testing.assert_allclose(logits[0], together[row], rtol=0, atol=1e-5)


def test_select_scores_one_position_a_row():
    _, model, params, tokens, expected = setup("qwen2")
    output, cache = model.extend(
        params, jnp.asarray(tokens), model.init_cache(2, SLOTS), select=jnp.asarray([3, 31], jnp.int32)
    )
    assert output.logits.shape == (2, 1, decoder_cases.BASE["vocab_size"])
    np.testing.assert_allclose(output.logits[:, 0], [expected[0, 3], expected[1, 31]], rtol=0, atol=TOLERANCE)
    np.testing.assert_array_equal(cache.length, [32, 32])


@pytest.mark.parametrize("name", ["gemma2", "llama"])
def test_some_tokens_are_scored_as_among_all(name):
    """With a head of all tokens (tied, with a soft cap; untied), and of few: the others have none."""
    config, model, params, tokens, _ = setup(name)
    some = jnp.asarray([30, 2, 17, 5], jnp.int32)
    output, _ = model.extend(params, jnp.asarray(tokens), model.init_cache(2, SLOTS))
    np.testing.assert_allclose(model.score(params, output.features, some), output.logits[:, :, some], atol=1e-6)
    few = models.build(dataclasses.replace(config, tied_head=False, head_tokens=3))
    matrix = params["embed"]["embedding"] if config.tied_head else params["head"]["kernel"]
    known = jnp.asarray([2, 5, 21], jnp.int32)
    params = params | {"head": {"kernel": matrix[known]}, "head_ids": known}
    every = few.score(params, output.features)
    np.testing.assert_allclose(few.score(params, output.features, some), every[:, :, some], atol=1e-6)
    np.testing.assert_array_equal(every[0, 0, some] > -1e20, [False, True, False, True])


def test_padding_behind_the_end_of_the_buffer_is_dropped():
    """A last block that reaches over the end must not overwrite valid slots."""
    _, model, params, tokens, expected = setup("gemma2")
    cache = model.prefill(
        params, jnp.asarray(tokens[:, :28]), jnp.asarray([27, 20], jnp.int32), model.init_cache(2, 30)
    )
    logits, cache = feed(model, params, tokens, cache, 5)
    np.testing.assert_allclose(logits[0, :3], expected[0, 27:30], rtol=0, atol=TOLERANCE)
    check(logits[1:], expected[1:], [20])
    again, _ = feed(model, params, tokens, kv.rewind(cache, jnp.asarray([27, 20], jnp.int32)), 5)
    np.testing.assert_allclose(again[0, :3], expected[0, 27:30], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(
    ("lengths", "widths"),
    [
        ((1, 1), [2]),
        ((4, 3), [2, 2]),  # half a wide pass is two narrow ones
        ((2, 5), [8]),
        ((9, 1), [8, 2]),
        ((12, 0), [8, 2, 2]),
        ((13, 13), [8, 8]),
        ((21, 4), [8, 8, 8]),  # the last one reaches back
    ],
    ids=str,
)
def test_a_prompt_is_read_in_wide_passes_and_what_is_left_in_narrow_ones(lengths, widths, monkeypatch):
    monkeypatch.setitem(api.CHUNKS, "cpu", (8, 2))
    config, _, params, tokens, _ = setup("gemma2")
    tokens, seen = jnp.asarray(tokens[:, :21]), []
    hidden, held = Decoder.hidden, jnp.asarray(lengths, jnp.int32)

    def watched(self, tokens, *args, **options):
        seen.append(tokens.shape[1])
        return hidden(self, tokens, *args, **options)

    whole = models.decoder(config, chunk=api.WHOLE)
    expected = whole.prefill(params, tokens, held, whole.init_cache(2, SLOTS))
    chunked = models.decoder(config)
    monkeypatch.setattr(Decoder, "hidden", watched)
    with jax.disable_jit():
        cache = chunked.prefill(params, tokens, held, chunked.init_cache(2, SLOTS))
    assert seen == widths
    np.testing.assert_array_equal(cache.length, held)
    for got, known in zip(cache.keys + cache.values, expected.keys + expected.values, strict=True):
        for row, length in enumerate(lengths):
            np.testing.assert_allclose(got[row, :, :length], known[row, :, :length], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_bfloat16_is_close(name):
    config, _, params, tokens, expected = setup(name)
    model = models.decoder(config, jnp.bfloat16)
    dtypes = models.abstract_params(config, jnp.bfloat16)
    params = jax.tree.map(lambda w, like: w.astype(like.dtype), params, dtypes)
    cache = model.init_cache(2, SLOTS)
    assert {buffer.dtype for buffer in cache.keys + cache.values} == {jnp.dtype(jnp.bfloat16)}
    output, _ = jax.jit(model.extend)(params, jnp.asarray(tokens), cache)
    assert output.logits.dtype == jnp.float32
    error = np.asarray(output.logits) - expected
    assert np.sqrt(np.mean(error**2)) < 0.05 * expected.std()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, kv.BITS])
@pytest.mark.parametrize(("batch", "width"), [(1, 1), (1, 5), (2, 1), (2, 5)])
def test_a_loop_updates_a_donated_cache_in_place(batch, width, dtype):
    config = dataclasses.replace(setup("gemma2")[0], context_length=8192, vocab_size=20_000, head_dim=64)
    dtype, held = (jnp.bfloat16, kv.BITS) if dtype == kv.BITS else (dtype, None)
    model = models.decoder(config, dtype, cache_dtype=held)
    cache = jax.eval_shape(lambda: model.init_cache(batch, 8192))
    cache_bytes = sum(buffer.size * buffer.dtype.itemsize for buffer in jax.tree.leaves(cache))

    def loop(params, tokens, cache):
        def body(state):
            step, tokens, cache = state
            output, cache = model.extend(params, tokens, cache)
            return step + 1, jnp.argmax(output.logits, -1).astype(jnp.int32), cache

        return jax.lax.while_loop(lambda state: state[0] < 8, body, (jnp.int32(0), tokens, cache))

    tokens = jax.ShapeDtypeStruct((batch, width), jnp.int32)
    params = models.abstract_params(config, dtype)
    memory = jax.jit(loop, donate_argnums=2).lower(params, tokens, cache).compile().memory_analysis()
    assert memory.alias_size_in_bytes >= cache_bytes
    # Scores of one layer, and logits; no copy of the embedding, nor of a buffer but for what attention reads of a
    # layer's keys and values: a span where it need not read all, and what bits stand for.
    scores = batch * config.num_heads * width * 8192 * 4
    logits = max(batch * width, 2) * config.vocab_size * 4
    slots = 8192 if held else 2048 if dtype == jnp.bfloat16 else 0
    read = 2 * batch * config.num_kv_heads * slots * config.head_dim * 2
    assert memory.temp_size_in_bytes < 3 * scores + 2 * logits + read + 100_000 < cache_bytes


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_gradients_reach_every_parameter(dtype):
    config, _, params, tokens, _ = setup("gemma2")
    model = models.decoder(config, dtype)
    params = jax.tree.map(lambda w, like: w.astype(like.dtype), params, models.abstract_params(config, dtype))

    @jax.jit
    @jax.grad
    def gradient(params):
        output, _ = model.extend(params, jnp.asarray(tokens), model.init_cache(2, SLOTS))
        picked = jnp.take_along_axis(jax.nn.log_softmax(output.logits), jnp.asarray(tokens)[..., None], axis=-1)
        return -jnp.mean(picked)

    for path, leaf in jax.tree.leaves_with_path(gradient(params)):
        assert bool(jnp.isfinite(leaf).all()) and bool(jnp.any(leaf != 0)), jax.tree_util.keystr(path)


def test_init_gives_the_abstract_tree_and_logits_of_order_one():
    config = setup("qwen2")[0]
    model = models.decoder(config, jnp.bfloat16)
    params = jax.jit(model.init)(jax.random.key(0))
    shapes = jax.tree.map(lambda w: jax.ShapeDtypeStruct(w.shape, w.dtype), params)
    assert shapes == models.abstract_params(config, jnp.bfloat16)
    assert shapes["layers"]["0"]["attn_norm"]["scale"].dtype == jnp.float32
    output, _ = jax.jit(model.extend)(params, jnp.asarray([[1, 2, 3, 4]], jnp.int32), model.init_cache(1, 8))
    assert 0.1 < float(jnp.std(output.logits)) < 10


@pytest.mark.parametrize("name", CASES)
def test_parameter_tree_is_the_documented_one(name):
    config, _, params, _, _ = setup(name)
    assert jax.tree.map(lambda w: jax.ShapeDtypeStruct(w.shape, w.dtype), params) == models.abstract_params(config)


def test_a_prompt_or_cache_that_does_not_fit_is_refused():
    _, model, params, _, _ = setup("llama")
    with pytest.raises(UserError, match="65"):
        model.init_cache(1, 65)
    with pytest.raises(UserError, match="9 tokens does not fit a cache of 8 slots"):
        model.prefill(params, jnp.zeros((1, 9), jnp.int32), jnp.asarray([9], jnp.int32), model.init_cache(1, 8))
