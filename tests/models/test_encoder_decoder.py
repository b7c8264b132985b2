"""T5 against transformers' logits (tests/golden), and the Model contract: chunks, ragged rows, rewinds."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import t5_cases
from jax.sharding import AbstractMesh

from cascades import cache as kv
from cascades import models, quantization
from cascades.errors import UserError
from cascades.models.encoder_decoder import bucket
from cascades.sharding import STRATEGIES, Layout

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
TOLERANCE = 1e-4
SLOTS = 80
CASES = list(t5_cases.CASES)
LENGTHS = np.array(t5_cases.LENGTHS)


@functools.cache
def setup(name):
    """The case's model with jitted passes, its parameters, both inputs and transformers' logits."""
    model = models.build(models.T5Config(**t5_cases.CASES[name]))
    model = model._replace(prefill=jax.jit(model.prefill), extend=jax.jit(model.extend))
    params = jax.tree.map(jnp.asarray, t5_cases.make_params(name))
    with np.load(GOLDEN / f"t5_{name}.npz") as golden:
        return model, params, *t5_cases.make_tokens(name), golden["logits"]


def encoded(model, params, given, rows=slice(None), slots=SLOTS):
    empty = model.init_cache(len(given[rows]), slots)
    return model.prefill(params, jnp.asarray(given[rows]), jnp.asarray(LENGTHS[rows], jnp.int32), empty)


def feed(model, params, decoded, cache, starts, width):
    """Feeds each row's next `width` tokens of the output; returns the logits and the cache."""
    chunk = np.stack([row[n : n + width] for row, n in zip(decoded, starts, strict=True)])
    output, cache = model.extend(params, jnp.asarray(chunk), cache)
    return np.asarray(output.logits), cache


@pytest.mark.parametrize("name", CASES)
def test_one_pass_matches_transformers(name):
    model, params, given, decoded, expected = setup(name)
    cache = encoded(model, params, given)
    np.testing.assert_array_equal(cache.length, LENGTHS)
    output, cache = model.extend(params, jnp.asarray(decoded), cache)
    assert output.logits.dtype == jnp.float32
    np.testing.assert_allclose(output.logits, expected, rtol=0, atol=TOLERANCE)
    np.testing.assert_array_equal(cache.length, LENGTHS + t5_cases.OUTPUT)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("widths", [(1,) * 12, (3, 5, 1, 5, 3)], ids=["singly", "chunks"])
def test_tokens_in_several_passes(name, widths):
    model, params, given, decoded, expected = setup(name)
    cache, at = encoded(model, params, given), 0
    for width in widths:
        logits, cache = feed(model, params, decoded, cache, (at, at), width)
        np.testing.assert_allclose(logits, expected[:, at : at + width], rtol=0, atol=TOLERANCE)
        at += width


@pytest.mark.parametrize("name", CASES)
def test_rewind_gives_back_what_garbage_overwrote(name):
    """Five wrong tokens a round, of which a row keeps its right prefix: the rows come to stand apart."""
    model, params, given, decoded, expected = setup(name)
    cache, starts = encoded(model, params, given), np.array([0, 0])
    for keep in ((1, 2), (3, 0), (1, 5), (4, 1), (5, 4)):
        draft = (decoded + 7) % t5_cases.BASE["vocab_size"]
        for row, n in enumerate(keep):
            draft[row, : starts[row] + n] = decoded[row, : starts[row] + n]
        logits, wrong = feed(model, params, draft, cache, starts, 5)
        for row, n in enumerate(keep):
            np.testing.assert_allclose(
                logits[row, :n], expected[row, starts[row] : starts[row] + n], rtol=0, atol=TOLERANCE
            )
        starts = starts + np.array(keep)
        cache = kv.rewind(wrong, jnp.asarray(LENGTHS + starts, jnp.int32))
    logits, _ = feed(model, params, decoded, cache, starts, 5)
    for row, start in enumerate(starts):
        np.testing.assert_allclose(logits[row], expected[row, start : start + 5], rtol=0, atol=TOLERANCE)


def test_rows_depend_neither_on_their_neighbours_nor_on_padding():
    model, params, given, decoded, _ = setup("v1_1")
    together, _ = model.extend(params, jnp.asarray(decoded), encoded(model, params, given))
    other = np.where(np.arange(t5_cases.INPUT)[None] < LENGTHS[:, None], given, 9)
    for row in range(2):
        rows = slice(row, row + 1)
        alone, _ = model.extend(params, jnp.asarray(decoded[rows]), encoded(model, params, other, rows, SLOTS + 5))
        np.testing.assert_allclose(alone.logits[0], together.logits[row], rtol=0, atol=1e-5)


def test_select_scores_one_position_a_row():
    model, params, given, decoded, expected = setup("v1_0")
    select = jnp.asarray([3, 29], jnp.int32)
    output, cache = model.extend(params, jnp.asarray(decoded), encoded(model, params, given), select=select)
    np.testing.assert_allclose(output.logits[:, 0], [expected[0, 3], expected[1, 29]], rtol=0, atol=TOLERANCE)
    np.testing.assert_array_equal(cache.length, LENGTHS + t5_cases.OUTPUT)


