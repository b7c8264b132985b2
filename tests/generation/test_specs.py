"""Specs: what is taken, what is refused and with which sentence, and that no device is asked."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import jaxtyping
import pytest
import tiny

from cascades import hosts
from cascades.errors import UserError
from cascades.generation import ModelSpec, PairSpec, PromptSpec, Settings, default_dtype, dtype_taken
from cascades.generation.placement import bfloat16_instructions, mesh_sizes
from cascades.training.spec import TrainingSpec


@pytest.fixture(autouse=True)
def no_type_checks(monkeypatch):
    """A user's values meet the specs' own checks, not those of the tests."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


def pair(*, verifier=None, drafter=None, **shared):
    small = None if drafter is None else ModelSpec(**drafter)
    return PairSpec(verifier=ModelSpec(**{"uri": "large", **(verifier or {})}), drafter=small, **shared)


@pytest.mark.parametrize(
    ("knobs", "sentence"),
    [
        ({"verifier": {"uri": None}}, "VERIFIER must be a path or URI in quotes"),
        ({"verifier": {"uri": ""}}, "VERIFIER must be a path or URI in quotes"),
        ({"verifier": {"uri": ["a", "b"]}}, "VERIFIER must be a path or URI in quotes"),
        ({"drafter": {"uri": ""}}, "DRAFTER must be a path or URI in quotes"),
        ({"drafter": {"uri": 3}}, "or None"),
        ({"verifier": {"weights": "int4"}}, "WEIGHTS must be 'int8' or 'w8a8' or None, not 'int4'"),
        ({"verifier": {"weights": ["int8"]}}, r"WEIGHTS must be 'int8' or 'w8a8' or None, not \['int8'\]"),
        ({"drafter": {"uri": "s", "weights": 8}}, "DRAFTER_WEIGHTS must be 'int8' or 'w8a8' or None, not 8"),
        ({"verifier": {"cache": "w8a8"}}, "^CACHE must be 'int8' or None, not 'w8a8'"),
        ({"drafter": {"uri": "s", "cache": True}}, "DRAFTER_CACHE must be 'int8' or None, not True"),
        ({"verifier": {"strategy": "pipe"}}, "^STRATEGY must be one of replicated, vocab, tensor, fsdp, not 'pipe'"),
        ({"drafter": {"strategy": "pipe"}}, "DRAFTER_STRATEGY must be one of"),
        ({"dtype": "float16"}, "DTYPE must be one of float32, bfloat16, not 'float16'"),
        ({"dtype": ["float32"]}, "DTYPE must be one of"),
        ({"mesh": 4}, r"MESH must be \(data, model\), two whole numbers from 1"),
        ({"mesh": (1, 2, 3)}, "MESH must be"),
        ({"mesh": (None, 2)}, "MESH must be"),
        ({"mesh": (True, 1)}, "MESH must be"),
        ({"kernels": "no"}, "KERNELS must be True or False, not 'no'"),
    ],
)
def test_a_pair_that_cannot_be(knobs, sentence):
    with pytest.raises(UserError, match=sentence) as caught:
        pair(**knobs)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("knobs", "sentence"),
    [
        ({"raw_prompt": "yes"}, "RAW_PROMPT must be True or False, not 'yes'"),
        ({"control_tokens": "no"}, "CONTROL_TOKENS must be True, False or None, not 'no'"),
        ({"chat_template": 3}, "CHAT_TEMPLATE must be the name of a chat template in quotes or None, not 3"),
    ],
)
def test_prompts_that_cannot_be(knobs, sentence):
    with pytest.raises(UserError) as caught:
        PromptSpec(**knobs)
    assert str(caught.value) == sentence


def test_a_drafter_without_a_uri_is_none():
    assert pair(drafter={"weights": "int8"}).drafter is None
    assert pair(drafter={"uri": "small"}).drafter == ModelSpec(uri="small")


def test_a_method_gets_the_drafter_that_it_needs():
    both = pair(drafter={"uri": "small"}, dtype="bfloat16")
    assert both.needed(Settings()) is both
    assert both.needed(Settings(method="verifier_only")) == pair(dtype="bfloat16")
    with pytest.raises(UserError, match="METHOD='drafter_only' needs a drafter: set DRAFTER, or"):
        pair().needed(Settings(method="drafter_only"))


