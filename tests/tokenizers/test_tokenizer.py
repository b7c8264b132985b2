"""What every tokenizer does, and where `load` finds one."""

import dataclasses
import shutil

import pytest

from cascades import tokenizers
from cascades.errors import UserError
from cascades.models import presets


def test_lone_surrogates_are_replaced_and_pairs_joined(write_gguf, gpt2_keys):
    tokenizer = tokenizers.load(write_gguf(**gpt2_keys))
    assert tokenizer.decode(tokenizer.encode("a\ud800b")) == "a\ufffdb"
    assert tokenizer.decode(tokenizer.encode("\ud83d\ude00")) == "😀"


def test_chat_without_a_template_is_said(write_gguf, gpt2_keys):
    tokenizer = tokenizers.load(write_gguf(**gpt2_keys))
    assert not tokenizer.has_chat_template
    with pytest.raises(UserError, match="need a model with a chat template"):
        tokenizer.chat([{"role": "user", "content": "hi"}])


def test_bos_is_added_to_a_chat_whose_template_leaves_it_out(write_gguf, gpt2_keys):
    path = write_gguf(chat_template="{{ messages[0].content }}", **(gpt2_keys | {"add_bos_token": True}))
    tokenizer = tokenizers.load(path)
    assert tokenizer.chat([{"role": "user", "content": "fox"}]) == tokenizer.encode("fox")


def test_an_answer_ends_as_the_template_ends_a_turn():
    """Or as texts end, where there is no template, it is not used, or it writes no end."""
    contents = [bytes([byte]) for byte in range(128)] + [b"<eos>", b"<end>"]
    written = {"<": 128, ">": 129}  # what the template calls the two ends
    options = {
        "split": lambda text, special, hidden=None: [written.get(each, ord(each)) for each in text],
        "pieces": [content.decode() for content in contents],
        "contents": contents,
        "control": frozenset({128, 129}),
        "eos_ids": (128, 129),
    }
    turns = "{% for m in messages %}{{ m.role[0] }}:{{ m.content }}END{% endfor %}a:"
    for end, expected in ((">", 129), ("<", 128), ("", 128)):
        chat = tokenizers.Tokenizer(chat_template=turns.replace("END", end), **options)
        assert chat.end_of_answer() == expected
        assert chat.end_of_answer(raw=True) == 128
    assert tokenizers.Tokenizer(**options).end_of_answer() == 128
    assert tokenizers.Tokenizer(**(options | {"eos_ids": ()})).end_of_answer() is None


def test_each_kind_of_file_is_found(tmp_path, write_gguf, llama_keys, gpt2_keys, gemma_like, hf_directory):
    """In our own directory: the Hugging Face files first, then tokenizer.gguf, then tokenizer.model."""
    directory = tmp_path / "checkpoint"
    directory.mkdir()
    (directory / "tokenizer.model").write_bytes(gemma_like)
    from_model = tokenizers.load(directory)
    assert from_model.fingerprint == tokenizers.load(str(directory / "tokenizer.model")).fingerprint
    shutil.copy(write_gguf(**gpt2_keys), directory / "tokenizer.gguf")
    from_gguf = tokenizers.load(directory)
    assert from_gguf.fingerprint != from_model.fingerprint
    shutil.copy(hf_directory(tokenizer_config={"bos_token": "<|im_end|>"}) / "tokenizer.json", directory)
    assert tokenizers.load(directory).bos_id is None and from_gguf.bos_id == 1
    assert tokenizers.load(tmp_path / "hf" / "tokenizer.json").bos_id == 2


def test_gemmas_model_file_lies_beside_the_checkpoint(tmp_path, gemma_like):
    (tmp_path / "2b-it").mkdir()
    (tmp_path / "tokenizer.model").write_bytes(gemma_like)
    assert tokenizers.load(tmp_path / "2b-it").add_bos


def test_what_is_not_there_is_said(tmp_path):
    with pytest.raises(UserError, match="there is no tokenizer at"):
        tokenizers.load(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no tokenizer.json, tokenizer.gguf, tokenizer.model or spiece.model"):
        tokenizers.load(tmp_path / "empty")
    (tmp_path / "cut.gguf").write_bytes(b"GGUF\x03\x00")
    with pytest.raises(UserError, match="GGUF"):
        tokenizers.load(tmp_path / "cut.gguf")


def test_a_tokenizer_must_fit_into_its_preset(write_gguf, gpt2_keys, monkeypatch):
    path = write_gguf(**gpt2_keys)
    assert tokenizers.load(path, "smollm2_135m").vocab_size == tokenizers.load(path).vocab_size
    small = presets.preset("smollm2_135m")
    monkeypatch.setitem(presets.PRESETS, "small", dataclasses.replace(small, vocab_size=100))
    with pytest.raises(UserError, match="the 100 tokens of preset small"):
        tokenizers.load(path, "small")


def test_a_preset_beside_a_config_asks_nothing_of_the_tokenizer(write_gguf, gpt2_keys, monkeypatch, tmp_path):
    """Released Gemma 3 has a token more than the logits of its smallest sizes."""
    small = presets.preset("smollm2_135m")
    monkeypatch.setitem(presets.PRESETS, "small", dataclasses.replace(small, vocab_size=100))
    folder = tmp_path / "model"
    folder.mkdir()
    write_gguf(**gpt2_keys).rename(folder / "tokenizer.gguf")
    with pytest.raises(UserError, match="the 100 tokens of preset small"):
        tokenizers.load(folder, "small")
    (folder / "config.json").write_text("{}")
    assert tokenizers.load(folder, "small").vocab_size > 100
