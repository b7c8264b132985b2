"""Every gin file of the repository: it parses for its launcher, and its header names a command that uses it."""

import importlib
import re
import shlex
from pathlib import Path

import gin
import pytest

from cascades import config, rules
from cascades.generation import Settings

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "configs").rglob("*.gin"))
PAIRS = [path for path in CONFIGS if path.startswith("configs/pairs/")]


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


def launcher(path):
    """Returns the script that the header names, its run function and its flags."""
    script = commands(path)[0][1]
    source = (ROOT / script).read_text(encoding="utf-8")
    dotted = re.search(r'config\.run\(\s*"([\w.]+)"', source)
    assert dotted, f"{script} calls no run function"
    module, _, name = dotted[1].rpartition(".")
    return (
        script,
        getattr(importlib.import_module(module), name),
        re.findall(r"flags\.DEFINE_\w+\(\s*\"(\w+)\"", source),
    )


def arguments(function, path, *overrides):
    """Returns the keyword arguments that a configuration binds."""
    config.configure(function, path, overrides)
    return gin.get_bindings(function)


def required(path):
    """Returns a value for every knob of a file that must be set."""
    names = re.findall(r"^(\w+) = %gin\.REQUIRED", (ROOT / path).read_text(encoding="utf-8"), re.MULTILINE)
    return [f"{name}='some/where'" for name in names]


def test_the_files_are_found():
    assert "configs/decode.gin" in CONFIGS and len(PAIRS) >= 6


@pytest.mark.parametrize("path", CONFIGS)
def test_it_parses_for_its_launcher(path):
    _, function, _ = launcher(path)
    assert arguments(function, path, *required(path))


@pytest.mark.parametrize("path", CONFIGS)
def test_its_header_runs_it(path):
    assert header(path).splitlines()[0].endswith((".", ":")), "the first line says what the file is for"
    assert "ommonly overridden" in (ROOT / path).read_text(encoding="utf-8") or "Must be set" in header(path)
    assert commands(path), "the header names no command"
    for command in commands(path):
        script, function, flags = launcher(path)
        assert command[:2] == ["python", script]
        options = dict(argument.removeprefix("--").partition("=")[::2] for argument in command[2:])
        assert options.pop("config") == path
        overrides = [
            f"{name.removeprefix('gin.')}={value}" for name, value in options.items() if name.startswith("gin.")
        ]
        assert {name for name in options if not name.startswith("gin.")} <= set(flags)
        assert arguments(function, path, *overrides)


def test_a_slice_config_shares_all_of_its_chips():
    paths = [path for path in CONFIGS if path.startswith("configs/tpu/")]
    assert len(paths) >= 4
    for path in paths:
        _, function, _ = launcher(path)
        bound = arguments(function, path)
        assert bound["mesh"] == (1, None) and bound["verifier"].startswith("hf://"), path


@pytest.mark.parametrize("path", PAIRS)
def test_a_pair_names_two_models(path):
    _, function, _ = launcher(path)
    bound = arguments(function, path, *required(path))
    uri = r"(hf|pypi|gs|ngram)://\S+|some/where"
    assert re.fullmatch(uri, bound["verifier"])
    assert bound["drafter"] is None and "custom" in path or re.fullmatch(uri, bound["drafter"])
    assert isinstance(bound["default_prompt"], str) and bound["default_prompt"].strip()


def test_the_default_knobs_are_good_settings():
    from cascades.experiments.decode import decode

    bound = arguments(decode, "configs/decode.gin")
    names = {field for field in Settings.__dataclass_fields__}
    settings = Settings(**{name: value for name, value in bound.items() if name in names})
    assert settings.plain_rule is rules.token_v3 and settings.method == "speculative"


def test_the_comments_name_what_there_is():
    """The lists of rules, methods and controllers in configs/decode.gin are whole."""
    from cascades import lookahead
    from cascades.generation import METHODS

    text = (ROOT / "configs/decode.gin").read_text(encoding="utf-8")
    for knob, names in (("METHOD", METHODS), ("RULE", rules.__all__), ("LOOKAHEAD", lookahead.__all__)):
        line = re.search(rf"^{knob} = .*$", text, re.MULTILINE)
        assert line
        missing = [name for name in names if not re.search(rf"\b{name}\b", line[0])]
        assert not missing, f"{knob}: {missing}"
