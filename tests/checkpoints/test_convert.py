import importlib.util
import json
import pathlib
import sys

import gguf
import jax.numpy as jnp
import pytest
from absl import flags

from cascades import checkpoints
from cascades.errors import UserError
from cascades.tokenizers import load as load_tokenizer

LAUNCHER = pathlib.Path(__file__).parents[2] / "launch" / "convert.py"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gguf_to_orbax_and_back(model, write_gguf, tmp_path, assert_params, dtype):
    source = write_gguf(model, quantise=gguf.GGMLQuantizationType.Q8_0)
    checkpoints.convert(source, tmp_path / "ours", dtype=dtype)
    ours = checkpoints.load(tmp_path / "ours", dtype=getattr(jnp, dtype))
    theirs = checkpoints.load(source, dtype=getattr(jnp, dtype))
    assert ours.config == theirs.config
    assert_params(ours.params, theirs.params, getattr(jnp, dtype))
    assert load_tokenizer(ours.path).fingerprint == load_tokenizer(source).fingerprint


def test_huggingface_to_orbax(build, write_huggingface, tmp_path, assert_params):
    model = build("gemma3")
    directory = write_huggingface(model)
    (directory / "tokenizer.json").write_text(json.dumps({}))
    checkpoints.convert(directory, tmp_path / "ours", dtype="float32")
    assert_params(checkpoints.load(tmp_path / "ours").params, model.params)
    assert (tmp_path / "ours" / "tokenizer.json").exists()


def test_a_taken_target_is_found_before_anything_is_read(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is taken"):
        checkpoints.convert(tmp_path / "no such source", tmp_path / "file")
    with pytest.raises(UserError, match="float32 or bfloat16, not 'int4'"):
        checkpoints.convert(tmp_path / "no such source", tmp_path / "new", dtype="int4")


@pytest.fixture
def launch(monkeypatch):
    """Returns the launcher's `main`, with flags of its own."""
    monkeypatch.setattr(flags, "FLAGS", flags.FlagValues())
    for name in ("DEFINE_string", "DEFINE_multi_string", "DEFINE_boolean"):
        define = getattr(flags, name)
        monkeypatch.setattr(flags, name, lambda *args, define=define: define(*args, flag_values=flags.FLAGS))
    spec = importlib.util.spec_from_file_location("launch_convert", LAUNCHER)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "launch_convert", module)
    spec.loader.exec_module(module)
    return lambda *arguments: module.main(["convert.py", *arguments])


def test_the_launcher(launch, build, write_gguf, tmp_path, capsys):
    source = write_gguf(build("llama"))
    launch(f"--source={source}", f"--target={tmp_path / 'ours'}", "--dtype=float32")
    assert capsys.readouterr().out == f"wrote {tmp_path / 'ours'}\n"
    assert checkpoints.read_config(tmp_path / "ours").num_layers == 2


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--source=/nowhere/model.gguf", "--target={}/new"], "there is no file or directory /nowhere/model.gguf"),
        (["--source=x"], "--source and --target are both needed"),
        (["--sauce=x"], "sauce"),
        (["x"], "unexpected argument 'x'"),
        (["--inspect=x", "--source=y"], "leave --source and --target out"),
        (["--inspect=x", "--inspect=y", "--inspect=z"], "one model or a pair"),
    ],
)
def test_a_bad_command_line_is_one_sentence(launch, tmp_path, capsys, arguments, reason):
    with pytest.raises(SystemExit) as exit_:
        launch(*(each.format(tmp_path) for each in arguments))
    assert exit_.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and reason in error and error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_source_leaves_nothing(launch, build, write_gguf, tmp_path):
    source = write_gguf(build("llama"), without=("blk.0.attn_q.weight",))
    with pytest.raises(SystemExit):
        launch(f"--source={source}", f"--target={tmp_path / 'ours'}")
    assert [path.name for path in tmp_path.iterdir()] == ["model.gguf"]


def test_help(launch, capsys):
    launch("--help")
    assert "--source" in capsys.readouterr().out


def test_a_model_is_inspected(launch, build, write_gguf, tmp_path, capsys):
    source = write_gguf(build("llama"))
    launch(f"--inspect={source}")
    out = capsys.readouterr().out
    assert out.startswith(f"model             {source}\n") and "it would load" in out
    assert [path.name for path in tmp_path.iterdir()] == ["model.gguf"]


@pytest.mark.parametrize("arguments", [["--inspect={0}", "--inspect={0}"], ["--inspect", "{0}", "{0}"]])
def test_a_pair_is_inspected(launch, build, write_gguf, capsys, arguments):
    source = write_gguf(build("llama"))
    launch(*(each.format(source) for each in arguments), "--json")
    report = json.loads(capsys.readouterr().out)
    assert report["loads"] and report["pair"]["shared_vocabulary"] == 48


@pytest.mark.parametrize("uris", [["{0}"], ["{0}", "ngram://3"], ["{0}/nothing"]])
def test_what_would_be_refused_is_printed_and_the_exit_code_is_2(launch, build, write_gguf, capsys, uris):
    source = write_gguf(build("llama"), without=("blk.0.attn_q.weight",))
    with pytest.raises(SystemExit) as exit_:
        launch(*(f"--inspect={uri.format(source)}" for uri in uris))
    assert exit_.value.code == 2
    captured = capsys.readouterr()
    assert "refused" in captured.out and captured.err == ""
