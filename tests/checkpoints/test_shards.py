"""Which files of a directory are its model, and which file each tensor comes from."""

import json
import os

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from cascades import checkpoints
from cascades.checkpoints import shards
from cascades.errors import UserError

INDEX = "model.safetensors.index.json"


@pytest.fixture
def model(build):
    return build("llama")


@pytest.fixture
def sharded(model, write_huggingface):
    return write_huggingface(model, shards=3)


def change(directory, file, tensors):
    """Adds tensors to a file, or replaces them."""
    save_file(load_file(directory / file) | tensors, directory / file)


def remap(directory, **changes):
    index = json.loads((directory / INDEX).read_text())
    (directory / INDEX).write_text(json.dumps(index | changes))


def weight_map(directory):
    return json.loads((directory / INDEX).read_text())["weight_map"]


def zeros(directory, name):
    file = weight_map(directory)[name]
    return np.zeros_like(load_file(directory / file)[name])


def test_a_stale_copy_in_another_shard_is_not_read(model, sharded, assert_params):
    for name, file in weight_map(sharded).items():
        other = next(each for each in sorted(set(weight_map(sharded).values()), reverse=True) if each != file)
        change(sharded, other, {name: zeros(sharded, name)})
    assert_params(checkpoints.load(sharded).params, model.params)


def test_files_that_the_index_does_not_name_are_not_opened(model, sharded, assert_params):
    (sharded / "model-00004-of-00004.safetensors").write_bytes(b"cut off")
    (sharded / "adapter_model.safetensors").write_bytes(b"cut off")
    assert_params(checkpoints.load(sharded).params, model.params)


@pytest.mark.parametrize("beside", ["adapter_model", "consolidated", "optimizer", "model.fp16", "model-00001-of-00002"])
def test_without_an_index_the_whole_model_is_read_alone(model, write_huggingface, assert_params, beside):
    directory = write_huggingface(model)
    tensors = {key: np.zeros_like(value) for key, value in load_file(directory / "model.safetensors").items()}
    save_file(tensors, directory / f"{beside}.safetensors")
    assert_params(checkpoints.load(directory).params, model.params)


@pytest.mark.parametrize("beside", ["adapter_model", "consolidated.00", "optimizer", "lora", "random_states_0"])
def test_a_model_of_another_name(model, write_huggingface, assert_params, beside):
    directory = write_huggingface(model)
    (directory / "model.safetensors").rename(directory / "weights.safetensors")
    save_file({"lora_A": np.zeros(3, np.float32)}, directory / f"{beside}.safetensors")
    assert_params(checkpoints.load(directory).params, model.params)


def test_an_index_of_the_whole_file(model, write_huggingface, assert_params):
    directory = write_huggingface(model)
    names = load_file(directory / "model.safetensors")
    (directory / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(names, "model.safetensors")}))
    assert_params(checkpoints.load(directory).params, model.params)


def test_links_of_the_hub_are_followed(model, sharded, assert_params, tmp_path):
    (tmp_path / "blobs").mkdir()
    for i, path in enumerate(list(sharded.glob("*.safetensors"))):
        path.rename(tmp_path / "blobs" / str(i))
        path.symlink_to(f"../blobs/{i}")
    assert_params(checkpoints.load(sharded).params, model.params)


@pytest.mark.parametrize(
    "name",
    [
        "../model.safetensors",
        "/etc/model.safetensors",
        "inner/model.safetensors",
        "..\\model.safetensors",
        "C:model.safetensors",
        "..",
        "",
        "model.bin",
        "model.safetensors\0",
        300 * "a" + ".safetensors",
    ],
)
def test_an_index_that_leads_elsewhere(sharded, monkeypatch, name):
    monkeypatch.setattr(shards, "safe_open", None)  # nothing is opened
    remap(sharded, weight_map=weight_map(sharded) | {"model.norm.weight": name})
    with pytest.raises(UserError, match=r"index.json should name \*.safetensors beside it, but weight_map has"):
        checkpoints.load(sharded)


