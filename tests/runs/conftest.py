"""Run functions on a tiny pair."""

import sys

import pytest
import tiny

from cascades import rules
from cascades.generation import load_pair
from cascades.lookahead import fixed


@pytest.fixture(scope="session")
def tiny_pair(tiny_files):
    return load_pair(tiny.specs(verifier=tiny_files.verifier, drafter=tiny_files.drafter)["pair"])


@pytest.fixture
def launched(tiny_pair, tmp_path, monkeypatch):
    """Returns `(function, **knobs)`, which calls `sweep` or `tune` on the tiny pair, into `tmp_path / "out"`."""

    def call(function, **knobs):
        module = sys.modules[function.__module__]
        monkeypatch.setattr(module, "compilation_cache", lambda: None)
        if module.load_pair is load_pair:  # a test may have put another in its place
            monkeypatch.setattr(module, "load_pair", lambda *args, **kwargs: tiny_pair)
        common = {"verifier": "large", "drafter": "small", "rule": rules.chow, "k_max": 2, "input": ""}
        own = common | {"output_dir": str(tmp_path / "out"), "lookahead": fixed(2), **knobs}
        return function(lookahead=own.pop("lookahead"), **tiny.specs(**own))  # not that of `Settings`

    return call
