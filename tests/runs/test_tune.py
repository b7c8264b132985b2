"""Tuning: the search and the certification on simulated answers, and a whole run on a tiny pair."""

import json
import math

import numpy as np
import pytest

from cascades import config, rules
from cascades.errors import UserError
from cascades.evaluation import tuning
from cascades.evaluation.latency import PassCosts
from cascades.evaluation.tasks.contract import Example, Metric, Task
from cascades.evaluation.tuning import Goal
from cascades.runs import decode as decoding
from cascades.runs import tune as module
from cascades.runs.tune import tune

RIGHT = Metric("right", "A mean.", lambda record, text: (float(bool(text)), 1.0), lambda sums: sums[0] / sums[1])
COSTS = PassCosts(0.1, (1.0, 1.0, 1.0))


def answers(right, calls=5):
    """Lines of answers of ten tokens each."""
    stats = {"tokens_out": 10, "verifier_calls": calls, "drafted_by_position": [calls if calls < 10 else 0, 0]}
    stats |= {"drafter_steps": calls if calls < 10 else 0, "log_p": -3.0}
    return [
        {"scores": {"right": [float(each), 1.0]}, "stats": stats, "input": {}, "prompt_id": str(at)}
        for at, each in enumerate(right)
    ]


def told(goal, own, base, confidence=0.95, calls=5):
    return tuning.evidence(goal, RIGHT, answers(own, calls), answers(base, 10), COSTS, confidence)


def test_evidence_is_the_metric_the_time_and_a_lower_bound():
    base = np.tile([1, 1, 1, 0], 100)
    own = base.copy()
    own[:8] = 0  # six of three hundred right answers
    found = told(Goal(share=0.9), own, base)
    assert found.examples == 400 and found.base == 0.75 and found.score == pytest.approx(0.735)
    assert found.slack == pytest.approx(0.735 - 0.9 * 0.75) and 0 < found.bound < found.slack and found.holds
    assert found.time == pytest.approx((5 * 1.0 + 5 * 0.1) / 10)
    strict = told(Goal(share=0.98), own, base)
    assert strict.slack == pytest.approx(0.735 - 0.735) and not strict.holds
    assert told(Goal(score=0.7), own, base).slack == pytest.approx(0.035)
    assert told(Goal(time=0.6), own, base).holds and not told(Goal(time=0.5), own, base).holds
    assert told(Goal(share=0.9), own, base, 0.99).bound < found.bound


def test_answers_that_are_all_alike_prove_no_more_than_their_number_does():
    """Of 20 that are right without exception one in eight may be wrong; a bootstrap alone would know nothing of it."""
    few = told(Goal(share=0.98), np.ones(20), np.ones(20))
    assert few.slack == pytest.approx(0.02) and few.bound == pytest.approx(20 / 23 - 0.98, abs=2e-3) and not few.holds
    assert 20 < few.needed < 2000
    assert told(Goal(share=0.98), np.ones(400), np.ones(400)).holds
    assert told(Goal(share=1.5), np.ones(400), np.ones(400)).needed == math.inf


def test_a_metric_that_is_not_defined_holds_nothing():
    undefined = RIGHT._replace(value=lambda sums: math.nan)
    found = tuning.evidence(Goal(share=0.9), undefined, answers([1, 1]), answers([1, 1], 10), COSTS, 0.95)
    assert not found.holds and found.needed == math.inf


@pytest.mark.parametrize("quality", [0.85, 0.9, 0.94])
def test_what_misses_the_floor_is_hardly_ever_certified(quality):
    """A setting that keeps less than 95% of the verifier's right answers: at 95% no more than about one in twenty."""
    random, certified, trials = np.random.default_rng(int(1000 * quality)), 0, 100
    for _ in range(trials):
        base = random.random(200) < 0.7
        own = base & (random.random(200) < quality)
        certified += told(Goal(share=0.95), own, base).holds
    assert certified <= 0.08 * trials