@pytest.mark.parametrize(
    "value", [None, [], {}, "model.safetensors", 3, {"model.norm.weight": 3}, {"a": None}, {"a": []}]
)
def test_an_index_without_a_map(sharded, value):
    remap(sharded, weight_map=value)
    with pytest.raises(UserError, match="index.json should give weight_map"):
        checkpoints.load(sharded)


def test_an_index_of_tensors_that_are_not_there(sharded):
    there = weight_map(sharded)
    remap(
        sharded,
        weight_map=there | {"model.norm.weight": there["lm_head.weight"], "lm_head.weight": there["model.norm.weight"]},
    )
    with pytest.raises(UserError, match=r"of-00003.safetensors should hold lm_head.weight and 1 more, as model.safe"):
        checkpoints.load(sharded)


def test_a_tensor_that_the_index_forgets(sharded):
    remap(sharded, weight_map={key: file for key, file in weight_map(sharded).items() if key != "model.norm.weight"})
    with pytest.raises(UserError, match=r"holds model.norm.weight, which model.safetensors.index.json does not name"):
        checkpoints.load(sharded)


def test_a_whole_model_beside_an_index_that_does_not_name_it_is_not_read(model, sharded, assert_params):
    every = {key: value for file in sharded.glob("model-*.safetensors") for key, value in load_file(file).items()}
    save_file({key: np.zeros_like(value) for key, value in every.items()}, sharded / "model.safetensors")
    assert_params(checkpoints.load(sharded).params, model.params)


def test_shards_without_an_index(model, sharded, assert_params):
    (sharded / INDEX).unlink()
    assert_params(checkpoints.load(sharded).params, model.params)
    change(sharded, "model-00001-of-00003.safetensors", {"model.norm.weight": np.zeros(64, np.float32)})
    with pytest.raises(UserError, match="holds model.norm.weight in several shards, and no"):
        checkpoints.load(sharded)
    (sharded / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(UserError, match=r"should hold 3 shards, but has 2 \(missing: 2\)"):
        checkpoints.load(sharded)


def test_two_series_of_shards_without_an_index(sharded):
    (sharded / INDEX).unlink()
    save_file({"a": np.zeros(3, np.float32)}, sharded / "model-00001-of-00002.safetensors")
    with pytest.raises(
        UserError, match="should hold one model as model.safetensors, .* model-00001-of-00002.safetensors"
    ):
        checkpoints.load(sharded)


def test_two_models(model, write_huggingface):
    directory = write_huggingface(model)
    for name in ("a", "b"):
        save_file(load_file(directory / "model.safetensors"), directory / f"{name}.safetensors")
    (directory / "model.safetensors").unlink()
    with pytest.raises(UserError, match="it holds a.safetensors, b.safetensors: leave the files of one model"):
        checkpoints.load(directory)


def test_an_adapter_alone(model, write_huggingface):
    directory = write_huggingface(model)
    (directory / "model.safetensors").rename(directory / "adapter_model.safetensors")
    with pytest.raises(UserError, match=r"an adapter \(adapter_model.safetensors\) without the model"):
        checkpoints.load(directory)


def test_a_file_of_another_model_is_not_its_directory(model, write_huggingface, assert_params):
    directory = write_huggingface(model)
    assert_params(checkpoints.load(directory / "model.safetensors").params, model.params)
    save_file(load_file(directory / "model.safetensors"), directory / "other.safetensors")
    with pytest.raises(UserError, match="other.safetensors is not the model of its directory"):
        checkpoints.load(directory / "other.safetensors")


@pytest.mark.parametrize("header", [b"", b"\0" * 8, b"\xff" * 8, (2**40).to_bytes(8, "little"), b"\x10" + 30 * b"\0"])
def test_a_header_that_lies(model, write_huggingface, header):
    directory = write_huggingface(model)
    (directory / "model.safetensors").write_bytes(header)
    with pytest.raises(UserError, match="model.safetensors should be a whole safetensors file"):
        checkpoints.load(directory)


def test_a_pipe_is_no_file(model, write_huggingface):
    directory = write_huggingface(model)
    (directory / "model.safetensors").unlink()
    os.mkfifo(directory / "model.safetensors")
    with pytest.raises(UserError, match="should hold one model"):
        checkpoints.load(directory)
