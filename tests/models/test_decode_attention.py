"""The kernel, run without a TPU, against plain attention to a plainly updated cache."""

import functools
import importlib.util
import pathlib

import decoder_cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import Mesh

from cascades import cache as kv
from cascades import models
from cascades.models import attention, decode_attention
from cascades.sharding import STRATEGIES, Layout

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
B, S, G, R, H = 6, 5, 2, 3, 16


def arrays(slots, dtype, s=S, heads=G):
    """Queries `[b, s, q, h]`, new keys and values `[b, g, s, h]`, and a cache full of garbage."""
    keys = jax.random.split(jax.random.key(slots), 5)
    q = jax.random.normal(keys[0], (B, s, heads * R, H), dtype)
    new = [jax.random.normal(each, (B, heads, s, H), dtype) for each in keys[1:3]]
    return q, *new, *(3 * jax.random.normal(each, (B, heads, slots, H), dtype) for each in keys[3:])


@functools.partial(jax.jit, static_argnames=("window", "cap"))
def plain(q, k, v, keys, values, length, window, cap):
    keys, values = kv.append(keys, k, length), kv.append(values, v, length)
    positions = length[:, None] + jnp.arange(q.shape[1], dtype=jnp.int32)[None]
    mask = attention.visible(positions, jnp.arange(keys.shape[2], dtype=jnp.int32), window)
    return attention.attend(q, keys, values, mask, cap), keys, values


def compare(found, expected, length, s, dtype):
    for row, held in enumerate(np.asarray(length)):
        seen = min(held + s, expected[1].shape[2])
        np.testing.assert_allclose(
            np.asarray(found[0][row, : seen - held], np.float32),
            np.asarray(expected[0][row, : seen - held], np.float32),
            rtol=0 if dtype == jnp.float32 else 0.01,
            atol=1e-5 if dtype == jnp.float32 else 0.03,
            err_msg=f"row {row}",
        )
        for mine, theirs in zip(found[1:], expected[1:], strict=True):
            np.testing.assert_array_equal(mine[row, :, :seen], theirs[row, :, :seen], err_msg=f"row {row}")


@pytest.mark.parametrize(
    ("dtype", "window", "cap"),
    [
        (jnp.float32, None, None),
        (jnp.float32, 40, 5.0),
        (jnp.bfloat16, None, 5.0),
        (jnp.bfloat16, 3, None),
        (jnp.bfloat16, 200, None),
    ],
)
def test_it_attends_and_updates_as_plain_code_does(dtype, window, cap):
    """At every place in a block and in a tile: its beginning, its middle, across a boundary, the end of the buffer."""
    given = arrays(256, dtype)
    run = jax.jit(lambda *x: decode_attention.placed(None, interpret=True)(*x, window=window, cap=cap))
    for held in ([0, 1, 15, 63, 64, 127], [61, 128, 192, 251, 240, 16], [253, 255, 250, 13, 59, 200]):
        length = jnp.asarray(held, jnp.int32)
        compare(run(*given, length), plain(*given, length, window, cap), length, S, dtype)


@pytest.mark.parametrize("s", [1, 9, 20])
def test_passes_of_other_widths(s):
    given, length = arrays(128, jnp.bfloat16, s), jnp.asarray([0, 7, 64, 100, 119, 127], jnp.int32)
    told = pltpu.InterpretParams(uninitialized_memory="nan")  # copies as a chip makes them, one after another
    found = decode_attention.placed(None, interpret=told)(*given, length, window=None, cap=None)
    compare(found, plain(*given, length, None, None), length, s, jnp.bfloat16)


@pytest.mark.parametrize("window", [None, 40])
def test_nan_behind_a_row_is_not_attended_to(window):
    """A draft that the model could not read has left it there."""
    *given, keys, values = arrays(128, jnp.float32)
    length = jnp.asarray([0, 7, 64, 100, 119, 123], jnp.int32)
    behind = jnp.arange(128, dtype=jnp.int32)[None, None, :, None] >= length[:, None, None, None]
    spoilt = [jnp.where(behind, jnp.nan, buffer) for buffer in (keys, values)]
    found = decode_attention.placed(None, interpret=True)(*given, *spoilt, length, window=window, cap=5.0)
    compare(found, plain(*given, keys, values, length, window, 5.0), length, S, jnp.float32)


