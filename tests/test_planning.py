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
from cascades.planning import chips, report
from cascades.planning.chips import CHIPS, SLICES, slice_devices, slices
from cascades.planning.fit import best_k
from cascades.planning.hlo import collectives, parse, traffic
from cascades.planning.passes import Cost
from cascades.planning.report import plan

LIBTPU = importlib.util.find_spec("libtpu") is not None
HLO = """HloModule jit_run

%small (x: f32[2]) -> f32[2] {
  ROOT %none = f32[2]{0} parameter(0)
}

%large (y: f32[2]) -> f32[2] {
  %given = f32[2]{0} parameter(0)
  ROOT %swap = f32[2]{0} collective-permute(%given), source_target_pairs={{0,1}}
}

ENTRY %main (z: f32[2]) -> f32[2] {
  %z = f32[2]{0} parameter(0)
  %either = f32[2]{0} conditional(%pred, %z, %z), branch_computations={%small, %large}
  %all-reduce.1 = f32[8,5,3584]{2,1,0:T(8,128)} all-reduce(%fusion.1), replica_groups={}
  %ar-start = (bf16[8,16]{1,0}, bf16[8,16]{1,0}) all-reduce-start(%x), replica_groups={}
  %ar-done = bf16[8,16]{1,0} all-reduce-done(%ar-start)
  %both = (f32[4]{0}, f32[2]{0}) all-reduce(%v, %w), to_apply=%add
  ROOT %all-gather.2 = bf16[8,64]{1,0} all-gather(%y), dimensions={1}
}
"""

# As libtpu prints a program: S(1) is on the chip; a cache of 4,096 bytes is updated in place by 32.
PROGRAM = """HloModule jit_run

%update (param_0.1: bf16[8,256], param_1.1: s32[2], param_2.1: bf16[2,8]) -> bf16[8,256] {
  %param_0.1 = bf16[8,256]{1,0:T(8,128)(2,1)} parameter(0)
  %param_1.1 = s32[2]{0:T(128)S(1)} parameter(1)
  %param_2.1 = bf16[2,8]{1,0:T(8,128)(2,1)S(1)} parameter(2)
  ROOT %scatter.1 = bf16[8,256]{1,0:T(8,128)(2,1)} scatter(%param_0.1, %param_1.1, %param_2.1), to_apply=%add
}

%lookup (param_0.2: bf16[1000,64], param_1.2: s32[4]) -> bf16[4,64] {
  %param_0.2 = bf16[1000,64]{1,0:T(8,128)(2,1)} parameter(0)
  %param_1.2 = s32[4]{0:T(128)S(1)} parameter(1)
  %gather.1 = bf16[4,64]{1,0:T(8,128)(2,1)} gather(%param_0.2, %param_1.2), slice_sizes={1,64}
  ROOT %reshape.1 = bf16[4,64]{1,0:T(8,128)(2,1)S(1)} reshape(%gather.1)
}

%scores (param_0.3: bf16[8,256], param_1.3: bf16[4,64]) -> f32[8] {
  %param_0.3 = bf16[8,256]{1,0:T(8,128)(2,1)} parameter(0)
  %param_1.3 = bf16[4,64]{1,0:T(8,128)(2,1)S(1)} parameter(1)
  ROOT %reduce.1 = f32[8]{0:T(128)} reduce(%param_0.3, %param_1.3), dimensions={1}, to_apply=%add
}

%body (state: (f32[8], s32[])) -> (f32[8], s32[]) {
  %state = (f32[8]{0:T(128)}, s32[]{:T(128)}) parameter(0)
  %now = f32[8]{0:T(128)} get-tuple-element(%state), index=0
  %next = f32[8]{0:T(128)} negate(%now), metadata={op_name="jit(run)/while/body/choice/neg" stack_frame_id=1}
  %count = s32[]{:T(128)S(6)} get-tuple-element(%state), index=1
  ROOT %tuple = (f32[8]{0:T(128)}, s32[]{:T(128)}) tuple(%next, %count)
}

ENTRY %main (p0: bf16[8,256], p1: bf16[1000,64], p2: s32[4], p3: s32[2], p4: bf16[2,8]) -> f32[8] {
  %p0 = bf16[8,256]{1,0:T(8,128)(2,1)} parameter(0)
  %p1 = bf16[1000,64]{1,0:T(8,128)(2,1)} parameter(1)
  %p2 = s32[4]{0:T(128)S(1)} parameter(2)
  %p3 = s32[2]{0:T(128)S(1)} parameter(3)
  %p4 = bf16[2,8]{1,0:T(8,128)(2,1)} parameter(4)
  %copy-start = (bf16[2,8]{1,0:T(8,128)(2,1)S(1)}, bf16[2,8]{1,0:T(8,128)(2,1)}, u32[]{:S(2)}) copy-start(%p4)
  %copy-done = bf16[2,8]{1,0:T(8,128)(2,1)S(1)} copy-done(%copy-start)
  %both = (f32[8]{0:S(1)}, bf16[8,256]{1,0:T(8,128)}) custom-call(%p3, %p0), output_to_operand_aliasing={{1}: (1, {})}
  %rows = bf16[4,64]{1,0:T(8,128)(2,1)S(1)} fusion(%p1, %p2), kind=kCustom, calls=%lookup
  %cache = bf16[8,256]{1,0:T(8,128)(2,1)} fusion(%p0, %p3, %copy-done), kind=kCustom, calls=%update
  %sums = f32[8]{0:T(128)} fusion(%cache, %rows), kind=kLoop, calls=%scores
  %zero = s32[]{:T(128)} constant(0)
  %pair = (f32[8]{0:T(128)}, s32[]{:T(128)}) tuple(%sums, %zero)
  %loop = (f32[8]{0:T(128)}, s32[]{:T(128)}) while(%pair), condition=%more, body=%body
  ROOT %out = f32[8]{0:T(128)} get-tuple-element(%loop), index=0
}
"""


