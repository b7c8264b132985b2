"""FP8 with scales of every layout, and the sentence about every other quantisation."""

import json

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from checkpoint_files import huggingface_config, huggingface_tensors

from cascades import checkpoints
from cascades.checkpoints import quantized
from cascades.errors import UserError

DTYPES = {"float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2", "float32": "F32", "bfloat16": "BF16", "float16": "F16"}
DTYPES |= {"uint8": "U8", "int8": "I8", "int32": "I32", "float8_e8m0fnu": "F8_E8M0"}
COMPRESSED = {
    "quant_method": "compressed-tensors",
    "format": "float-quantized",
    "quantization_status": "compressed",
    "ignore": ["lm_head"],
    "kv_cache_scheme": None,
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "input_activations": {"num_bits": 8, "type": "float", "dynamic": True, "strategy": "token"},
            "weights": {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "channel", "dynamic": False},
        }
    },
}
BLOCKS = {"quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3", "weight_block_size": [40, 48]}
WHOLE = {"quant_method": "fp8", "activation_scheme": "static", "ignored_layers": ["lm_head"]}
MODELOPT = {"quant_method": "modelopt", "quant_algo": "FP8", "kv_cache_quant_algo": "FP8", "producer": {"name": "x"}}


def write(directory, tensors, config):
    """A directory of Hugging Face in any dtype: the library's numpy side knows no FP8."""
    header, offset = {}, 0
    for name, value in tensors.items():
        ends = [offset, offset + value.nbytes]
        header[name] = {"dtype": DTYPES[value.dtype.name], "shape": list(value.shape), "data_offsets": ends}
        offset = ends[1]
    head = json.dumps(header).encode()
    directory.mkdir()
    body = b"".join(np.ascontiguousarray(value).tobytes() for value in tensors.values())
    (directory / "model.safetensors").write_bytes(len(head).to_bytes(8, "little") + head + body)
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def grid_of(shape, layout):
    if isinstance(layout, tuple):
        return tuple(-(-size // block) for size, block in zip(shape, layout, strict=True))
    return {"one": (1,), "none": (), "rows": (shape[0], 1), "flat": (shape[0],)}[layout]


def spread(scale, shape, layout):
    """A scale for each weight, one index at a time."""
    if not isinstance(layout, tuple):
        return np.broadcast_to(scale.reshape(-1, 1), shape)
    return np.array([[scale[i // layout[0], j // layout[1]] for j in range(shape[1])] for i in range(shape[0])])


@pytest.fixture
def write_fp8(build, tmp_path):
    """Returns a function that writes a model in FP8, and gives the directory and the tensors that are meant."""

    def write_it(settings, suffix, layout, *, kind="float8_e4m3fn", scale_dtype=np.float32, extra=(), leave=()):
        model = build("llama")
        random, tensors, meant = np.random.default_rng(0), {}, {}
        for name, value in huggingface_tensors(model).items():
            if "_proj" not in name or name in leave:
                tensors[name] = meant[name] = value
                continue
            tensors[name] = value.astype(kind)
            scale = random.uniform(0.5, 2.0, grid_of(value.shape, layout)).astype(scale_dtype)
            tensors[name.removesuffix("weight") + suffix] = scale
            meant[name] = tensors[name].astype(np.float32) * spread(scale.astype(np.float32), value.shape, layout)
        config = huggingface_config(model) | {"quantization_config": settings}
        return write(tmp_path / "fp8", tensors | dict(extra), config), meant

    return write_it


@pytest.mark.parametrize(
    ("settings", "suffix", "layout"),
    [
        (BLOCKS, "weight_scale_inv", (40, 48)),  # 64, 96 and 128 rows: the last block is cut
        (BLOCKS | {"weight_block_size": [32, 32], "scale_fmt": "ue8m0"}, "weight_scale_inv", (32, 32)),
        (BLOCKS | {"weight_block_size": [128, 128]}, "weight_scale_inv", (128, 128)),
        (WHOLE, "weight_scale", "none"),
        (WHOLE, "weight_scale", "one"),
        (COMPRESSED, "weight_scale", "rows"),
        (MODELOPT, "weight_scale", "none"),
        ({"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0}, "weight_scale", "rows"),
    ],
)
@pytest.mark.parametrize("kind", ["float8_e4m3fn", "float8_e5m2"])
def test_fp8_is_dequantised(write_fp8, tmp_path, assert_params, settings, suffix, layout, kind):
    extra = {"model.layers.0.self_attn.q_proj.input_scale": np.ones((), np.float32)}
    extra["model.layers.0.self_attn.k_proj.k_scale"] = np.ones((), np.float32)
    directory, meant = write_fp8(settings, suffix, layout, kind=kind, extra=extra)
    config = json.loads((directory / "config.json").read_text()) | {"quantization_config": None}
    plain = write(tmp_path / "plain", {name: value.astype(np.float32) for name, value in meant.items()}, config)
    assert_params(checkpoints.load(directory).params, checkpoints.load(plain).params)


def test_compressed_tensors_of_every_strategy(write_fp8, tmp_path):
    directory, meant = write_fp8(COMPRESSED, "weight_scale", (40, 48), scale_dtype=ml_dtypes.bfloat16)
    with pytest.raises(UserError, match=r"weight_scale of shape \[2, 2\], which does not fit .*down_proj.weight of"):
        checkpoints.load(directory)
    config = json.loads((directory / "config.json").read_text())
    weights = config["quantization_config"]["config_groups"]["group_0"]["weights"]
    weights |= {"strategy": "block", "block_structure": [40, 48]}
    (directory / "config.json").write_text(json.dumps(config))
    got = checkpoints.load(directory).params["layers"]["1"]["down"]["kernel"]
    np.testing.assert_array_equal(got, meant["model.layers.1.mlp.down_proj.weight"])


def test_modules_that_were_left_alone_and_another_dtype(write_fp8):
    name = "model.layers.1.mlp.down_proj.weight"
    directory, meant = write_fp8(BLOCKS, "weight_scale_inv", (40, 48), leave=(name,))
    down = checkpoints.load(directory, dtype=jnp.bfloat16).params["layers"]["1"]["down"]["kernel"]
    np.testing.assert_array_equal(down, jnp.asarray(meant[name], jnp.bfloat16))


def test_a_place_for_every_tensor(write_fp8):
    directory, meant = write_fp8(BLOCKS, "weight_scale_inv", (40, 48))
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    places = lambda like: jax.tree.map(lambda _: place, like)  # noqa: E731
    params = checkpoints.load(directory, shardings=places).params
    np.testing.assert_array_equal(params["layers"]["0"]["up"]["kernel"], meant["model.layers.0.mlp.up_proj.weight"])


@pytest.mark.parametrize("kind", ["float8_e4m3fn", "float8_e5m2"])
@pytest.mark.parametrize("placed", [False, True])
def test_fp8_without_scales_is_the_number_that_it_is(build, tmp_path, kind, placed):
    tensors = {
        name: value.astype(kind) if "_proj" in name else value
        for name, value in huggingface_tensors(build("llama")).items()
    }
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    places = (lambda like: jax.tree.map(lambda _: place, like)) if placed else None
    params = checkpoints.load(
        write(tmp_path / "bare", tensors, huggingface_config(build("llama"))), shardings=places
    ).params
    up = tensors["model.layers.1.mlp.up_proj.weight"].astype(np.float32)
    np.testing.assert_array_equal(params["layers"]["1"]["up"]["kernel"], up)


def test_scales_without_a_word_in_the_config_are_left_over(write_fp8):
    directory, _ = write_fp8(None, "weight_scale", "none")
    with pytest.raises(UserError, match="not used: .*weight_scale"):
        checkpoints.load(directory)


def test_scales_that_are_missing_double_or_no_numbers(write_fp8, tmp_path):
    name = "model.layers.0.mlp.down_proj."
    directory, _ = write_fp8(
        BLOCKS, "weight_scale_inv", (40, 48), extra={f"{name}weight_scale": np.ones((), np.float32)}
    )
    with pytest.raises(UserError, match="down_proj.weight should have scales, .* but has both"):
        checkpoints.load(directory)
    directory.rename(tmp_path / "old")
    directory, _ = write_fp8(BLOCKS, "scales", (40, 48))
    with pytest.raises(UserError, match="proj.weight should have scales, .* but has none"):
        checkpoints.load(directory)
    directory.rename(tmp_path / "older")
    odd = {f"{name}weight_scale_inv": np.full((2, 2), np.nan, np.float32)}
    directory, _ = write_fp8(BLOCKS, "weight_scale_inv", (40, 48), extra=odd)
    with pytest.raises(UserError, match="scales in .*down_proj.weight_scale_inv that are not finite numbers"):
        checkpoints.load(directory)


OTHERS = (
    "gptq awq bitsandbytes mxfp4 nvfp4 quanto hqq eetq aqlm torchao auto-round quark vptq higgs bitnet spqr fp_quant"
)


@pytest.mark.parametrize("method", [*OTHERS.split(), "one-of-tomorrow"])
def test_every_other_method_is_named(write_fp8, method):
    directory, _ = write_fp8({"quant_method": method, "bits": 4}, "weight_scale", "none")
    with pytest.raises(
        UserError, match=f"config.json describes weights that are quantised by {method} to 4 bits, which"
    ):
        checkpoints.load(directory)
    with pytest.raises(UserError, match=f"quantised by {method}"):
        checkpoints.read_config(directory)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"load_in_4bit": True}, "by bitsandbytes"),
        ({"bits": 4, "group_size": 64}, "by a method that is not named to 4 bits"),
        ("gptq", "quantization_config as an object"),
        ([], "quantization_config as an object"),
        ({"quant_method": 3}, "quantization_config.quant_method as a text"),
        (BLOCKS | {"weight_block_size": [128]}, "weight_block_size as two whole numbers"),
        (BLOCKS | {"weight_block_size": [0, 128]}, "weight_block_size as two whole numbers"),
        (BLOCKS | {"weight_block_size": "128x128"}, "weight_block_size as two whole numbers"),
        (BLOCKS | {"export": {"kv_cache_group": []}, "algo": 1}, "with quantization_config."),
        (MODELOPT | {"quant_algo": "NVFP4"}, "by modelopt as NVFP4"),
        (COMPRESSED | {"format": "pack-quantized"}, "by compressed-tensors as pack-quantized"),
        (COMPRESSED | {"format": None}, "by compressed-tensors as None"),
        (COMPRESSED | {"config_groups": {}}, "by compressed-tensors as float-quantized"),
        (COMPRESSED | {"config_groups": {"a": {"weights": {"num_bits": 4, "type": "int"}}}}, "weights of 4 bits"),
        (COMPRESSED | {"sparsity_config": {"format": "sparse-24-bitmask"}}, "compressed-tensors with sparsity"),
        (COMPRESSED | {"transform_config": {"config_groups": {"u": 1}}}, "with transforms"),
        (COMPRESSED | {"config_groups": {"a": 3}}, "config_groups.a as an object"),
    ],
)
def test_settings_that_are_refused(write_fp8, settings, named):
    directory, _ = write_fp8(settings, "weight_scale", "none")
    with pytest.raises(UserError, match=named) as caught:
        checkpoints.load(directory)
    assert "config.json" in str(caught.value)


@pytest.mark.parametrize(
    ("file", "content", "named"),
    [
        ("quantize_config.json", {"bits": 4, "group_size": 128}, "by gptq to 4 bits"),
        ("quant_config.json", {"w_bit": 4, "zero_point": True}, "by awq to 4 bits"),
        ("hf_quant_config.json", {"quantization": {"quant_algo": "NVFP4"}}, "by modelopt as NVFP4"),
    ],
)
def test_settings_in_a_file_of_their_own(write_fp8, file, content, named):
    directory, _ = write_fp8(None, "weight_scale", "none")
    (directory / file).write_text(json.dumps(content))
    with pytest.raises(UserError, match=named):
        checkpoints.load(directory)


def test_fp8_by_a_file_of_its_own(write_fp8):
    directory, meant = write_fp8(None, "weight_scale", "none")
    settings = {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "FP8", "exclude_modules": ["lm_head"]}}
    (directory / "hf_quant_config.json").write_text(json.dumps(settings))
    up = checkpoints.load(directory).params["layers"]["0"]["up"]["kernel"]
    np.testing.assert_array_equal(up, meant["model.layers.0.mlp.up_proj.weight"])


@pytest.mark.parametrize("kind", ["uint8", "int8", "int32"])
def test_whole_numbers_are_no_weights(build, tmp_path, kind):
    tensors = huggingface_tensors(build("llama"))
    tensors["model.layers.0.mlp.up_proj.weight"] = tensors["model.layers.0.mlp.up_proj.weight"].astype(kind)
    directory = write(tmp_path / "int", tensors, huggingface_config(build("llama")))
    with pytest.raises(UserError, match=rf"holds model.layers.0.mlp.up_proj.weight as {DTYPES[kind]}"):
        checkpoints.load(directory)


def test_scales_in_powers_of_two():
    weights = np.array([[1.5, -2.0, 0.25]], ml_dtypes.float8_e4m3fn)
    scale = np.array([[2.0, 0.5]], ml_dtypes.float8_e8m0fnu)
    np.testing.assert_array_equal(quantized.dequantise(weights, scale, (1, 2)), [[3.0, -4.0, 0.125]])
