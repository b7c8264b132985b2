import gguf
import jax.numpy as jnp
import numpy as np
import pytest
from checkpoint_files import gguf_tensors

from cascades import checkpoints
from cascades.checkpoints import gguf as reader
from cascades.errors import UserError
from cascades.models import RopeScaling
from cascades.models.layers import rope_frequencies

Q8_0, Q4_0 = gguf.GGMLQuantizationType.Q8_0, gguf.GGMLQuantizationType.Q4_0


def test_every_family_comes_back_exactly(model, write_gguf, assert_params):
    loaded = checkpoints.load(write_gguf(model))
    assert loaded.config == model.config
    assert_params(loaded.params, model.params)


def test_bfloat16_keeps_norms_in_float32(build, write_gguf, assert_params):
    model = build("gemma3")
    assert_params(checkpoints.load(write_gguf(model), dtype=jnp.bfloat16).params, model.params, jnp.bfloat16)


@pytest.mark.parametrize(("kind", "tolerance"), [(Q8_0, 0.005), (Q4_0, 0.11)])
@pytest.mark.parametrize("chunk", [32, 96, 1 << 16])
def test_quantised_tensors_in_chunks(build, write_gguf, monkeypatch, kind, tolerance, chunk):
    monkeypatch.setattr(reader, "_CHUNK", chunk)
    model = build("llama")
    params = checkpoints.load(write_gguf(model, quantise=kind)).params
    for name in ("q", "k", "o", "gate", "down"):
        kernel, wanted = params["layers"]["1"][name]["kernel"], model.params["layers"]["1"][name]["kernel"]
        assert kernel.shape == wanted.shape
        np.testing.assert_allclose(kernel, wanted, atol=tolerance)
        assert not np.array_equal(kernel, wanted)  # it did go through the quantiser


def test_the_head_is_tied_without_output_weight(build, write_gguf):
    loaded = checkpoints.load(write_gguf(build("llama"), without=("output.weight",)))
    assert loaded.config.tied_head and "head" not in loaded.params


def test_missing_unused_and_misshapen_are_named_together(build, write_gguf):
    model = build("llama")
    path = write_gguf(
        model,
        without=("blk.0.ffn_up.weight", "blk.0.attn_k.weight", "blk.1.attn_k.weight"),
        tensors={
            "blk.0.attn_q.bias": np.zeros(128, np.float32),
            "blk.1.attn_q.bias": np.zeros(128, np.float32),
            "output_norm.weight": np.zeros(32, np.float32),
        },
    )
    with pytest.raises(UserError) as error:
        checkpoints.load(path)
    sentence = str(error.value)
    assert "missing: blk.*.attn_k.weight (2 layers), blk.0.ffn_up.weight" in sentence
    assert "not used: blk.*.attn_q.bias (2 layers)" in sentence
    assert "misshapen: output_norm.weight is [32], expected [64]" in sentence


def test_dozens_of_wrong_tensors_are_shortened(build, write_gguf):
    model = build("llama")
    path = write_gguf(model, tensors={f"odd{i}.weight": np.zeros(32, np.float32) for i in range(40)})
    with pytest.raises(UserError, match="and 34 more") as error:
        checkpoints.load(path)
    assert len(str(error.value)) < 600


def test_llama3_rope_factors_are_read_back(build, write_gguf):
    model = build("llama")
    scaling = RopeScaling(kind="llama3", factor=32.0)
    h, theta = model.config.head_dim, model.config.rope_theta
    factors = rope_frequencies(h, theta) / rope_frequencies(h, theta, scaling)
    path = write_gguf(model, tensors={"rope_freqs.weight": factors.astype(np.float32)})
    assert checkpoints.read_config(path).rope_scaling == scaling
    checkpoints.load(path)  # and the tensor is not reported as unused
    strange = write_gguf(model, "strange.gguf", tensors={"rope_freqs.weight": (factors**2).astype(np.float32)})
    with pytest.raises(UserError, match="rope_freqs"):
        checkpoints.read_config(strange)


def test_a_preset_fills_what_the_metadata_lacks(build, write_gguf):
    path = write_gguf(build("llama"), without=("rope.freq_base",))
    assert checkpoints.read_config(path).rope_theta == 10_000.0
    assert checkpoints.read_config(path, preset="llama3_8b").rope_theta == 500_000.0
    with pytest.raises(UserError, match="llama3_8b"):
        checkpoints.read_config(path, preset="llama3_8")


@pytest.mark.parametrize("share", [0.01, 0.3, 0.99])
def test_a_truncated_file(build, write_gguf, share):
    path = write_gguf(build("gemma2"))
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(UserError, match="cut off"):
        checkpoints.load(path)


def test_cut_off_anywhere_in_the_header_is_one_sentence(build, write_gguf):
    path = write_gguf(build("qwen2"))
    content = path.read_bytes()
    for length in range(0, 3000, 37):
        path.write_bytes(content[:length])
        with pytest.raises(UserError, match="cut off|begins with"):
            reader.read_header(path)


@pytest.mark.parametrize("content", [b"PK\x03\x04 this is a zip", b"", b"GGUF\x00\x00\x00\x03" + bytes(64)])
def test_not_a_gguf_file(tmp_path, content):
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    with pytest.raises(UserError, match="model.gguf should be a"):
        checkpoints.load(path)


