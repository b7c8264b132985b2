"""Every key of a tokenizer in a GGUF file is read, known to change nothing, or refused by name."""

import pathlib
import re

import gguf as package
import numpy as np
import pytest

from cascades.errors import UserError
from cascades.tokenizers import gguf, gguf_keys

FILE = pathlib.Path("file")
TEXTS = ["", "the quick  brown\n\n\tfox 2024 😀 naïve 你", "<|im_end|>x<tool> <|im_start|>", "I'm HE'LL 12345"]


def lacking(keys, *names):
    return {key: value for key, value in keys.items() if key not in names}


def read(keys, *, architecture="llama", **others):
    """The checked table of keys of `tokenizer.ggml.`; others with their whole name, dots as two underscores."""
    metadata = {f"tokenizer.ggml.{key}": value for key, value in keys.items()}
    metadata |= {key.replace("__", "."): value for key, value in others.items()}
    for key, value in metadata.items():  # as the parser gives them
        if isinstance(value, list) and value and not isinstance(value[0], str):
            metadata[key] = np.array(value)
    return gguf_keys.read({"general.architecture": architecture} | metadata, FILE)


def test_a_table_without_types_is_read_as_with_them(write_gguf, gpt2_keys):
    """Control tokens are found in a text and not printed, the tool's tag is found and printed, the padding is cut."""
    typed = gguf.load(write_gguf(**gpt2_keys))
    untyped = gguf.load(write_gguf("untyped.gguf", **lacking(gpt2_keys, "token_type")))
    assert untyped.vocab_size == typed.vocab_size and untyped.eos_ids == typed.eos_ids
    assert untyped.control == typed.control and len(typed.control) == 3
    for text in TEXTS:
        for special in (True, False):
            ids = untyped.encode(text, special=special)
            assert ids == typed.encode(text, special=special)
            assert untyped.decode(ids) == typed.decode(ids)


@pytest.mark.parametrize("piece", ["added", "<half", "[x"])
def test_a_type_that_cannot_be_told_is_asked_for(gpt2_keys, piece):
    tokens = [*gpt2_keys["tokens"][:-1], piece]
    with pytest.raises(UserError, match=rf"file should name the types .*token_type.*{re.escape(repr(piece))}"):
        read(lacking(gpt2_keys, "token_type") | {"tokens": tokens})
    # Llama 3's table has words that no merge makes, and takes them whole.
    assert read(lacking(gpt2_keys, "token_type") | {"tokens": tokens, "pre": "llama-bpe"})["token_type"][-1] == 1


def test_sentencepiece_without_types_is_asked_for(llama_keys):
    with pytest.raises(UserError, match="file should name the types of its tokens .tokenizer.ggml.token_type."):
        read(lacking(llama_keys, "token_type"))


LLAMA3 = ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"]
SMOLLM = ["<repo_name>", "<jupyter_start>"]


@pytest.mark.parametrize(
    ("architecture", "added", "expected"),
    [
        ("qwen2", [], "qwen2"),
        ("llama", LLAMA3, "llama-bpe"),
        ("llama", LLAMA3[:2], "llama-bpe"),
        ("llama", [LLAMA3[0], LLAMA3[2]], "llama-bpe"),
        ("llama", SMOLLM, "smollm"),
        ("llama", [], None),
        ("llama", LLAMA3[1:], None),
        ("llama", SMOLLM[:1], None),
        ("gemma", LLAMA3, None),
        (None, LLAMA3, None),
    ],
)
def test_how_words_are_cut_is_inferred_or_asked_for(gpt2_keys, architecture, added, expected):
    keys = lacking(gpt2_keys, "pre")
    keys |= {"tokens": keys["tokens"] + added, "token_type": keys["token_type"] + [3] * len(added)}
    if expected is None:
        with pytest.raises(UserError, match="file should say how .*tokenizer.ggml.pre"):
            read(keys, architecture=architecture)
    else:
        assert read(keys, architecture=architecture)["pre"] == expected


def test_what_is_said_is_not_inferred(write_gguf, gpt2_keys):
    assert read(gpt2_keys | {"pre": "default"}, architecture="qwen2")["pre"] == "default"
    default = gguf.load(write_gguf(**(gpt2_keys | {"pre": "default"})))
    assert default.encode("HE'LL 1234") != gguf.load(write_gguf(**(gpt2_keys | {"pre": "qwen2"}))).encode("HE'LL 1234")


