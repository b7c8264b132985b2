"""Count runs: for real on a tiny pair, over tasks, temperatures and baselines."""

import contextlib
import csv
import json
import math
import subprocess
import sys
import time

import pytest
import tiny

from cascades import rules
from cascades.errors import UserError
from cascades.evaluation.tasks import multi30k
from cascades.evaluation.tasks.contract import Example, Metric, Task
from cascades.lookahead import fixed, verifier_guided
from cascades.runs import count_report
from cascades.runs import sweep as module
from cascades.runs.points import points
from cascades.runs.sweep import sweep

WORDS = ("the quick", "a small model", "12 + 3", "a verifier", "the drafter")
RULES = (rules.lossless, (rules.token_v3, (0.3, 1.0)))
BASELINES = ("drafter_only", ("min_p", (0.5,)), ("token_cascade", (0.5, 1.0)), ("sequence_cascade", (0.0, 50.0)))


def task(name="words", metrics=None, count=5, prefix="", **new):
    """Asks for words; an answer is as good as it is rich in the letter e."""

    def statistics(record, text):
        assert record["word"] in WORDS
        return float(text.count("e")), float(len(text))

    own = Metric("share of e", "Of all letters.", statistics, lambda sums: sums[0] / sums[1] if sums[1] else math.nan)
    examples = [Example(str(at), prefix + word, {"word": word}) for at, word in enumerate(WORDS[:count])]
    fields = {"stop": (), "max_new_tokens": 10, "raw_prompt": True} | new
    return Task(name, "A test.", lambda: examples, (own,) if metrics is None else metrics, **fields)


@pytest.fixture
def run(launched):
    common = {"rules": RULES, "lookahead": fixed(3), "k_max": 3, "batch_size": 4, "tasks": [task()], "clock": False}
    return lambda **knobs: launched(sweep, **common | knobs)


def lines(folder):
    return [json.loads(line) for line in (folder / "out" / "results.jsonl").read_text().splitlines()]


def test_points_and_baselines_are_counted_beside_the_verifier_at_each_temperature(run, tmp_path, capsys):
    costs = {"a slice": (0.25, (1.0, 1.1, 1.1, 1.2)), "free passes": (0.0, (1.0,) * 4)}
    rows = run(baselines=BASELINES, temperatures=(0, 1.0), latency_costs=costs)
    names = [("verifier_only", None), ("min_p", 0.5), ("drafter_only", None)]  # as the programs come
    names += [("token_cascade", 0.5), ("token_cascade", 1.0), ("sequence_cascade", 0.0), ("sequence_cascade", 50.0)]
    names += [("lossless", None), ("token_v3", 0.3), ("token_v3", 1.0)]
    assert [(row.temperature, row.rule, row.alpha) for row in rows] == [
        (t, *each) for t in (0.0, 1.0) for each in names
    ]
    by_name = {(row.temperature, row.rule, row.alpha): row for row in rows}
    alone, greedy = by_name[0.0, "verifier_only", None], by_name[0.0, "lossless", None]
    assert {row.examples for row in rows} == {len(WORDS)}
    assert alone.block_efficiency.value == alone.length.value == 1.0 and math.isnan(alone.acceptance.value)
    assert all(figure.value == 1.0 for figure in alone.times.values())
    # Greedy lossless decoding writes the verifier's text, in fewer calls.
    assert greedy.metrics["share of e"] == alone.metrics["share of e"]
    assert greedy.differences["share of e"] == (0.0, 0.0, 0.0) and greedy.length == (1.0, 1.0, 1.0)
    assert greedy.block_efficiency.value > 1
    assert greedy.times["free passes"].value == pytest.approx(1 / greedy.block_efficiency.value)
    assert greedy.times["a slice"].value > greedy.times["free passes"].value
    for t in (0.0, 1.0):
        drafter = by_name[t, "token_v3", 1.0]
        assert drafter.acceptance.value == 1.0 and drafter.deferral.value == drafter.rejection.value == 0.0
        # What defers nothing is the drafter, and what always does is the verifier.
        texts = {
            (line["rule"], line["alpha"], line["prompt_id"]): line["text"]
            for line in lines(tmp_path)
            if line["temperature"] == t
        }
        for at in range(len(WORDS)):
            same = texts["drafter_only", None, f"words/{at}"]
            assert texts["token_cascade", 1.0, f"words/{at}"] == texts["sequence_cascade", 50.0, f"words/{at}"] == same
            assert texts["sequence_cascade", 0.0, f"words/{at}"] == texts["verifier_only", None, f"words/{at}"]
    assert by_name[0.0, "drafter_only", None].metrics == by_name[0.0, "token_cascade", 1.0].metrics
    for row in rows:
        figure = row.metrics["share of e"]
        assert figure.low <= figure.value <= figure.high
    out = tmp_path / "out"
    for name in ("counts.words.0.png", "counts.words.1.svg", "counts.html"):
        assert (out / name).stat().st_size > 1000
    table = list(csv.DictReader((out / "counts.csv").read_text().splitlines()))
    assert len(table) == len(rows) and float(table[0]["share of e"]) == alone.metrics["share of e"].value
    first = count_report.axes_of(rows)[:2]
    assert [each.get_xlabel() for each in count_report.plot(rows, task(), first).axes] == [axis.title for axis in first]
    page = (out / "counts.html").read_text()
    assert count_report.matched_table(rows[: len(names)], task()) in page
    assert "Green: no other row is better in both share of e and time on a slice" in page
    assert page.count('<td class="best"><div') >= 2 and "<small>" in page  # rows of both temperatures' fronts
    assert "nothing was timed" in page and "a slice" in page and page.count("<figure>") == 2 * 3 * len(names)
    assert "words at temperature 1, 5 examples" in capsys.readouterr().out