def test_collectives_are_counted_once_with_what_they_bring():
    reduced = 8 * 5 * 3584 * 4 + 8 * 16 * 2 + 6 * 4
    found = {"all-gather": (1, 8 * 64 * 2), "all-reduce": (3, reduced), "collective-permute": (1, 8)}
    assert collectives(parse(HLO)) == found
    assert collectives(parse(PROGRAM)) == {}


def test_traffic_counts_what_is_touched_in_hbm():
    copied, looked_up, updated = 2 * 8 * 2, 4 * 64 * 2, 2 * 8 * 2
    scored, body = 8 * 256 * 2 + 8 * 4, 2 * 8 * 4
    kernel = 8 * 256 * 2  # what it reads; what it updates in place is next to nothing
    assert traffic(parse(PROGRAM)) == copied + looked_up + updated + scored + body + kernel
    assert traffic(parse(PROGRAM), within="choice") == body
    assert traffic(parse(PROGRAM), within="choic") == 0


def test_the_least_time_is_that_of_the_narrowest_place():
    chip = CHIPS["v5e"]
    cost = Cost(10, 1, 0, 0, 819 * 10**9, 0, 0.0, 1.0, {}, {})
    assert cost.seconds(chip) == pytest.approx(1.0)
    assert cost._replace(flops=394e12).seconds(chip) == pytest.approx(2.0)
    assert cost._replace(collectives={"all-reduce": (2, 200 * 10**9)}).seconds(chip) == pytest.approx(2.0)


def test_the_best_k_weighs_acceptance_against_cost():
    assert best_k(0.0, 0.1, [1.0, 1.0, 1.0]) == (0, 1.0)
    k, speed = best_k(1.0, 0.25, [1.0, 1.0, 1.0])
    assert (k, speed) == (2, pytest.approx(3 / 1.5))
    assert best_k(0.5, 2.0, [1.0, 1.0]) == (0, 1.0)


