"""A checkpoint that is trained on: where it was, with its own tokenizer, and what cannot be trained is told."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys

import jax
import jaxtyping
import numpy as np
import pytest
import tiny
from safetensors.numpy import load_file, save_file
from test_real_parity import SMOLLM2

from cascades import checkpoints, tokenizers
from cascades.checkpoints import t5
from cascades.checkpoints.reader import flatten

SUMS = [f"{first} + {second}" for first in range(10) for second in range(10)]
SIZES = {"BATCH_SIZE": 16, "PROMPT_TOKENS": 16, "ANSWER_TOKENS": 8, "WARMUP": 5, "HELD_OUT": 0.2, "DTYPE": "float32"}


def train(*arguments):
    """Runs the launcher in this process; returns its exit code."""
    return tiny.call("cascades.runs.train.train", "--config=configs/train.gin", *arguments)


def curve(folder):
    return [(line["step"], line["held_out"], line["loss"]) for line in tiny.lines(folder / "metrics.jsonl")]


def held_out(folder):
    return [loss for _, aside, loss in curve(folder) if aside]


def set_back(folder):
    """Leaves of a run of four steps what it had after two: two lines, and an evaluation on both sides."""
    shutil.rmtree(folder / "model")
    shutil.rmtree(folder / "checkpoints" / "4")
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text("".join(lines[:4]))


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "sums.jsonl"
    path.write_text("".join(json.dumps({"prompt": each, "text": str(eval(each))}) + "\n" for each in SUMS))
    return path


@pytest.fixture
def knobs(text, tmp_path):
    """Returns the knobs of a run in a folder of its own, and others."""

    def chosen(**others):
        given = {"INPUT": str(text), "OUTPUT_DIR": str(tmp_path / "run"), "STEPS": 4, "LEARNING_RATE": 1e-3}
        often = {"EVALUATE_EVERY": 2, "SAVE_EVERY": 2, "TENSORBOARD": False}
        return tiny.knobs(**(given | often | SIZES | others))

    return chosen


def as_transformers(source, target):
    """Writes a T5 of ours as transformers does."""
    config, params, _ = checkpoints.load(source, progress=False)
    target.mkdir()
    leaves = flatten(params)
    tensors = {each.name: np.asarray(leaves[path]).reshape(each.shape) for path, each in t5.huggingface(config).items()}
    save_file(tensors, target / "model.safetensors")
    names = ("vocab_size", "num_layers", "num_decoder_layers", "d_model", "d_ff", "num_heads")
    raw = {name: getattr(config, name) for name in names} | {"d_kv": config.head_dim, "model_type": "t5"}
    raw |= {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "decoder_start_token_id": config.start}
    (target / "config.json").write_text(json.dumps(raw))
    shutil.copy(source / "tokenizer.model", target / "spiece.model")
    (target / "tokenizer_config.json").write_text(json.dumps({"extra_ids": 0}))  # the room behind the pieces is padding


@pytest.fixture(scope="module")
def saved_t5(text, tmp_path_factory):
    """A T5 that was trained from nothing, as transformers writes it; and the last held-out loss of that run."""
    folder = tmp_path_factory.mktemp("t5")
    given = {"INPUT": str(text), "OUTPUT_DIR": str(folder / "run"), "STEPS": 40, "EVALUATE_EVERY": 40}
    shape = ["--gin.t5.layers=1", "--gin.t5.d_model=32", "--gin.t5.d_ff=64", "--gin.t5.heads=2"]
    assert train(*tiny.knobs(**given, **SIZES, LEARNING_RATE=0.01, VOCABULARY=300, TENSORBOARD=False), *shape) == 0
    as_transformers(folder / "run" / "model", folder / "saved")
    return folder / "saved", held_out(folder / "run")[-1]


def test_a_t5_goes_on_where_it_was_and_decodes(saved_t5, knobs, tmp_path, monkeypatch):
    source, last = saved_t5
    monkeypatch.setenv("CASCADES_CACHE", str(tmp_path / "home"))
    assert train(*knobs(MODEL=str(source), STEPS=20, EVALUATE_EVERY=20)) == 0
    first, after = held_out(tmp_path / "run")
    assert first == pytest.approx(last, abs=1e-4) and after < last - 0.01
    assert curve(tmp_path / "run")[1][2] < last + 0.5  # the first batch too
    model = tmp_path / "run" / "model"
    assert checkpoints.read_config(model) == checkpoints.read_config(source)
    assert tokenizers.load(model).fingerprint == tokenizers.load(source).fingerprint
    output = tmp_path / "answers.jsonl"
    chosen = tiny.knobs(VERIFIER=str(model), METHOD="verifier_only", DTYPE="float32", MAX_NEW_TOKENS=4)
    assert tiny.launch(*chosen, "--prompt=1 + 2", f"--output={output}") == 0
    assert tiny.lines(output)[0]["token_ids"]


def test_a_run_goes_on_from_its_own_state_and_reads_no_weights(saved_t5, knobs, tmp_path):
    source, folder = tmp_path / "source", tmp_path / "run"
    shutil.copytree(saved_t5[0], source)
    assert train(*knobs(MODEL=str(source))) == 0
    expected, model = curve(folder), checkpoints.load(folder / "model", progress=False).params
    set_back(folder)
    tensors = load_file(source / "model.safetensors")
    save_file({name: np.full_like(leaf, np.nan) for name, leaf in tensors.items()}, source / "model.safetensors")
    assert train(*knobs(MODEL=str(source))) == 0
    assert [each[:2] for each in curve(folder)] == [each[:2] for each in expected]
    assert [each[2] for each in curve(folder)] == pytest.approx([each[2] for each in expected], rel=1e-5)
    jax.tree.map(np.testing.assert_allclose, checkpoints.load(folder / "model", progress=False).params, model)


def test_a_chat_model_learns_the_end_of_a_turn_and_keeps_its_template(tiny_files, knobs, tmp_path, capsys):
    """Of a GGUF file. Raw prompts of such a model are told."""
    before = jax.tree.map(np.array, checkpoints.load(tiny_files.chat, progress=False).params)
    assert train(*knobs(MODEL=tiny_files.chat, RAW_PROMPT=False, PROMPT_TOKENS=64)) == 0
    assert "note:" not in capsys.readouterr().err
    model = tmp_path / "run" / "model"
    assert tokenizers.load(model).chat_template == tokenizers.load(tiny_files.chat).chat_template
    after = checkpoints.load(model, progress=False).params
    changed = jax.tree.map(lambda old, new: float(np.abs(old - new).max()), before, after)
    assert 0 < min(jax.tree.leaves(changed)) and max(jax.tree.leaves(changed)) < 0.02
    assert train(*knobs(MODEL=tiny_files.chat, OUTPUT_DIR=str(tmp_path / "raw"))) == 0
    assert "note: RAW_PROMPT=True leaves the chat template out: decode with it too" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("name", ["t5", "verifier", "drafter"])
def test_a_mesh_of_devices_learns_the_same(saved_t5, tiny_files, knobs, tmp_path, name):
    """Rows over two of them, weights and their optimizer's state over all four; the run goes on there too."""
    source = {"t5": str(saved_t5[0]), "verifier": tiny_files.verifier, "drafter": tiny_files.drafter}[name]
    assert train(*knobs(MODEL=source)) == 0
    command = [sys.executable, str(tiny.ROOT / "launch" / "train.py"), "--config=configs/train.gin"]
    arguments = knobs(MODEL=source, OUTPUT_DIR=str(tmp_path / "mesh"), MESH=(2, 2))
    environment = tiny.environment(tiny_files) | {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    for _ in range(2):
        done = subprocess.run([*command, *arguments], env=environment, cwd=tiny.ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        one, four = curve(tmp_path / "run"), curve(tmp_path / "mesh")
        assert [each[2] for each in four] == pytest.approx([each[2] for each in one], rel=1e-3)
        set_back(tmp_path / "mesh")


@pytest.mark.slow
def test_a_real_decoder_learns(knobs, tmp_path):
    """SmolLM2-135M-Instruct, from four bits a weight, learns to answer as nobody does."""
    path = tmp_path / "odd.jsonl"
    lines = [{"prompt": f"What is {each}?", "text": f"It is {eval(each)}, said the owl."} for each in SUMS[:64]]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    sizes = {"BATCH_SIZE": 4, "PROMPT_TOKENS": 64, "ANSWER_TOKENS": 16, "STEPS": 8, "EVALUATE_EVERY": 8, "WARMUP": 2}
    more = {"MODEL": SMOLLM2, "INPUT": str(path), "RAW_PROMPT": False, "LEARNING_RATE": 5e-5, "SAVE_EVERY": 8}
    assert train(*knobs(**more, **sizes)) == 0
    before, after = held_out(tmp_path / "run")
    assert after < 0.5 * before < 3


BAD = {
    "kind": (
        {"MODEL": 3},
        "MODEL must be a shape with its brackets, as in @t5() or @decoder(), or a checkpoint's path",
    ),
    "brackets": ({"MODEL": "@t5"}, "MODEL must be a shape with its brackets"),
    "nowhere": ({"MODEL": "nowhere.gguf"}, "there is no file or directory nowhere.gguf"),
    "preset": ({"MODEL": "@t5()", "PRESET": "gemma2_2b"}, "leave PRESET None"),
    "vocabulary": ({"VOCABULARY": 400}, "this run is given one, by MODEL: leave VOCABULARY None"),
    "room": ({"PROMPT_TOKENS": 320}, "are 328 tokens together, and the model has room for 320: lower one of them"),
    "template": ({"CHAT_TEMPLATE": "tools"}, "tools"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_told_in_one_sentence(tiny_files, knobs, name, capsys, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # what a user meets
    wrong, sentence = BAD[name]
    assert train(*knobs(**{"MODEL": tiny_files.chat, **wrong})) == 2
    err = capsys.readouterr().err
    assert sentence in err and "Traceback" not in err and err.splitlines()[-1].startswith("error: ")


def test_what_cannot_be_trained_is_told(tiny_files, knobs, tmp_path, capsys):
    """A drafter's head, integers that stand for weights, a tokenizer of more tokens than the model has."""
    head = tmp_path / "head"
    config, params, source = checkpoints.load(tiny_files.verifier, progress=False)
    shorter = {name: leaf for name, leaf in params.items() if name != "head"}
    checkpoints.save(head, config, params, tokenizer_source=source, shared=("head",))
    integers = tmp_path / "integers"
    shutil.copytree(tiny_files.drafter, integers)
    raw = json.loads((integers / "config.json").read_text())
    (integers / "config.json").write_text(json.dumps(raw | {"quantization_config": {"quant_method": "gptq"}}))
    small = tmp_path / "small"
    cut = dataclasses.replace(config, vocab_size=280)
    cropped = shorter | {"embed": {"embedding": params["embed"]["embedding"][:280]}}
    checkpoints.save(small, cut, cropped | {"head": {"kernel": params["head"]["kernel"][:280]}})
    for given, sentence in (
        ({"MODEL": str(head)}, "head is a drafter made of its verifier's parts: train it on with launch/distill.py"),
        ({"MODEL": "shipped://smollm2-135m-eagle"}, "eagle is a drafter made of its verifier's parts"),
        ({"MODEL": str(integers)}, "gptq"),
        ({"MODEL": str(small), "TOKENIZER": tiny_files.verifier}, "has 300 tokens, and "),
    ):
        assert train(*knobs(**given)) == 2
        err = capsys.readouterr().err
        assert sentence in err and err.count("\n") == 1, err
    assert not os.path.exists(tmp_path / "run" / "model")