def test_what_was_counted_is_not_counted_again_and_does_not_hang_on_the_rest(run, tmp_path):
    rows = run(temperatures=(1.0,))
    first = lines(tmp_path)
    assert str(run(temperatures=(1.0,))) == str(rows) and lines(tmp_path) == first  # nan is not itself
    kept = [line for at, line in enumerate(first) if at % 3]
    (tmp_path / "out" / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in kept) + '{"run": "torn')
    assert str(run(temperatures=(1.0,))) == str(rows)

    def texts(of):
        return {(line["rule"], line["alpha"], line["prompt_id"]): line["text"] for line in of if "rule" in line}

    written = [
        json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines() if line.endswith("}")
    ]
    assert texts(written) == texts(first) and len(written) == len(first)
    more = run(temperatures=(1.0,), rules=(*RULES, (rules.token_v3, (0.6,))))
    assert len(more) == len(rows) + 1 and str([row for row in more if row.alpha != 0.6]) == str(rows)


def test_answers_to_other_prompts_of_the_same_name_do_not_count(run, tmp_path, capsys):
    """As where more examples are shown before each."""
    run(rules=[rules.lossless])
    asked = task(prefix="a small model and ")
    rows = run(rules=[rules.lossless], tasks=[asked])
    assert "10 lines" in capsys.readouterr().err and len(lines(tmp_path)) == 20
    assert str(run(rules=[rules.lossless], tasks=[asked])) == str(rows) and len(lines(tmp_path)) == 20
    run(rules=[rules.lossless], tasks=[task(stop=("e",))])
    assert len(lines(tmp_path)) == 30


def test_a_score_that_fails_on_one_answer_costs_no_other(run, tmp_path, capsys):
    def statistics(record, text):
        if record["word"] == "12 + 3":
            raise ZeroDivisionError("no such thing")
        return float(len(text)), 1.0

    length = Metric("length", "In letters.", statistics, lambda sums: sums[0] / sums[1])
    rows = run(tasks=[task(metrics=(length,))])
    assert len(lines(tmp_path)) == 4 * len(WORDS)
    assert "words/2 with lossless has no score: ZeroDivisionError" in capsys.readouterr().err.replace("\n", " ")
    assert all(math.isnan(row.metrics["length"].value) and row.block_efficiency.value >= 1 for row in rows)


