"""Sweeps: once for real on a tiny pair, and what is run, kept and left out with a stand-in for the models."""

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import pytest
import tiny

from cascades import config, rules
from cascades.errors import UserError
from cascades.generation import Result, Settings, Shapes
from cascades.lookahead import fixed, verifier_guided
from cascades.runs import sweep as module
from cascades.runs import timing
from cascades.runs.points import points
from cascades.runs.sweep import sweep

PROMPTS = ({"prompt": "the quick", "answer": "x"}, {"prompt": "a small model"}, {"prompt": "12 + 3"})
RULES = (rules.lossless, (rules.token_v3, (0.0, 0.5)))


@pytest.fixture
def run(launched, tmp_path):
    (tmp_path / "prompts.jsonl").write_text("\n".join(json.dumps(line) for line in PROMPTS))
    common = {"rules": RULES, "input": str(tmp_path / "prompts.jsonl"), "repeats": 2, "max_new_tokens": 8}
    return lambda **knobs: launched(sweep, **common | knobs)


@pytest.fixture
def calls(monkeypatch):
    """Puts a stand-in for decoding under the sweep; lists (prompts, alpha) of what was timed."""
    seen = []

    def complete(engine, requests, *, shapes, together):
        del shapes
        alpha = None if engine.settings.method == "verifier_only" else requests[0].alpha
        if requests[0].max_new_tokens > 4:  # less is a warm-up
            seen.append((tuple(request.prompt for request in requests), alpha))
        stats = {"tokens_out": 8, "verifier_calls": 4, "accepted": 3, "drafted": 6, "rejected": 1, "decided": 4}
        stats |= {"deferred": 1.0, "log_p": -4.0, "wall_s": 1.0 - (alpha or 0.0)}
        return [Result(request.prompt, f"of {request.prompt}", [5], ["draft"], "length", stats) for request in requests]

    monkeypatch.setattr(timing, "complete", complete)
    monkeypatch.setattr(timing, "prepare", lambda engine, requests: Shapes(1, 64))
    return seen


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "out" / "results.jsonl").read_text().splitlines()]


def test_a_real_sweep_compiles_once_per_rule_and_reports(run, tmp_path, monkeypatch, capsys):
    compiled = []
    original = jax.stages.Lowered.compile

    def count(self, *args, **kwargs):
        compiled.append(self)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(jax.stages.Lowered, "compile", count)
    rows = run(rules=((rules.token_v3, (0.0, 0.3, 0.6, 1.0)),), repeats=1, score=lambda record, text: 0.5)
    assert len(compiled) == 8  # prefill, an empty state, insertion and loop, of the verifier alone and of the rule
    assert [(row.rule, row.alpha) for row in rows] == [("verifier_only", None)] + [
        ("token_v3", alpha) for alpha in (0.0, 0.3, 0.6, 1.0)
    ]
    alone, first, *_, last = rows
    assert alone.relative_time == alone.speed == alone.block_efficiency == 1.0
    assert alone.acceptance is None and alone.prompts == 3 and alone.score == 0.5
    assert last.acceptance == 1.0 and last.deferral == 0.0 and last.block_efficiency > first.block_efficiency
    assert last.log_p < first.log_p == pytest.approx(alone.log_p, abs=1e-3)

    texts = {(line["rule"], line["alpha"], line["prompt_id"]): line["text"] for line in lines(tmp_path)}
    for line in lines(tmp_path):
        assert line["stats"]["compile_s"] == 0.0 and sum(line["origins"].values()) == line["stats"]["tokens_out"]
        if line["alpha"] == 0.0:  # greedy token_v3 at 0 is lossless
            assert line["text"] == texts["verifier_only", None, line["prompt_id"]]
    out = tmp_path / "out"
    assert (out / "sweep.png").read_bytes().startswith(b"\x89PNG")
    assert "data:image/png;base64," in (out / "sweep.html").read_text()
    assert len((out / "sweep.csv").read_text().splitlines()) == 6
    printed = capsys.readouterr()
    assert "token_v3" in printed.out and "15 of 15 done" in printed.err