# Per key: a value that changes no token, and one that does; None where the key itself does, or never.
KEYS = {
    "tokenizer.ggml.add_sep_token": (False, True),
    "tokenizer.ggml.add_padding_token": (False, True),
    "tokenizer.ggml.added_tokens": (["<|im_end|>"], ["<|never_seen|>"]),
    "tokenizer.ggml.precompiled_charsmap": (np.zeros(0, np.int8), np.array([0, 0, 2, 0], np.int8)),
    "tokenizer.ggml.normalizer.lowercase": (False, True),
    "tokenizer.ggml.normalizer.strip_accents": (False, True),
    "tokenizer.ggml.suppress_tokens": (np.zeros(0, np.int32), np.array([3, 4])),
    "tokenizer.ggml.remove_extra_whitespaces": (False, True),
    "tokenizer.ggml.token_type_count": (2, None),
    "tokenizer.ggml.fim_pre_token_id": (10**9, None),
    "tokenizer.ggml.fim_pad_token_id": ("x", None),
    "tokenizer.ggml.prefix_token_id": (-7, None),
    "tokenizer.ggml.mask_token_id": (3, None),
    "tokenizer.ggml.cls_token_id": (10**9, None),
    "tokenizer.ggml.seperator_token_id": (10**9, None),
    "tokenizer.ggml.a_key_of_tomorrow": (0, 0.5),
    "tokenizer.huggingface.json": ("{}", None),
    "tokenizer.rwkv.world": ("", "1 'a' 1"),
    "tokenizer.chat_templates": (["tool_use"], None),
}


@pytest.mark.parametrize("key", sorted(KEYS))
def test_a_key_is_harmless_with_one_value_and_refused_by_name_with_another(gpt2_keys, key):
    harmless, harmful = KEYS[key]
    table = read(gpt2_keys, **{key.replace(".", "__"): harmless})
    assert lacking(table, key.removeprefix("tokenizer.ggml."), key).keys() == read(gpt2_keys).keys()
    if harmful is not None:
        with pytest.raises(UserError, match=rf"^file asks for {key} = "):
            read(gpt2_keys, **{key.replace(".", "__"): harmful})


@pytest.mark.parametrize(
    "key", sorted(value for value in vars(package.Keys.Tokenizer).values() if "tokenizer." in str(value))
)
def test_no_key_of_the_package_is_passed_over(gpt2_keys, key):
    """A value of a type that no key has is refused by that key's name, but for keys that change nothing."""
    key = key.format(name="tool_use") if "{name}" in key else key
    metadata = {f"tokenizer.ggml.{name}": value for name, value in gpt2_keys.items()}
    metadata |= {"tokenizer.ggml.token_type": np.array(gpt2_keys["token_type"]), key: {"strange": 1}}
    if gguf_keys._HARMLESS.fullmatch(key.removeprefix("tokenizer.ggml.")):
        gguf_keys.read(metadata, FILE)
        return
    with pytest.raises(UserError, match=rf"^file .*{key}"):
        gguf_keys.read(metadata, FILE)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens": "abc"}, "tokenizer.ggml.tokens as a list of texts, not 'abc'"),
        ({"merges": 3}, "tokenizer.ggml.merges as a list of texts"),
        ({"merges": ["ab"]}, "built of its pieces"),
        ({"merges": ["a b c"]}, "built of its pieces"),
        ({"token_type": 1}, "tokenizer.ggml.token_type as a list of whole numbers, not 1"),
        ({"bos_token_id": "1"}, "tokenizer.ggml.bos_token_id as the id of a token, not '1'"),
        ({"bos_token_id": True}, "tokenizer.ggml.bos_token_id as the id of a token, not True"),
        ({"add_bos_token": "yes"}, "tokenizer.ggml.add_bos_token as true or false, not 'yes'"),
        ({"add_eos_token": 1}, "tokenizer.ggml.add_eos_token as true or false, not 1"),
        ({"pre": 7}, "tokenizer.ggml.pre as text, not 7"),
        ({"model": "t5"}, "kind gpt2 or llama, but tokenizer.ggml.model is 't5'"),
        ({"model": "none"}, "is 'none'"),
        ({"model": 4}, "is 4"),
        ({"model": [1, 2]}, "tokenizer.ggml.model is array"),
        ({"bos_token_id": 9999}, "tokenizer.ggml.bos_token_id below its 401 tokens, but one is 9999"),
        ({"bos_token_id": None, "add_bos_token": True}, "tokenizer.ggml.bos_token_id below .* one is missing"),
        ({"eos_token_id": 9999, "add_eos_token": True}, "tokenizer.ggml.eos_token_id below .* one is 9999"),
    ],
)
def test_what_is_wrong_names_its_key(write_gguf, gpt2_keys, changes, message):
    keys = {key: value for key, value in (gpt2_keys | changes).items() if value is not None}
    size = len([kind for kind in gpt2_keys["token_type"] if kind != 5])
    with pytest.raises(UserError, match=message.replace("401", str(size))):
        gguf.load(write_gguf(**keys))


