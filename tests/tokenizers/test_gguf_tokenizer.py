"""Tokenizers from the metadata of GGUF files."""

import pytest
import sentencepiece

from cascades.errors import UserError
from cascades.tokenizers import gguf

TEXTS = ["", " ", "the quick  brown\n\n\tfox 2024 😀 naïve 你", "<|im_end|>x<tool> <|im_start|>", "\x00 \u0301"]


def test_byte_level_equals_the_tokenizer_it_was_made_of(write_gguf, gpt2_keys, fast):
    tokenizer = gguf.load(write_gguf(**gpt2_keys))
    assert tokenizer.vocab_size == fast.get_vocab_size()  # the padding is not counted
    assert tokenizer.eos_ids == (0, 2) and tokenizer.bos_id == 1 and not tokenizer.add_bos
    for text in TEXTS:
        ids = tokenizer.encode(text)
        assert ids == fast.encode(text, add_special_tokens=False).ids
        assert tokenizer.decode(ids) == fast.decode(ids)


def test_control_tokens_are_text_without_special(write_gguf, gpt2_keys):
    tokenizer = gguf.load(write_gguf(**gpt2_keys))
    ids = tokenizer.encode("a<|im_end|>b", special=False)
    assert not set(ids) & tokenizer.control and tokenizer.decode(ids) == "a<|im_end|>b"
    assert tokenizer.encode("a<|im_end|>b")[1:-1] == [2]


@pytest.mark.parametrize(("pre", "expected"), [("llama-bpe", True), ("smollm", False), ("qwen2", False)])
def test_bos_follows_the_family_where_the_file_is_silent(write_gguf, gpt2_keys, pre, expected):
    del gpt2_keys["add_bos_token"]
    tokenizer = gguf.load(write_gguf(**(gpt2_keys | {"pre": pre})))
    assert tokenizer.add_bos is expected
    assert (tokenizer.encode("x")[0] == 1) is expected


def test_sentencepiece_equals_the_model_it_was_made_of(write_gguf, llama_keys, gemma_like):
    processor = sentencepiece.SentencePieceProcessor(model_proto=gemma_like)
    tokenizer = gguf.load(write_gguf(**llama_keys))
    for text in ["", "a", "  the quick   brown\n\n\nfox", "naïve 你好 😀 <b>x</b>", "\t\x00ﬁ", "x" + " " * 9 + "y"]:
        ids = tokenizer.encode(text)
        assert ids == [2, *processor.encode(text)]
        assert tokenizer.decode(ids) == text


def test_gemmas_control_tokens_are_found_and_not_printed(write_gguf, llama_keys):
    tokenizer = gguf.load(write_gguf(**llama_keys))
    turn, end = (llama_keys["tokens"].index(name) for name in ("<start_of_turn>", "<end_of_turn>"))
    assert tokenizer.eos_ids == (1, end)
    ids = tokenizer.encode("<start_of_turn>the<end_of_turn><start_of<eos>")
    assert ids[1] == turn and end in ids and ids[-1] == 1
    assert tokenizer.decode(ids) == "the<start_of"
    assert tokenizer.decode(tokenizer.encode("<end_of_turn>", special=False)) == "<end_of_turn>"


def test_a_space_in_front_is_put_and_taken_off(write_gguf, llama_keys):
    tokenizer = gguf.load(write_gguf(**(llama_keys | {"add_space_prefix": True})))
    ids = tokenizer.encode("the fox")
    assert tokenizer.pieces[ids[1]].startswith("▁") and tokenizer.decode(ids) == "the fox"
    assert tokenizer.decode(tokenizer.encode(" the")) == " the"


def test_a_space_stands_behind_every_control_token(write_gguf, llama_keys):
    """As llama.cpp and the tokenizer.json of Llama 2 have it: in a chat, what follows BOS is a text that begins."""
    tokenizer = gguf.load(write_gguf(**(llama_keys | {"add_space_prefix": True})))
    bos, *ids = tokenizer.encode("<bos>the<end_of_turn>fox")
    end = ids.index(llama_keys["tokens"].index("<end_of_turn>"))
    assert (bos, ids[:end]) == (2, tokenizer.split("the", True)) and ids[end + 1 :] == tokenizer.split("fox", True)
    assert tokenizer.printed_bytes(ids[0]).startswith(b" ") and tokenizer.printed_bytes(ids[end + 1]).startswith(b" ")


