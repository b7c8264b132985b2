"""A model from nothing learns a tiny task, and decodes by itself and as a pair. For checkpoints see test_finetune."""

import json
import random

import pytest
import tiny

WORDS = ("red", "green", "blue", "one", "two", "three")
GERMAN = dict(zip(WORDS, ("rot", "grün", "blau", "eins", "zwei", "drei"), strict=True))


def train(*arguments):
    """Runs the launcher in this process; returns its exit code."""
    return tiny.call("cascades.runs.train.train", "--config=configs/train.gin", *arguments)


@pytest.fixture
def knobs(tmp_path):
    """Returns the knobs of a run that translates words, and others."""
    draw = random.Random(0)
    phrases = sorted({tuple(draw.choices(WORDS, k=draw.randint(1, 4))) for _ in range(2000)})
    lines = [{"en": " ".join(each), "de": " ".join(GERMAN[word] for word in each)} for each in phrases]
    text = tmp_path / "text.jsonl"
    text.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")

    def chosen(**others):
        given = {"INPUT": str(text), "OUTPUT_DIR": str(tmp_path / "run"), "KEYS": ("en", "de"), "VOCABULARY": 300}
        sizes = {"STEPS": 300, "BATCH_SIZE": 64, "PROMPT_TOKENS": 16, "ANSWER_TOKENS": 16, "WARMUP": 10}
        rest = {
            "HELD_OUT": 0.1,
            "EVALUATE_EVERY": 150,
            "LEARNING_RATE": 0.01,
            "TENSORBOARD": False,
            "DTYPE": "float32",
        }
        shape = [
            f"--gin.{kind}.{name}" for kind in ("t5",) for name in ("layers=1", "d_model=32", "d_ff=64", "heads=2")
        ]
        return [*tiny.knobs(**(given | sizes | rest | others)), *shape]

    return chosen


def test_a_pair_of_t5s_learns_to_translate_and_decodes(knobs, tmp_path, monkeypatch):
    monkeypatch.setenv("CASCADES_CACHE", str(tmp_path / "home"))
    assert train(*knobs()) == 0
    small = knobs(
        OUTPUT_DIR=str(tmp_path / "small"),
        TOKENIZER=str(tmp_path / "run" / "tokenizer.model"),
        STEPS=40,
        VOCABULARY=None,
    )
    assert train(*small) == 0
    last = [line for line in tiny.lines(tmp_path / "run" / "metrics.jsonl") if line["held_out"]][-1]
    assert last["accuracy"] > 0.9 and last["loss"] < 0.5
    models = {"VERIFIER": str(tmp_path / "run" / "model"), "DRAFTER": str(tmp_path / "small" / "model")}
    ids = []
    for name, knob in (("alone", {"METHOD": "verifier_only"}), ("pair", {"RULE": "@lossless"})):
        output = tmp_path / f"{name}.jsonl"
        chosen = tiny.knobs(**models, **knob, DTYPE="float32", MAX_NEW_TOKENS=16)
        assert tiny.launch(*chosen, "--prompt=blue two", f"--output={output}") == 0
        (line,) = tiny.lines(output)
        ids.append(line["token_ids"])
        assert line["text"].split() == ["blau", "zwei"] and line["finish_reason"] == "eos"
    assert ids[0] == ids[1]


def test_a_decoder_learns_too(knobs, tmp_path):
    shape = [f"--gin.decoder.{each}" for each in ("layers=1", "d_model=32", "d_ff=64", "heads=2", "kv_heads=1")]
    assert train(*knobs(MODEL="@decoder()", STEPS=20, LEARNING_RATE=0.002, EVALUATE_EVERY=20), *shape) == 0
    losses = [line["loss"] for line in tiny.lines(tmp_path / "run" / "metrics.jsonl")]
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"KEYS": ("en",)}, "KEYS must be two names"),
        ({"KEYS": ("en", "fr")}, "line 1 of the training text should hold a prompt and a text"),
        ({"VOCABULARY": 3}, "VOCABULARY must be a whole number from 300, not 3"),
        ({"TOKENIZER": "nowhere.model"}, "by TOKENIZER: leave VOCABULARY None"),
        ({"TOKENIZER": "nowhere.model", "VOCABULARY": None}, "there is no file or directory nowhere.model"),
        ({"TEMPLATE": "in German: {de}"}, "TEMPLATE must be a text with {en} where the prompt of a line stands"),
        ({"TEMPLATE": " ".join("abcdefghijklmnopq") + " {en}"}, "but only 0 of "),  # more than a prompt may have
        ({"INPUT": "nowhere.jsonl"}, "there is no file 'nowhere.jsonl'"),
    ],
)
def test_bad_input_is_told_in_one_sentence(knobs, wrong, sentence, capsys):
    assert train(*knobs(**wrong)) == 2
    err = capsys.readouterr().err
    assert sentence in err and "Traceback" not in err
