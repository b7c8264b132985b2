"""int8 weights: how far they are from what they stand for, and that models and loop take them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from cascades import models, quantization
from cascades.models import DecoderConfig
from cascades.quantization import Int8, pack, pack_all

CONFIG = DecoderConfig(
    vocab_size=64, num_layers=2, d_model=32, d_ff=48, num_heads=4, num_kv_heads=2, head_dim=8, context_length=64
)

T5 = models.T5Config(
    vocab_size=64, num_layers=1, num_decoder_layers=2, d_model=32, d_ff=48, num_heads=4, head_dim=16, context_length=64
)


@pytest.mark.parametrize("shape", [(6, 8), (5, 3, 8)])
def test_each_channel_is_within_half_a_step(shape):
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=shape).astype(np.float32) * rng.uniform(0.01, 100, size=(*shape[:-1], 1)).astype(
        np.float32
    )
    kernel[0] = 0.0
    packed = pack(("q", "kernel"), kernel)
    assert packed.values.dtype == np.int8 and packed.scale.shape == shape[:-1]
    back = packed.values * packed.scale[..., None]
    assert (np.abs(back - kernel) <= 0.5001 * packed.scale[..., None]).all()
    np.testing.assert_array_equal(back[0], 0.0)
    assert (np.abs(packed.values).max(axis=-1)[1:] == 127).all()


def test_an_output_projection_has_one_scale_per_channel_over_all_heads():
    packed = pack(("layers", "0", "o", "kernel"), np.ones((8, 2, 3), np.float32))
    assert packed.scale.shape == (8,)


def test_product_and_lookup_are_those_of_the_matrix_it_stands_for():
    rng = np.random.default_rng(1)
    kernel, x = rng.normal(size=(16, 4, 8)).astype(np.float32), rng.normal(size=(2, 3, 4, 8)).astype(np.float32)
    packed = pack(("o", "kernel"), kernel)
    plain = packed.values.astype(np.float32) * packed.scale[:, None, None]
    got = jax.tree.map(jnp.asarray, packed).contract(jnp.asarray(x), 2)
    np.testing.assert_allclose(got, np.einsum("bsnh,dnh->bsd", x, plain), rtol=1e-4, atol=1e-4)
    table = pack(("embed", "embedding"), kernel.reshape(16, 32))
    rows = jax.tree.map(jnp.asarray, table).lookup(jnp.asarray([[3, 15]], jnp.int32))
    np.testing.assert_allclose(rows[0], table.values[[3, 15]] * table.scale[[3, 15], None], rtol=1e-6)


def test_norms_and_biases_stay():
    scale = np.ones((4,), np.float32)
    assert pack(("attn_norm", "scale"), scale) is scale
    assert pack(("q", "bias"), scale) is scale


def test_shapes_arrays_and_axes_agree():
    model = models.decoder(CONFIG)
    params = pack_all(model.init(jax.random.key(0)))
    like = pack_all(models.abstract_params(CONFIG))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), params) == jax.tree.map(lambda x: (x.shape, x.dtype), like)
    axes = models.logical_axes(params)
    o = params["layers"]["0"]["o"]["kernel"]
    assert isinstance(o, Int8) and axes["layers"]["0"]["o"]["kernel"].values == ("width", "heads", None)
    assert axes["layers"]["0"]["o"]["kernel"].scale == ("width",)
    assert axes["embed"]["embedding"].scale == ("vocab",)


def test_a_quantised_model_says_nearly_the_same():
    model = models.decoder(CONFIG)
    params = model.init(jax.random.key(0))
    tokens = jax.random.randint(jax.random.key(1), (2, 12), 0, 64, jnp.int32)

    def logits(params):
        return model.extend(params, tokens, model.init_cache(2, 16))[0].logits

    plain, packed = logits(params), jax.jit(logits)(pack_all(params))
    assert 0 < float(jnp.std(plain - packed)) < 0.03 * float(jnp.std(plain))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_activations_are_quantised_row_by_row(dtype):
    rng = np.random.default_rng(2)
    kernel = rng.normal(size=(16, 32)).astype(np.float32)
    x = jnp.asarray(rng.normal(size=(2, 3, 32)) * rng.uniform(0.01, 100, size=(2, 3, 1)), dtype)
    packed = jax.tree.map(jnp.asarray, quantization.packer("w8a8")(("q", "kernel"), kernel))
    got, exact = packed.contract(x), jnp.asarray(x, jnp.float32) @ kernel.T
    assert got.dtype == dtype
    error, size = jnp.abs(got.astype(jnp.float32) - exact), jnp.linalg.norm(exact, axis=-1, keepdims=True)
    assert 0 < float(jnp.max(error / size)) < 0.02
    alone = packed.contract(x[1:, 2:])
    np.testing.assert_array_equal(alone[0, 0], got[1, 2])
    np.testing.assert_array_equal(packed.contract(jnp.zeros((1, 32), dtype)), jnp.zeros((1, 16)))


@pytest.mark.parametrize("kind", ["int8", "w8a8"])
def test_a_single_row_is_multiplied_as_two(kind):
    """XLA on CPUs has no fast product of int8, or of bfloat16, for one row."""
    packed = jax.tree.map(jnp.asarray, quantization.packer(kind)(("q", "kernel"), np.ones((16, 32), np.float32)))
    x = jnp.ones((1, 1, 32), jnp.bfloat16)
    text = jax.jit(packed.contract).lower(x).compile().as_text()
    wide = "s32" if kind == "w8a8" else "f32"
    assert f"{wide}[2,16]" in text and f"{wide}[1,16]{{1,0}} dot(" not in text
    np.testing.assert_array_equal(packed.contract(x), packed.contract(jnp.ones((2, 1, 32), jnp.bfloat16))[:1])


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("config", [CONFIG, T5], ids=["decoder", "t5"])
def test_a_quantised_cache_says_nearly_the_same_in_passes_of_any_width(config, dtype):
    plain, packed = models.build(config, dtype), models.build(config, dtype, cache_dtype=jnp.int8)
    params = plain.init(jax.random.key(0))
    tokens = jax.random.randint(jax.random.key(1), (2, 24), 1, 64, jnp.int32)
    held = jnp.asarray([8, 5], jnp.int32)

    def logits(model, widths):
        cache, found, at = model.prefill(params, tokens[:, :8], held, model.init_cache(2, 40)), [], 0
        for width in widths:
            output, cache = model.extend(params, tokens[:, 8 + at : 8 + at + width], cache)
            found.append(output.logits)
            at += width
        return np.concatenate(found, axis=1)

    exact, wide, narrow = logits(plain, (12,)), logits(packed, (12,)), logits(packed, (1, 1, 5, 5))
    assert 0 < np.std(exact - wide) < 0.03 * np.std(exact)
    # The same up to a value that rounds the other way: each token is quantised by itself.
    assert np.std(narrow - wide) < (1e-3 if dtype == jnp.float32 else 0.03) * np.std(exact)
    buffer = packed.init_cache(2, 40).keys[0]
    assert sum(leaf.nbytes for leaf in buffer) <= plain.init_cache(2, 40).keys[0].nbytes * 0.75


@pytest.mark.parametrize(
    "kind", [{"WEIGHTS": "int8"}, pytest.param({"WEIGHTS": "w8a8"}, marks=pytest.mark.slow), {"CACHE": "int8"}]
)
def test_a_quantised_pair_decodes_and_a_drafter_like_it_is_always_right(tiny_files, tmp_path, kind):
    """Also, lossless and greedy, as its verifier alone."""
    both = kind | {f"DRAFTER_{name}": value for name, value in kind.items()}
    ids = []
    for name, knobs in (("pair", both), ("alone", kind | {"METHOD": "verifier_only"}), ("plain", {})):
        output = tmp_path / f"{name}.jsonl"
        knobs = tiny.pair(tiny_files, DRAFTER=tiny_files.verifier, RULE="@lossless", K_MAX=2) + tiny.knobs(**knobs)
        assert tiny.launch(*knobs, "--prompt=the quick", f"--output={output}") == 0
        (line,) = tiny.lines(output)
        ids.append(line["token_ids"])
        assert name != "pair" or line["stats"]["acceptance_rate"] == 1.0
    assert ids[0] == ids[1] and ids[2]


def test_a_bad_kind_is_told(tiny_files, capsys):
    for knob, sentence in (
        ({"WEIGHTS": "int4"}, "WEIGHTS must be 'int8' or 'w8a8' or None, not 'int4'"),
        ({"DRAFTER_CACHE": "fp8"}, "DRAFTER_CACHE must be 'int8' or None, not 'fp8'"),
    ):
        assert tiny.launch(*tiny.pair(tiny_files, **knob), "--prompt=hi") == 2
        assert sentence in capsys.readouterr().err
    assert quantization.inner_axes(("x", "scale"), None) == 0


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("kind", quantization.KINDS)
def test_nan_is_not_lost_in_int8(kind, value):
    kernel, x = np.eye(4, dtype=np.float32), np.ones((2, 4), np.float32)
    x[1, 2] = value
    sound = pack_all({"up": {"kernel": jnp.asarray(kernel)}}, kind)["up"]["kernel"]
    found = np.asarray(sound.contract(jnp.asarray(x)))
    assert np.isfinite(found[0]).all() and not np.isfinite(found[1]).all()
    kernel[3, 1] = value
    for array in (kernel, jnp.asarray(kernel)):
        broken = pack_all({"up": {"kernel": array}}, kind)["up"]["kernel"]
        found = np.asarray(broken.contract(jnp.ones((1, 4), jnp.float32)))[0]
        assert np.isfinite(found[:3]).all() and not np.isfinite(found[3])
