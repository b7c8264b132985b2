"""The gin launcher, on toy run functions and temporary gin files."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from absl import flags
from absl.testing import flagsaver

from cascades import config, rules
from cascades.config import statements
from cascades.errors import UserError
from cascades.lookahead import given_costs

ROOT = Path(__file__).resolve().parents[1]
BASE = """
DRAFTER = %gin.REQUIRED
RULE = @token_v3
LOOKAHEAD = @fixed()
ALPHA = 0.1
toy.drafter = %DRAFTER
toy.rule = %RULE
toy.lookahead = %LOOKAHEAD
toy.alpha = %ALPHA
"""
COSTS = given_costs(4, 0.2)
GIVEN = ("DRAFTER='a/b'",)

flags.DEFINE_multi_string("toy_prompt", None, "A prompt; may be repeated.")
calls = []


def toy(*, drafter, rule, lookahead, alpha, width=2, toy_prompt=("none",), config_text=None):
    """Records what it was called with; misbehaves as it is told by `drafter`."""
    calls.append(locals().copy())
    if drafter == "bad":
        raise UserError("bad drafter: give a good one")
    if drafter == "stop":
        raise KeyboardInterrupt
    return config_text and config_text()


def pair_of_toys(*, first, second):
    """Takes two values, to see how often a macro is evaluated."""
    return first, second


def build(kind="plain"):
    """Returns a new object a call."""
    return [kind]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Runs every test in a new folder with `base.gin`, and forgets flags and calls."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "base.gin").write_text(BASE)
    calls.clear()
    with flagsaver.flagsaver():
        yield tmp_path


def error(*overrides, path="base.gin"):
    """Returns the sentence with which a configuration is refused."""
    with pytest.raises(UserError) as caught:
        config.configure(toy, path, overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def called(*overrides, path="base.gin"):
    """Returns the arguments with which the configured toy is called."""
    config.configure(toy, path, overrides)()
    return calls[-1]


def launch(*arguments):
    """Runs the launcher in this process and returns its exit code."""
    try:
        config.run(toy, flags=("toy_prompt",), argv=["launcher", *arguments])
    except SystemExit as stop:
        return stop.code
    return 0


# What a user sets.


def test_knobs_of_the_file_reach_the_function():
    arguments = called(*GIVEN)
    assert (arguments["drafter"], arguments["alpha"], arguments["width"]) == ("a/b", 0.1, 2)
    assert arguments["rule"].__name__ == "token_v3" and hasattr(arguments["lookahead"], "propose")


def test_overrides_win_and_the_last_one_wins():
    assert called(*GIVEN, "ALPHA=0.2", "ALPHA=0.3", "toy.width=7")["alpha"] == 0.3
    assert calls[-1]["width"] == 7


@pytest.mark.parametrize("name", rules.__all__)
def test_every_rule_has_a_short_name(name):
    assert called(*GIVEN, f"RULE=@{name}")["rule"].__wrapped__ is getattr(rules, name)


def test_a_function_itself_and_what_it_returns():
    assert called(*GIVEN, "LOOKAHEAD=@fixed")["lookahead"].__name__ == "fixed"
    assert hasattr(called(*GIVEN, "LOOKAHEAD=@heuristic()")["lookahead"], "propose")


def test_arguments_of_a_factory_and_of_a_rule_can_be_bound():
    lookahead = called(*GIVEN, "fixed.k=3")["lookahead"]
    assert lookahead.init(2, COSTS).tolist() == [3, 3]
    assert "fixed.k = 3" in config.operative()


def test_a_rule_of_ones_own_is_found_in_the_current_folder(folder):
    (folder / "my_rules.py").write_text("def mine(pair, alpha):\n    return 'mine'\n")
    assert called(*GIVEN, "RULE=@my_rules.mine")["rule"](None, 0.0) == "mine"


def test_a_function_of_a_library_is_named_by_its_path(folder):
    (folder / "mine.gin").write_text("include 'base.gin'\nRULE = @json.dumps()\njson.dumps.obj = [1]\n")
    assert called(*GIVEN, path="mine.gin")["rule"] == "[1]"


def test_includes_are_found_beside_the_working_folder_and_under_the_repository(folder, monkeypatch):
    (folder / "run.gin").write_text("include 'parts/alpha.gin'\n")
    (folder / "repository" / "parts").mkdir(parents=True)
    (folder / "repository" / "parts" / "alpha.gin").write_text("include 'base.gin'\nALPHA = 0.7\n")
    assert "there is no gin file parts/alpha.gin" in error(*GIVEN, path="run.gin")
    monkeypatch.setattr(statements, "ROOT", folder / "repository")
    assert called(*GIVEN, path="run.gin")["alpha"] == 0.7


def test_a_knob_of_an_included_file_that_nobody_reads_is_no_error(folder):
    (folder / "pair.gin").write_text("VERIFIER = 'v'\nDRAFTER = 'd'\n")
    (folder / "run.gin").write_text("include 'base.gin'\ninclude 'pair.gin'\n")
    assert called(path="run.gin")["drafter"] == "d"


def test_a_macro_is_a_recipe_and_not_a_value(folder):
    name = f"{__name__}.build"
    text = f"M = @{name}()\npair_of_toys.first = %M\npair_of_toys.second = %M\n"
    (folder / "pair.gin").write_text(text)
    first, second = config.configure(pair_of_toys, "pair.gin")()
    assert first == second == ["plain"] and first is not second


def test_the_function_can_be_configured_again_in_one_process():
    assert called(*GIVEN, "ALPHA=0.9")["alpha"] == 0.9
    assert called(*GIVEN)["alpha"] == 0.1


def test_the_operative_config_repeats_the_run(folder):
    arguments = called(*GIVEN, "RULE=@lossy", "ALPHA=0.25", "fixed.k=5")
    (folder / "again.gin").write_text(config.operative())
    again = called(path="again.gin")
    assert again["rule"] is arguments["rule"] and again["alpha"] == 0.25 and again["drafter"] == "a/b"
    assert again["lookahead"].init(1, COSTS).tolist() == [5]


# What a user gets wrong: one sentence, with what came and what to do.


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("ALPAH=0.9", ["--gin.ALPAH=0.9", "did you mean ALPHA?", "its knobs are ALPHA, DRAFTER, LOOKAHEAD, RULE"]),
        ("alpha=0.9", ["nothing in base.gin reads alpha", "did you mean ALPHA?"]),
        ("DRAFTER=a/b", ["this is no gin value", "--gin.DRAFTER=\"'a/b'\""]),
        ("DRAFTER=/a/b", ["--gin.DRAFTER=\"'/a/b'\""]),
        ("DRAFTER=hf://a/b", ["--gin.DRAFTER=\"'hf://a/b'\""]),
        ("DRAFTER='a/b", ["--gin.DRAFTER=\"'a/b'\""]),
        ("DRAFTER=[1,", ["this is no gin value"]),
        ("RULE=token_v3", ["a function is @name"]),
        ("RULE=@token_v9", ["no function token_v9", "did you mean token_v", "lossless, chow", "verifier_guided"]),
        ("RULE=@rules.token_v9", ["no function rules.token_v9", "did you mean token_v"]),
        ("RULE=@no_such_module.mine", ["no function no_such_module.mine", "@my_rules.my_rule"]),
        ("RULE=@json.dumsp", ["json has no function dumsp", "dumps"]),
        ("RULE=@token_v3()", ["needs pair and alpha", "write @token_v3 to pass the function itself"]),
        ("token_v3.alpha=0.3", ["passes alpha to a rule", "ALPHA"]),
        ("toy.alhpa=0.3", ["toy has no argument alhpa", "did you mean alpha?"]),
        ("toi.alpha=0.3", ["no function toi", "did you mean toy?"]),
        ("fixed.kk=3", ["fixed has no argument kk", "it takes k"]),
    ],
)
def test_a_wrong_override(override, parts):
    sentence = error(*GIVEN, override)
    assert all(part in sentence for part in parts), sentence


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (BASE + "ALPAH = 3\n", ["wrong.gin, line 10: nothing in wrong.gin reads ALPAH", "did you mean ALPHA?"]),
        ("include 'base.gin'\nALPAH = 3\n", ["wrong.gin, line 2", "did you mean ALPHA?"]),
        ("toy.alpha = 1\ntoy.rule = = @opt\n", ["wrong.gin, line 2", "toy.rule = = @opt"]),
        ("toy.alpha = nan\n", ["wrong.gin, line 1", "'nan'"]),
        ("toy.alpha = (3,\n", ["wrong.gin, line"]),
        ("toy.drafter = 'x\n", ["wrong.gin, line 1"]),
        ("toy:\n  alpha = 1\n width = 2\n", ["wrong.gin, line 3"]),
        ("toy.rule = @token_v9\n", ["wrong.gin, line 1", "did you mean token_v"]),
        ("toy.alpha = %ALPHA\n", ["wrong.gin, line 1: ALPHA is read but never set", "--gin.ALPHA=VALUE"]),
        ("include 'no/base.gin'\n", ["wrong.gin, line 1: there is no gin file no/base.gin"]),
        ("include 'wrong.gin'\n", ["wrong.gin: the file includes itself"]),
        ("import my_rules\n", ["wrong.gin, line 1: name functions by their path"]),
        ("from __gin__ import dynamic_registration\n", ["wrong.gin, line 1: name functions by their path"]),
        ("toy.alpha = %gin.REQUIRED\n", ["toy.alpha must be set", "--gin.toy.alpha=VALUE"]),
    ],
)
def test_a_wrong_file(folder, text, parts):
    (folder / "wrong.gin").write_text(text)
    sentence = error(path="wrong.gin")
    assert all(part in sentence for part in parts), sentence


def test_a_syntax_error_in_an_included_file_names_that_file(folder):
    (folder / "broken.gin").write_text("\n\nALPHA 3\n")
    (folder / "run.gin").write_text("include 'base.gin'\ninclude 'broken.gin'\n")
    assert error(*GIVEN, path="run.gin").startswith("broken.gin, line 3: ")


def test_a_required_knob_is_named():
    assert error().startswith("base.gin: DRAFTER must be set: add --gin.DRAFTER=VALUE")


def test_a_misspelt_knob_comes_before_the_required_one_that_it_meant():
    assert "did you mean DRAFTER?" in error("DRAFTR='x'")


def test_a_missing_file_is_named_with_its_near_names(folder, monkeypatch):
    (folder / "configs").mkdir()
    (folder / "configs" / "decode.gin").write_text(BASE)
    monkeypatch.setattr(statements, "ROOT", folder)
    sentence = error(path="configs/decoed.gin")
    assert "no gin file configs/decoed.gin" in sentence and "did you mean configs/decode.gin?" in sentence


def test_a_broken_module_of_ones_own_says_why(folder):
    (folder / "broken_rules.py").write_text("def mine(pair, alpha) return 1\n")
    assert "importing broken_rules failed: SyntaxError" in error(*GIVEN, "RULE=@broken_rules.mine")


def test_a_function_of_ones_own_may_not_take_a_known_name(folder):
    (folder / "their_rules.py").write_text("def token_v3(pair, alpha):\n    return pair\n")
    assert "the name is taken by cascades.rules.token_v3" in error(*GIVEN, "RULE=@their_rules.token_v3")


# The command line.


def test_flags_of_the_launcher_are_passed_on():
    assert launch("--config=base.gin", "--gin.DRAFTER='x'", "--toy_prompt=a", "--toy_prompt=b c") == 0
    assert calls[-1]["toy_prompt"] == ["a", "b c"] and "toy.drafter = %DRAFTER" in calls[-1]["config_text"]()
    assert launch("--config", "base.gin", "--gin.DRAFTER='x'") == 0


def test_a_flag_that_is_not_set_leaves_the_default():
    assert launch("--config=base.gin", "--gin.DRAFTER='x'") == 0
    assert calls[-1]["toy_prompt"] == ("none",)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "error: --config is missing"),
        (["--config=no.gin"], "error: --config=no.gin: there is no gin file no.gin"),
        (["--config=base.gin"], "error: base.gin: DRAFTER must be set"),
        (["--config=base.gin", "--gin.DRAFTER", "'x'"], "error: --gin.DRAFTER: a knob is set as --gin.NAME=VALUE"),
        (["--config=base.gin", "--gin.DRAFTER="], "error: --gin.DRAFTER=: a knob is set as --gin.NAME=VALUE"),
        (["--confg=base.gin"], "error: Unknown command line flag 'confg'"),
        (["--config=base.gin", "more"], "error: unexpected argument 'more'"),
        (["--config=base.gin", "--gin.DRAFTER='bad'"], "error: bad drafter: give a good one"),
    ],
)
def test_bad_input_ends_with_one_line_and_exit_code_2(capsys, arguments, sentence):
    assert launch(*arguments) == 2
    out, err = capsys.readouterr()
    assert err.startswith(sentence) and err.count("\n") == 1 and not out


def test_an_argument_that_nothing_binds_is_named(folder, capsys):
    (folder / "thin.gin").write_text("toy.alpha = 1\ntoy.rule = @opt\n")
    assert launch("--config=thin.gin") == 2
    assert "toy needs drafter and lookahead: bind toy.drafter in thin.gin" in capsys.readouterr().err


def test_what_is_in_effect_is_one_value_a_name_wherever_it_comes_from(folder):
    (folder / "outer.gin").write_text("include 'base.gin'\nALPHA = 0.2\ntoy.width = {'a = b': ['# no', 'two\\n']}\n")
    config.configure(toy, "outer.gin", [*GIVEN, "RULE=@opt", "ALPHA=0.3"])
    found = config.in_effect()
    assert found["ALPHA"] == "0.3" and found["RULE"] == "@opt" and found["DRAFTER"] == "'a/b'"
    assert found["toy.alpha"] == "%ALPHA" and found["toy.width"] == "{'a = b': ['# no', 'two\\n']}"
    assert len(found) == 9  # four knobs, five arguments
    config.configure(toy, "base.gin", [*GIVEN, "RULE=@opt", "ALPHA=0.3"])
    assert {name for name in found if config.in_effect().get(name) != found[name]} == {"toy.width"}


def test_an_interrupt_ends_with_one_line_and_130(capsys):
    assert launch("--config=base.gin", "--gin.DRAFTER='stop'") == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_a_defect_of_the_program_keeps_its_traceback():
    with pytest.raises(AttributeError):
        config.run("json.no_such_function", argv=["launcher", "--config=base.gin"])


def test_the_function_is_imported_only_after_the_flags(folder):
    """Help must not wait for jax, and a relative config is found from any folder."""
    launcher = (
        '"""What it does.\n\n    python launcher.py --config=run.gin\n"""\n'
        "import sys\nfrom absl import flags\nfrom cascades import config\n"
        'flags.DEFINE_string("output", None, "Where results go.")\n'
        'config.run("slow.run", flags=("output",))\n'
    )
    (folder / "launcher.py").write_text(launcher)
    (folder / "slow.py").write_text("print('imported')\ndef run(*, output=None):\n    print('ran', output)\n")
    (folder / "run.gin").write_text("")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}

    def python(*arguments):
        command = [sys.executable, "launcher.py", *arguments]
        return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)

    shown = python("--help")
    assert shown.returncode == 0 and "imported" not in shown.stdout
    assert all(part in shown.stdout for part in ("What it does.", "--config", "--gin.NAME=VALUE", "Where results go."))
    ran = python("--config=run.gin", "--output=there")
    assert (ran.returncode, ran.stdout) == (0, "imported\nran there\n"), ran.stderr
    refused = python("--config=run.gin", "--gin.X=1")
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1) and "Traceback" not in refused.stderr


# A file of a pair, over the launcher's own run file.


@pytest.fixture
def other(folder, monkeypatch):
    """A repository with run files of two launchers: `toy` does not read K, and `pair_of_toys` nothing else."""
    monkeypatch.setattr(statements, "ROOT", folder)
    (folder / "configs").mkdir()
    (folder / "configs" / "toy.gin").write_text(BASE + "K = 3\nfixed.k = 5\n")
    (folder / "configs" / "pair_of_toys.gin").write_text("K = 3\nFOLDER = None\npair_of_toys.first = (%K, %FOLDER)\n")
    return folder


def over(text, *overrides, function=toy):
    """Returns the arguments of a file that is read over the function's own run file."""
    Path("pair.gin").write_text(text)
    config.configure(function, "pair.gin", overrides, f"configs/{function.__name__}.gin")()
    return calls[-1]


