"""Whatever a user gets wrong at `launch/decode.py`: one sentence, exit code 2, before any compile, nothing written."""

import json
import math
from pathlib import Path

import jaxtyping
import pytest
import tiny

from cascades.generation import engine

HASH = "0" * 64


@pytest.fixture(autouse=True)
def no_compile(monkeypatch, tmp_path):
    """Fails a test that compiles; runs every test in a folder of its own."""
    monkeypatch.setattr(engine, "compile_for", lambda *args: pytest.fail("compiled before the error"))
    monkeypatch.setattr("cascades.runs.decode.compilation_cache", lambda: None)  # it outlives a test
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # what a user meets, without the tests' own checks
    monkeypatch.chdir(tmp_path)


def contents(*folders):
    """Returns every file under the folders with its bytes."""
    return {
        path: path.read_bytes() if path.is_file() else None for folder in folders for path in Path(folder).rglob("*")
    }


@pytest.fixture
def refused(tiny_files, tmp_path, capsys):
    """Returns a function that launches and returns the one sentence that comes of it."""

    def launch(*arguments, **options):
        before = contents(tmp_path, Path(tiny_files.verifier).parent)
        code = tiny.launch(*arguments, **options)
        out, err = capsys.readouterr()
        assert code == 2, err
        assert out == ""
        assert err.startswith("error: ") and err.count("\n") == 1 and err.endswith("\n"), err
        assert len(err) < 900 and "Traceback" not in err, err
        assert contents(tmp_path, Path(tiny_files.verifier).parent) == before
        return err

    return launch