def test_an_unknown_architecture_is_named(tmp_path):
    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(path, "mamba")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(UserError, match="'mamba'.*llama, qwen2, gemma, gemma2, gemma3"):
        checkpoints.load(path)


def test_a_part_of_a_split_model(build, write_gguf):
    with pytest.raises(UserError, match="llama-gguf-split --merge"):
        checkpoints.load(write_gguf(build("llama"), metadata=(("split.count", 3),)))


@pytest.fixture
def write_parts(build, write_gguf, tmp_path):
    """Returns a function that writes a model in parts, as llama-gguf-split does, and gives their paths."""

    def write(model, count=3, without=(), **changes):
        names = list(gguf_tensors(model))
        paths = []
        for i in range(count):
            others = [name for j, name in enumerate(names) if j % count != i]
            keys = {"split.no": i, "split.count": count, "split.tensors.count": len(names)} | changes
            name = f"big-{i + 1:05}-of-{count:05}.gguf"
            paths.append(write_gguf(model, name, without=others, metadata=keys.items()))
        for i in without:
            paths[i].unlink()
        return paths

    return write


def test_the_parts_of_a_split_model_are_read_together(build, write_parts, assert_params):
    model = build("llama")
    first, *others = write_parts(model)
    assert len(reader.read_header(first).tensors) < len(reader.read_parts(first).tensors)
    loaded = checkpoints.load(first)
    assert loaded.config == model.config and not loaded.config.tied_head
    assert_params(loaded.params, model.params)
    assert checkpoints.contents(first).size == sum(path.stat().st_size for path in (first, *others))
    for other in others:
        with pytest.raises(UserError, match="the first part .-00001-of-00003."):
            checkpoints.load(other)


def test_parts_that_do_not_go_together(build, write_parts):
    model = build("gemma")
    first, *_ = write_parts(model, without=[2])
    with pytest.raises(UserError, match="llama-gguf-split --merge"):
        checkpoints.load(first)
    first, second, third = write_parts(model)
    third.write_bytes(second.read_bytes())
    with pytest.raises(UserError, match="big-00003-of-00003.gguf should be part 3 of 3"):
        checkpoints.load(first)
    first, *_ = write_parts(model, **{"split.tensors.count": 99})
    with pytest.raises(UserError, match="split.tensors.count as 20, not 99"):
        checkpoints.load(first)
    first, *_ = write_parts(model, **{"split.count": "three"})
    with pytest.raises(UserError, match="split.count as a whole number from 0 to 99999, not 'three'"):
        checkpoints.load(first)


def test_the_image_encoder_of_a_multimodal_file_is_left_alone(build, write_gguf, assert_params):
    model = build("gemma3")
    vision = {"v.blk.0.attn_q.weight": np.ones((4, 4), np.float32), "mm.0.bias": np.zeros(3, np.int32)}
    assert_params(checkpoints.load(write_gguf(model, tensors=vision)).params, model.params)


@pytest.mark.parametrize(
    "name",
    ["blk.0.attn_output.bias", "blk.1.ffn_gate.bias", "blk.0.ffn_gate_inp.weight", "blk.2.attn_q.weight", "cls.weight"]
    + ["blk.0.attn_q_norm.weight", "output.bias", "blk.1.nextn.eh_proj.weight", "blk.0.attn_qkv.weight"],
)
def test_a_tensor_that_no_part_uses_is_named(build, write_gguf, name):
    path = write_gguf(build("llama"), tensors={name: np.zeros(64, np.float32)})
    with pytest.raises(UserError, match=f"not used: {name}"):
        checkpoints.load(path)


def test_quants_of_another_version(build, write_gguf):
    path = write_gguf(build("llama"), quantise=Q8_0, metadata=[("general.quantization_version", 1)])
    with pytest.raises(UserError, match="general.quantization_version as 2, not 1"):
        checkpoints.load(path)
    checkpoints.load(write_gguf(build("llama"), metadata=[("general.quantization_version", 1)]))  # nothing is quantised


def test_a_tensor_type_that_cannot_be_read(build, write_gguf):
    tensors = {"blk.0.attn_norm.weight": np.zeros(64, np.int32)}
    with pytest.raises(UserError, match="blk.0.attn_norm.weight is stored as I32"):
        checkpoints.load(write_gguf(build("llama"), tensors=tensors))


def test_metadata_alone_can_be_copied(build, write_gguf, tmp_path):
    path = write_gguf(build("llama"))
    reader.copy_metadata(path, tmp_path / "tokenizer.gguf")
    copied = reader.read_header(tmp_path / "tokenizer.gguf")
    whole = reader.read_header(path)
    assert not copied.tensors and copied.metadata.keys() == whole.metadata.keys()
    assert copied.metadata["tokenizer.ggml.tokens"] == whole.metadata["tokenizer.ggml.tokens"]
    package = gguf.GGUFReader(tmp_path / "tokenizer.gguf")  # llama.cpp's own reader takes it too
    assert not package.tensors and package.fields["general.architecture"].contents() == "llama"