def test_fixed_lengths_share_a_program(run, monkeypatch, tmp_path):
    compiled = []
    original = jax.stages.Lowered.compile

    def count(self, *args, **kwargs):
        compiled.append(self)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(jax.stages.Lowered, "compile", count)
    rows = run(rules=[rules.lossless], repeats=1, lookahead=(fixed(0), fixed(1), fixed(2)), ignore_eos=True)
    assert len(compiled) == 8  # prefill, an empty state, insertion and loop, of the verifier alone and of the rule
    alone, *mine = rows
    assert [row.lookahead for row in mine] == ["fixed(0)", "fixed(1)", "fixed(2)"]
    assert mine[0].block_efficiency == alone.block_efficiency == 1.0 and mine[0].acceptance is None
    assert 1.0 < mine[1].block_efficiency <= 2.0 < 3.0 and mine[2].block_efficiency > mine[1].block_efficiency
    assert len({line["text"] for line in lines(tmp_path) if line["input"]["prompt"] == "the quick"}) == 1


def test_an_infinite_threshold_is_json_and_is_not_run_again(run, calls, tmp_path, monkeypatch):
    stub = timing.complete

    def complete(engine, requests, *, shapes, together):
        results = stub(engine, requests, shapes=shapes, together=together)
        return [result._replace(stats=result.stats | {"wall_s": 1.0, "log_p": -math.inf}) for result in results]

    monkeypatch.setattr(timing, "complete", complete)
    rows = run(rules=[(rules.opt, (-math.inf, 0.5, math.inf))])
    assert [row.alpha for row in rows] == [None, -math.inf, 0.5, math.inf]
    text = (tmp_path / "out" / "results.jsonl").read_text()
    found = [json.loads(line, parse_constant=lambda name: pytest.fail(name)) for line in text.splitlines()]
    assert {line["alpha"] for line in found} == {None, "-inf", 0.5, "inf"}
    assert all(line["stats"]["log_p"] is None for line in found)
    calls.clear()
    assert run(rules=[(rules.opt, (-math.inf, 0.5, math.inf))]) == rows and calls == []


def test_an_answer_that_failed_ends_a_sweep(run, calls, tmp_path, monkeypatch):
    stub = timing.complete

    def complete(engine, requests, *, shapes, together):
        results = stub(engine, requests, shapes=shapes, together=together)
        bad = requests[0].prompt == "a small model" and requests[0].max_new_tokens > 4
        return [result._replace(finish_reason="error", error="NaN") if bad else result for result in results]

    monkeypatch.setattr(timing, "complete", complete)
    with pytest.raises(UserError, match="prompt 2 of 3 has no answer with verifier_only: NaN"):
        run()
    assert calls and {line["input"]["prompt"] for line in lines(tmp_path)} == {"the quick"}


def test_a_bad_line_ends_a_sweep_before_it_begins(run, calls, tmp_path):
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "the"}\n{"prompt": "a", "n": NaN}\n')
    with pytest.raises(UserError, match="line 2 of .*prompts.jsonl holds NaN, which is no JSON"):
        run()
    assert not calls and not (tmp_path / "out").exists()


def test_points_are_timed_side_by_side_and_never_twice(run, calls, tmp_path):
    rows = run()
    batch = [(("the quick",), alpha) for alpha in (None, 0.0, 0.0, 0.5)]
    assert calls[:4] == batch and calls[12:16] == batch and len(calls) == 24
    assert [row.relative_time for row in rows] == [1.0, 1.0, 1.0, 0.5]

    calls.clear()
    assert run() == rows and calls == []
    assert len(run(rules=(*RULES, (rules.token_v3, (0.5, 0.25))))) == 5
    assert len(calls) == 6 and {alpha for _, alpha in calls} == {0.25}
    assert len(lines(tmp_path)) == 30


