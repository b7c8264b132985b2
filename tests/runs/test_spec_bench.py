"""What Spec-Bench's own scripts read, by a small reader of what they look at, and what it must not be asked for."""

import json
import statistics

import pytest

from cascades import rules
from cascades.errors import UserError
from cascades.evaluation.tasks import spec_bench as task
from cascades.lookahead import fixed
from cascades.runs.spec_bench import accept_lengths
from cascades.runs.sweep import sweep

QUESTIONS = (
    {"question_id": 81, "category": "writing", "turns": ["the quick", "Again."]},
    {"question_id": 161, "category": "translation", "turns": ["a small model"]},
    {"question_id": 162, "category": "translation", "turns": ["12 + 3"]},
)
BASELINES = ("drafter_only", ("token_cascade", (0.5,)), ("sequence_cascade", (0.0,)))


@pytest.fixture
def asked(tmp_path):
    path = tmp_path / "question.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in QUESTIONS))
    return task(path=str(path), max_new_tokens=12, chat=False)


def speed(path, category):
    """Returns tokens per second and mean accepted tokens of one category as evaluation/speed.py does."""
    with open(path, encoding="utf-8") as file:
        answers = [line["choices"][0] for line in map(json.loads, file) if category in (None, line["category"])]
    speeds = [sum(answer["new_tokens"]) / sum(answer["wall_time"]) for answer in answers]
    lengths = [length for answer in answers for length in answer["accept_lengths"]]
    return statistics.fmean(speeds), statistics.fmean(lengths)


def test_spec_bench_reads_what_a_clock_run_timed(launched, asked, tmp_path, capsys):
    given = {"rules": [rules.lossless, (rules.token_v3, (0.5,))], "baselines": BASELINES, "tasks": [asked]}
    launched(sweep, repeats=2, spec_bench_files=True, **given)
    out, found = tmp_path / "out", {}
    for text in (out / "results.jsonl").read_text().splitlines():
        line = json.loads(text)
        found.setdefault((line["repeat"], line["rule"]), []).append(line)
    names = {"verifier_only": "verifier_only", "lossless": "lossless-fixed-2", "token_v3": "token_v3-0.5-fixed-2"}
    names |= {"drafter_only": "drafter_only", "token_cascade": "token_cascade-0.5"}
    names["sequence_cascade"] = "sequence_cascade-0"
    for repeat in (0, 1):
        folder = out / f"model_answer_temp0_run_{repeat + 1}"
        assert {path.name for path in folder.iterdir()} == {f"{name}.jsonl" for name in names.values()}
        for rule, name in names.items():
            path, lines = folder / f"{name}.jsonl", found[repeat, rule]
            answers = [json.loads(text) for text in path.read_text().splitlines()]
            assert [(each["question_id"], each["model_id"]) for each in answers] == [
                (question["question_id"], name) for question in QUESTIONS
            ]
            for answer, line in zip(answers, lines, strict=True):
                assert answer.keys() == {"question_id", "category", "answer_id", "model_id", "choices", "tstamp"}
                (choice,) = answer["choices"]
                assert choice["turns"] == [line["text"]] and choice["wall_time"] == [line["stats"]["wall_s"]]
                assert sum(choice["accept_lengths"]) == choice["new_tokens"][0] == line["stats"]["tokens_out"]
                assert [len(choice["accept_lengths"])] == choice["decoding_steps"] == [line["stats"]["rounds"]]
            for category in ("writing", "translation", None):
                of_it = [line for line in lines if category in (None, line["input"]["category"])]
                stats = [line["stats"] for line in of_it]
                tokens = sum(each["tokens_out"] for each in stats)
                told, length = speed(path, category)
                assert told == pytest.approx(statistics.fmean(each["tokens_out"] / each["wall_s"] for each in stats))
                if rule in ("verifier_only", "lossless", "token_v3"):
                    assert length == pytest.approx(tokens / sum(each["verifier_calls"] for each in stats))
                    assert (length == 1) == (rule == "verifier_only")
    assert "model_answer_temp*_run_*" in capsys.readouterr().err


def test_a_point_with_a_question_left_has_no_file_and_like_names_are_told_apart(launched, asked, tmp_path, monkeypatch):
    same = {"rules": [rules.lossless], "lookahead": [fixed(1), fixed(2)._replace(name="fixed(1)")], "tasks": [asked]}
    launched(sweep, repeats=1, **same)
    path = tmp_path / "out" / "results.jsonl"
    assert not list(path.parent.glob("model_answer*"))
    kept = path.read_text().splitlines()
    alone = [text for text in kept if json.loads(text)["rule"] == "verifier_only"]
    path.write_text("".join(text + "\n" for text in kept if text != alone[0]))
    monkeypatch.setattr("cascades.runs.timing.batches", lambda *given: [])
    launched(sweep, repeats=1, spec_bench_files=True, **same)
    names = sorted(path.name for path in (path.parent / "model_answer_temp0_run_1").iterdir())
    assert len(names) == 2 and all(name.startswith("lossless-fixed-1-") for name in names)


def test_lengths_add_up_to_the_tokens_of_an_answer():
    assert accept_lengths({"accepted_histogram": [1, 2, 1], "rounds": 4, "tokens_out": 8}) == [1, 2, 2, 3]
    assert accept_lengths({"accepted_histogram": [1, 2, 1], "rounds": 4, "tokens_out": 7}) == [1, 2, 2, 2]
    # Two rounds behind a stop string.
    assert accept_lengths({"accepted_histogram": [1, 0, 2], "rounds": 3, "tokens_out": 2}) == [1, 1, 0]
    assert accept_lengths({"accepted_histogram": [0, 0], "rounds": 3, "tokens_out": 3}) == [1, 1, 1]
    assert accept_lengths({"accepted_histogram": [0, 0], "rounds": 0, "tokens_out": 0}) == []


@pytest.mark.parametrize(
    ("knobs", "sentence"),
    [
        ({"spec_bench_files": "yes"}, "SPEC_BENCH_FILES must be True or False"),
        ({"tasks": ()}, "set TASKS to [@spec_bench()] and CLOCK to True"),
        ({"clock": False}, "set TASKS to [@spec_bench()] and CLOCK to True"),
        ({"batch_size": 2}, "set BATCH_SIZE to 1, not 2"),
    ],
)
def test_what_spec_bench_would_not_time_is_refused(launched, asked, tmp_path, knobs, sentence):
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "the"}\n')
    given = {"rules": [rules.lossless], "tasks": [asked], "spec_bench_files": True}
    with pytest.raises(UserError) as caught:
        launched(sweep, input=str(tmp_path / "prompts.jsonl"), **given | knobs)
    assert sentence in str(caught.value) and not (tmp_path / "out").exists()
