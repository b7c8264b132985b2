"""The rooms of the package: who may import whom, who may import gin, and the shape of a file."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = (
    "errors",
    "checks",
    "ending",
    "lifeline",
    "typing",
    "distributions",
    "rules",
    "speculation",
    "lookahead",
    "cache",
    "sharding",
    "hosts",
    "decoding",
    "models",
    "quantization",
    "checkpoints",
    "tokenizers",
    "inspection",
    "generation",
    "serving",
    "evaluation",
    "training",
    "planning",
    "runs",
    "config",
    "testing",
)
MOST_LINES = 400


def imported(tree: ast.AST) -> set[str]:
    """Returns the dotted names that a module imports, at any depth; a relative import as `.name`."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            names |= {f"{module}.{alias.name}" for alias in node.names}
    return names


def violations(root: Path) -> list[str]:
    """Returns one sentence for every broken rule under `root`, which holds `cascades/` and `launch/`."""
    found = []
    package = root / "cascades"
    for file in sorted([*package.rglob("*.py"), *(root / "launch").rglob("*.py")]):
        name = file.relative_to(root).as_posix()
        text = file.read_text(encoding="utf-8")
        tree = ast.parse(text)
        if len(text.splitlines()) > MOST_LINES:
            found.append(f"{name} has more than {MOST_LINES} lines")
        if not ast.get_docstring(tree):
            found.append(f"{name} has no docstring")
        names = imported(tree)
        if not name.startswith("cascades/config/") and any(f"{each}.".startswith("gin.") for each in names):
            found.append(f"{name} imports gin: only cascades/config/ does")
        if package not in file.parents or file == package / "__init__.py":
            continue
        room = file.relative_to(package).parts[0].removesuffix(".py")
        if room not in ROOMS:
            found.append(f"{name} is in the unknown room {room}: give it its place in ROOMS of tests/test_layering.py")
            continue
        for each in sorted(names):
            parts = each.split(".")
            if parts[0] == "":
                found.append(f"{name} imports {each}: imports are absolute")
            if parts[0] != "cascades":
                continue
            other = parts[1] if len(parts) > 1 else ""
            if other == room:
                continue
            if other not in ROOMS:
                found.append(f"{name} imports {each}, which is no room: import from the module that defines it")
            elif ROOMS.index(other) > ROOMS.index(room):
                found.append(f"{name} imports {each}: {room} comes before {other}")
    return found


def test_the_package_keeps_the_rules():
    assert (ROOT / "cascades" / "config" / "__init__.py").is_file()
    assert violations(ROOT) == []


@pytest.fixture
def tree(tmp_path):
    """Returns a function that writes files under an otherwise clean package and returns its root."""

    def write(**files):
        for name, text in {"cascades/__init__": '"""Root."""\n', **files}.items():
            path = tmp_path / f"{name}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path

    return write


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("cascades/rules", '"""x"""\nfrom cascades.decoding import decode\n', "rules comes before decoding"),
        ("cascades/rules", '"""x"""\nfrom cascades import decoding\n', "rules comes before decoding"),
        ("cascades/rules", '"""x"""\nimport cascades.models.api\n', "rules comes before models"),
        ("cascades/models/api", '"""x"""\ndef f():\n    from cascades import testing\n', "models comes before testing"),
        ("cascades/rules", '"""x"""\nfrom . import typing\n', "imports are absolute"),
        ("cascades/decoding", '"""x"""\nfrom cascades import lossless\n', "no room"),
        ("cascades/decoding", '"""x"""\nimport cascades\n', "no room"),
        ("cascades/helpers", '"""x"""\n', "unknown room helpers"),
        ("cascades/decoding", '"""x"""\nimport gin\n', "only cascades/config/"),
        ("launch/decode", '"""x"""\nfrom gin import config\n', "only cascades/config/"),
        ("cascades/rules", "import math\n", "no docstring"),
        ("cascades/rules", '"""x"""\n' + "a = 1\n" * MOST_LINES, "more than 400 lines"),
    ],
)
def test_a_violation_is_found(tree, name, text, reason):
    found = violations(tree(**{name: text}))
    assert len(found) == 1 and reason in found[0], found


def test_what_is_allowed_is_not_found(tree):
    files = {
        "cascades/config/functions": '"""x"""\nimport gin\nfrom cascades.runs import decode\n',
        "cascades/models/api": '"""x"""\nfrom cascades.models import layers\nfrom cascades.typing import Model\n',
        "launch/decode": '"""x"""\nfrom cascades import config\n',
        "cascades/rules": '"""x"""\n' + "a = 1\n" * (MOST_LINES - 1),
    }
    assert violations(tree(**files)) == []