@pytest.mark.parametrize("kind", [0, 7, -1, 1000])
def test_a_type_of_token_that_is_not_known(write_gguf, gpt2_keys, kind):
    kinds = [kind, *gpt2_keys["token_type"][1:]]
    with pytest.raises(UserError, match=f"types of tokens from 1 to 6 .*token_type.*names {kind}"):
        gguf.load(write_gguf(**(gpt2_keys | {"token_type": kinds})))


def test_a_token_twice(write_gguf, gpt2_keys):
    tokens = [*gpt2_keys["tokens"][:5], "!", *gpt2_keys["tokens"][6:]]
    with pytest.raises(UserError, match="each of its tokens once.* damaged .'!'."):
        gguf.load(write_gguf(**(gpt2_keys | {"tokens": tokens})))


@pytest.mark.parametrize(
    "scores", [None, [], [0.0], [0.0] * 1000, [float("nan")] * 420, [float("inf")] * 420, ["a"] * 420, 0]
)
def test_scores_that_cannot_be(write_gguf, llama_keys, scores):
    keys = {key: value for key, value in (llama_keys | {"scores": scores}).items() if value is not None}
    if scores == []:  # the writer leaves empty lists out
        keys["scores"] = [0.0, 0.0]
    with pytest.raises(UserError, match="tiny.gguf should give .*score"):
        gguf.load(write_gguf(**keys))


def test_a_byte_that_is_not_spelled_as_one(write_gguf, llama_keys):
    index = llama_keys["tokens"].index("<0x41>")
    tokens = [*llama_keys["tokens"][:index], "<0xZZ>", *llama_keys["tokens"][index + 1 :]]
    with pytest.raises(UserError, match="bytes as <0x0A>.*'<0xZZ>'"):
        gguf.load(write_gguf(**(llama_keys | {"tokens": tokens})))


@pytest.mark.parametrize(
    ("declared", "expected"),
    [
        ({"eot_token_id": 9999}, (0, 2)),  # behind the vocabulary: it names no token
        ({"eot_token_id": 402, "eom_token_id": 2**31}, (0, 2)),  # padding
        ({"eos_token_id": 9999}, (0, 2)),  # the table's own ends of a turn are left
        ({"eos_token_id": 2**32 - 1}, (0, 2)),  # none
        ({"eot_token_id": 7}, (0, 2, 7)),
        ({"eom_token_id": 7}, (0, 2, 7)),
        ({"eos_token_ids": [7, 9, 9999]}, (0, 2, 7, 9)),
        ({"eog_token_ids": [8]}, (0, 2, 8)),
        ({"padding_token_id": 9999, "unknown_token_id": 9999}, (0, 2)),
    ],
)
def test_ends_of_a_turn(write_gguf, gpt2_keys, declared, expected):
    tokenizer = gguf.load(write_gguf(**(gpt2_keys | declared)))
    assert tokenizer.eos_ids == expected
    assert tokenizer.special_tokens.keys() <= {"bos_token", "eos_token"}


