"""transformers on a tiny pair, where it is installed, and what it is not asked to do."""

import importlib.util

import pytest
import tiny

from cascades import rules
from cascades.errors import UserError
from cascades.generation import Settings, build, complete, load_pair, queries
from cascades.runs import bench_peers


@pytest.mark.parametrize(
    ("knobs", "sentence"),
    [
        ({"batch_size": 2}, "one prompt at a time, greedily: set BATCH_SIZE=1"),
        ({"temperature": 0.5}, "TEMPERATURE=0"),
        ({"stop": ["."]}, "STOP=\\[\\]"),
        ({"weights": "int8"}, "leave WEIGHTS and CACHE None"),
        ({"drafter_cache": "int8"}, "leave DRAFTER_WEIGHTS and DRAFTER_CACHE None"),
    ],
)
def test_what_would_not_be_the_same_is_refused(monkeypatch, knobs, sentence):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    given = tiny.specs(verifier="large", drafter="small", **knobs)
    with pytest.raises(UserError, match=sentence):
        bench_peers.check(given["pair"], given["settings"])


def test_a_missing_extra_is_one_sentence(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torch" else name)
    given = tiny.specs(verifier="large", drafter="small")
    with pytest.raises(
        UserError, match=r"TRANSFORMERS needs what is not installed \(torch\): pip install -e '.\[bench\]'"
    ):
        bench_peers.check(given["pair"], given["settings"])


@pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="needs transformers: .[bench]")
@pytest.mark.filterwarnings("ignore")  # of theirs
def test_transformers_writes_the_same_text_on_the_same_tokens(tiny_files):
    pair = tiny.specs(verifier=tiny_files.verifier, drafter=tiny_files.drafter)["pair"]
    settings = Settings(rule=rules.lossless, k_max=2, max_new_tokens=12, ignore_eos=True)
    engine = build(load_pair(pair), settings)
    (request,) = queries(engine, ["the quick brown fox"])
    (ours,) = complete(engine, [request])
    peers, remarks = bench_peers.load(engine, pair)
    assert [peer.name[12:] for peer in peers] == ["", ", assisted", ", look-up"] and not remarks
    for peer in peers:
        told = peer.answer(request)
        assert list(told.ids) == ours.token_ids and 1 <= told.early <= 12
        assert told.prefill_s > 0 and told.decode_s > 0


@pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="needs transformers: .[bench]")
@pytest.mark.filterwarnings("ignore")
def test_a_look_up_assists_nobody_and_says_so(tiny_files):
    pair = tiny.specs(verifier=tiny_files.verifier, drafter="ngram://2")["pair"]
    engine = build(load_pair(pair), Settings(rule=rules.lossless, k_max=2))
    peers, remarks = bench_peers.load(engine, pair)
    assert len(peers) == 2 and remarks == [
        "transformers cannot be assisted by ngram://2, which is no model that decodes alone"
    ]