def planned(*, verifier="gemma2_9b", drafter="gemma2_2b", **knobs):
    """Plans, with what belongs to a model under its own name."""
    fields = [field.name for field in dataclasses.fields(ModelSpec) if field.name != "uri"]
    large = {name: knobs.pop(name) for name in fields if name in knobs}
    small = {name: knobs.pop(f"drafter_{name}") for name in fields if f"drafter_{name}" in knobs}
    models = {"verifier": ModelSpec(uri=verifier, **large), "drafter": ModelSpec(uri=drafter, **small)}
    return plan(**{"topology": "v5e:2x4", **models, **knobs})


@pytest.mark.parametrize("topology", ["v5e", "v9:2x4", "v5e:2", "v5e:two", ""])
def test_what_is_no_slice_is_told(topology):
    with pytest.raises(UserError, match="a topology is a generation"):
        slice_devices(topology)


@pytest.mark.parametrize(
    ("knobs", "sentence"),
    [
        ({"verifier": "gemma2_9"}, "gemma2_9b"),
        ({"strategy": "pipeline"}, "STRATEGY must be one of"),
        ({"batch_size": 0}, "BATCH_SIZE must be a whole number from 1"),
        ({"acceptance": 1.5}, "ACCEPTANCE must be a number from 0 to 1"),
        ({"context": 1 << 20}, "CONTEXT must be at most 8192"),
        ({"context": [2048, 1 << 20]}, "CONTEXT must be at most 8192"),
        ({"verifier": "t5_large"}, "t5_large is an encoder–decoder"),
        ({"weights": [None, "int4"]}, "WEIGHTS must be 'int8' or 'w8a8' or None, not 'int4'"),
        ({"batch_size": []}, "BATCH_SIZE must be a whole number from 1"),
        ({"mesh": 2}, r"MESH must be \(data, model\), two whole numbers from 1"),
        ({"mesh": (0, None)}, r"MESH must be \(data, model\), two whole numbers from 1"),
        ({"kernels": 1}, "KERNELS must be True or False"),
        ({"verifier": None}, "VERIFIER must be a preset, a path or a URI"),
        ({"drafter": "ngram://3"}, "what a look-up costs cannot be planned yet: .* DRAFTER in place of ngram://3"),
        ({"drafter": "ngram://6+gemma2_2b"}, "what a look-up costs cannot be planned yet"),
        ({"drafter": "shipped://smollm2-135m-eagle"}, "a drafter costs that reads hidden states cannot be planned yet"),
        ({"verifier": "hf://google/gemma-2-9b-it"}, "set VERIFIER_PRESET, as in --gin.VERIFIER_PRESET="),
        ({"drafter": "hf://google/gemma-2-2b-it", "drafter_preset": "t5_small"}, "t5_small is an encoder–decoder"),
        ({"verifier": "no/such/model.gguf"}, "there is no file or directory no/such/model.gguf"),
        ({"output": "/nowhere/plan.jsonl"}, "there is no folder /nowhere"),
    ],
)
def test_a_bad_knob_is_refused_before_anything_is_compiled(monkeypatch, knobs, sentence):
    monkeypatch.setattr(report, "layout_on", lambda *args: pytest.fail("compiled"))
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # what a user meets
    with pytest.raises(UserError, match=sentence):
        planned(**knobs)


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


def test_slices_by_name():
    assert slices("v5e:2x4, v6e:2x4") == ["v5e:2x4", "v6e:2x4"]
    assert len(slices("all")) == sum(len(shapes) for shapes in SLICES.values())
    assert set(SLICES) == set(CHIPS)


@pytest.mark.skipif(not LIBTPU, reason="needs libtpu: pip install -e '.[tpu]'")
def test_a_batch_that_the_chips_cannot_be_split_for_is_told():
    with pytest.raises(UserError, match="the 8 chips of v5e:2x4 cannot be split 3 ways"):
        chips.layout_on("v5e:2x4", 3, "tensor")


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