def refused(text, *overrides, function=toy):
    Path("pair.gin").write_text(text)
    with pytest.raises(UserError) as caught:
        config.configure(function, "pair.gin", overrides, f"configs/{function.__name__}.gin")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_pair_is_read_over_the_run_file(other):
    arguments = over("DRAFTER = 'mine'\nALPHA = 0.5\n")
    assert (arguments["drafter"], arguments["alpha"]) == ("mine", 0.5)
    assert arguments["lookahead"].init(1, COSTS).tolist() == [5], "what the pair does not set is the run file's"
    assert over("DRAFTER = 'mine'\nALPHA = 0.5\n", "ALPHA=0.7")["alpha"] == 0.7


def test_a_pair_may_include_another(other):
    (other / "inner.gin").write_text("DRAFTER = 'inner'\nALPHA = 0.3\n")
    arguments = over("include 'inner.gin'\nALPHA = 0.6\n")
    assert (arguments["drafter"], arguments["alpha"]) == ("inner", 0.6)
    (other / "inner.gin").write_text("DRAFTER = 'inner'\nALPAH = 0.3\n")
    assert "inner.gin, line 2: nothing in configs/toy.gin reads ALPAH (did you mean ALPHA?)" in refused(
        "include 'inner.gin'\n"
    )


def test_a_complete_run_file_is_not_read_over_another(other):
    (other / "whole.gin").write_text("toy.drafter = 'w'\ntoy.rule = @opt\ntoy.lookahead = @fixed()\ntoy.alpha = 1\n")
    config.configure(toy, "whole.gin", (), "configs/toy.gin")()
    assert calls[-1]["drafter"] == "w" and calls[-1]["lookahead"].init(1, COSTS).tolist() != [5]