def test_a_score_of_the_users_own_may_be_mended_and_nothing_is_decoded_again(run, tmp_path, capsys):
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps({"prompt": word}) + "\n" for word in WORDS))

    def broken(record, text):
        return 1 / (record["prompt"] != "12 + 3")

    given = {"tasks": [], "input": str(file), "rules": [rules.lossless], "max_new_tokens": 8}
    rows = run(score=broken, **given)
    assert math.isnan(rows[0].metrics["broken"].value) and "has no score" in capsys.readouterr().err
    before = lines(tmp_path)
    rows = run(score=lambda record, text: 0.25, **given)
    assert [row.metrics["<lambda>"].value for row in rows] == [0.25, 0.25] and lines(tmp_path) == before


def test_tasks_of_a_file_and_clock_runs_of_tasks(run, tmp_path, capsys):
    file = tmp_path / "captions.jsonl"
    file.write_text("".join(json.dumps({"en": word, "de": f"{word} auf Deutsch"}) + "\n" for word in WORDS))
    tasks = [multi30k(path=str(file), max_new_tokens=8), task(count=2)]
    rows = run(tasks=tasks, rules=[rules.lossless])
    assert [(row.task, row.rule, row.examples) for row in rows] == [
        ("multi30k-en-de", "verifier_only", 5),
        ("multi30k-en-de", "lossless", 5),
        ("words", "verifier_only", 2),
        ("words", "lossless", 2),
    ]
    assert set(rows[0].metrics) == {"BLEU", "chrF"}
    clocked = run(tasks=tasks, rules=[rules.lossless], clock=True, repeats=1, batch_size=2)
    assert [(row.rule, row.prompts) for row in clocked] == [("verifier_only", 5), ("lossless", 5)] + [
        ("verifier_only", 2),
        ("lossless", 2),
    ]
    assert clocked[0].score == pytest.approx(rows[0].metrics["BLEU"].value) and clocked[0].speed == 1.0
    assert {path.name for path in (tmp_path / "out").glob("sweep.*.png")} == {
        "sweep.multi30k-en-de.0.png",
        "sweep.words.0.png",
    }
    assert "have other settings or prompts and are left out" in capsys.readouterr().err  # counts and times do not mix


@pytest.mark.parametrize(
    ("knobs", "sentence"),
    [
        ({"lookahead": verifier_guided}, "a count run has no clock, by which verifier_guided chooses"),
        ({"clock": "no"}, "CLOCK must be True or False"),
        ({"tasks": task()}, "TASKS must be a list as in [@gsm8k()]"),
        ({"tasks": [multi30k]}, "each of TASKS is a task with its brackets"),
        ({"tasks": [task(), task()]}, "TASKS must have names of their own, not words, words"),
        ({"score": lambda record, text: 1.0}, "leave SCORE None"),
        ({"temperatures": ()}, "TEMPERATURES must be a list of numbers"),
        ({"temperatures": (0, "hot")}, "each of TEMPERATURES must be a number"),
        ({"baselines": "min_p"}, "BASELINES must be a list"),
        ({"baselines": ("minp",)}, "each of BASELINES is one of drafter_only"),
        ({"baselines": ("min_p",)}, "min_p of BASELINES needs thresholds"),
        ({"baselines": (("drafter_only", (0.1,)),)}, "drafter_only of BASELINES has no thresholds"),
        ({"baselines": (("min_p", (2.0,)),)}, "the threshold of min_p must be a number from 0 to 1"),
        ({"baselines": (("token_cascade", (1.5,)),)}, "ALPHA for chow must be a number from 0 to 1"),
        ({"latency_costs": [1]}, "LATENCY must be names and costs"),
        ({"latency_costs": {"a": (0.1, (1.0, -1.0))}}, "each of LATENCY is a name and (c, (v_0, v_1, …))"),
        ({"latency_costs": {"a": (0.1, (1.0, 1.1))}}, "holds drafts of up to 1 token, but K_MAX is 3"),
        ({"tasks": [multi30k(path="nowhere.jsonl")]}, "nowhere.jsonl"),
    ],
)
def test_a_bad_knob_is_refused_before_a_model_is_loaded(run, monkeypatch, knobs, sentence):
    monkeypatch.setattr(module, "load_pair", lambda *args, **kwargs: pytest.fail("loaded"))
    with pytest.raises(UserError) as caught:
        run(**knobs)
    assert sentence in str(caught.value) and "\n" not in str(caught.value)


