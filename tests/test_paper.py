"""The paper's experiments: every file of configs/paper begins, and T5s are fine-tuned and swept by them, tiny ones."""

import csv
import json
import shutil
from pathlib import Path

import gin
import pytest
import tiny
from test_t5 import write_t5x

from cascades import checkpoints, config, tokenizers
from cascades.checkpoints import t5x
from cascades.evaluation.tasks import hub
from cascades.runs import sweep, train, training_run
from cascades.runs.points import points

FOLDER = tiny.ROOT / "configs" / "paper"
FILES = sorted(path.stem for path in FOLDER.glob("*.gin"))
TRAINED = [name for name in FILES if name.startswith("t5_finetune")]
SWEPT = [name for name in FILES if name not in TRAINED]
TASKS = ("wmt", "xsum", "cnn_dailymail")
PAIRS = [f"t5_small_{size}_{task}" for size in ("large", "xl") for task in TASKS]
SHARED = {  # knobs without which a file that others include is no run
    "t5": {"VERIFIER": "large", "DRAFTER": "small", "TASKS": "[@wmt()]"},
    "t5_finetune": {"INPUT": "lines.jsonl", "OUTPUT_DIR": "out"},
}


class Begun(Exception):
    """A run has come as far as its models."""


def begin(*_, **__):
    raise Begun


def call(function, name, *arguments):
    return tiny.call(f"cascades.runs.{function}.{function}", f"--config=configs/paper/{name}.gin", *arguments)


def bound(function, name, *overrides):
    """What a file binds of a run function; specs and tasks as they are made."""
    config.configure(function, f"configs/paper/{name}.gin", overrides, f"configs/{function.__name__}.gin")
    return gin.get_bindings(function)


def told(name):
    """The knobs without which a shared file is no run, as the command line has them."""
    return [f"--gin.{knob}={each if each[0] == '[' else repr(each)}" for knob, each in SHARED.get(name, {}).items()]


def test_the_files_are_those_of_the_paper():
    assert set(PAIRS) | {f"t5_finetune_{task}" for task in TASKS} | {"sweep", "t5", "t5_finetune"} < set(FILES)


@pytest.mark.parametrize("name", SWEPT)
def test_a_sweep_begins(name, tmp_path, monkeypatch):
    """Points, tasks, costs of passes and folders are as they should be; the next thing is to load the models."""
    # The hub may have to be asked for examples.
    monkeypatch.setattr(sweep, "asked_of", lambda tasks, score, path: (tasks, [{"prompt": "x"}]))
    monkeypatch.setattr(sweep, "load_pair", begin)
    with pytest.raises(Begun):
        call("sweep", name, *told(name), *tiny.knobs(OUTPUT_DIR=str(tmp_path)))


@pytest.mark.parametrize("name", TRAINED)
def test_a_fine_tuning_begins(name, tmp_path, monkeypatch):
    monkeypatch.setattr(training_run, "read", lambda path, keys, template: [])
    monkeypatch.setattr(checkpoints, "resolve", begin)
    with pytest.raises(Begun):
        knobs = {"INPUT": "lines.jsonl", "OUTPUT_DIR": str(tmp_path), "MESH": None, "TENSORBOARD": False}
        call("train", name, *tiny.knobs(**knobs))


@pytest.mark.parametrize("name", [name for name in SWEPT if name != "t5"])
def test_a_sweep_has_every_rule_and_the_drafts_of_the_paper(name):
    given = bound(sweep.sweep, name)
    swept = points(given["rules"], given["lookahead"], given["settings"], given["baselines"], given["temperatures"])
    t5 = name in PAIRS
    assert {point.settings.lookahead.name for point in swept if point.rule_id} == {
        f"fixed({k})" for k in ((3, 5, 7) if t5 else (1, 3, 5, 7))
    }
    assert {point.settings.temperature for point in swept} == {0, 0.1, 0.5, 1}
    names = {rule.__name__ for rule, _ in given["rules"][1:]} | {given["rules"][0].__name__}
    assert {"lossless", "chow", "diff", "opt", "token_v1", "token_v2", "token_v3", "typical", "cactus"} < names
    assert not given["clock"] and (name == "sweep" or given["latency_costs"])


