"""What a pair takes on a TPU slice: arithmetic on any machine, the TPU compiler where libtpu is installed."""

import importlib.util
import os
import subprocess
import sys

import pytest
import tiny

from cascades import planning
from cascades.errors import UserError
from cascades.planning import CHIPS, Cost, best_k, collectives, plan, slice_devices

HLO = """
  %all-reduce.1 = f32[8,5,3584]{2,1,0:T(8,128)} all-reduce(%fusion.1), replica_groups={}
  %ar-start = (bf16[8,16]{1,0}, bf16[8,16]{1,0}) all-reduce-start(%x), replica_groups={}
  %ar-done = bf16[8,16]{1,0} all-reduce-done(%ar-start)
  %all-gather.2 = bf16[8,64]{1,0} all-gather(%y), dimensions={1}
"""


def test_collectives_are_counted_once_with_what_they_bring():
    assert collectives(HLO) == {"all-gather": (1, 8 * 64 * 2), "all-reduce": (2, 8 * 5 * 3584 * 4 + 8 * 16 * 2)}
    assert collectives("ROOT %x = f32[2] add(%a, %b)") == {}


def test_the_least_time_is_that_of_the_narrowest_place():
    chip = CHIPS["v5e"]
    cost = Cost(819 * 10**9, 0, 0, 0, 0.0, 1.0, {})
    assert cost.seconds(chip) == pytest.approx(1.0)
    assert cost._replace(flops=394e12).seconds(chip) == pytest.approx(2.0)
    assert cost._replace(collectives={"all-reduce": (2, 200 * 10**9)}).seconds(chip) == pytest.approx(2.0)


def test_the_best_k_weighs_acceptance_against_cost():
    assert best_k(0.0, 0.1, [1.0, 1.0, 1.0]) == (0, 1.0)
    k, speed = best_k(1.0, 0.25, [1.0, 1.0, 1.0])
    assert (k, speed) == (2, pytest.approx(3 / 1.5))
    assert best_k(0.5, 2.0, [1.0, 1.0]) == (0, 1.0)


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
    ],
)
def test_a_bad_knob_is_refused_before_anything_is_compiled(monkeypatch, knobs, sentence):
    monkeypatch.setattr(planning, "layout_on", lambda *args: pytest.fail("compiled"))
    with pytest.raises(UserError, match=sentence):
        plan(**{"verifier": "gemma2_9b", "drafter": "gemma2_2b", "topology": "v5e:2x4", **knobs})


def launch(*arguments):
    command = [sys.executable, str(tiny.ROOT / "launch" / "plan.py"), "--config=configs/plan.gin", *arguments]
    environment = {name: value for name, value in os.environ.items() if name != "JAX_PLATFORMS"}
    return subprocess.run(command, env=environment, cwd=tiny.ROOT, capture_output=True, text=True, timeout=900)


def test_without_libtpu_it_says_how_to_get_it():
    if importlib.util.find_spec("libtpu"):
        done = launch("--topology=v5e:3x5")
        assert "does not know v5e:3x5" in done.stderr
    else:
        done = launch()
        assert "pip install -e '.[tpu]'" in done.stderr
    assert done.returncode == 2 and done.stderr.startswith("error: ") and "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu: pip install -e '.[tpu]'")
def test_the_tpu_compiler_plans_a_slice():
    done = launch("--gin.VERIFIER='gemma3_270m'", "--gin.DRAFTER='gemma3_270m'", "--gin.K_MAX=1", "--gin.CONTEXT=512")
    assert done.returncode == 0, done.stderr
    assert "verify 2" in done.stdout and "fits" in done.stdout and "not a measurement" in done.stdout