def test_after_an_interruption_the_rest_is_run(run, calls, tmp_path, monkeypatch):
    stand_in = timing.complete

    def interrupted(engine, requests, *, shapes, together):
        if len(calls) == 6:
            raise KeyboardInterrupt
        return stand_in(engine, requests, shapes=shapes, together=together)

    monkeypatch.setattr(timing, "complete", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run()
    assert len(lines(tmp_path)) == 6 and (tmp_path / "out" / "sweep.html").is_file()
    with (tmp_path / "out" / "results.jsonl").open("a") as file:
        file.write('{"run": "torn')

    monkeypatch.setattr(timing, "complete", stand_in)
    rows = run()
    assert len(calls) == 24 and [row.prompts for row in rows] == [3, 3, 3, 3]


def test_a_controller_is_added_to_those_that_were_run(run, calls):
    run(repeats=1)
    calls.clear()
    rows = run(repeats=1, lookahead=(fixed(1), fixed(2), verifier_guided))
    assert len(calls) == 3 * 3 * 2  # prompts, points and new controllers
    assert [row.lookahead for row in rows if row.rule == "lossless"] == ["fixed(2)", "fixed(1)", "verifier_guided"]


@pytest.mark.parametrize(
    "other",
    [{"seed": 1}, {"batch_size": 2}, {"max_new_tokens": 9}, {"drafter": "another"}],
    ids=lambda other: next(iter(other)),
)
def test_other_settings_do_not_mix(run, calls, tmp_path, capsys, other):
    run(repeats=1)
    calls.clear()
    capsys.readouterr()
    rows = run(repeats=1, **other)
    assert sum(len(prompts) for prompts, _ in calls) == 12 and rows[0].prompts == 3
    assert "12 lines" in capsys.readouterr().err
    assert len({line["run"] for line in lines(tmp_path)}) == len(list((tmp_path / "out").glob("*.settings.json"))) == 2


def test_a_batch_takes_as_long_as_its_last_row_and_is_one_unit(run, calls, tmp_path):
    rows = run(batch_size=2, repeats=1)
    assert [len(prompts) for prompts, alpha in calls if alpha == 0.5] == [2, 1]
    assert rows[0].tokens_per_s == 3 * 8 / 2  # two batches of a second
    kept = lines(tmp_path)[1:]  # half a batch is missing
    (tmp_path / "out" / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in kept))
    calls.clear()
    run(batch_size=2, repeats=1)
    assert calls == [(("the quick", "a small model"), None)]


def test_only_prompts_of_the_file_count_and_each_once(run, calls, tmp_path):
    run()
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join(json.dumps(line) for line in (*PROMPTS[1:], PROMPTS[1])))
    assert {row.prompts for row in run()} == {2}


def test_a_score_sees_the_record_and_the_answer(run, calls):
    rows = run(score=lambda record, text: float(text == "of " + record["prompt"] and record.get("answer") == "x"))
    assert [row.score for row in rows] == [pytest.approx(1 / 3)] * 4


def test_a_row_is_limited_by_the_smaller_context(run, calls, tmp_path, monkeypatch):
    limits = []
    stand_in = timing.complete

    def spy(engine, requests, *, shapes, together):
        limits.extend(len(request.ids) + request.max_new_tokens for request in requests)
        return stand_in(engine, requests, shapes=shapes, together=together)

    monkeypatch.setattr(timing, "complete", spy)
    run(max_new_tokens=1000, context=40)
    assert max(limits) == 40


