"""Where arrays live, and that a text does not depend on it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest
import tiny
from jax.sharding import AbstractMesh, PartitionSpec

from cascades import models
from cascades.errors import UserError
from cascades.sharding import STRATEGIES, Layout, layout, mesh_of

EIGHT = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
NAMES = ["1", "2", "4", "8", "8 data", "8 fsdp", "1 t5", "4 t5", "8 t5"]
HEADS = ("heads", None, "width")


def abstract(strategy, *sizes):
    """A layout over a mesh without devices: `data`, then the factors of the model axis."""
    names = ("data", "model", "model_1", "model_2")[: len(sizes)]
    return Layout(AbstractMesh(sizes, names), STRATEGIES[strategy])  # pyright: ignore[reportArgumentType]


def test_an_axis_is_split_over_the_leading_factors_that_divide_it():
    eight = abstract("tensor", 1, 2, 2, 2)
    whole, half = ("model", "model_1", "model_2"), ("model", "model_1")
    assert eight.spec(HEADS, (16, 256, 3584)) == PartitionSpec(whole, None, None)
    assert eight.spec(HEADS, (4, 256, 640)) == PartitionSpec(half, None, None)  # Gemma 3 1B has four heads
    assert eight.spec(("kv_heads", None, "width"), (1, 256, 640)) == PartitionSpec(None, None, None)
    assert eight.spec(("vocab", "width"), (262_144, 640)) == PartitionSpec(whole, None)
    assert eight.spec(("batch", None, "vocab"), (3, 5, 6)) == PartitionSpec(("data",), None, ("model",))


def test_no_mesh_axis_is_used_twice():
    fsdp = abstract("fsdp", 2, 2)
    assert fsdp.spec(("mlp", "width"), (8, 8)) == PartitionSpec(("model",), ("data",))
    assert fsdp.spec(("batch", "width"), (8, 8)) == PartitionSpec(("data",), None)
    assert fsdp.spec(("batch", "width"), (7, 8)) == PartitionSpec(None, ("data",))


@pytest.mark.parametrize("name", ["gemma2_2b", "gemma3_1b", "llama32_1b", "qwen25_0_5b"])
def test_every_kernel_of_a_preset_is_split_and_no_norm(name):
    params = models.abstract_params(models.preset(name))
    places = abstract("tensor", 1, 2).shardings(models.logical_axes(params), params)
    for (path, leaf), place in zip(jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(places), strict=True):
        norm = path[-1].key == "scale"
        one_head = leaf.ndim > 1 and leaf.shape[0] == 1  # Gemma 3 1B: a single key/value head is whole everywhere
        assert (place.shard_shape(leaf.shape) == leaf.shape) == (norm or one_head), path


def test_a_mesh_has_as_many_devices_as_it_says():
    assert dict(mesh_of(jax.devices()[:1], 1, 1).shape) == {"data": 1, "model": 1}
    with pytest.raises(UserError, match="a mesh of 2 x 3 needs 6 devices, and there are 1"):
        mesh_of(jax.devices()[:1], 2, 3)
    with pytest.raises(UserError, match="a strategy must be one of replicated, vocab, tensor, fsdp"):
        layout(mesh_of(jax.devices()[:1], 1, 1), "pipeline")


@pytest.mark.slow
def test_a_text_does_not_depend_on_the_mesh():
    script = Path(__file__).with_name("mesh_decode.py")
    done = subprocess.run([sys.executable, str(script), *NAMES], env=EIGHT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    alone = found["1"]
    for name, outcome in found.items():
        expected = found["1 t5" if name.endswith("t5") else "1"]
        assert expected["accepted"] > 0 and len({tuple(row) for row in expected["tokens"]}) == 4
        assert outcome["tokens"] == expected["tokens"], name
        assert not [shape for shape in outcome["gathered"] if shape.startswith("f32") and ",64]" in shape], name
    assert (
        found["8"]["gathered"] == found["2"]["gathered"] == found["8 t5"]["gathered"] == []
    )  # tensor parallel: partial sums alone
    assert found["8"]["cache"] == ["(4, 1, 64, 8)"]  # four key/value heads on eight devices
    assert found["8 data"]["cache"] == ["(1, 2, 64, 8)"]
    assert found["8"]["held"] < alone["held"] / 6  # norms and the rest are whole on every device


@pytest.mark.slow
def test_the_launcher_decodes_on_a_mesh(tiny_files, tmp_path):
    texts = []
    for mesh, devices in ((None, 1), ((2, 2), 4)):
        output = tmp_path / f"{devices}.jsonl"
        knobs = tiny.pair(tiny_files, MESH=mesh, DRAFTER_STRATEGY="vocab", MAX_NEW_TOKENS=24, BATCH_SIZE=2, K_MAX=2)
        prompts = ["--prompt=the quick", "--prompt=a small model", "--prompt=12 + 3"]
        flags = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
        command = tiny.command(*knobs, *prompts, f"--output={output}")
        done = subprocess.run(command, env=tiny.environment(tiny_files) | flags, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        texts.append({line["prompt"]: line["token_ids"] for line in tiny.lines(output)})
    assert texts[0] == texts[1] and len(texts[0]) == 3