def test_some_tokens_are_scored_as_among_all():
    model, params, given, decoded, expected = setup("v1_0")
    output, _ = model.extend(params, jnp.asarray(decoded), encoded(model, params, given))
    some = [7, 3, 12]
    found = model.score(params, output.features, jnp.asarray(some))
    np.testing.assert_allclose(found, expected[:, :, some], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", CASES)
def test_bfloat16_and_int8_are_close(name):
    _, params, given, decoded, expected = setup(name)
    config = models.T5Config(**t5_cases.CASES[name])
    model = models.build(config, jnp.bfloat16)
    model = model._replace(prefill=jax.jit(model.prefill), extend=jax.jit(model.extend))
    halves = jax.tree.map(lambda w, like: w.astype(like.dtype), params, models.abstract_params(config, jnp.bfloat16))
    for weights, most in ((halves, 0.05), (quantization.pack_all(halves), 0.1)):
        cache = encoded(model, weights, given)
        assert {buffer.dtype for buffer in cache.keys + cache.cross_values} == {jnp.dtype(jnp.bfloat16)}
        output, _ = model.extend(weights, jnp.asarray(decoded), cache)
        error = np.asarray(output.logits) - expected
        assert 0 < np.sqrt(np.mean(error**2)) < most * expected.std()


def test_a_loop_updates_a_donated_cache_in_place():
    slots = 2048
    config = models.T5Config(**(t5_cases.CASES["v1_1"] | {"context_length": slots, "head_dim": 64}))
    model = models.build(config)
    cache = jax.eval_shape(lambda: model.init_cache(2, slots))
    cache_bytes = sum(buffer.size * buffer.dtype.itemsize for buffer in jax.tree.leaves(cache))

    def loop(params, tokens, cache):
        def body(state):
            step, tokens, cache = state
            output, cache = model.extend(params, tokens, cache)
            return step + 1, jnp.argmax(output.logits, -1).astype(jnp.int32), cache

        return jax.lax.while_loop(lambda state: state[0] < 8, body, (jnp.int32(0), tokens, cache))

    tokens = jax.ShapeDtypeStruct((2, 5), jnp.int32)
    compiled = jax.jit(loop, donate_argnums=2).lower(models.abstract_params(config), tokens, cache).compile()
    memory = compiled.memory_analysis()
    assert memory.alias_size_in_bytes >= cache_bytes
    scores = 2 * config.num_heads * 5 * slots * 4
    assert memory.temp_size_in_bytes < 4 * scores + 200_000 < cache_bytes


@pytest.mark.parametrize("name", CASES)
def test_parameter_tree_is_the_documented_one(name):
    _, params, *_ = setup(name)
    config = models.T5Config(**t5_cases.CASES[name])
    assert jax.tree.map(lambda w: jax.ShapeDtypeStruct(w.shape, w.dtype), params) == models.abstract_params(config)
    halves = jax.eval_shape(models.build(config, jnp.bfloat16).init, jax.random.key(0))
    assert halves == models.abstract_params(config, jnp.bfloat16)
    assert halves["decoder_norm"]["scale"].dtype == halves["encoder_bias"].dtype == jnp.float32


def test_gradients_reach_every_parameter():
    model, params, given, decoded, _ = setup("v1_1")

    @jax.jit
    @jax.grad
    def gradient(params):
        output, _ = model.extend(params, jnp.asarray(decoded), encoded(model, params, given))
        picked = jnp.take_along_axis(jax.nn.log_softmax(output.logits), jnp.asarray(decoded)[..., None], axis=-1)
        return -jnp.mean(picked)

    for path, leaf in jax.tree.leaves_with_path(gradient(params)):
        assert bool(jnp.isfinite(leaf).all()) and bool(jnp.any(leaf != 0)), jax.tree_util.keystr(path)


def test_every_kernel_of_a_preset_is_split_and_no_norm():
    params = models.abstract_params(models.preset("t5_v1_1_large"))
    place = Layout(AbstractMesh((1, 2), ("data", "model")), STRATEGIES["tensor"])
    places = place.shardings(models.logical_axes(params), params)
    for (path, leaf), at in zip(jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(places), strict=True):
        whole = path[-1].key in ("scale", "encoder_bias", "decoder_bias")
        assert (at.shard_shape(leaf.shape) == leaf.shape) == whole, path


def test_buckets_are_those_of_the_paper():
    distance = jnp.arange(-200, 200)
    both = np.asarray(bucket(distance, 32, 128, True))
    past = np.asarray(bucket(distance, 32, 128, False))
    assert set(both.tolist()) == set(range(32)) - {16}  # which would be a distance of 0 to the right
    assert set(past.tolist()) == set(range(32))
    np.testing.assert_array_equal(both[200 - 7 : 201], np.arange(7, -1, -1))  # 8 exact ones on either side
    np.testing.assert_array_equal(past[200 - 15 : 201], np.arange(15, -1, -1))  # 16 exact ones behind
    assert (past[200:] == 0).all() and (both[:73] == 15).all() and (both[-72:] == 31).all()


def test_a_prompt_or_cache_that_does_not_fit_is_refused():
    model, params, *_ = setup("v1_0")
    with pytest.raises(UserError, match="97"):
        model.init_cache(1, 97)
    with pytest.raises(UserError, match="9 tokens does not fit a cache of 8 slots"):
        model.prefill(params, jnp.zeros((1, 9), jnp.int32), jnp.asarray([9], jnp.int32), model.init_cache(1, 8))