@pytest.mark.parametrize("name", ["llama", "gemma2", "gemma3"])
def test_decoders_say_with_it_what_transformers_says(monkeypatch, name):
    """In the place that a TPU gives it: prefill, passes of several widths, and garbage written over."""
    monkeypatch.setattr(decode_attention, "takes", lambda buffer: True)  # also heads of the golden models' size
    choose = lambda *given, default, tpu=None, **_: (tpu or default)(*given)  # noqa: E731
    monkeypatch.setattr(jax.lax, "platform_dependent", choose)
    monkeypatch.setattr(decode_attention, "placed", functools.partial(decode_attention.placed, interpret=True))
    case = dict(decoder_cases.CASES[name])
    if "rope_scaling" in case:
        case["rope_scaling"] = models.RopeScaling(**case["rope_scaling"])
    model = models.decoder(models.DecoderConfig(**case))
    params = jax.tree.map(jnp.asarray, decoder_cases.make_params(name))
    with np.load(GOLDEN / f"decoder_{name}.npz") as golden:
        tokens, expected = golden["tokens"], golden["logits"]
    starts = np.array([4, 9])
    prefill, extend = jax.jit(model.prefill), jax.jit(model.extend)
    cache = prefill(params, jnp.asarray(tokens), jnp.asarray(starts, jnp.int32), model.init_cache(2, 64))
    for width in (5, 1, 5, 5):
        chunk = np.stack([row[n : n + width] for row, n in zip(tokens, starts, strict=True)])
        _, wrong = extend(params, jnp.asarray((chunk + 7) % case["vocab_size"]), cache)
        output, cache = extend(params, jnp.asarray(chunk), kv.rewind(wrong, jnp.asarray(starts, jnp.int32)))
        for row, start in enumerate(starts):
            np.testing.assert_allclose(output.logits[row], expected[row, start : start + width], rtol=0, atol=1e-4)
        starts = starts + width


def test_buffers_that_it_takes():
    def buffer(slots, size, dtype=jnp.bfloat16):
        return kv.init(1, slots, 1, 1, size, dtype).keys[0]

    assert [decode_attention.takes(buffer(*each)) for each in ((64, 128), (64, 256), (64, 64), (100, 128))] == [
        1,
        1,
        0,
        0,
    ]
    assert not decode_attention.takes(buffer(64, 128, jnp.int8))
    assert [decode_attention.block_of(slots) for slots in (4096, 192, 576, 100)] == [1024, 64, 64, None]


@pytest.mark.parametrize(("factors", "heads"), [((1, 4), 4), ((2, 2), 4), ((1, 2, 3), 2)])
def test_key_heads_and_the_queries_that_share_one_are_split(factors, heads):
    """Specs alone: how a mesh of forced devices would split them."""
    names = ("data", "model", "model_1")[: len(factors)]
    device = np.empty(factors, object)
    device[...] = jax.devices()[0]
    layout = Layout(Mesh(device, names), STRATEGIES["tensor"])
    cache = layout.spec(("batch", "kv_heads", None, None), (2, heads, 64, H))
    shared = decode_attention._shared(layout, cache, heads * R, R)
    split = int(np.prod([layout.mesh.shape[axis] for axis in (*decode_attention._axes(cache[1]), *(shared or ()))]))
    assert split == np.prod(factors[1:])  # nothing is done twice


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu: pip install -e '.[tpu]'")
@pytest.mark.parametrize("topology", ["v5e:2x4", "v5p:2x2x1", "v6e:2x4"])
@pytest.mark.parametrize(("heads", "size", "s"), [(8, 256, 5), (4, 128, 1), (8, 128, 1)])
def test_the_tpu_compiler_takes_it_and_splits_it_without_a_word_between_chips(topology, heads, size, s):
    from cascades.planning import hlo
    from cascades.planning.chips import layout_on

    _, layout = layout_on(topology, 1, "tensor")

    def array(shape, axes, dtype=jnp.bfloat16):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=layout.sharding(axes, shape))

    axes = ("batch", "kv_heads", None, None)
    q = array((4, s, 2 * heads, size), ("batch", None, "heads", None))
    new, cache = array((4, heads, s, size), axes), array((4, heads, 2048, size), axes)
    run = jax.jit(lambda *x: decode_attention.placed(layout)(*x, window=1024, cap=50.0), donate_argnums=(3, 4)).lower(
        q, new, new, cache, cache, array((4,), ("batch",), jnp.int32)
    )
    compiled = run.compile()
    assert hlo.collectives(hlo.parse(compiled.as_text())) == {}
    memory = compiled.memory_analysis()
    assert memory.alias_size_in_bytes >= 2 * np.prod(layout.sharding(axes, cache.shape).shard_shape(cache.shape)) * 2
    assert memory.temp_size_in_bytes < 1_000_000
