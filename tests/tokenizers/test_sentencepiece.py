"""SentencePiece `.model` files."""

import pytest
import sentencepiece as spm_library

from cascades.errors import UserError
from cascades.tokenizers import gguf, sentencepiece


@pytest.fixture
def model(tmp_path, gemma_like):
    path = tmp_path / "tokenizer.model"
    path.write_bytes(gemma_like)
    return path


def test_a_model_file_reads_as_its_gguf_does(model, write_gguf, llama_keys):
    ours, other = sentencepiece.load(model), gguf.load(write_gguf(**llama_keys))
    assert ours.fingerprint == other.fingerprint
    assert (ours.eos_ids, ours.bos_id, ours.add_bos) == (other.eos_ids, other.bos_id, other.add_bos)
    text = "<start_of_turn>user\nthe quick   fox 😀<end_of_turn>\n"
    assert ours.encode(text) == other.encode(text)
    assert ours.encode(text, special=False) == other.encode(text, special=False)
    assert ours.decode(ours.encode(text)) == "user\nthe quick   fox 😀\n"


def test_byte_pieces_are_single_bytes(model):
    tokenizer = sentencepiece.load(model)
    index = tokenizer.pieces.index("<0xE2>")
    assert tokenizer.contents[index] == b"\xe2"
    assert tokenizer.decode([index]) == "\ufffd"


def test_without_bos_the_text_ends_with_eos(tmp_path, spm):
    data = spm(bos_id=-1, unk_id=2, add_dummy_prefix=True, remove_extra_whitespaces=True, user_defined_symbols=[])
    (tmp_path / "t5.model").write_bytes(data)
    tokenizer = sentencepiece.load(tmp_path / "t5.model")
    processor = spm_library.SentencePieceProcessor(model_proto=data)
    assert tokenizer.bos_id is None and not tokenizer.has_chat_template
    assert tokenizer.encode("  the   quick fox ") == [*processor.encode("  the   quick fox "), 1]
    assert tokenizer.decode(tokenizer.encode("the quick fox")) == "the quick fox"


def test_the_longest_control_name_at_the_earliest_place_is_taken(model):
    find = sentencepiece.finder({"<a": 1, "<ab>": 2, "[x]": 3})
    assert find("<ab><a<<a[x") == [2, 1, "<", 1, "[x"]
    assert find("") == [] and find("plain") == ["plain"] and find("y[x]") == ["y", 3]


@pytest.mark.parametrize("data", [b"", b"not a model", b"\x08\x01", b"\x00" * 64])
def test_another_file_is_refused(tmp_path, data):
    (tmp_path / "x.model").write_bytes(data)
    with pytest.raises(UserError, match="should be a SentencePiece model"):
        sentencepiece.load(tmp_path / "x.model")


def test_a_cut_off_file_is_refused(tmp_path, gemma_like):
    (tmp_path / "x.model").write_bytes(gemma_like[: len(gemma_like) // 2 + 1])
    with pytest.raises(UserError, match="SentencePiece model"):
        sentencepiece.load(tmp_path / "x.model")
