"""What a pair takes on a TPU slice: arithmetic on any machine, the TPU compiler where libtpu is installed."""

import dataclasses
import importlib.util
import os
import subprocess
import sys

import jaxtyping
import pytest
import tiny

from cascades.errors import UserError
from cascades.generation import ModelSpec
from cascades.runs import plan as module
from cascades.runs.plan import plan
from cascades.training.architectures import decoder
from cascades.training.drafters import eagle, own

LIBTPU = importlib.util.find_spec("libtpu") is not None


def planned(*, verifier="gemma2_9b", drafter="gemma2_2b", **knobs):
    """Plans, with what belongs to a model under its own name."""
    fields = [field.name for field in dataclasses.fields(ModelSpec) if field.name != "uri"]
    large = {name: knobs.pop(name) for name in fields if name in knobs}
    small = {name: knobs.pop(f"drafter_{name}") for name in fields if f"drafter_{name}" in knobs}
    models = {"verifier": ModelSpec(uri=verifier, **large), "drafter": ModelSpec(uri=drafter, **small)}
    return plan(**{"topology": "v5e:2x4", **models, **knobs})


@pytest.mark.parametrize(
    ("knobs", "sentence"),
    [
        ({"verifier": "gemma2_9"}, "gemma2_9b"),
        ({"strategy": "pipeline"}, "STRATEGY must be one of"),
        ({"batch_size": 0}, "BATCH_SIZE must be a whole number from 1"),
        ({"acceptance": 1.5}, "ACCEPTANCE must be a number from 0 to 1"),
        ({"context": 1 << 20}, "CONTEXT must be at most 8192"),
        ({"context": [2048, 1 << 20]}, "CONTEXT must be at most 8192"),
        ({"verifier": "t5_large"}, "t5_large is an encoder–decoder and gemma2_2b a decoder: a pair reads its prompts"),
        ({"weights": [None, "int4"]}, "WEIGHTS must be 'int8' or 'w8a8' or None, not 'int4'"),
        ({"batch_size": []}, "BATCH_SIZE must be a whole number from 1"),
        ({"mesh": 2}, r"MESH must be \(data, model\), two whole numbers from 1"),
        ({"mesh": (0, None)}, r"MESH must be \(data, model\), two whole numbers from 1"),
        ({"kernels": 1}, "KERNELS must be True or False"),
        ({"verifier": None}, "VERIFIER must be a preset, a path or a URI"),
        ({"drafter": "ngram://3"}, "a look-up takes no pass that could be planned: .* DRAFTER, .* not ngram://3"),
        ({"drafter": "ngram://6+gemma2_2b"}, "a look-up takes no pass that could be planned"),
        ({"drafter": "shipped://smollm2-135m-eagle"}, "hidden states of 576 numbers, and those of gemma2_9b have 3584"),
        ({"verifier": "shipped://smollm2-135m-eagle"}, "it cannot be a VERIFIER"),
        ({"kind": eagle}, r"KIND must be kinds of drafter with their brackets"),
        ({"kind": [eagle(uri="some/where")]}, "leave eagle.uri None"),
        ({"kind": eagle(), "widest": True}, "leave WHOLE and WIDEST False"),
        ({"drafter_strategy": ["tensor", "pipeline"]}, "DRAFTER_STRATEGY must be one of"),
        ({"drafter": None, "kind": own(architecture="t5_small")}, "own makes an encoder–decoder for gemma2_9b"),
        ({"kind": own(architecture=decoder())}, "CONTEXT must be at most 512"),
        ({"verifier": "hf://google/gemma-2-9b-it"}, "set VERIFIER_PRESET, as in --gin.VERIFIER_PRESET="),
        ({"drafter": "hf://google/gemma-2-2b-it", "drafter_preset": "t5_small"}, "t5_small an encoder–decoder"),
        (
            {"verifier": "t5_large", "drafter": "t5_small", "kind": eagle()},
            "eagle drafts for a decoder, and t5_large is",
        ),
        ({"verifier": "no/such/model.gguf"}, "there is no file or directory no/such/model.gguf"),
        ({"output": "/nowhere/plan.jsonl"}, "there is no folder /nowhere"),
    ],
)
def test_a_bad_knob_is_refused_before_anything_is_compiled(monkeypatch, knobs, sentence):
    monkeypatch.setattr(module, "layout_on", lambda *args: pytest.fail("compiled"))
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # what a user meets
    with pytest.raises(UserError, match=sentence):
        planned(**knobs)


def test_a_pair_file_takes_the_kinds_of_distill(monkeypatch):
    seen = []
    monkeypatch.setattr(module, "layout_on", lambda *args: None)
    monkeypatch.setattr(module, "plan_drafters", lambda *given: seen.append(given) or [])
    knobs = (
        "--gin.KIND=[@eagle(), @few/shallow()]",
        "--gin.few/shallow.vocabulary=99",
        "--gin.DRAFTER_STRATEGY=['vocab']",
    )
    pair = "--config=configs/pairs/gemma2_2b_9b.gin"
    assert tiny.call("cascades.runs.plan.plan", pair, *knobs) == 0
    ((jobs, _, rule, shared, output),) = seen
    (job,) = jobs
    names = [each.name for each in job.drafters]
    assert names == ["gemma2_2b", "eagle 1x3584, 8192 tokens", "shallow 2x3584, 99 tokens"]
    assert {each.spec.strategy for each in job.drafters} == {"vocab"} and job.features
    assert (rule.__name__, shared["strategy"], output) == ("token_v3", "tensor", None)


