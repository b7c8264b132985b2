"""What a checkpoint holds and what would be refused of it, in every format, without its weights."""

import dataclasses
import json
import os
import resource
import time

import gguf
import jax.numpy as jnp
import numpy as np
import pytest
import t5_cases
from flax import serialization

from cascades import checkpoints
from cascades.checkpoints import contents, names
from cascades.errors import UserError
from cascades.models import PRESETS, T5Config, count_params


def refusals(path) -> list[tuple[str, str]]:
    return [tuple(problem) for problem in contents(path).problems]


def sentence(path) -> str:
    """With what `load` refuses."""
    with pytest.raises(UserError) as error:
        checkpoints.load(path, progress=False)
    return str(error.value)


def weights(held) -> int:
    return sum(held.kinds.values())


def test_a_gguf_file(model, write_gguf):
    path = write_gguf(model, quantise=gguf.GGMLQuantizationType.Q8_0)
    held = contents(path)
    assert (held.form, held.path, held.tokenizer, held.size) == ("GGUF", path, path, path.stat().st_size)
    assert held.config == checkpoints.load(path, progress=False).config
    assert weights(held) == count_params(held.config)
    assert list(held.kinds) == ["Q8_0", "F32"] and held.quantised == ("Q8_0",)
    assert held.problems == () and held.shared == ()


@pytest.mark.parametrize(("dtype", "kind"), [(np.float32, "F32"), (np.float16, "F16")])
def test_a_folder_of_hugging_face(build, write_huggingface, dtype, kind):
    folder = write_huggingface(build("gemma2"), shards=2, dtype=dtype)
    held = contents(folder)
    assert held.form == "Hugging Face (safetensors)" and held.problems == ()
    assert held.kinds == {kind: count_params(held.config)} and held.quantised == ()
    assert held.size == sum(path.stat().st_size for path in folder.iterdir())
    assert held.config == checkpoints.read_config(folder)


def test_a_checkpoint_of_ours(build, write_gguf, tmp_path):
    checkpoints.convert(write_gguf(build("llama")), tmp_path / "ours", progress=False)
    held = contents(tmp_path / "ours")
    assert held.form == "cascades (orbax)" and held.problems == ()
    assert list(held.kinds) == ["bfloat16", "float32"] and held.quantised == ()
    assert weights(held) == count_params(held.config)


def test_the_part_of_a_drafter_that_is_its_verifiers(build, tmp_path):
    model = build("llama")
    checkpoints.save(tmp_path / "ours", model.config, model.params, shared=["embed"])
    held = contents(tmp_path / "ours")
    assert held.shared == ("embed",) and held.problems == ()
    assert weights(held) == count_params(model.config) - model.config.vocab_size * model.config.d_model


def test_a_released_gemma(build, write_gemma, monkeypatch):
    model = build("gemma3")
    monkeypatch.setitem(PRESETS, "tiny", dataclasses.replace(model.config, vocab_size=7))
    held = contents(write_gemma(model))
    assert held.form == "released Gemma (orbax)" and held.problems == ()
    assert held.config == model.config and held.kinds == {"bfloat16": count_params(model.config)}


def test_a_checkpoint_of_t5x(tmp_path):
    tree = {"optimizer": {"target": t5_cases.t5x_tree(t5_cases.make_params("v1_1"))}}
    (tmp_path / "checkpoint").write_bytes(serialization.msgpack_serialize(tree))
    held = contents(tmp_path)
    assert held.form == "T5X" and held.problems == ()
    assert isinstance(held.config, T5Config) and held.kinds == {"float32": count_params(held.config)}


def test_nothing_there(tmp_path):
    held = contents(tmp_path / "nothing")
    assert (held.path, held.form, held.size, held.config, held.tokenizer) == (None,) * 5
    assert refusals(tmp_path / "nothing") == [("file", sentence(tmp_path / "nothing"))]


