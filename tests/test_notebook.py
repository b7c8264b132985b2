"""The notebooks as they are stored, and run from top to bottom."""

import html
import itertools
import json
import re
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[1]
SMALL = {"CASCADES_MAX_NEW_TOKENS": "24", "CASCADES_ANSWERS": "1", "CASCADES_STEPS": "4", "CASCADES_CAPTIONS": "3"}
"""What a test waits for."""


def outputs(notebook) -> list[dict]:
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


def check_quickstart(notebook) -> None:
    """The coloured answer at every threshold."""
    shown = ["".join(output.get("data", {}).get("text/html", "")) for output in outputs(notebook)]
    assert sum("alpha = " in text for text in shown) == 5 and all("<span" in text for text in shown if text)


def check_distill_drafter(notebook) -> None:
    """Held-out figures, the drafter, and what was kept of its guesses."""
    text = json.dumps(outputs(notebook))
    assert "held out" in text and "acceptance" in text
    assert "tokens a call, kept by place" in text


def check_write_a_rule(notebook) -> None:
    """The rule's law, and its curve beside the other's."""
    text = json.dumps(outputs(notebook))
    assert "largest distance of what is emitted from pi: " in text and "handed to the verifier on average" in text
    assert text.count("lenient_where_unsure") >= 5 and text.count("token_v3") >= 5


def check_reproduce_paper(notebook) -> None:
    """Curves and the table at each temperature, and a verdict on each claim."""
    found = [output.get("data", {}) for output in outputs(notebook)]
    assert sum("image/png" in data for data in found) == 3
    assert sum("At the verifier's BLEU" in html.unescape("".join(data.get("text/html", ""))) for data in found) == 3
    told = "".join(output.get("text", "") for output in outputs(notebook))
    verdicts = re.findall(r"^(SEEN|NOT SEEN|UNCLEAR|NOT RUN): .*\.$", told, re.MULTILINE)
    assert len(verdicts) == 12 and verdicts.count("NOT RUN") == 1  # token_v1 is left to the full run
    assert "set RUN_PAPER = True" in told


def captions(folder: Path) -> Path:
    """Writes made-up captions, named as those of Multi30k."""
    words = itertools.product(
        (("A man", "Ein Mann"), ("A woman", "Eine Frau"), ("A dog", "Ein Hund"), ("A child", "Ein Kind")),
        (("runs", "läuft"), ("sits", "sitzt"), ("sleeps", "schläft"), ("plays", "spielt"), ("waits", "wartet")),
        (("in a park", "in einem Park"), ("on a street", "auf einer Straße"), ("by a lake", "an einem See")),
    )
    lines = [
        {"en": f"{' '.join(en)}.", "de": f"{' '.join(de)}."} for en, de in (zip(*each, strict=True) for each in words)
    ]
    folder.mkdir()
    for name, part in (("train", lines * 3), ("test", lines[::11])):
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in part)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    return folder


CHECKS = {
    "quickstart": check_quickstart,
    "distill_drafter": check_distill_drafter,
    "write_a_rule": check_write_a_rule,
    "reproduce_paper": check_reproduce_paper,
}


def check(name: str, notebook) -> None:
    """A run, stored or new: no error, what it is for, the plot."""
    found = outputs(notebook)
    assert not [output for output in found if output.output_type == "error"]
    assert [output for output in found if "image/png" in output.get("data", {})]
    CHECKS[name](notebook)


def test_every_notebook_is_checked():
    assert {path.stem for path in (ROOT / "colab").glob("*.ipynb")} == set(CHECKS)


@pytest.mark.parametrize("name", CHECKS)
def test_the_stored_notebook_is_valid_small_and_was_run(name):
    path = ROOT / "colab" / f"{name}.ipynb"
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert path.stat().st_size < 300_000
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    check(name, notebook)
    text = json.dumps(outputs(notebook))
    assert not any(place in text for place in (str(Path.home()), str(ROOT))), "an output names a folder of a machine"


@pytest.mark.slow
@pytest.mark.parametrize("name", CHECKS)
def test_the_notebook_runs(name, monkeypatch, tmp_path):
    import nbclient

    monkeypatch.setenv("CASCADES_MULTI30K", str(captions(tmp_path / "captions")))
    monkeypatch.delenv("CASCADES_MINI", raising=False)  # the pair is trained
    for variable, value in (SMALL | {"PYTHONPATH": str(ROOT)}).items():
        monkeypatch.setenv(variable, value)
    notebook = nbformat.read(ROOT / "colab" / f"{name}.ipynb", as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = []
    client = nbclient.NotebookClient(
        notebook, timeout=1200, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    check(name, notebook)