@pytest.mark.parametrize("name", PAIRS)
def test_a_pair_is_what_was_fine_tuned_on_the_task_that_it_is_asked(name):
    """Where the headers say that the models are written, there the sweep looks for them."""
    *_, size, task = name.split("_", 3)
    pair = bound(sweep.sweep, name)["pair"]
    assert (pair.verifier.uri, pair.drafter.uri) == (
        f"results/paper/t5_{size}_{task}/model",
        f"results/paper/t5_small_{task}/model",
    )
    assert bound(train.train, f"t5_finetune_{task}")["output_dir"] == f"results/paper/t5_small_{task}"
    header = (FOLDER / f"t5_finetune_{task}.gin").read_text(encoding="utf-8")
    checkpoint = f"gs://t5-data/pretrained_models/t5x/t5_1_1_{size}/checkpoint_1000000"
    assert f"{checkpoint}'\" \\\n#     --gin.OUTPUT_DIR=\"'results/paper/t5_{size}_{task}'\"" in header


ROWS = {
    "wmt": {"translation": {"en": "Good {day}.", "de": "Guten Tag."}},
    "xsum": {"id": "1", "document": "It rained.\nA lot.", "summary": "Rain."},
    "cnn_dailymail": {"id": "1", "article": "It rained.\nA lot.", "highlights": "Rain .\nMuch ."},
}


@pytest.mark.parametrize("task", TASKS)
def test_what_is_asked_is_what_was_trained(task, tmp_path, monkeypatch):
    """One row of the hub, as a line to train on and as an example of both pairs: the same prompt to the letter."""
    asked = []

    def read(source, *_):
        asked.append(source.split)
        return [source.convert(ROWS[task])]

    monkeypatch.setattr(hub, "read", read)
    fields = ROWS[task].get("translation", ROWS[task])
    (tmp_path / "lines.jsonl").write_text(json.dumps(fields) + "\n", encoding="utf-8")
    given = bound(train.train, f"t5_finetune_{task}")
    [line] = training_run.read(str(tmp_path / "lines.jsonl"), given["keys"], given["template"])
    assert line["prompt"].startswith("translate English to German: " if task == "wmt" else "summarize: ")
    for size in ("large", "xl"):
        [each] = bound(sweep.sweep, f"t5_small_{size}_{task}")["tasks"]
        [example] = each.examples()
        assert (example.prompt, each.raw_prompt) == (line["prompt"], given["prompts"].raw_prompt)
    assert asked == ["validation", "validation"] and line["text"] == fields[given["keys"][1]]


# From T5X's files to curves.

PHRASES = [f"{a} {b}" for a in ("red", "green", "blue") for b in ("one", "two", "three")]
GERMAN = dict(zip("red green blue one two three".split(), "rot grün blau eins zwei drei".split(), strict=True))
CASES = {"large": "v1_1", "small": "v1_0"}


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    """Two T5s as T5X writes them, their vocabulary elsewhere, and lines to train on and to ask."""
    folder = tmp_path_factory.mktemp("published")
    for size, case in CASES.items():
        (folder / size).mkdir()
        write_t5x(folder / size / "checkpoint_7", case)
    lines = [{"en": each, "de": " ".join(GERMAN[word] for word in each.split())} for each in PHRASES]
    for name, count in (("train", None), ("asked", 2)):
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines[:count])
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    texts = [{"prompt": f"translate English to German: {line['en']}", "text": line["de"]} for line in lines * 9]
    (folder / "sentencepiece.model").write_bytes(train.pieces_of(texts, 56, begins=False))
    return folder


def fine_tune(published, folder, size, **others):
    knobs = {
        "MODEL": str(published / size / "checkpoint_7"), "TOKENIZER": str(published / "sentencepiece.model"),
        "INPUT": str(published / "train.jsonl"), "OUTPUT_DIR": str(folder / size), "MESH": None, "DTYPE": "float32",
        "STEPS": 30, "BATCH_SIZE": 4, "ACCUMULATE": 2, "PROMPT_TOKENS": 64, "ANSWER_TOKENS": 32, "HELD_OUT": 0.2,
        "WARMUP": 2, "EVALUATE_EVERY": 30, "SAVE_EVERY": 30, "TENSORBOARD": False, "LEARNING_RATE": 0.02,
    } | others  # fmt: skip
    return call("train", "t5_finetune_wmt", *tiny.knobs(**knobs))