def test_a_mesh_takes_all_devices_and_divides_the_rows(monkeypatch):
    assert mesh_sizes((2, None), 8) == (2, 4) and mesh_sizes([2, 2], 8) == (2, 2)
    assert pair().layouts(3) == (None, None)
    large, small = pair(mesh=(1, None), drafter={"uri": "s", "strategy": "vocab"}).layouts()
    assert large.mesh == small.mesh and large.mesh.size == jax.device_count() and large.rules != small.rules
    with pytest.raises(UserError, match="BATCH_SIZE must be a multiple of the 3 ways that MESH splits a batch, not 4"):
        pair(mesh=(3, 1)).layouts(4)
    with pytest.raises(UserError, match="a mesh of 1 x 64 needs 64 devices, and there are"):
        pair(mesh=(1, 64)).layouts()
    monkeypatch.setattr(hosts, "several", lambda: True)
    with pytest.raises(UserError, match="several processes share a pair: set MESH"):
        pair().layouts()


INTEL = "processor\t: 0\nmodel name\t: Intel(R) Xeon(R)\nflags\t\t: fpu avx512f {}\nbugs\t\t: mds\n\n"
ARM = "processor\t: 0\nFeatures\t: fp asimd {}\nCPU implementer\t: 0x41\n\n"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("", None),
        ("flags\nFeatures", None),
        ("Hardware\t: amx_bf16", None),  # no line of flags
        (INTEL.format("avx512_vnni"), None),
        (INTEL.format("avx512_bf16x"), None),
        (INTEL.format("avx512_bf16"), "AVX-512"),
        (INTEL.format("avx512_bf16 amx_bf16 amx_tile"), "AMX"),
        (INTEL.format("avx512_bf16 amx_bf16") + INTEL.format("avx512_bf16"), "AVX-512"),  # what all have
        (INTEL.format("avx512_bf16") + INTEL.format(""), None),
        (ARM.format("i8mm"), None),
        (ARM.format("i8mm bf16"), "Arm's BF16"),
    ],
)
def test_which_processors_multiply_bfloat16(text, name):
    assert bfloat16_instructions(text) == name


def test_a_dtype_follows_the_device(monkeypatch, tmp_path):
    assert default_dtype("bfloat16") == jnp.bfloat16 and default_dtype(None) == jnp.float32
    assert dtype_taken() == "computing in float32: this processor is not known to multiply bfloat16 itself"
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_bytes(INTEL.format("amx_bf16").replace("R", "\xae").encode("latin-1"))
    monkeypatch.setenv("CASCADES_CPUINFO", str(cpuinfo))
    assert default_dtype(None) == jnp.bfloat16 and default_dtype("float32") == jnp.float32
    assert "bfloat16, which this processor multiplies itself (AMX); --gin.DTYPE=\"'float32'\" is" in dtype_taken()
    assert TrainingSpec().computed == jnp.float32 and TrainingSpec(dtype="bfloat16").computed == jnp.bfloat16
    monkeypatch.setenv("CASCADES_CPUINFO", str(tmp_path / "nowhere"))
    assert default_dtype(None) == jnp.float32
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert default_dtype(None) == jnp.bfloat16 and default_dtype("float32") == jnp.float32
    assert "bfloat16, as accelerators do; " in dtype_taken() and TrainingSpec().computed == jnp.bfloat16


def test_no_device_is_asked_before_processes_have_joined():
    """`decode` joins the other processes once its specs are made, which must be before a device is."""
    code = (
        "from cascades import config\n"
        "from cascades.runs.decode import decode\n"
        "import gin\n"
        "config.configure(decode, 'configs/tpu/gemma2_2b_9b.gin', (), 'configs/decode.gin')\n"
        "assert gin.get_bindings(decode)['pair'].mesh == (1, None)\n"
        "from jax._src import xla_bridge\n"
        "assert not xla_bridge.backends_are_initialized()\n"
    )
    environment = os.environ | {"PYTHONPATH": str(tiny.ROOT)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=120)