def launch(*arguments):
    command = [sys.executable, str(tiny.ROOT / "launch" / "plan.py"), "--config=configs/plan.gin", *arguments]
    environment = {name: value for name, value in os.environ.items() if name != "JAX_PLATFORMS"}
    return subprocess.run(command, env=environment, cwd=tiny.ROOT, capture_output=True, text=True, timeout=900)


def test_without_libtpu_it_says_how_to_get_it():
    if LIBTPU:
        done = launch("--topology=v5e:3x5")
        assert "does not know v5e:3x5" in done.stderr
    else:
        done = launch()
        assert "pip install -e '.[tpu]'" in done.stderr
    assert done.returncode == 2 and done.stderr.startswith("error: ") and "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.skipif(not LIBTPU, reason="needs libtpu: pip install -e '.[tpu]'")
def test_the_tpu_compiler_plans_slices(tmp_path):
    output = tmp_path / "plan.jsonl"
    small = ("--gin.VERIFIER='gemma3_270m'", "--gin.DRAFTER='gemma3_270m'", "--gin.K_MAX=1", "--gin.CONTEXT=512")
    done = launch("--topology=v5e:2x2", *small, "--gin.WHOLE=True", f"--output={output}")
    assert done.returncode == 0, done.stderr
    assert "verify 2" in done.stdout and "no measurement" in done.stdout
    (line,) = tiny.lines(output)
    assert line["fits"] and line["smallest"] == "v5e:1x1" and 0 < line["needed"] < line["memory"]
    for cost in (line["draft"], *line["verify"].values()):
        assert cost["aliased"] >= cost["cache"]  # donated, not copied
        assert 0.9 * cost["least"] < cost["moved"] < 1.5 * cost["least"]
        assert "all-gather" not in cost["collectives"]
        assert cost["chosen"] < 0.2 * cost["moved"]  # much of it, as this model is little more than its vocabulary
    loop = line["loop"]
    assert loop["aliased"] > 0.95 * loop["state"]  # the whole loop carries its caches in place
    assert loop["temporaries"] < line["verify"]["1"]["weights"]


@pytest.mark.slow
@pytest.mark.skipif(not LIBTPU, reason="needs libtpu: pip install -e '.[tpu]'")
def test_an_encoder_decoder_is_planned_by_what_its_decoder_reads(tmp_path):
    output = tmp_path / "plan.jsonl"
    small = ("--gin.VERIFIER='t5_base'", "--gin.DRAFTER='t5_small'", "--gin.K_MAX=1", "--gin.CONTEXT=256")
    done = launch("--topology=v4:1x1x1", *small, "--gin.BATCH_SIZE=1", f"--output={output}")
    assert done.returncode == 0, done.stderr
    (line,) = tiny.lines(output)
    assert line["fits"]
    for cost in (line["draft"], *line["verify"].values()):
        assert cost["weights"] < 0.8 * line["needed"] and cost["aliased"] >= 0.5 * cost["cache"]  # the input's stays
        assert 0.8 * cost["least"] < cost["moved"] < 2 * cost["least"]


@pytest.mark.slow
@pytest.mark.skipif(not LIBTPU, reason="needs libtpu: pip install -e '.[tpu]'")
def test_a_table_goes_on_where_it_was_left(tmp_path):
    output = tmp_path / "table.jsonl"
    small = ("--gin.VERIFIER='gemma3_270m'", "--gin.DRAFTER='gemma3_270m'", "--gin.K_MAX=1", "--gin.WIDEST=True")
    table = ("--gin.CONTEXT=512", "--gin.BATCH_SIZE=[1, 100000]", "--gin.WEIGHTS=[None, 'int8']")
    done = launch("--topology=v5e:1x1", *small, *table, f"--output={output}")
    assert done.returncode == 0, done.stderr
    whole, lines = done.stdout, tiny.lines(output)
    assert [(line["weights"], line["batch"], line["fits"]) for line in lines] == [
        (weights, batch, batch == 1) for weights in (None, "int8") for batch in (1, 100_000)
    ]
    wide, narrow = (line["verify"]["2"]["weights"] for line in lines if line["fits"])
    assert narrow < 0.6 * wide and lines[1]["verify"] == {}
    output.write_text("".join(output.read_text().splitlines(keepends=True)[:3]))
    again = launch("--topology=v5e:1x1", *small, *table, f"--output={output}")
    assert again.stdout == whole and tiny.lines(output) == lines
    assert "4 of 4 done" in again.stderr and "3 of 4 done" not in again.stderr


@pytest.mark.slow
@pytest.mark.skipif(not LIBTPU, reason="needs libtpu: pip install -e '.[tpu]'")
def test_a_slice_that_is_too_small_is_told_with_one_that_is_not():
    done = launch("--topology=v5e:1x1")
    assert done.returncode == 0, done.stderr
    assert (
        "DOES NOT FIT" in done.stdout
        and "the smallest v5e slice that holds weights and caches is v5e:2x2" in " ".join(done.stdout.split())
    )