@pytest.fixture(scope="module")
def tuned(published, tmp_path_factory, tiny_files) -> Path:
    """What configs/paper/t5_finetune_wmt.gin makes of both."""
    folder = tmp_path_factory.mktemp("tuned")
    assert [fine_tune(published, folder, size) for size in CASES] == [0, 0]
    return folder


@pytest.mark.parametrize("size", CASES)
def test_a_checkpoint_of_t5x_learns_with_a_tokenizer_from_elsewhere(published, tuned, size):
    first, *_, last = [line["loss"] for line in tiny.lines(tuned / size / "metrics.jsonl") if not line["held_out"]]
    assert last < 0.7 * first
    model = tuned / size / "model"
    before = checkpoints.read_config(published / size)
    assert checkpoints.read_config(model) == before
    assert (model / "tokenizer.model").read_bytes() == (published / "sentencepiece.model").read_bytes()
    assert tokenizers.load(model).fingerprint == tokenizers.load(published / "sentencepiece.model").fingerprint


def test_model_and_tokenizer_may_lie_in_a_bucket(published, tuned, tmp_path, bucket, monkeypatch, capsys):
    """As the published ones do. TensorStore, which reads arrays where they lie, is told of the place that stands in."""
    shutil.copytree(published, bucket, dirs_exist_ok=True)
    spec = t5x._spec
    monkeypatch.setattr(t5x, "_spec", lambda at, name: spec(bucket / at.relative_to("gs://bucket"), name))
    there = {
        "MODEL": "gs://bucket/large/checkpoint_7",
        "TOKENIZER": "gs://bucket/sentencepiece.model",
    }
    assert fine_tune(published, tmp_path, "large", **there) == 0
    losses = [[line["loss"] for line in tiny.lines(folder / "large" / "metrics.jsonl")] for folder in (tmp_path, tuned)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    for knob in there:
        assert fine_tune(published, tmp_path / knob, "large", **there | {knob: "gs://bucket/none"}) == 2
        assert "there is nothing at gs://bucket/none" in capsys.readouterr().err


def test_the_fine_tuned_pair_is_swept(published, tuned, tmp_path):
    """Through configs/paper/t5_small_large_wmt.gin, all of its draft lengths; fewer rules."""
    knobs = {
        "VERIFIER": str(tuned / "large" / "model"), "DRAFTER": str(tuned / "small" / "model"), "DTYPE": "float32",
        "OUTPUT_DIR": str(tmp_path / "out"), "TEMPERATURES": (0,), "BATCH_SIZE": 2, "CONTEXT": 96,
    }  # fmt: skip
    rules = "--gin.RULES=[@lossless, (@token_v3, (0.5,)), (@cactus, (0.5,))]"
    task = tiny.knobs(**{"wmt.path": str(published / "asked.jsonl"), "wmt.max_new_tokens": 12})
    swept = [*tiny.knobs(**knobs, BASELINES=["drafter_only"]), rules, *task]
    assert call("sweep", "t5_small_large_wmt", *swept) == 0
    lines = tiny.lines(tmp_path / "out" / "results.jsonl")
    assert len(lines) == 2 * (2 + 3 * 3)
    assert {line["prompt_id"] for line in lines} == {"wmt14-en-de/0", "wmt14-en-de/1"}
    texts = {(line["rule"], line["prompt_id"]): line["text"] for line in lines}
    for at in (0, 1):
        assert texts["lossless", f"wmt14-en-de/{at}"] == texts["verifier_only", f"wmt14-en-de/{at}"] != ""
    table = list(csv.DictReader((tmp_path / "out" / "counts.csv").read_text(encoding="utf-8").splitlines()))
    assert {row["lookahead"] for row in table if row["rule"] == "lossless"} == {"fixed(3)", "fixed(5)", "fixed(7)"}
    assert all(0 <= float(row["BLEU"]) <= 100 for row in table)
    costs = bound(sweep.sweep, "t5_small_large_wmt")["latency_costs"]
    assert set(costs) == {"v4:1x1x1", "v4:2x2x1", "v5e:1x1"}
    assert all(float(row[name]) > 0 for row in table for name in table[0] if name.startswith(tuple(costs)))
    assert call("sweep", "t5_small_large_wmt", *swept) == 0  # goes on where it was: nothing is left
    assert tiny.lines(tmp_path / "out" / "results.jsonl") == lines
