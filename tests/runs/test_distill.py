"""A whole distillation on tiny models: acceptance rises, a kill costs nothing, and what is wrong is told."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import jaxtyping
import pytest
import tiny

from cascades.training import fit

PROMPTS = [" ".join(words) for words in (("the", "quick"), ("a", "small"), ("12", "+"), ("fox", "jumps"), ("lazy",))]
PROMPTS += [f"{prompt} {number}" for prompt in PROMPTS for number in range(7)]


def distill(*arguments):
    """Runs the launcher in this process; returns its exit code."""
    return tiny.call("cascades.runs.distill.distill", "--config=configs/distill.gin", *arguments)


@pytest.fixture(scope="module")
def answers(tiny_files, tmp_path_factory):
    """Sampled answers of the tiny verifier, as `launch/decode.py` writes them."""
    folder = tmp_path_factory.mktemp("answers")
    prompts, output = folder / "prompts.jsonl", folder / "answers.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in PROMPTS))
    knobs = tiny.pair(tiny_files, METHOD="verifier_only", TEMPERATURE=1.0, BATCH_SIZE=8, IGNORE_EOS=True)
    assert tiny.launch(*knobs, f"--input={prompts}", f"--output={output}") == 0
    return output


@pytest.fixture
def knobs(tiny_files, answers, tmp_path):
    """Returns the knobs of a run in a folder of its own, and others."""

    def chosen(**others):
        given = {"VERIFIER": tiny_files.verifier, "INPUT": str(answers), "OUTPUT_DIR": str(tmp_path / "run")}
        sizes = {"STEPS": 40, "BATCH_SIZE": 8, "PROMPT_TOKENS": 64, "ANSWER_TOKENS": 24, "WARMUP": 5, "HELD_OUT": 0.2}
        often = {
            "EVALUATE_EVERY": 20,
            "SAVE_EVERY": 10,
            "LEARNING_RATE": 0.01,
            "TENSORBOARD": False,
            "DTYPE": "float32",
        }
        given |= sizes | often | {"KIND": "@shallow()"}
        return [*tiny.knobs(**(given | others)), "--gin.shallow.layers=(0,)", "--gin.shallow.vocabulary=40"]

    return chosen


def held_out(folder):
    return [line for line in tiny.lines(folder / "run" / "metrics.jsonl") if line["held_out"]]


def acceptance(tiny_files, drafter, tmp_path, name):
    """Of a drafter through the decoding loop, lossless, at temperature 1."""
    output = tmp_path / f"{name}.jsonl"
    knobs = tiny.pair(tiny_files, DRAFTER=str(drafter), RULE="@lossless", TEMPERATURE=1.0, LOOKAHEAD="@fixed()")
    assert tiny.launch(*knobs, *(f"--prompt=the fox {n}" for n in range(32)), f"--output={output}") == 0
    stats = [line["stats"] for line in tiny.lines(output)]
    return sum(each["accepted"] for each in stats) / sum(each["drafted"] for each in stats)


@pytest.mark.parametrize("on_policy", [0.0, pytest.param(0.5, marks=pytest.mark.slow)])
def test_it_raises_acceptance_and_the_loop_takes_its_drafter(tiny_files, knobs, tmp_path, capsys, on_policy):
    more = {"STEPS": 90, "ON_POLICY": on_policy, "TENSORBOARD": True}
    assert distill(*knobs(STEPS=1, OUTPUT_DIR=str(tmp_path / "begun"), LEARNING_RATE=1e-9)) == 0
    assert distill(*knobs(**more)) == 0
    err = capsys.readouterr().err
    assert "held out: loss" in err and "lets launch/decode.py use it" in err
    first, last = tiny.lines(tmp_path / "begun" / "metrics.jsonl")[-1], held_out(tmp_path)[-1]
    assert last["loss"] < 0.5 * first["loss"]
    assert 1 - last["acceptance"] < 0.85 * (1 - first["acceptance"])
    before, after = (acceptance(tiny_files, tmp_path / name / "drafter", tmp_path, name) for name in ("begun", "run"))
    assert after > before + 0.02
    assert any((tmp_path / "run" / "tensorboard").iterdir())


def test_a_drafter_of_few_tokens_and_a_shared_embedding_changes_nothing_that_is_lossless(
    tiny_files, knobs, tmp_path, capsys
):
    """Its q is zero at most tokens; its embedding is not in its files."""
    assert distill(*knobs(STEPS=1)) == 0
    drafter, ids = tmp_path / "run" / "drafter", []
    for name, method in (
        ("alone", {"METHOD": "verifier_only"}),
        ("pair", {"RULE": "@lossless", "LOOKAHEAD": "@fixed()", "DRAFTER": str(drafter)}),
    ):
        output = tmp_path / f"{name}.jsonl"
        assert tiny.launch(*tiny.pair(tiny_files, **method), "--prompt=the quick", f"--output={output}") == 0
        ids.append(tiny.lines(output)[0]["token_ids"])
    assert ids[0] == ids[1]
    assert not any("embed" in path.name for path in drafter.rglob("*"))
    capsys.readouterr()
    assert tiny.launch(*tiny.knobs(VERIFIER=str(drafter), METHOD="verifier_only"), "--prompt=x") == 2
    assert "is a drafter without the embed of its verifier: give it as DRAFTER" in capsys.readouterr().err


def test_a_drafter_that_reads_hidden_states_learns_and_changes_nothing_that_is_lossless(
    tiny_files, knobs, tmp_path, capsys
):
    eagle = {"KIND": "@eagle()", "RECALL": False}
    given = ["--gin.eagle.layers=(1,)", "--gin.eagle.vocabulary=40"]
    assert distill(*knobs(STEPS=1, OUTPUT_DIR=str(tmp_path / "begun"), LEARNING_RATE=1e-9, **eagle), *given) == 0
    assert distill(*knobs(STEPS=60, **(eagle | {"RECALL": True})), *given) == 0
    first, last = tiny.lines(tmp_path / "begun" / "metrics.jsonl")[-1], held_out(tmp_path)[-1]
    assert last["loss"] < 0.6 * first["loss"]
    before, after = (acceptance(tiny_files, tmp_path / name / "drafter", tmp_path, name) for name in ("begun", "run"))
    assert after > before + 0.02
    drafter, ids = str(tmp_path / "run" / "drafter"), []
    prompts = [f"--prompt=the fox {n}" for n in range(3)]
    methods = {
        "alone": {"METHOD": "verifier_only"},
        "pair": {"DRAFTER": drafter},
        "both": {"DRAFTER": f"ngram://3+{drafter}"},
    }
    for name, method in methods.items():
        output = tmp_path / f"{name}.ids.jsonl"
        method |= {"RULE": "@lossless", "LOOKAHEAD": "@fixed()"}  # as above: one program
        assert tiny.launch(*tiny.pair(tiny_files, **method), *prompts, f"--output={output}") == 0
        ids.append({line["prompt"]: line["token_ids"] for line in tiny.lines(output)})  # a line as each ends
    assert ids[0] == ids[1] == ids[2] and len(ids[0]) == len(prompts)
    capsys.readouterr()
    for method in ("drafter_only", "sequence_cascade"):
        assert tiny.launch(*tiny.pair(tiny_files, DRAFTER=drafter, METHOD=method), "--prompt=x") == 2
        assert "reads what its verifier makes of every token" in capsys.readouterr().err
    assert distill(*knobs(STEPS=1, ON_POLICY=0.5, OUTPUT_DIR=str(tmp_path / "policy"), **eagle), *given) == 2
    assert "cannot answer prompts itself: set ON_POLICY=0" in capsys.readouterr().err


def curve(folder):
    return [(line["step"], line["held_out"], line["loss"]) for line in tiny.lines(folder / "metrics.jsonl")]


@pytest.mark.slow
def test_an_interrupted_run_goes_on_with_the_same_curve(knobs, tmp_path, tiny_files):
    """Killed, it goes on from its last checkpoint; at Ctrl-C and SIGTERM it writes one first."""
    whole = tmp_path / "whole"
    assert distill(*knobs(OUTPUT_DIR=str(whole))) == 0
    expected = curve(whole)
    for number, code in ((signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130), (signal.SIGTERM, 143)):
        folder = tmp_path / number.name
        arguments = knobs(OUTPUT_DIR=str(folder), SAVE_EVERY=10 if number == signal.SIGKILL else 1000)
        command = [sys.executable, str(tiny.ROOT / "launch" / "distill.py"), "--config=configs/distill.gin", *arguments]
        metrics = folder / "metrics.jsonl"
        with subprocess.Popen(
            command, env=tiny.environment(tiny_files), cwd=tiny.ROOT, stderr=subprocess.PIPE, text=True
        ) as process:
            while not (metrics.exists() and len(metrics.read_text().splitlines()) > 14):
                assert process.poll() is None, process.stderr.read()
                time.sleep(0.005)
            process.send_signal(number)
            err = process.stderr.read()
        assert process.returncode == code, err
        assert "Traceback" not in err and not (folder / "drafter").exists()
        assert os.listdir(folder / "checkpoints")
        assert distill(*arguments) == 0
        found = curve(folder)
        assert [each[:2] for each in found] == [each[:2] for each in expected]
        assert [each[2] for each in found] == pytest.approx([each[2] for each in expected], rel=1e-4)
        assert distill(*arguments) == 0  # has ended: nothing is done twice
        assert curve(folder) == found


def test_gradients_of_several_batches_are_those_of_one(knobs, tmp_path):
    for name, sizes in {"one": {"BATCH_SIZE": 8}, "two": {"BATCH_SIZE": 4, "ACCUMULATE": 2}}.items():
        assert distill(*knobs(STEPS=1, OUTPUT_DIR=str(tmp_path / name), **sizes)) == 0
    one, two = (tiny.lines(tmp_path / name / "metrics.jsonl")[1] for name in ("one", "two"))
    assert two["loss"] == pytest.approx(one["loss"], rel=1e-5)
    assert two["gradient"] == pytest.approx(one["gradient"], rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("drafter", ["@shallow()", "@eagle()"])
def test_a_mesh_of_devices_learns_the_same(knobs, tmp_path, tiny_files, drafter):
    """Rows over two of them, weights and their optimizer's state over all four."""
    more = {"STEPS": 3, "KIND": drafter}
    assert distill(*knobs(**more), "--gin.eagle.vocabulary=40") == 0
    command = [sys.executable, str(tiny.ROOT / "launch" / "distill.py"), "--config=configs/distill.gin"]
    arguments = [*knobs(OUTPUT_DIR=str(tmp_path / "mesh"), MESH=(2, 2), **more), "--gin.eagle.vocabulary=40"]
    environment = tiny.environment(tiny_files) | {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    done = subprocess.run([*command, *arguments], env=environment, cwd=tiny.ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    one, four = curve(tmp_path / "run"), curve(tmp_path / "mesh")
    assert [each[2] for each in four] == pytest.approx([each[2] for each in one], rel=1e-3)


@pytest.mark.parametrize("loss", ["jensen_shannon", "rejection"])
def test_other_losses_fall(knobs, tmp_path, loss):
    assert distill(*knobs(LOSS=f"@{loss}")) == 0
    losses = [each["loss"] for each in tiny.lines(tmp_path / "run" / "metrics.jsonl") if not each["held_out"]]
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])