@pytest.mark.parametrize(
    ("knobs", "sentence"),
    [
        ({"rules": rules.token_v3}, "RULES must be a list"),
        ({"rules": ()}, "RULES must be a list"),
        ({"rules": ("token_v3",)}, "each of RULES is a rule and its thresholds"),
        ({"rules": ((rules.token_v3, 0.1),)}, "each of RULES is a rule and its thresholds"),
        ({"rules": (rules.chow,)}, "chow of RULES needs thresholds"),
        ({"rules": ((rules.token_v3, (0.1, 1.5)),)}, "ALPHA for token_v3 must be a number from 0 to 1, not 1.5"),
        ({"method": "token_cascade"}, "a token cascade needs a rule that looks at the drafter only"),
        ({"method": "sequence_cascade"}, "METHOD of a sweep must be one of"),
        ({"lookahead": ()}, "LOOKAHEAD must be a draft-length controller, or a list"),
        ({"lookahead": (fixed(1), rules.chow)}, "LOOKAHEAD must be a draft-length controller such as"),
        ({"repeats": 0}, "REPEATS must be a whole number from 1"),
        ({"score": "exact"}, "SCORE must be a function"),
        ({"input": ""}, "INPUT must be a JSONL file"),
        ({"input": "nowhere.jsonl"}, "nowhere.jsonl"),
        ({"output_dir": ""}, "OUTPUT_DIR must be a folder"),
        ({"drafter": None}, "needs a drafter"),
        ({"mesh": (3, 1), "batch_size": 4}, "BATCH_SIZE must be a multiple of the 3 ways that MESH splits a batch"),
        ({"mesh": (1, 64)}, "a mesh of 1 x 64 needs 64 devices"),
        ({"drafter_strategy": "pipe"}, "DRAFTER_STRATEGY must be one of"),
    ],
)
def test_a_bad_knob_is_refused_before_a_model_is_loaded(run, monkeypatch, knobs, sentence):
    monkeypatch.setattr(module, "load_pair", lambda *args, **kwargs: pytest.fail("loaded"))
    with pytest.raises(UserError) as caught:
        run(**knobs)
    assert sentence in str(caught.value) and "\n" not in str(caught.value)


def test_a_folder_that_is_a_file_is_refused(run, tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(UserError, match="OUTPUT_DIR must be a folder to write to"):
        run()


def test_the_shipped_config_runs(tiny_files, run, calls, tmp_path, monkeypatch):
    def launch(*overrides):
        knobs = (f"VERIFIER={tiny_files.verifier!r}", f"DRAFTER={tiny_files.drafter!r}", "REPEATS=1", *overrides)
        configured = config.configure(sweep, str(tiny.ROOT / "configs" / "sweep.gin"), knobs)
        return configured(output_dir=str(tmp_path / "out"))

    monkeypatch.chdir(tmp_path)  # the prompts are found all the same
    rows = launch()
    assert {row.rule for row in rows} == {"verifier_only", "lossless", "token_v3", "token_v2"}
    assert {row.prompts for row in rows} == {20}
    rows = launch("RULES=[(@lossy, (0.25,)), @lossless]", "lossy.beta=0.5")
    assert [(row.rule, row.alpha) for row in rows if row.alpha == 0.25] == [("lossy", 0.25)]
    with pytest.raises(UserError, match="ALPHA for chow must be a number from 0 to 1"):
        launch("RULES=[(@chow, (2.0,))]")


def test_equal_points_are_one():
    found = points([(rules.chow, (0, 0.0, 0.5)), rules.lossless, (rules.chow, [0.5])], [fixed(2)], Settings())
    assert [(point.rule, point.alpha) for point in found] == [
        ("verifier_only", None),
        ("chow", 0.0),
        ("chow", 0.5),
        ("lossless", None),
    ]


def test_the_launcher_explains_itself(tiny_files, tmp_path):
    shutil.copytree(tiny.ROOT / "launch", tmp_path / "launch")
    done = subprocess.run(
        [sys.executable, str(tmp_path / "launch" / "sweep.py"), "--help"],
        env=tiny.environment(tiny_files),
        capture_output=True,
        text=True,
        timeout=tiny.PATIENCE,
    )
    assert done.returncode == 0 and "--output_dir" in done.stdout and "deferral rules" in done.stdout