def test_temperatures_and_truncation_share_the_verifiers_program():
    from cascades.generation import Settings

    found = points(RULES, [fixed(2)], Settings(), (("min_p", (0.1, 0.2)),), (0.0, 0.5))
    assert len(found) == 2 * (1 + 2 + 3)
    assert len({point.program for point in found if point.settings.method == "verifier_only"}) == 1
    assert len({point.program for point in found}) == 3
    assert {point.settings.min_p for point in found if point.rule == "min_p"} == {0.1, 0.2}


@pytest.mark.slow
def test_a_sweep_that_is_killed_three_times_ends_as_one_that_is_left_alone(tiny_files, tmp_path):
    captions = tmp_path / "captions.jsonl"
    texts = [{"en": f"{word} {number}", "de": f"{number} {word}"} for number in range(30) for word in WORDS]
    captions.write_text("".join(json.dumps(line) + "\n" for line in texts))
    knobs = {"CLOCK": False, "TASKS": "@tasks", "RULES": "@rules", "LOOKAHEAD": "@fixed()", "fixed.k": 2, "K_MAX": 2}
    knobs |= {"VERIFIER": tiny_files.verifier, "DRAFTER": tiny_files.drafter, "TEMPERATURES": (0, 1), "BATCH_SIZE": 8}
    knobs |= {"multi30k.path": str(captions), "multi30k.max_new_tokens": 12, "BASELINES": [("min_p", (0.5,))]}
    written = {
        "--gin.TASKS=@tasks": "--gin.TASKS=[@multi30k()]",
        "--gin.RULES=@rules": "--gin.RULES=[(@token_v3, (0.3,))]",
    }
    options = [written.get(each, each) for each in tiny.knobs(**knobs)]

    def start(folder):
        launcher = str(tiny.ROOT / "launch" / "sweep.py")
        command = [sys.executable, launcher, "--config=configs/sweep.gin", f"--output_dir={folder}", *options]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": tiny.ROOT}
        return subprocess.Popen(command, env=tiny.environment(tiny_files), **quiet)

    killed = 0
    for least in (1, 200, 500):
        process, began = start(tmp_path / "killed"), time.monotonic()
        file = tmp_path / "killed" / "results.jsonl"
        while process.poll() is None and time.monotonic() - began < tiny.PATIENCE:
            if file.is_file() and file.read_bytes().count(b"\n") >= least:
                break
            time.sleep(0.005)
        killed += process.poll() is None
        process.kill()
        process.wait()
    assert killed == 3
    assert start(tmp_path / "killed").wait(tiny.PATIENCE) == start(tmp_path / "alone").wait(tiny.PATIENCE) == 0

    def answers(folder):
        named = ("prompt_id", "rule", "alpha", "temperature")
        lines = []
        for line in (folder / "results.jsonl").read_text().splitlines():
            with contextlib.suppress(ValueError):  # what a kill tore
                lines.append(json.loads(line))
        return sorted((*(str(line[name]) for name in named), line["text"], str(line["scores"])) for line in lines)

    found = answers(tmp_path / "killed")
    assert len(found) == len({each[:4] for each in found}) == 150 * 3 * 2
    assert found == answers(tmp_path / "alone")
    same = [(tmp_path / name / "counts.csv").read_text() for name in ("killed", "alone")]
    assert same[0] == same[1]
