"""Every gin file of the repository: it parses for its launcher, a pair's for all of them, and its header runs it."""

import dataclasses
import importlib
import re
import shlex
from pathlib import Path
from typing import NamedTuple

import gin
import pytest

from cascades import config, lookahead, rules
from cascades.config.statements import Macro, Reference, Source, find, of_file, parts
from cascades.errors import UserError
from cascades.generation import METHODS, ModelSpec, PairSpec, PromptSpec, Settings
from cascades.training.spec import TrainingSpec

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "configs").rglob("*.gin"))
KNOBS = [path for path in FILES if path.startswith("configs/knobs/")]
CONFIGS = [path for path in FILES if path not in KNOBS]
PAIRS = [path for path in CONFIGS if path.startswith(("configs/pairs/", "configs/tpu/"))]
SPECS = (ModelSpec, PairSpec, PromptSpec, Settings, TrainingSpec)


class Launcher(NamedTuple):
    """A script: its run function, its run file, its flags."""

    function: object
    base: str
    flags: set[str]


def launcher(script):
    source = (ROOT / script).read_text(encoding="utf-8")
    found = re.search(r'config\.run\(\s*"([\w.]+)",\s*base="([\w/.]+)"', source)
    assert found, f"{script} calls no run function"
    module, _, name = found[1].rpartition(".")
    flags = set(re.findall(r"flags\.DEFINE_\w+\(\s*\"(\w+)\"", source))
    return Launcher(getattr(importlib.import_module(module), name), found[2], flags)


LAUNCHERS = {
    path.stem: launcher(f"launch/{path.name}")
    for path in sorted((ROOT / "launch").glob("*.py"))
    if path.stem != "convert"
}
OF_A_PAIR = [name for name in LAUNCHERS if name != "train"]


def header(path):
    """Returns the comment at the top of a file as one text, broken command lines joined."""
    lines = []
    for line in (ROOT / path).read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.removeprefix("#").strip())
    return "\n".join(lines).replace("\\\n", " ")


def commands(path):
    return [shlex.split(line) for line in header(path).splitlines() if line.startswith("python ")]


def arguments(name, path, *overrides):
    """Returns the keyword arguments that a configuration gives a launcher's function; specs as they are made."""
    config.configure(LAUNCHERS[name].function, path, overrides, LAUNCHERS[name].base)
    return gin.get_bindings(LAUNCHERS[name].function)


def required(*paths):
    """Returns a value for every knob of some files that must be set."""
    text = "\n".join((ROOT / path).read_text(encoding="utf-8") for path in paths)
    names = re.findall(r"^(\w+) = %gin\.REQUIRED", text, re.MULTILINE)
    return [f"{name}='some/where'" for name in dict.fromkeys(names)]


def stated(path):
    """Returns what stands in a file itself."""
    return [each for each in of_file(find(path, ""), Source.FILE) if each.source is Source.FILE]


def test_the_files_are_found():
    assert "configs/decode.gin" in CONFIGS and len(PAIRS) >= 10 and len(KNOBS) >= 5
    assert set(LAUNCHERS) == {"bench", "costs", "decode", "distill", "plan", "sweep", "train", "tune"}


@pytest.mark.parametrize("name", LAUNCHERS)
def test_a_launcher_has_a_run_file_of_its_name(name):
    function, base, _ = LAUNCHERS[name]
    assert base == f"configs/{name}.gin" and function.__name__ == name
    assert {each.selector for each in stated(base) if each.argument} >= {name}


@pytest.mark.parametrize("path", CONFIGS)
def test_it_parses_for_its_launcher(path):
    assert arguments(Path(commands(path)[0][1]).stem, path, *required(path))


@pytest.mark.parametrize("path", CONFIGS)
def test_its_header_runs_it(path):
    assert header(path).splitlines()[0].endswith((".", ":")), "the first line says what the file is for"
    assert "ommonly overridden" in (ROOT / path).read_text(encoding="utf-8") or "Must be set" in header(path)
    assert commands(path), "the header names no command"
    for command in commands(path):
        name = Path(command[1]).stem
        assert command[:2] == ["python", f"launch/{name}.py"]
        options = dict(argument.removeprefix("--").partition("=")[::2] for argument in command[2:])
        assert options.pop("config") == path
        overrides = [
            f"{knob.removeprefix('gin.')}={value}" for knob, value in options.items() if knob.startswith("gin.")
        ]
        assert {knob for knob in options if not knob.startswith("gin.")} <= LAUNCHERS[name].flags
        assert arguments(name, path, *overrides)