def test_a_text_that_begins_with_bos_gets_no_second(write_gguf, llama_keys):
    tokenizer = gguf.load(write_gguf(**llama_keys))
    assert tokenizer.encode("<bos>the") == tokenizer.encode("the")
    assert tokenizer.encode("<bos>the", special=False)[0] == 2


def test_the_chat_template_writes_the_turns(write_gguf, gpt2_keys):
    template = "{{ bos_token }}{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"
    tokenizer = gguf.load(write_gguf(chat_template=template, **(gpt2_keys | {"add_bos_token": True})))
    assert tokenizer.has_chat_template
    ids = tokenizer.chat([{"role": "user", "content": "fox"}])
    assert ids == [
        1,
        *tokenizer.split("fox", True),
        2,
    ]  # one BOS, though the model wants one and the template writes it


def test_named_templates_are_chosen_and_an_empty_one_is_told(write_gguf, gpt2_keys):
    gpt2_keys.pop("tokenizer.chat_template", None)
    named = {"tokenizer.chat_template.tool_use": "T{{ messages[0].content }}", "tokenizer.chat_templates": ["tool_use"]}
    tokenizer = gguf.load(write_gguf(**(gpt2_keys | named)))
    assert tokenizer.has_chat_template
    with pytest.raises(UserError, match="tool_use.*CHAT_TEMPLATE"):
        tokenizer.chat([{"role": "user", "content": "x"}])
    assert tokenizer.decode(tokenizer.using("tool_use").chat([{"role": "user", "content": "x"}])) == "Tx"
    empty = gguf.load(write_gguf(chat_template=" ", **gpt2_keys))
    assert not empty.has_chat_template and "is empty and counts as none" in empty.remarks[0]


def test_end_of_turn_tokens_are_control_tokens_whatever_the_file_says(write_gguf, gpt2_keys):
    kinds = [1 if kind == 3 else kind for kind in gpt2_keys["token_type"]]
    tokenizer = gguf.load(write_gguf(**(gpt2_keys | {"token_type": kinds})))
    assert tokenizer.eos_ids == (0, 2) and tokenizer.decode(tokenizer.encode("a<|im_end|>")) == "a"


def test_eos_goes_behind_a_text_where_the_file_asks(write_gguf, gpt2_keys):
    tokenizer = gguf.load(write_gguf(**(gpt2_keys | {"add_eos_token": True})))
    assert tokenizer.encode("fox") == [*tokenizer.split("fox", True), 2] == tokenizer.encode("fox<|im_end|>")


def broken(keys, **changes):
    return {key: value for key, value in (keys | changes).items() if value is not None}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "bert"}, "kind gpt2 or llama, but tokenizer.ggml.model is 'bert'"),
        ({"model": None}, "should hold a tokenizer"),
        ({"tokens": None}, "should hold a tokenizer"),
        ({"pre": "klingon"}, "gpt-2.*llama-bpe.*qwen2.*smollm.*'klingon'"),
        ({"merges": None}, "merges"),
        ({"merges": ["zz qq"]}, "built of its pieces"),
        ({"token_type": [1, 1]}, "type for each"),
        ({"bos_token_id": 9999}, "one is 9999"),
        ({"model": "llama"}, "scores"),
    ],
)
def test_what_is_wrong_is_said(write_gguf, gpt2_keys, changes, message):
    path = write_gguf(**broken(gpt2_keys, **changes))
    with pytest.raises(UserError, match=message):
        gguf.load(path)


def test_a_broken_piece_table_is_said(write_gguf, llama_keys):
    tokens = ["the", "the", *llama_keys["tokens"][2:]]
    with pytest.raises(UserError, match="damaged"):
        gguf.load(write_gguf(**(llama_keys | {"tokens": tokens})))
