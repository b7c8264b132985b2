"""The notebook as it is stored, and run from top to bottom."""

import json
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = ROOT / "colab" / "quickstart.ipynb"


@pytest.fixture
def notebook():
    return nbformat.read(NOTEBOOK, as_version=4)


def outputs(notebook) -> list[dict]:
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


def check(notebook) -> None:
    """A run, stored or new: no error, the coloured answer at every threshold, the plot."""
    found = outputs(notebook)
    assert not [output for output in found if output.output_type == "error"]
    shown = ["".join(output.get("data", {}).get("text/html", "")) for output in found]
    assert sum("alpha = " in text for text in shown) == 5 and all("<span" in text for text in shown if text)
    assert [output for output in found if "image/png" in output.get("data", {})]


def test_the_stored_notebook_is_valid_small_and_was_run(notebook):
    nbformat.validate(notebook)
    assert NOTEBOOK.stat().st_size < 300_000
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    check(notebook)
    text = json.dumps(outputs(notebook))
    assert not any(place in text for place in (str(Path.home()), str(ROOT))), "an output names a folder of a machine"


@pytest.mark.slow
def test_the_notebook_runs(notebook, monkeypatch):
    import nbclient

    monkeypatch.setenv("CASCADES_MAX_NEW_TOKENS", "24")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = []
    client = nbclient.NotebookClient(
        notebook, timeout=1200, kernel_name="python3", resources={"metadata": {"path": str(NOTEBOOK.parent)}}
    )
    client.execute()
    check(notebook)