def test_a_folder_without_a_model_may_hold_a_tokenizer(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    assert contents(tmp_path).tokenizer == tmp_path
    assert refusals(tmp_path) == [("file", sentence(tmp_path))]


def test_a_file_that_is_cut_off_is_told_once(build, write_gguf):
    path = write_gguf(build("llama"))
    path.write_bytes(path.read_bytes()[:-5])
    assert refusals(path) == [("file", sentence(path))]


def test_an_unknown_model_still_tells_its_tensors(build, write_huggingface):
    folder = write_huggingface(build("llama"))
    (folder / "config.json").write_text(json.dumps({"model_type": "mamba"}))
    held = contents(folder)
    assert held.config is None and len(held.tensors) == 21 and held.kinds
    assert refusals(folder) == [("config", sentence(folder))]


def test_tensors_that_do_not_fit(build, write_gguf, write_huggingface):
    path = write_gguf(build("llama"), without=("blk.0.attn_q.weight",), tensors={"odd": np.zeros((2, 2), np.float32)})
    assert refusals(path) == [("tensors", sentence(path))]
    folder = write_huggingface(build("qwen2"), extra={"odd.weight": np.zeros(3, np.float32)}.items())
    assert refusals(folder) == [("tensors", sentence(folder))]


def test_a_type_that_cannot_be_dequantised(build, write_gguf):
    path = write_gguf(build("llama"), name="whole.gguf")
    assert refusals(path) == []
    broken = write_gguf(build("llama"), without=("output_norm.weight",), name="broken.gguf")
    writer = gguf.GGUFReader(broken, "r+")
    tensor = next(each for each in writer.tensors if each.name == "blk.0.ffn_up.weight")
    tensor.field.parts[-2][0] = gguf.GGMLQuantizationType.I32
    del writer, tensor
    reasons = [reason for part, reason in refusals(broken) if part == "tensors"]
    assert any("missing: output_norm.weight" in reason for reason in reasons), reasons
    assert any("blk.0.ffn_up.weight is stored as I32" in reason for reason in reasons), reasons


def test_what_is_cut_off_and_what_does_not_fit_are_both_told(build, tmp_path):
    model = build("llama")
    checkpoints.save(tmp_path / "ours", model.config, model.params)
    file = next(each for each in (tmp_path / "ours" / "params").rglob("*") if each.is_file() and each.stat().st_size)
    content = json.loads((tmp_path / "ours" / "cascades.json").read_text())
    content["config"]["d_ff"] += 1
    content["files"][file.relative_to(tmp_path / "ours").as_posix()] += 1
    (tmp_path / "ours" / "cascades.json").write_text(json.dumps(content))
    (first, cut), (second, shapes) = refusals(tmp_path / "ours")
    assert (first, second) == ("file", "tensors") and "bytes long" in cut and "misshapen" in shapes


def test_gigabytes_of_weights_are_not_read(build, write_huggingface):
    model = build("llama")
    folder = write_huggingface(model)
    raw = json.loads((folder / "config.json").read_text()) | {"vocab_size": 2**20, "hidden_size": 1024}
    (folder / "config.json").write_text(json.dumps(raw))
    table = names.huggingface(checkpoints.read_config(folder), ())
    header, end = {}, 0
    for tensor in table.values():
        size = 4 * int(np.prod(tensor.shape))
        header[tensor.name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    with open(folder / "model.safetensors", "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
    os.truncate(folder / "model.safetensors", 8 + len(text) + end)  # a hole, which takes no room on the disk
    contents(folder)  # what is imported and traced once
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    held = contents(folder)
    assert held.problems == () and held.size is not None and held.size > 8 * 2**30
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024  # KiB
    assert time.process_time() - start < 5


def test_the_dtype_of_a_checkpoint_is_that_of_its_file(build, tmp_path):
    model = build("llama")
    checkpoints.save(tmp_path / "ours", model.config, model.params)
    assert list(contents(tmp_path / "ours").kinds) == [jnp.dtype(jnp.float32).name]