def test_no_end_at_all_is_said(write_gguf, llama_keys):
    """The only end that is declared lies behind the vocabulary, and no token is known as one."""
    renamed = {"<eos>": "<finis>", "<end_of_turn>": "<fin_de_tour>"}
    tokens = [renamed.get(token, token) for token in llama_keys["tokens"]]
    keys = llama_keys | {"tokens": tokens}
    assert gguf.load(write_gguf(**keys)).eos_ids == (1,)
    with pytest.raises(UserError, match="tokenizer.ggml.eos_token_id below .* one is 77777"):
        gguf.load(write_gguf(**(keys | {"eos_token_id": 77_777})))


def test_a_declared_end_that_is_a_tag_is_a_control_token(write_gguf, gpt2_keys):
    index = gpt2_keys["tokens"].index("<tool>")
    tokenizer = gguf.load(write_gguf(**(gpt2_keys | {"eos_token_id": index})))
    assert index in tokenizer.control and tokenizer.decode([index]) == ""
    comma = gpt2_keys["tokens"].index(",")  # llama.cpp's default is id 11, which some files repeat
    assert comma not in gguf.load(write_gguf(**(gpt2_keys | {"bos_token_id": comma}))).control


def test_begin_of_text_where_the_file_does_not_name_it(write_gguf, gpt2_keys, llama_keys):
    """SentencePiece puts it before a text unless told otherwise; it is found by its name."""
    silent = lacking(llama_keys, "bos_token_id", "add_bos_token")
    tokenizer = gguf.load(write_gguf(**silent))
    assert (tokenizer.bos_id, tokenizer.add_bos) == (2, True) and tokenizer.special_tokens["bos_token"] == "<bos>"
    assert not gguf.load(write_gguf(**(silent | {"add_bos_token": False}))).add_bos
    nameless = silent | {"tokens": [token.replace("<bos>", "<begin>") for token in llama_keys["tokens"]]}
    with pytest.raises(UserError, match="tokenizer.ggml.bos_token_id below .* one is missing"):
        gguf.load(write_gguf(**nameless))
    llama3 = lacking(gpt2_keys, "bos_token_id", "add_bos_token") | {"pre": "llama-bpe"}
    with pytest.raises(UserError, match="one is missing"):
        gguf.load(write_gguf(**llama3))
    llama3["tokens"] = [token.replace("<|im_start|>", "<|begin_of_text|>") for token in llama3["tokens"]]
    assert gguf.load(write_gguf(**llama3)).encode("x")[0] == 1
    none = gguf.load(write_gguf(**(lacking(gpt2_keys, "add_bos_token") | {"bos_token_id": 2**32 - 1})))
    assert none.bos_id is None and not none.add_bos


def test_an_unknown_token_that_is_not_there(write_gguf, llama_keys):
    expected = gguf.load(write_gguf(**llama_keys)).encode("the fox")
    assert gguf.load(write_gguf(**(llama_keys | {"unknown_token_id": 77_777}))).encode("the fox") == expected
    tokens = [token.replace("<unk>", "<who>") for token in llama_keys["tokens"]]
    with pytest.raises(UserError, match="an unknown token"):
        gguf.load(write_gguf(**(lacking(llama_keys, "unknown_token_id") | {"tokens": tokens})))


def test_gemma_takes_no_space_before_a_text_whatever_its_file_lacks(llama_keys):
    silent = lacking(llama_keys, "add_space_prefix")
    for architecture, expected in {"gemma": False, "gemma2": False, "gemma3": False, "llama": True, None: True}.items():
        assert read(silent, architecture=architecture)["add_space_prefix"] is expected
    assert read(silent | {"add_space_prefix": True}, architecture="gemma")["add_space_prefix"] is True


def test_templates_by_name():
    assert gguf_keys.templates({}) == {}
    assert gguf_keys.templates({"tokenizer.chat_template": "a"}) == {"default": "a"}
    table = {"tokenizer.chat_template.tool_use": "b", "tokenizer.chat_templates": ["tool_use"]}
    assert gguf_keys.templates(table) == {"tool_use": "b"}
    assert gguf_keys.templates(table | {"tokenizer.chat_template": "a"}) == {"default": "a", "tool_use": "b"}


@pytest.mark.parametrize("key", ["tokenizer.chat_template", "tokenizer.chat_template.rag", "tokenizer.chat_templates"])
def test_a_template_that_is_no_text(gpt2_keys, key):
    with pytest.raises(UserError, match=f"file should give {key} as .*text"):
        read(gpt2_keys, **{key.replace(".", "__"): 5})
