"""A pair in memory."""

import shutil
from pathlib import Path

import pytest
import tiny

from cascades.generation import load_pair


@pytest.mark.parametrize("name", ["verifier", "drafter"])
def test_a_drafter_may_lie_in_a_folder_that_wraps_it(tiny_files, tmp_path, name):
    source = Path(getattr(tiny_files, name))
    copy = shutil.copytree if source.is_dir() else shutil.copy
    (tmp_path / "download").mkdir()
    copy(source, tmp_path / "download" / source.name)
    pair = load_pair(tiny.specs(verifier=tiny_files.verifier, drafter=str(tmp_path / "download"))["pair"])
    assert pair.drafter is not None
    assert pair.drafter.tokenizer.pieces == pair.verifier.tokenizer.pieces