def test_a_knob_of_another_launcher_is_passed_over_in_a_pair_and_refused_elsewhere(other):
    assert over("DRAFTER = 'd'\nK = 4\nFOLDER = %WHERE\nWHERE = @no_such.function()\n")["drafter"] == "d"
    assert "pair.gin, line 2: nothing in configs/toy.gin reads KK" in refused("DRAFTER = 'd'\nKK = 4\n")
    assert "--gin.K=4: nothing in configs/toy.gin reads K;" in refused("DRAFTER = 'd'\nK = 5\n", "K=4")
    (other / "mine.gin").write_text("include 'configs/toy.gin'\nDRAFTER = 'd'\nK = 4\n")
    assert "mine.gin, line 3: nothing in mine.gin reads K;" in error(path="mine.gin")


def test_a_run_file_of_another_launcher_is_refused(other):
    sentence = refused("include 'configs/pair_of_toys.gin'\nK = 4\n")
    assert (
        "pair.gin is a run file of pair_of_toys (" in sentence and "binds pair_of_toys.first), and toy was" in sentence
    )


def test_a_required_knob_of_a_pair_is_named(other):
    assert refused("DRAFTER = %gin.REQUIRED\nK = %gin.REQUIRED\n").startswith(
        "pair.gin: DRAFTER must be set: add --gin."
    )


