"""What a round is made of, timed on a tiny pair."""

import ast
import math
import subprocess
import sys

import pytest
import tiny

from cascades import config, rules
from cascades.errors import UserError
from cascades.generation import Settings, load_pair
from cascades.runs import costs as module
from cascades.runs.costs import break_even, costs


def test_where_drafting_begins_to_pay():
    assert break_even(0, 1.0) is None
    assert break_even(1, 1.6) == pytest.approx(0.6)  # 1 + a = 1.6
    assert break_even(2, 1.75) == pytest.approx(0.5)
    assert break_even(3, 4.0) == pytest.approx(1.0)
    assert break_even(3, 4.1) is None  # even if every draft were kept


def test_the_shipped_config_times_every_length(tiny_files, monkeypatch, capsys):
    monkeypatch.setattr(module, "compilation_cache", lambda: None)
    knobs = (f"VERIFIER={tiny_files.verifier!r}", f"DRAFTER={tiny_files.drafter!r}", "REPEATS=2", "K_MAX=4")
    outcome = config.configure(costs, str(tiny.ROOT / "configs" / "costs.gin"), knobs)()
    assert [row.k for row in outcome.rows] == [0, 1, 2, 3, 4] and outcome.draft > 0
    for row in outcome.rows:
        assert 0 < row.verify <= row.parts and row.round > 0 and row.overhead > -1
        # A median of two is their mean, so that it may be taken before the sum or after it.
        assert row.parts == pytest.approx(row.verify + row.k * outcome.draft)
    assert outcome.rows[3].verify == outcome.rows[4].verify  # one pass, of the width 5, was timed for both

    out = capsys.readouterr().out
    assert "a drafter step takes" in out and "pays from acceptance" in out
    draft, verify = ast.literal_eval(out.split('--gin.COSTS="')[1].split('"')[0])
    assert len(verify) == 5 and verify[0] == 1.0 and math.isfinite(draft)


def test_an_ngram_drafter_is_timed_too(tiny_files):
    pair = load_pair(tiny.specs(verifier=tiny_files.verifier, drafter="ngram://2")["pair"])
    engine = module.build(pair, Settings(rule=rules.lossless, k_max=1, batch_size=2, max_new_tokens=4))
    assert [row.k for row in module.measure(engine, "the quick", 1).rows] == [0, 1]


@pytest.mark.slow
def test_a_pair_on_a_mesh_is_timed_without_compiling(tiny_files, tmp_path):
    """A pair's file gives the mesh; a pass alone is no dearer than the round that it is part of, give or take."""
    text = f"VERIFIER = {tiny_files.verifier!r}\nDRAFTER = {tiny_files.drafter!r}\nMESH = (1, None)\nBATCH_SIZE = 1\n"
    (tmp_path / "pair.gin").write_text(text)
    command = [sys.executable, str(tiny.ROOT / "launch" / "costs.py"), f"--config={tmp_path}/pair.gin"]
    flags = "--xla_force_host_platform_device_count=2"
    done = subprocess.run(
        [*command, *tiny.knobs(K_MAX=1, REPEATS=1, CONTEXT=128, PROMPT="the quick")],
        env=tiny.environment(tiny_files) | {"XLA_FLAGS": flags, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    draft, _ = ast.literal_eval(done.stdout.split('--gin.COSTS="')[1].split('"')[0])
    assert 0 < draft < 30  # to compile one takes hundreds of rounds


@pytest.mark.parametrize(
    ("knobs", "sentence"),
    [
        ({"repeats": 0}, "REPEATS must be a whole number from 1"),
        ({"drafter": None}, "needs a drafter"),
        ({"verifier": ""}, "VERIFIER must be a path or URI"),
        ({"k_max": 0}, "K_MAX must be a whole number from 1"),
        ({"prompt": " "}, "PROMPT must be some text"),
        ({"mesh": (1, 64)}, "a mesh of 1 x 64 needs 64 devices"),
        ({"weights": "int4"}, "WEIGHTS must be 'int8' or 'w8a8' or None, not 'int4'"),
        ({"dtype": "float16"}, "DTYPE must be one of"),
    ],
)
def test_a_bad_knob_is_refused_before_a_model_is_loaded(monkeypatch, knobs, sentence):
    monkeypatch.setattr(module, "load_pair", lambda *args, **kwargs: pytest.fail("loaded"))
    with pytest.raises(UserError, match=sentence):
        costs(**tiny.specs(**{"verifier": "large", "drafter": "small", "prompt": "hi", **knobs}))
