"""A whole bench on a tiny pair, and what is refused before a model is loaded."""

import importlib.util
import json

import pytest
import tiny

from cascades import config, rules
from cascades.errors import UserError
from cascades.runs import bench as module
from cascades.runs import machine
from cascades.runs.bench import bench
from cascades.runs.bench_lines import ALONE

KNOBS = ("REPEATS=2", "TEXTS=2", "K_MAX=2", "COSTS=(0.2, (1.0, 1.0, 1.0))", "MAX_NEW_TOKENS=6", "RULES=[@opt]")
KNOBS = (*KNOBS, "RULE=@lossless", "RAW_PROMPT=True")


@pytest.fixture
def run(tiny_files, monkeypatch, tmp_path):
    """Returns a function that runs a pair's file over the shipped configuration, with little memory to read."""
    monkeypatch.setattr(module, "compilation_cache", lambda: None)
    monkeypatch.setattr(machine, "beyond_caches", lambda: 1 << 20)

    def benched(drafter=tiny_files.drafter, **flags):
        path = tmp_path / "pair.gin"
        path.write_text(f"VERIFIER = {tiny_files.verifier!r}\nDRAFTER = {drafter!r}\nDEFAULT_PROMPT = 'unused'\n")
        return config.configure(bench, str(path), KNOBS, str(tiny.ROOT / "configs" / "bench.gin"))(**flags)

    return benched


def test_everything_is_timed_in_one_process(run, tmp_path, capsys):
    lines = run(output=str(tmp_path / "bench.jsonl"), page=str(tmp_path / "bench.html"))
    assert tiny.lines(tmp_path / "bench.jsonl") == json.loads(json.dumps(lines))
    by = {(line["kind"], line["name"]): line for line in lines}
    assert {kind for kind, _ in by} == {"memory", "pass", "products", "choice", "round", "generation"}
    for line in lines:
        assert line["cores"] >= 1 and line["jax"] and line["processor"] and line["dtype"] == "float32"
        if line["kind"] != "generation":
            assert 0 < line["low"] <= line["seconds"] <= line["high"]
        if line["kind"] in ("memory", "pass"):
            assert line["bytes"] > 0 and line["gb_per_s"] == pytest.approx(line["bytes"] / line["low"] / 1e9)
    assert by["memory", "memory, read"]["of_memory"] == pytest.approx(1)

    one, wide, small = (by["pass", name] for name in ("verifier, 1 token", "verifier, 3 tokens", "drafter, 1 token"))
    assert one["bytes"] < wide["bytes"] < 1.2 * one["bytes"]  # two more rows of the token table and of the cache
    assert small["bytes"] < one["bytes"]
    drawn, judged = by["choice", "a draft is drawn"], by["choice", "lossless judges 2"]
    assert by["round", "k = 2"]["parts"] == pytest.approx(
        wide["seconds"] + judged["seconds"] + 2 * (small["seconds"] + drawn["seconds"])
    )
    assert by["round", "k = 0"]["parts"] > one["seconds"] and ("choice", "opt judges 2") in by

    alone, ours = by["generation", ALONE], by["generation", "lossless"]
    assert alone["speed"] == 1 and alone["tokens_per_call"] == 1 and len(alone["texts"]) == alone["prompts"] == 2
    assert ours["same_text"] == 2 and ours["texts"] == alone["texts"] and ours["agrees_to"] == [6, 6]

    out, page = capsys.readouterr().out, (tmp_path / "bench.html").read_text()
    for text in ("verifier, 3 tokens", "k = 2", "opt judges 2", ALONE):
        assert text in out and text in page


@pytest.mark.slow
def test_a_look_up_has_no_passes_of_its_own(run):
    lines = run("ngram://2")
    assert {line["model"] for line in lines if line["kind"] == "pass"} == {"verifier"}
    assert not [line for line in lines if line["name"] == "a draft is drawn"]
    ours = [line for line in lines if line["kind"] == "generation"]
    assert [line["same_text"] for line in ours] == [2, 2]


@pytest.mark.parametrize(
    ("knobs", "sentence"),
    [
        ({"repeats": 0}, "REPEATS must be a whole number from 1"),
        ({"texts": 0}, "TEXTS must be a whole number from 1"),
        ({"drafter": None}, "needs a drafter"),
        ({"method": "verifier_only"}, "METHOD of a bench must be 'speculative'"),
        ({"rules": rules.opt}, "RULES must be a list of rules"),
        ({"rules": [len]}, "RULE must be a function"),
        ({"input": "nowhere.jsonl"}, "nowhere.jsonl"),
        ({"transformers": True}, r"TRANSFORMERS needs what is not installed \(torch, transformers, accelerate\): pip"),
        ({"page": "no/folder/bench.html"}, "there is no folder no/folder"),
    ],
)
def test_a_bad_knob_is_refused_before_a_model_is_loaded(monkeypatch, knobs, sentence):
    monkeypatch.setattr(module, "load_pair", lambda *args, **kwargs: pytest.fail("loaded"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    given = {"verifier": "large", "drafter": "small", "input": "configs/data/prompts.jsonl", **knobs}
    with pytest.raises(UserError, match=sentence):
        bench(**tiny.specs(**given))