# Each: the knobs that are wrong, and what the sentence says of them.
KNOBS = {
    "method_unknown": ({"METHOD": "speculativ"}, "METHOD must be speculative or verifier_only"),
    "method_no_string": ({"METHOD": 3}, "METHOD must be"),
    "coupling_unknown": ({"COUPLING": "optimal"}, "COUPLING must be maximal or gumbel, not 'optimal'"),
    "bonus_unknown": ({"BONUS": "drafter"}, "BONUS must be verifier or target, not 'drafter'"),
    "alpha_too_large_v3": ({"ALPHA": 1.5}, "ALPHA for token_v3 must be a number from 0 to 1, not 1.5"),
    "alpha_too_small_diff": ({"RULE": "@diff", "ALPHA": -2}, "ALPHA for diff must be a number from -1 to 1, not -2"),
    "alpha_infinite_v3": ({"ALPHA": math.inf}, "ALPHA for token_v3 must be a number from 0 to 1, not inf"),
    "alpha_negative_sequence": ({"METHOD": "sequence_cascade", "ALPHA": -1.0}, "ALPHA for a sequence cascade"),
    "alpha_text": ({"ALPHA": "0.1"}, "ALPHA for token_v3 must be a number from 0 to 1, not '0.1'"),
    "alpha_none": ({"ALPHA": None}, "ALPHA for token_v3 must be a number from 0 to 1, not None"),
    "temperature_negative": ({"TEMPERATURE": -0.5}, "TEMPERATURE must be a number from 0 to 100, not -0.5"),
    "temperature_infinite": ({"TEMPERATURE": math.inf}, "TEMPERATURE must be a number from 0 to 100, not inf"),
    "k_max_zero": ({"K_MAX": 0, "COSTS": None}, "K_MAX must be a whole number from 1 to 64, not 0"),
    "k_max_too_large": ({"K_MAX": 65, "COSTS": None}, "K_MAX must be a whole number from 1 to 64, not 65"),
    "k_max_fraction": ({"K_MAX": 2.5, "COSTS": None}, "K_MAX must be a whole number"),
    "batch_size_zero": ({"BATCH_SIZE": 0}, "BATCH_SIZE must be a whole number from 1 to 4096, not 0"),
    "top_k_negative": ({"TOP_K": -1}, "TOP_K must be a whole number"),
    "top_p_zero": ({"TOP_P": 0.0}, "TOP_P must be greater than 0"),
    "top_p_too_large": ({"TOP_P": 1.5}, "TOP_P must be a number from 0 to 1, not 1.5"),
    "min_p_negative": ({"MIN_P": -1}, "MIN_P must be a number from 0 to 1, not -1"),
    "max_new_tokens_zero": ({"MAX_NEW_TOKENS": 0}, "MAX_NEW_TOKENS must be a whole number from 1"),
    "seed_negative": ({"SEED": -1}, "SEED must be a whole number from 0"),
    "seed_bool": ({"SEED": True}, "SEED must be a whole number from 0"),
    "context_too_small": ({"CONTEXT": 1}, "CONTEXT must be a whole number from 2"),
    "context_above_the_model": ({"CONTEXT": 4096}, "CONTEXT must be at most 320, which is what the models can hold"),
    "stop_number": ({"STOP": 5}, "STOP must be a list of strings"),
    "stop_numbers": ({"STOP": [5]}, "STOP must be a list of strings"),
    "stop_empty": ({"STOP": [""]}, "STOP must be a list of strings that are not empty"),
    "strict_negative": ({"STRICT": -1}, "STRICT must be a whole number from 0"),
    "strict_of_a_drafter": (
        {"STRICT": 5, "METHOD": "drafter_only"},
        "STRICT=5 leaves the first tokens of an answer to",
    ),
    "ignore_eos_text": ({"IGNORE_EOS": "False"}, "IGNORE_EOS must be True or False, not 'False'"),
    "raw_prompt_text": ({"RAW_PROMPT": "yes"}, "RAW_PROMPT must be True or False, not 'yes'"),
    "control_tokens_text": ({"CONTROL_TOKENS": "no"}, "CONTROL_TOKENS must be True, False or None, not 'no'"),
    "chat_template_number": ({"CHAT_TEMPLATE": 3}, "CHAT_TEMPLATE must be the name of a chat template in quotes"),
    "chat_template_unknown": ({"CHAT_TEMPLATE": "rag"}, "chat template 'rag', but the model has none at all"),
    "costs_number": ({"K_MAX": 8, "COSTS": 1.0}, "COSTS must be (c, (v_0, …, v_8))"),
    "costs_too_few": ({"K_MAX": 8, "COSTS": (0.2, (1.0, 1.0))}, "must be 9 positive numbers"),
    "costs_text": ({"K_MAX": 8, "COSTS": ("a", (1.0,) * 9)}, "COSTS must be (c, (v_0, …, v_8))"),
    "dtype_unknown": ({"DTYPE": "float16"}, "DTYPE must be one of float32, bfloat16, not 'float16'"),
    "mesh_number": ({"MESH": 4}, "MESH must be (data, model), two whole numbers from 1, as in (1, 4), not 4"),
    "mesh_zero": ({"MESH": (0, 1)}, "MESH must be (data, model)"),
    "mesh_too_large": ({"MESH": (1, 64)}, "a mesh of 1 x 64 needs 64 devices, and there are"),
    "mesh_and_batch": ({"MESH": (3, 1), "BATCH_SIZE": 4}, "BATCH_SIZE must be a multiple of the 3 ways"),
    "kernels_text": ({"KERNELS": "no"}, "KERNELS must be True or False, not 'no'"),
    "weights_unknown": ({"WEIGHTS": "int4"}, "WEIGHTS must be 'int8' or 'w8a8' or None, not 'int4'"),
    "drafter_cache_unknown": ({"DRAFTER_CACHE": "int4"}, "DRAFTER_CACHE must be 'int8' or None, not 'int4'"),
    "verifiers": ({"VERIFIER": ["a", "b"]}, "VERIFIER must be a path or URI in quotes"),
    "strategy_unknown": ({"STRATEGY": "pipeline"}, "STRATEGY must be one of replicated, vocab, tensor, fsdp"),
    "drafter_strategy_unknown": ({"DRAFTER_STRATEGY": None}, "DRAFTER_STRATEGY must be one of"),
    "rule_unknown": ({"RULE": "@token_v4"}, "there is no function token_v4 (did you mean token_v3"),
    "rule_text": ({"RULE": "token_v3"}, "RULE must be a deferral rule such as @token_v3"),
    "rule_called": ({"RULE": "@token_v3()"}, "@token_v3() needs pair and alpha: write @token_v3"),
    "rule_is_a_lookahead": ({"RULE": "@fixed"}, "RULE must be a function (pair, alpha) -> Target"),
    "lookahead_is_a_rule": ({"LOOKAHEAD": "@token_v3"}, "LOOKAHEAD must be a draft-length controller"),
    "lookahead_text": ({"LOOKAHEAD": "fixed"}, "LOOKAHEAD must be a draft-length controller"),
    "fixed_half": ({"LOOKAHEAD": "@fixed()", "fixed.k": 2.5}, "fixed.k must be a whole number from 0 to 1048576, not"),
    "guided_memory": ({"verifier_guided.memory": 2}, "verifier_guided.memory must be a number from 0 to 1, not 2"),
    "token_cascade_with_opt": (
        {"METHOD": "token_cascade", "RULE": "@opt"},
        "a token cascade needs a rule that looks at",
    ),
    "knob_misspelt": (
        {"TEMPRATURE": 1.0},
        "nothing in configs/decode.gin reads TEMPRATURE (did you mean TEMPERATURE?)",
    ),
    "verifier_number": ({"VERIFIER": 3}, "VERIFIER must be a path or URI in quotes"),
    "verifier_empty": ({"VERIFIER": ""}, "VERIFIER must be a path or URI in quotes"),
    "verifier_missing": ({"VERIFIER": "no/such/model.gguf"}, "there is no file or directory no/such/model.gguf"),
    "verifier_scheme": ({"VERIFIER": "ftp://host/model"}, "weights should come from"),
    "verifier_hub_form": ({"VERIFIER": "hf://only-one"}, "hf://org/repo"),
    "verifier_preset_unknown": ({"VERIFIER_PRESET": "gema2_2b"}, "gemma2_2b"),
    "drafter_none": ({"DRAFTER": None}, "METHOD='speculative' needs a drafter: set DRAFTER"),
    "drafter_missing": ({"DRAFTER": "no/such/folder"}, "there is no file or directory no/such/folder"),
    "ngram_zero": ({"DRAFTER": "ngram://0"}, "with N at least 1 and at most 32, as in ngram://3"),
    "ngram_many": ({"DRAFTER": "ngram://100000"}, "with N at least 1 and at most 32, as in ngram://3"),
    "ngram_text": ({"DRAFTER": "ngram://x"}, "an n-gram drafter is written ngram://N"),
    "ngram_and_nothing": ({"DRAFTER": "ngram://3+"}, "or ngram://N+URI to help another, not 'ngram://3+'"),
    "ngram_and_missing": ({"DRAFTER": "ngram://3+no/such/folder"}, "there is no file or directory no/such/folder"),
    "shipped_unknown": ({"DRAFTER": "shipped://x"}, "no drafter 'x' comes with this package"),
}