# What is read is what the run function's own bindings lead to.


def test_what_only_an_included_file_mentions_is_not_read(folder):
    (folder / "more.gin").write_text("BETA = 1.0\nHEURISTIC = 3\nlossy.beta = %BETA\nheuristic.start = %HEURISTIC\n")
    (folder / "run.gin").write_text("include 'more.gin'\ninclude 'base.gin'\n")
    assert "--gin.BETA=0.5: nothing in run.gin reads BETA;" in error(*GIVEN, "BETA=0.5", path="run.gin")
    config.configure(toy, "run.gin", (*GIVEN, "RULE=@lossy", "BETA=0.5"))()
    assert calls[-1]["rule"].__name__ == "lossy"
    assert "reads HEURISTIC" in error(*GIVEN, "RULE=@lossy", "HEURISTIC=2", path="run.gin")


def test_what_is_bound_in_a_scope_is_read_there_alone(folder):
    (folder / "run.gin").write_text(
        "include 'base.gin'\nLEFT = 1\nRIGHT = 2\nLOOKAHEAD = @left/fixed()\n"
        "left/fixed.k = %LEFT\nright/fixed.k = %RIGHT\n"
    )
    assert called(*GIVEN, "LEFT=4", path="run.gin")["lookahead"].init(1, COSTS).tolist() == [4]
    assert "--gin.RIGHT=4: nothing in run.gin reads RIGHT" in error(*GIVEN, "RIGHT=4", path="run.gin")
    both = called(*GIVEN, "RIGHT=4", "LOOKAHEAD=@left/right/fixed()", "left/right/fixed.k=%RIGHT", path="run.gin")
    assert both["lookahead"].init(1, COSTS).tolist() == [4]