def test_what_holds_it_is_mostly_certified_and_the_search_keeps_the_fastest():
    random, certified = np.random.default_rng(5), 0
    for _ in range(50):
        base = random.random(300) < 0.7
        certified += told(Goal(share=0.9), base & (random.random(300) < 0.985), base).holds
    assert certified >= 40
    goal, base = Goal(share=0.9), np.tile([1, 1, 1, 0], 20)
    wrong = base.copy()
    wrong[::2] = 0
    candidates = {
        "slow": told(goal, base, base, calls=8),
        "fast": told(goal, base, base, calls=3),
        "faster": told(goal, wrong, base, calls=2),
        "middle": told(goal, base, base, calls=5),
    }
    assert tuning.better(goal, candidates, 300, 0.95) == ["fast", "middle"]
    assert tuning.better(goal, {"faster": candidates["faster"]}, 300, 0.95) == ["faster"]
    order = tuning.order(candidates, 300, 0.95)
    assert sorted(order) == ["fast", "middle", "slow"]
    assert tuning.best(goal, {name: candidates[name] for name in ("slow", "middle")}, candidates) == "middle"
    assert tuning.best(goal, {}, candidates) is None


def test_a_safe_candidate_outlives_faster_ones_that_would_fail():
    """Ten fast settings are just below the floor, which 80 examples cannot tell."""
    goal, base = Goal(share=0.95), np.tile([1, 1, 1, 0], 20)
    candidates = {}
    for at in range(10):
        own = base.copy()
        own[at * 4 : at * 4 + 10 : 3] = 0  # three or four of sixty right answers
        candidates[f"fast {at}"] = told(goal, own, base, calls=2)
    candidates |= {"safe": told(goal, base, base, calls=6), "slow": told(goal, base, base, calls=10)}
    chances = {name: tuning.chance(each, 300, 0.95) for name, each in candidates.items()}
    assert chances["safe"] == chances["slow"] > max(chances[f"fast {at}"] for at in range(10))
    left = tuning.better(goal, candidates, 300, 0.95)
    assert len(left) == 6 and "safe" in left and "slow" not in left
    assert tuning.order({name: candidates[name] for name in left}, 300, 0.95)[0] == "safe"


@pytest.mark.parametrize("keeps", [0.97, 0.985])
def test_the_chance_of_being_certified_is_about_what_it_is(keeps):
    """By simulation, on average over searches: of a setting that keeps so many of the right answers."""
    random, goal = np.random.default_rng(int(keeps * 1000)), Goal(share=0.95)
    said, came = [], []
    for _ in range(60):
        parts = []
        for many in (100, 300):
            base = random.random(many) < 0.7
            parts.append(told(goal, base & (random.random(many) < keeps), base))
        said.append(tuning.chance(parts[0], 300, 0.95))
        came.append(parts[1].holds)
    assert abs(np.mean(said) - np.mean(came)) < 0.2


def test_parts_do_not_overlap_and_stages_double():
    first, second = tuning.split(101, 0.4, 3)
    assert sorted(first + second) == list(range(101)) and len(first) == 40 and first != sorted(first)
    assert tuning.split(101, 0.4, 3) == (first, second) != tuning.split(101, 0.4, 4)
    assert tuning.stages(100) == [12, 25, 50, 100] and tuning.stages(16) == [8, 16] and tuning.stages(9) == [9]


WORDS = [f"{first} {second}" for first in ("the quick", "a small", "12 +", "one") for second in "abcdefghij"]


@pytest.fixture
def run(launched):
    examples = [Example(str(at), word, {"word": word}) for at, word in enumerate(WORDS)]

    def letters(record, text):
        return float(len(text)), 1.0

    own = Metric("letters", "Of an answer.", letters, lambda sums: sums[0] / sums[1])
    common = {"rules": [rules.lossless, (rules.token_v3, (0.3, 1.0))], "latency_costs": (0.0, (1.0, 1.0, 1.0))}
    common |= {"batch_size": 8, "tasks": [Task("words", "A test.", lambda: examples, (own,), (), 8, True)]}
    return lambda **knobs: launched(tune, **common | knobs)