@pytest.mark.parametrize("name", KNOBS)
def test_a_wrong_knob(refused, tiny_files, name):
    values, said = KNOBS[name]
    assert said in refused(*tiny.pair(tiny_files, **values), "--prompt=hi", "--output=answers.jsonl")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--gin.METHOD=verifier_only"], "a string is quoted twice"),
        (["--gin.ALPHA=nan"], "this is no gin value"),
        (["--gin.ALPHA"], "a knob is set as --gin.NAME=VALUE"),
        (["--gin.ALPHA="], "a knob is set as --gin.NAME=VALUE"),
        (["--gin.decode.alfa=0.1"], "decode has no argument alfa (did you mean Settings.alpha"),
        (["--gin.Settings.alfa=0.1"], "Settings has no argument alfa (did you mean alpha"),
        (["--gin.drafter/ModelSpec.wheights='int8'"], "ModelSpec has no argument wheights (did you mean weights"),
        (["--gin.teacher/ModelSpec.weights='int8'"], "nothing in configs/decode.gin reads teacher/ModelSpec.weights"),
        (["--promt=hi"], "promt"),
        (["hi"], "unexpected argument 'hi'"),
    ],
    ids=[
        "string_unquoted",
        "alpha_nan",
        "no_value",
        "empty_value",
        "argument_misspelt",
        "field_misspelt",
        "field_of_a_scope_misspelt",
        "scope_misspelt",
        "flag_misspelt",
        "no_flag",
    ],
)
def test_a_wrong_command_line(refused, tiny_files, arguments, said):
    assert said in refused(*tiny.pair(tiny_files), "--prompt=hi", *arguments)


def test_no_config(refused, tiny_files):
    assert "--config is missing" in refused(*tiny.pair(tiny_files), config_file=None)


def test_a_config_that_is_not_there(refused, tiny_files):
    said = refused(*tiny.pair(tiny_files), config_file="configs/decod.gin")
    assert "there is no gin file configs/decod.gin" in said and "did you mean configs/decode.gin" in said


@pytest.mark.parametrize("line", ["ALPHA = = 3", "METHOD = 'speculative", "ALPHA = (1,"])
def test_a_config_with_a_syntax_error(refused, tiny_files, tmp_path, line):
    (tmp_path / "mine.gin").write_text(f"include 'configs/decode.gin'\n{line}\n")
    assert "mine.gin, line " in refused(*tiny.pair(tiny_files), config_file="mine.gin")


def test_a_required_knob_that_is_not_set(refused):
    said = refused("--prompt=hi", config_file="configs/pairs/custom.gin")
    assert "VERIFIER must be set: add --gin.VERIFIER=VALUE" in said


# Models.


def test_a_truncated_file(refused, tiny_files, tmp_path):
    whole = Path(tiny_files.verifier).read_bytes()
    for name, size in (("head.gguf", 40), ("keys.gguf", 3000), ("weights.gguf", len(whole) - 64)):
        (tmp_path / name).write_bytes(whole[:size])
        said = refused(*tiny.pair(tiny_files, VERIFIER=name), "--prompt=hi")
        assert name in said and "cut off" in said