def test_a_field_of_a_spec_that_nothing_makes_is_refused(folder):
    assert "nothing in base.gin reads x/ModelSpec.uri" in error(*GIVEN, "x/ModelSpec.uri='a'")
    arguments = called("DRAFTER=@x/ModelSpec()", "x/ModelSpec.uri='a'")
    assert arguments["drafter"].uri == "a"
    assert "ModelSpec has no argument url (did you mean uri?)" in error(*GIVEN, "x/ModelSpec.url='a'")
    assert "toy has no argument uri (did you mean ModelSpec.uri?)" in error(*GIVEN, "toy.uri='a'")


@pytest.mark.parametrize("knobs", [("ALPHA=%ALPHA",), ("ALPHA=[%RULE]", "RULE=(1, %ALPHA)"), ("fixed.k=@fixed()",)])
def test_a_value_that_is_made_of_itself_is_refused(knobs):
    assert "a value cannot be made of itself" in error(*GIVEN, *knobs)


@pytest.mark.parametrize("value", ["1e999", "-1e999", "[(1, 2.5), {'a': None}]", "(True,)", "'#\\'\"é\\n'", "{}", "()"])
def test_a_value_comes_as_it_was_written(value):
    from ast import literal_eval

    assert called(*GIVEN, f"toy.width={value}")["width"] == literal_eval(value)