def test_a_setting_is_found_certified_written_and_decodes(run, tmp_path, tiny_files, capsys):
    outcome = run(floor=0.5)
    assert outcome.chosen is not None and outcome.certified[outcome.chosen].holds
    holding = [point for point, each in outcome.certified.items() if each.holds]
    assert outcome.searched[outcome.chosen].time == min(outcome.searched[point].time for point in holding)
    assert {each.examples for each in outcome.certified.values()} == {24}
    first = (tmp_path / "out" / "results.jsonl").read_text()
    lines = [json.loads(line) for line in first.splitlines()]
    assert len({line["prompt_id"] for line in lines if line["rule"] == "verifier_only"}) == 40
    text = (tmp_path / "out" / "tuned.gin").read_text()
    assert "certified at a confidence of 0.95" in text and f"RULE = @{outcome.chosen.rule}" in text
    assert "What was tried" in (tmp_path / "out" / "tune.html").read_text()
    assert "chosen" in capsys.readouterr().out
    assert run(floor=0.5) == outcome and (tmp_path / "out" / "results.jsonl").read_text() == first
    pair = [f"VERIFIER={tiny_files.verifier!r}", f"DRAFTER={tiny_files.drafter!r}", "CONTEXT=64", "MAX_NEW_TOKENS=8"]
    configured = config.configure(decoding.decode, str(tmp_path / "out" / "tuned.gin"), pair, "configs/decode.gin")
    configured(prompt=["the quick"], output=str(tmp_path / "answers.jsonl"))
    assert len((tmp_path / "answers.jsonl").read_text().splitlines()) == 1


def test_a_floor_that_nothing_holds_is_answered_with_none(run, tmp_path):
    with pytest.raises(
        UserError, match="no setting is certified to hold at least 1.5 of the verifier's score at a confid"
    ):
        run(floor=1.5)
    assert not (tmp_path / "out" / "tuned.gin").exists() and (tmp_path / "out" / "tune.html").exists()
    with pytest.raises(UserError, match="24 prompts are too few to be sure, and about [0-9]+ would do"):
        run(floor=0.999)


def test_without_a_reference_the_verifiers_own_likelihood_is_the_score(run, tmp_path):
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps({"prompt": word}) + "\n" for word in WORDS))
    outcome = run(tasks=[], input=str(file), floor=0.8, max_new_tokens=8, latency_costs=None)
    alone = next(iter(outcome.certified.values()))
    assert 0 < alone.base < 1 and len(list((tmp_path / "out").glob("*.costs.json"))) == 1
    assert run(tasks=[], input=str(file), floor=0.8, max_new_tokens=8, latency_costs=None) == outcome


@pytest.mark.parametrize(
    ("knobs", "sentence"),
    [
        (
            {},
            "one of FLOOR (a share of the verifier's score), FLOOR_SCORE and MOST_TIME has to hold, and none is given",
        ),
        ({"floor": 0.9, "most_time": 0.5}, "FLOOR and MOST_TIME are given"),
        ({"floor": "high"}, "FLOOR must be a number from 0"),
        ({"floor": math.nan}, "FLOOR must be a number from 0"),
        ({"floor": 0.9, "confidence": 1.0}, "CONFIDENCE must be a number from 0.5"),
        ({"floor": 0.9, "rules": ()}, "RULES must be a list"),
        ({"floor": 0.9, "latency_costs": (0.1, (1.0, 1.0))}, "LATENCY needs v_0 to v_2, as K_MAX is 2"),
        ({"floor": 0.9, "latency_costs": 3}, "each of LATENCY is a name and"),
        ({"floor": 0.9, "score": "exact"}, "SCORE must be a function"),
        ({"floor": 0.9, "tasks": [], "input": "nowhere.jsonl"}, "nowhere.jsonl"),
    ],
)
def test_a_bad_knob_is_refused_before_a_model_is_loaded(run, monkeypatch, knobs, sentence):
    monkeypatch.setattr(module, "load_pair", lambda *args, **kwargs: pytest.fail("loaded"))
    with pytest.raises(UserError) as caught:
        run(**knobs)
    assert sentence in str(caught.value) and "\n" not in str(caught.value)


def test_too_few_prompts_are_told(run, tmp_path):
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps({"prompt": word}) + "\n" for word in WORDS[:31]))
    with pytest.raises(UserError, match="need 32 prompts at least, and there are 31"):
        run(tasks=[], input=str(file), floor=0.9)