def test_a_model_of_its_own_and_one_that_goes_on(knobs, tmp_path, tiny_files):
    assert distill(*knobs(KIND="@own()", STEPS=3), f"--gin.own.uri='{tiny_files.drafter}'") == 0
    assert (tmp_path / "run" / "drafter" / "cascades.json").exists()


BAD = {
    "kind": ({"KIND": 3}, "KIND must be a kind of drafter with its brackets, as in @shallow(), not 3"),
    "brackets": (
        {"KIND": "@shallow"},
        "KIND must be a kind of drafter with its brackets, as in @shallow(), not ",
    ),
    "steps": ({"STEPS": 0}, "STEPS must be a whole number from 1, not 0"),
    "share": ({"ON_POLICY": 1.5}, "ON_POLICY must be a number from 0 to 1, not 1.5"),
    "rate": ({"LEARNING_RATE": -1.0}, "LEARNING_RATE must be a number above 0, not -1.0"),
    "no_text": ({"INPUT": "nowhere.jsonl"}, "there is no file 'nowhere.jsonl'"),
    "batch": ({"BATCH_SIZE": 512}, "a batch of 512 was asked for, but only"),
    "split": ({"HELD_OUT": 0.0}, "HELD_OUT (0.0) of"),
    "verifier": ({"VERIFIER": "nowhere.gguf"}, "nowhere.gguf"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_told_in_one_sentence(knobs, name, capsys, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # what a user meets
    wrong, sentence = BAD[name]
    assert distill(*knobs(**wrong)) == 2
    err = capsys.readouterr().err
    assert sentence in err and "Traceback" not in err and err.splitlines()[-1].startswith("error: ")


def test_layers_that_are_not_there_and_another_vocabulary(knobs, capsys, tiny_files):
    assert distill(*knobs(), "--gin.shallow.layers=(0, 7)") == 2
    assert "from 0 to 1 or from the end as -1, not (0, 7)" in capsys.readouterr().err
    assert distill(*knobs(), "--gin.shallow.vocabulary=0") == 2
    assert "a drafter's vocabulary must be from 1 to 300, or None, not 0" in capsys.readouterr().err
    assert distill(*knobs(KIND="@own()"), f"--gin.own.uri='{tiny_files.stranger}'") == 2
    assert "vocabular" in capsys.readouterr().err


def test_a_model_of_its_own_begins_anew_with_a_head_of_few_tokens(knobs, tmp_path):
    shape = ["--gin.own.architecture=@decoder()", "--gin.own.vocabulary=40", "--gin.decoder.layers=1"]
    shape += ["--gin.decoder.d_model=16", "--gin.decoder.d_ff=24", "--gin.decoder.heads=2", "--gin.decoder.kv_heads=2"]
    assert distill(*knobs(KIND="@own()"), *shape, "--gin.decoder.head_dim=8") == 0
    first, last = held_out(tmp_path)[0], held_out(tmp_path)[-1]
    assert last["loss"] < first["loss"]
    config = json.loads((tmp_path / "run" / "drafter" / "cascades.json").read_text())
    assert '"head_tokens": 40' in json.dumps(config) and '"d_model": 16' in json.dumps(config)


def test_another_run_in_the_folder_is_told(knobs, capsys):
    assert distill(*knobs(STEPS=1)) == 0
    assert distill(*knobs(STEPS=1, SEED=1)) == 2
    assert "holds a run with another SEED" in capsys.readouterr().err


def test_a_loss_that_is_no_number_keeps_the_last_checkpoint(knobs, tmp_path, capsys, monkeypatch):
    real = fit.jax.device_get
    monkeypatch.setattr(fit.jax, "device_get", lambda found: poison(real(found)))

    def poison(found):
        if not isinstance(found, dict) or "gradient" not in found:  # of a step, not of an evaluation
            return found
        poison.steps += 1
        return found | ({"loss": float("nan")} if poison.steps == 13 else {})

    poison.steps = 0
    assert distill(*knobs()) == 2
    assert "loss is nan at step 13; the checkpoint of step 10 is kept" in capsys.readouterr().err
    assert os.listdir(tmp_path / "run" / "checkpoints") == ["10"]
    assert len(tiny.lines(tmp_path / "run" / "metrics.jsonl")) == 13  # with the evaluation before


def test_a_disk_without_room_for_a_checkpoint_is_told_before(knobs, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(fit.shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10**9, 10**9, 1000))
    assert distill(*knobs(STEPS=10)) == 2
    err = capsys.readouterr().err
    assert "has 0 MB left; no checkpoint was written before: make room and run the same command again" in err
    assert not os.listdir(tmp_path / "run" / "checkpoints")


def test_a_full_disk_keeps_the_last_checkpoint(knobs, tmp_path, capsys, monkeypatch):
    real = fit.ocp.CheckpointManager.save

    def full(self, step, **options):
        if step == 20:
            raise OSError(28, "No space left on device")
        return real(self, step, **options)

    monkeypatch.setattr(fit.ocp.CheckpointManager, "save", full)
    assert distill(*knobs()) == 2
    err = capsys.readouterr().err
    assert "the checkpoint of step 20 could not be written" in err and "that of step 10 is kept" in err
    assert os.listdir(tmp_path / "run" / "checkpoints") == ["10"]