def test_files_that_are_no_models(refused, tiny_files, tmp_path):
    (tmp_path / "notes.txt").write_text("these are my notes\n")
    (tmp_path / "empty.gguf").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    assert "should be a GGUF file" in refused(*tiny.pair(tiny_files, VERIFIER="notes.txt"), "--prompt=hi")
    assert "whole GGUF file" in refused(*tiny.pair(tiny_files, VERIFIER="empty.gguf"), "--prompt=hi")
    assert "holds nothing" in refused(*tiny.pair(tiny_files, VERIFIER="folder"), "--prompt=hi")


def test_a_wrong_checksum(tiny_files, tmp_path, monkeypatch, capsys):
    home = tmp_path / "home"
    file = home / "pypi" / "tiny-1.0" / "tiny.gguf"
    file.parent.mkdir(parents=True)
    file.write_bytes(Path(tiny_files.verifier).read_bytes())
    monkeypatch.setenv("CASCADES_CACHE", str(home))
    uri = f"pypi://tiny==1.0/tiny.gguf#sha256={HASH}"
    assert tiny.launch(*tiny.pair(tiny_files, VERIFIER=uri), "--prompt=hi") == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and f"should have the sha256 {HASH}" in err
    assert list(file.parent.iterdir()) == []  # neither the file nor a part of it


def test_a_drafter_with_another_vocabulary(refused, tiny_files):
    said = refused(*tiny.pair(tiny_files, DRAFTER=tiny_files.stranger), "--prompt=hi")
    assert "must share one vocabulary" in said


# Prompts and results.


def test_a_prompt_longer_than_the_context(refused, tiny_files):
    said = refused(*tiny.pair(tiny_files), f"--prompt={'z' * 400}")
    assert "prompt 1 of 1 has 400 tokens, which leaves no room for an answer in a context of 320" in said
    said = refused(*tiny.pair(tiny_files, CONTEXT=2), "--prompt=the quick")
    assert "leaves no room for an answer in a context of 2: shorten it, or raise CONTEXT" in said


@pytest.mark.parametrize("prompt", ["", "  \n"])
def test_an_empty_prompt(refused, tiny_files, prompt):
    assert "empty prompt" in refused(*tiny.pair(tiny_files), f"--prompt={prompt}")


def test_no_prompt_at_all(refused, tiny_files):
    assert "at least one prompt is needed" in refused(*tiny.pair(tiny_files, DEFAULT_PROMPT=None))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('\n{"prompt": \n', "line 2 of prompts.jsonl should be JSON"),
        ('\n\n{"answer": "b"}\n', "line 3 of prompts.jsonl holds no prompt"),
        ("[1, 2]\n", "line 1 of prompts.jsonl holds no prompt"),
        ('{"prompt": 3}\n', "line 1 of prompts.jsonl holds no prompt"),
        ('{"prompt": " "}\n', "line 1 of prompts.jsonl holds an empty prompt"),
        ("", "prompts.jsonl holds no prompt"),
        ("\n\n", "prompts.jsonl holds no prompt"),
        (b"\xff\xfe\x00", "UTF-8"),
    ],
    ids=["torn", "no_prompt", "list", "number", "blank", "empty", "empty_lines", "not_utf8"],
)
def test_a_wrong_input_file(refused, tiny_files, tmp_path, text, said):
    (tmp_path / "prompts.jsonl").write_bytes(text if isinstance(text, bytes) else text.encode())
    assert said in refused(*tiny.pair(tiny_files), "--input=prompts.jsonl")


def test_an_input_file_that_is_not_there(refused, tiny_files, tmp_path):
    (tmp_path / "folder").mkdir()
    assert "no.jsonl" in refused(*tiny.pair(tiny_files), "--input=no.jsonl")
    assert "folder" in refused(*tiny.pair(tiny_files), "--input=folder")
    assert "can be read" in refused(*tiny.pair(tiny_files), "--input=")


def test_an_output_that_cannot_be_written(refused, tiny_files, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    knobs = tiny.pair(tiny_files)
    assert "folder is a folder" in refused(*knobs, "--prompt=hi", "--output=folder")
    assert "there is no folder nowhere" in refused(*knobs, "--prompt=hi", "--output=nowhere/answers.jsonl")
    assert "there is no folder file" in refused(*knobs, "--prompt=hi", "--output=file/answers.jsonl")


def test_results_of_an_earlier_run_stay(refused, tiny_files, tmp_path):
    (tmp_path / "answers.jsonl").write_text(json.dumps({"text": "old"}) + "\n" + '{"torn')
    refused(*tiny.pair(tiny_files, VERIFIER="gone.gguf"), "--prompt=hi", "--output=answers.jsonl")