# A pair's file is every launcher's.


@pytest.mark.parametrize("name", OF_A_PAIR)
@pytest.mark.parametrize("path", PAIRS)
def test_every_launcher_takes_a_pair(path, name):
    base = LAUNCHERS[name].base
    bound = arguments(name, path, *required(path, base))
    plain = arguments(name, base, *required(base))
    assert bound.keys() == plain.keys(), "what the launcher reads"
    (verifier,) = (each.value for each in of_file(find(path, ""), Source.PAIR) if each.key == "VERIFIER")
    pair = bound.get("pair", bound.get("verifier"))
    assert getattr(pair, "verifier", pair).uri == (verifier if isinstance(verifier, str) else "some/where")
    text = (ROOT / path).read_text(encoding="utf-8")
    if "BATCH_SIZE" in re.findall(r"^(\w+) =", text, re.MULTILINE):
        holder = bound.get("settings", bound.get("training"))
        assert (bound["batch_size"] if holder is None else holder.batch_size) == 8


@pytest.mark.parametrize("path", PAIRS)
def test_a_pair_holds_knobs_alone(path):
    assert {each.argument for each in of_file(find(path, ""), Source.PAIR)} == {""}


def test_a_slice_config_shares_all_of_its_chips():
    paths = [path for path in CONFIGS if path.startswith("configs/tpu/")]
    assert len(paths) >= 4
    for path in paths:
        pair = arguments("decode", path)["pair"]
        assert pair.mesh == (1, None) and pair.verifier.uri.startswith("hf://"), path
        assert arguments("plan", path)["mesh"] == (1, None)


@pytest.mark.parametrize("path", PAIRS)
def test_a_pair_names_two_models(path):
    bound = arguments("decode", path, *required(path))
    pair, uri = bound["pair"], r"(hf|pypi|gs|ngram)://\S+|some/where"
    assert re.fullmatch(uri, pair.verifier.uri)
    assert pair.drafter is None and "custom" in path or re.fullmatch(uri, pair.drafter.uri)
    assert isinstance(bound["default_prompt"], str) and bound["default_prompt"].strip()
    for model in (pair.verifier, pair.drafter):  # so that plan need not fetch them
        assert "custom" in path or model.preset or model.uri.startswith("ngram://")


def test_an_older_file_that_includes_a_run_file_still_works(tmp_path):
    (tmp_path / "mine.gin").write_text("include 'configs/decode.gin'\nVERIFIER = 'mine'\nALPHA = 0.4\n")
    bound = arguments("decode", str(tmp_path / "mine.gin"))
    assert bound["pair"].verifier.uri == "mine" and bound["settings"].alpha == 0.4
    with pytest.raises(
        UserError, match=r"mine.gin is a run file of decode \(.*, line \d+ binds decode.pair\), and sweep"
    ):
        arguments("sweep", str(tmp_path / "mine.gin"))


@pytest.mark.parametrize(
    ("name", "override", "sentence"),
    [
        ("distill", "ALPHA=0.3", "nothing in configs/distill.gin reads ALPHA; its knobs are "),
        ("distill", "DRAFTER=@eagle()", "(did you mean KIND, the kind of drafter to make?)"),
        ("distill", "WEIGHTS='int8'", "nothing in configs/distill.gin reads WEIGHTS"),
        ("distill", "drafter/ModelSpec.uri='x'", "nothing in configs/distill.gin reads drafter/ModelSpec.uri"),
        ("plan", "DATA=2", "(did you mean MESH, as in MESH=(2, None)"),
        ("plan", "ALPHA=0.3", "nothing in configs/plan.gin reads ALPHA"),
        ("plan", "DTYPE='float32'", "nothing in configs/plan.gin reads DTYPE"),
        ("sweep", "ALPHA=0.3", "nothing in configs/sweep.gin reads ALPHA"),
        ("sweep", "RULE=@opt", "(did you mean RULES?)"),
        ("bench", "PROMPT='x'", "nothing in configs/bench.gin reads PROMPT"),
        ("costs", "MAX_NEW_TOKENS=3", "nothing in configs/costs.gin reads MAX_NEW_TOKENS"),
        ("costs", "DEFAULT_PROMPT='x'", "nothing in configs/costs.gin reads DEFAULT_PROMPT"),
        ("train", "VERIFIER='x'", "nothing in configs/train.gin reads VERIFIER"),
        ("decode", "RULES=[@opt]", "(did you mean "),
        ("decode", "decode.alpha=0.3", "decode has no argument alpha (did you mean Settings.alpha?)"),
    ],
)
def test_a_knob_that_a_launcher_does_not_read_is_refused(name, override, sentence):
    base = LAUNCHERS[name].base
    paths = [base] if name == "train" else [base, "configs/pairs/gemma2_2b_9b.gin"]
    for path in paths:
        with pytest.raises(UserError) as caught:
            arguments(name, path, *required(base), override)
        assert sentence in str(caught.value) and "\n" not in str(caught.value)


# A knob is written once.


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.__name__)
def test_every_field_of_a_spec_is_a_knob_and_has_words(spec):
    """One file of configs/knobs binds it, of each model of a pair, to a macro that stands above or below."""
    bound: dict[str, list[str]] = {}
    for path in KNOBS:
        for each in stated(path):
            if each.selector == spec.__name__:
                bound.setdefault(each.argument, []).append(each.scope)
                (value,) = parts(each.value)
                assert isinstance(value, Reference) or value.name in {other.key for other in stated(path)}
    scopes = ["drafter", "verifier"] if spec is ModelSpec else [""]
    elsewhere = {"lookahead"} if spec is Settings else set()  # a sweep takes several
    assert {name: sorted(where) for name, where in bound.items()} == {
        field.name: scopes for field in dataclasses.fields(spec) if field.name not in elsewhere
    }
    for name in bound:
        assert re.search(rf"\b{name}\b.*?:", spec.__doc__), f"{name} of {spec.__name__} has no words"


@pytest.mark.parametrize("path", KNOBS)
def test_a_file_of_knobs_says_what_they_are(path):
    assert header(path).splitlines()[0].endswith(".")
    knobs = [each.key for each in stated(path) if not each.argument]
    assert knobs and all(name == name.upper() for name in knobs)
    assert any(f"include '{path}'" in (ROOT / other).read_text() for other in FILES)


@pytest.mark.parametrize("name", LAUNCHERS)
def test_every_knob_of_a_launcher_has_words(name, capsys):
    """As its --help lists them."""
    function, base, _ = LAUNCHERS[name]
    config.run(f"{function.__module__}.{name}", base, argv=["launcher", "--help"])
    shown = capsys.readouterr().out.partition(f"Knobs, as {base} sets them:\n")[2]
    found = re.findall(r"^  (\w+) = .*\n(      \S)?", shown, re.MULTILINE)
    assert len(found) >= 20 and not [knob for knob, words in found if not words]
    with pytest.raises(UserError) as caught:
        arguments(name, base, *required(base), "NO_SUCH_KNOB=1")
    assert str(caught.value).endswith(f"its knobs are {', '.join(knob for knob, _ in found)}")


def test_a_run_function_is_given_knobs_and_specs():
    for name, (_, base, _) in LAUNCHERS.items():
        for each in stated(base):
            if each.selector == name:
                assert isinstance(each.value, Macro) or each.value.name in {spec.__name__ for spec in SPECS}, each.key
    assert len(arguments("decode", "configs/decode.gin")) == 4


def test_the_default_knobs_are_good_settings():
    settings = arguments("decode", "configs/decode.gin")["settings"]
    assert settings.plain_rule is rules.token_v3 and settings.method == "speculative"
    assert settings.lookahead.name == "verifier_guided" and settings.batch_size == 4


def test_the_comments_name_what_there_is():
    """The lists of rules, methods and controllers are whole."""
    text = "\n".join((ROOT / path).read_text(encoding="utf-8") for path in KNOBS)
    for knob, names in (("METHOD", METHODS), ("RULE", rules.__all__), ("LOOKAHEAD", lookahead.__all__)):
        line = re.search(rf"^{knob} = .*$(\n +#.*$)*", text, re.MULTILINE)
        assert line
        missing = [name for name in names if not re.search(rf"\b{name}\b", line[0])]
        assert not missing, f"{knob}: {missing}"
